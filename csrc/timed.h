/*
 * timed.h - conditions that are waited for no longer than some time, by a clock that nobody sets.
 */
#ifndef DS4KV_TIMED_H
#define DS4KV_TIMED_H

#include <pthread.h>
#include <stdbool.h>
#include <time.h>

int timed_init(pthread_cond_t *condition); /* 0, or an error number */

struct timespec timed_end(int ms); /* in so many milliseconds */

/* Until the condition is signalled; false: the time is over. Called and left with the mutex locked. */
bool timed_wait(pthread_cond_t *condition, pthread_mutex_t *mutex, const struct timespec *end);

#endif
