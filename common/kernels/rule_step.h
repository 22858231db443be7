/* One step of many parameter tensors in place. The generated code before it has SLOTS and `span`, which returns how
   many coordinates it left alone. */

typedef struct {
    long count;
    const long *sizes;
    void *const *thetas, *const *grads;
    void *const *kept; /* a row a tensor: steps taken (float), coordinates left alone (int64), arrays of state */
    const double *constant;
    const settings *set;
} stepping;

static void part(const stepping *s, long k, long from, long to) {
    void *const *row = s->kept + k * (2 + SLOTS);
    real *state[SLOTS + 1];
    for (int j = 0; j < SLOTS; j++) state[j] = (real *)row[2 + j] + from;
    word left = span(to - from, (stored *)s->thetas[k] + from, (const stored *)s->grads[k] + from, state,
                     s->constant, (double)*(float *)row[0] + 1.0, s->set);
    if (left) __atomic_fetch_add((int64_t *)row[1], (int64_t)left, __ATOMIC_RELAXED);
}

static void share_of_step(void *job, long share, void *scratch) {
    const stepping *s = job;
    long total = 0, at = 0;
    (void)scratch;
    for (long k = 0; k < s->count; k++) total += s->sizes[k];
    const long low = border(total, share), high = border(total, share + 1);
    for (long k = 0; k < s->count && at < high; at += s->sizes[k++]) {
        long from = low > at ? low - at : 0, to = high - at < s->sizes[k] ? high - at : s->sizes[k];
        if (from < to) part(s, k, from, to);
    }
}

/* A tensor's count of steps stands still where all of its coordinates were left alone. */
int step(long count, const long *sizes, void *const *thetas, void *const *grads, void *const *kept,
         const double *constant, const settings *set, share_out_type *share_out, int threads) {
    stepping job = {count, sizes, thetas, grads, kept, constant, set};
    for (long k = 0; k < count; k++) *(int64_t *)kept[k * (2 + SLOTS) + 1] = 0;
    if (threads > 1) {
        if (!share_out(share_of_step, &job, 0, threads)) return 0;
    } else
        for (long k = 0; k < count; k++) part(&job, k, 0, sizes[k]);
    for (long k = 0; k < count; k++) {
        void *const *row = kept + k * (2 + SLOTS);
        if (*(int64_t *)row[1] < sizes[k] || sizes[k] == 0) *(float *)row[0] += 1.0f;
    }
    return 1;
}
