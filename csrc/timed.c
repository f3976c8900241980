/*
 * timed.c - waits by the monotonic clock.
 */
#define _GNU_SOURCE /* pthread_condattr_setclock, under -std=c11 */
#include "timed.h"

#include <errno.h>
#include <stdint.h>

int timed_init(pthread_cond_t *condition)
{
#ifdef __APPLE__ /* has waits for a span instead */
    return pthread_cond_init(condition, NULL);
#else
    pthread_condattr_t attributes;
    int status = pthread_condattr_init(&attributes);
    if (status != 0)
        return status;
    status = pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    if (status == 0)
        status = pthread_cond_init(condition, &attributes);
    pthread_condattr_destroy(&attributes);
    return status;
#endif
}

struct timespec timed_end(int ms)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    int64_t ns = time.tv_nsec + ms % 1000 * (int64_t)1000000;
    time.tv_sec += ms / 1000 + ns / 1000000000;
    time.tv_nsec = ns % 1000000000;
    return time;
}

bool timed_wait(pthread_cond_t *condition, pthread_mutex_t *mutex, const struct timespec *end)
{
#ifdef __APPLE__
    struct timespec now, left;
    clock_gettime(CLOCK_MONOTONIC, &now);
    left.tv_sec = end->tv_sec - now.tv_sec - (end->tv_nsec < now.tv_nsec);
    left.tv_nsec = end->tv_nsec - now.tv_nsec + (end->tv_nsec < now.tv_nsec ? 1000000000 : 0);
    return left.tv_sec >= 0 && pthread_cond_timedwait_relative_np(condition, mutex, &left) != ETIMEDOUT;
#else
    return pthread_cond_timedwait(condition, mutex, end) != ETIMEDOUT;
#endif
}
