/* Jobs in 64 shares for threads; the pool is pool.c, a library of its own, so that a process has one. */

#define SHARES 64 /* of N alone, so the bits of a sum over shares are too */

/* Runs work(job, share, scratch) for every share by up to `threads` threads; each gets `bytes` of scratch on a
   border of 64. 0: memory is short. */
typedef int share_out_type(void (*work)(void *, long, void *), void *job, unsigned long bytes, int threads);
