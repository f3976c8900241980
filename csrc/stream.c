/*
 * stream.c - what sink.c and source.c have in common: a status as an errno, and how many workers.
 */
#define _GNU_SOURCE /* sched_getaffinity */
#include "stream.h"

#include <sched.h>
#include <unistd.h>

#include "ds4kv.h"

int stream_errno(int64_t status)
{
    if (status >= DS4KV_OK)
        return 0;
    switch (status) {
    case DS4KV_CORRUPT:
        return EBADMSG;
    case DS4KV_TRUNCATED:
        return TRUNCATED_ERRNO;
    case DS4KV_PARAM:
        return EINVAL;
    case DS4KV_STATE: /* nothing here is called at a wrong moment but by a forked child */
        return EBADF;
    case DS4KV_NOMEM:
        return ENOMEM;
    default:
        return EIO;
    }
}

int stream_workers(int workers)
{
    long cpus = sysconf(_SC_NPROCESSORS_ONLN);
#ifdef CPU_COUNT
    cpu_set_t own;
    if (sched_getaffinity(0, sizeof own, &own) == 0)
        cpus = CPU_COUNT(&own);
#endif
    return workers <= DS4KV_MAX_WORKERS && cpus > 0 && workers > cpus ? (int)cpus : workers;
}
