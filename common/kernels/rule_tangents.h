/* Derivatives of theta and of the state by constants, one step on, in place. The generated code before it has SLOTS,
   MOVED and `span`. */

typedef struct {
    long n, apart;
    const real *x;
    real *const *state, *const *moved;
    const double *constant, *seed;
    double t;
    real keep, rate;
} carrying;

static void share_of_tangents(void *job, long share, void *scratch) {
    const carrying *c = job;
    const long low = border(c->n, share), high = border(c->n, share + 1);
    real *state[SLOTS + 1], *moved[MOVED + 1];
    (void)scratch;
    for (int j = 0; j < SLOTS; j++) state[j] = c->state[j] + low;
    for (int j = 0; j < MOVED; j++) moved[j] = c->moved[j] + low;
    if (low < high)
        span(high - low, c->apart, c->x + low, state, moved, c->constant, c->seed, c->t, c->keep, c->rate);
}

/* Inputs x [F, n], rows `apart` numbers apart, and the state before the step; seed: of every constant the derivative
   by what is trained in its place. */
int tangents(long n, long apart, const real *x, real *const *state, real *const *moved, const double *constant,
             const double *seed, double t, double keep, double rate, share_out_type *share_out, int threads) {
    carrying job = {n, apart, x, state, moved, constant, seed, t, (real)keep, (real)rate};
    if (threads > 1) return share_out(share_of_tangents, &job, 0, threads);
    span(n, apart, x, state, moved, constant, seed, t, job.keep, job.rate);
    return 1;
}
