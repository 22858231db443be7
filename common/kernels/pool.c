/* The thread pool of all compiled code of a process. */

#include <pthread.h>
#include <stdlib.h>

#include "pool.h"

/* The flags of the compiler, for the record of a run: some are left out where it does not know them. */
const char *compiled_with = L2O_COMPILED_WITH;

static void *aligned(size_t bytes) {
    void *p = NULL;
    return posix_memalign(&p, 64, bytes ? bytes : 64) ? NULL : p;
}

/* Threads that take shares of a job. Whoever calls works too and waits only for shares that somebody has begun:
   with OpenMP's barriers a busy machine, where one of the threads does not run, is ten times slower. */
typedef struct {
    void (*work)(void *job, long share, void *scratch);
    void *job;
    size_t scratch; /* bytes a thread needs */
    long next, late; /* late: threads at work on it */
    int good, helpers; /* helpers: that may still join */
} duty;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER, calls = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t come = PTHREAD_COND_INITIALIZER, gone = PTHREAD_COND_INITIALIZER;
static duty *current;
static int running;

/* In the child of a fork, which has no threads, and maybe locks that somebody held. */
static void begin_anew(void) {
    pthread_mutex_init(&lock, NULL), pthread_mutex_init(&calls, NULL);
    pthread_cond_init(&come, NULL), pthread_cond_init(&gone, NULL);
    running = 0, current = NULL;
}

__attribute__((constructor)) static void prepare_for_forks(void) { pthread_atfork(NULL, NULL, begin_anew); }

/* Shares of a duty until there are none; called and left with the lock held. */
static void take(duty *d) {
    void *scratch = NULL;
    d->late++;
    while (d->next < SHARES) {
        long share = d->next++;
        pthread_mutex_unlock(&lock);
        if (!scratch) scratch = aligned(d->scratch);
        if (scratch) d->work(d->job, share, scratch);
        pthread_mutex_lock(&lock);
        if (!scratch) d->good = 0;
    }
    free(scratch);
    if (--d->late == 0) pthread_cond_broadcast(&gone);
}

static void *helper(void *nothing) {
    pthread_mutex_lock(&lock);
    for (;;) {
        while (!current || current->next >= SHARES || current->helpers <= 0) pthread_cond_wait(&come, &lock);
        current->helpers--;
        take(current);
    }
    return nothing;
}

/* All shares of a job, by up to `threads` threads; 0 where memory is short. */
int share_out(void (*work)(void *, long, void *), void *job, unsigned long scratch, int threads) {
    duty d = {work, job, scratch, 0, 0, 1, threads - 1};
    if (threads <= 1) {
        void *mine = aligned(scratch);
        for (long share = 0; mine && share < SHARES; share++) work(job, share, mine);
        free(mine);
        return mine != NULL;
    }
    pthread_mutex_lock(&calls); /* one call at a time */
    pthread_mutex_lock(&lock);
    for (pthread_t id; running < threads - 1 && pthread_create(&id, NULL, helper, NULL) == 0; running++)
        pthread_detach(id);
    current = &d;
    pthread_cond_broadcast(&come);
    take(&d);
    while (d.late > 0) pthread_cond_wait(&gone, &lock);
    current = NULL;
    pthread_mutex_unlock(&lock);
    pthread_mutex_unlock(&calls);
    return d.good;
}
