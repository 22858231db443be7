/* sum_t <c_t, d out_t / d constant> over an unroll, forward mode: derivatives of the state go along with it, so
   nothing of a step is kept. The generated code before it has SLOTS, WRT, WIDE and `span`, for at most WIDE
   coordinates. */

#include <stdlib.h>

typedef struct {
    long n, steps;
    const real *x, *c;
    real *const *start;
    const double *constant;
    double before; /* steps taken before these */
    double *parts;
} vjp_job;

static void share_of_vjp(void *job, long share, void *scratch) {
    const vjp_job *p = job;
    real *start[SLOTS + 1];
    (void)scratch;
    for (long at = border(p->n, share), end = border(p->n, share + 1); at < end; at += WIDE) {
        for (int j = 0; j < SLOTS; j++) start[j] = p->start[j] + at;
        span(end - at < WIDE ? end - at : WIDE, p->steps, p->n, p->x + at, p->c + at, start, p->constant, p->before,
             p->parts + share * WRT);
    }
}

/* found [WRT] from inputs x [steps, F, n], c [steps, n] and the state before the first step. 0: memory is short. */
int vjp(long n, long steps, const real *x, const real *c, real *const *start, const double *constant,
         double before, double *found, share_out_type *share_out, int threads) {
    double *parts = calloc(SHARES * WRT, sizeof(double));
    vjp_job job = {n, steps, x, c, start, constant, before, parts};
    int good = parts != NULL;
    if (good && threads > 1) good = share_out(share_of_vjp, &job, 0, threads);
    else if (good)
        for (long share = 0; share < SHARES; share++) share_of_vjp(&job, share, NULL);
    for (int k = 0; good && k < WRT; k++) {
        found[k] = 0;
        for (long share = 0; share < SHARES; share++) found[k] += parts[share * WRT + k];
    }
    free(parts);
    return good;
}
