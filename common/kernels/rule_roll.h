/* One step from inputs [F, n] and old state to outputs [O, n] and new state. The generated code before it has SLOTS
   and `span`. */

typedef struct {
    long n, in_apart, out_apart;
    const real *x;
    real *const *before, *const *after, *out;
    const double *constant;
    double t;
} rolling;

static void share_of_roll(void *job, long share, void *scratch) {
    const rolling *r = job;
    const long low = border(r->n, share), high = border(r->n, share + 1);
    real *before[SLOTS + 1], *after[SLOTS + 1];
    (void)scratch;
    for (int j = 0; j < SLOTS; j++) before[j] = r->before[j] + low, after[j] = r->after[j] + low;
    if (low < high)
        span(high - low, r->in_apart, r->out_apart, r->x + low, before, after, r->out + low, r->constant, r->t);
}

/* Rows of x and out are in_apart and out_apart numbers apart; before and after may be the same arrays. */
int roll(long n, long in_apart, long out_apart, const real *x, real *const *before, real *const *after, real *out,
         const double *constant, double t, share_out_type *share_out, int threads) {
    rolling job = {n, in_apart, out_apart, x, before, after, out, constant, t};
    if (threads > 1) return share_out(share_of_roll, &job, 0, threads);
    span(n, in_apart, out_apart, x, before, after, out, constant, t);
    return 1;
}
