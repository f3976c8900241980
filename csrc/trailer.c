/*
 * trailer.c - layout packed: the trailer of a file that is read, and its sum.
 *
 * Another program may be writing a tool map at this moment, which takes it a millisecond, and no lock is taken for that.
 * So what is wrong is looked at again, and is damage only if it stays wrong in a file that stays as it is.
 */
#define _GNU_SOURCE /* fmemopen */
#include "trailer.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <time.h>

#include "bytes.h"
#include "fault.h"
#include "file.h"
#include "seal.h"

#define TRIES 50        /* a millisecond apart */
#define OLD_SECONDS 2   /* since the last write: nobody is at it. The clocks of files are coarse */
#define OPENING_TRIES 3 /* of a trailer that is replaced between two looks */

#ifdef __APPLE__
#define STAT_MTIME(stat) (stat).st_mtimespec
#define STAT_CTIME(stat) (stat).st_ctimespec
#else
#define STAT_MTIME(stat) (stat).st_mtim
#define STAT_CTIME(stat) (stat).st_ctim
#endif

/* What of the file shows that somebody writes to it. */
typedef struct {
    uint64_t bytes; /* behind the region */
    bool is_flagged;
    struct timespec mtime, ctime;
} state;

static bool is_time(struct timespec a, struct timespec b)
{
    return a.tv_sec == b.tv_sec && a.tv_nsec == b.tv_nsec;
}

static bool is_same(const state *a, const state *b)
{
    return a->bytes == b->bytes && a->is_flagged == b->is_flagged && is_time(a->mtime, b->mtime) &&
           is_time(a->ctime, b->ctime);
}

static int look(const checkpoint *c, state *state, ds4kv_fault *fault)
{
    struct stat stat;
    uint8_t flags;
    size_t n = 1;
    int os_error, status = file_read(fileno(c->file), &flags, &n, EXT_FLAGS_AT, &os_error);
    if (status == DS4KV_OK && fstat(fileno(c->file), &stat) != 0) {
        os_error = errno;
        status = DS4KV_IO;
    }
    if (status == DS4KV_IO)
        return fault_io(fault, 0, "can't be read", os_error);
    if (status != DS4KV_OK)
        return fault_set(fault, status, EXT_FLAGS_AT, "file", "the file became shorter while it was read");
    state->bytes = (uint64_t)stat.st_size < c->region_end ? 0 : (uint64_t)stat.st_size - c->region_end;
    state->is_flagged = flags & DS4KV_EXT_TOOL_MAP;
    state->mtime = STAT_MTIME(stat);
    state->ctime = STAT_CTIME(stat);
    return DS4KV_OK;
}

/* Without the flag of a tool map it may be one that was being rewritten when that was killed: then there is none. */
static int judge_once(checkpoint *c, const state *state, ds4kv_fault *fault)
{
    uint8_t noted[DS4KV_TRAILER_SUM_SIZE];
    uint64_t all = state->bytes, size = all - sizeof noted;
    size_t n = sizeof noted;
    int os_error;
    c->seen.trailer_bytes = 0;
    if (all <= sizeof noted)
        return !state->is_flagged ? DS4KV_OK
                                  : fault_set(fault, DS4KV_TRUNCATED, c->region_end + all, "trailer",
                                              "the file ends within the trailer and its sum");
    int status = trailer_sum(&c->trailer_sum, fileno(c->file), c->region_end, size, c->frame.seal, &os_error);
    if (status == DS4KV_OK)
        status = file_read(fileno(c->file), noted, &n, c->region_end + size, &os_error);
    if (status == DS4KV_IO)
        return fault_io(fault, 0, "can't be read", os_error);
    if (status == DS4KV_OK && c->trailer_sum == get_u64(noted))
        c->seen.trailer_bytes = size;
    else if (state->is_flagged)
        return fault_set(fault, DS4KV_CORRUPT, c->region_end, "trailer", "the trailer is not what was written");
    return DS4KV_OK;
}

int trailer_judge(checkpoint *c, ds4kv_fault *fault)
{
    const struct timespec ms = {.tv_nsec = 1000000};
    state first, before, after;
    for (int i = 0;; i++) {
        int status = look(c, &before, fault), verdict = status == DS4KV_OK ? judge_once(c, &before, fault) : status;
        if (verdict != DS4KV_CORRUPT && verdict != DS4KV_TRUNCATED)
            return verdict;
        ds4kv_fault unsaid;
        if (i == 0)
            first = before;
        if (status != DS4KV_OK || look(c, &after, &unsaid) != DS4KV_OK)
            return verdict;
        bool is_old = before.mtime.tv_sec < time(NULL) - OLD_SECONDS;
        if (is_same(&before, &after) && (is_old || (i >= TRIES && is_same(&first, &after))))
            return verdict;
        if (i >= TRIES)
            return DS4KV_OK; /* somebody writes all the time: nothing is proven, and there is none */
        (void)nanosleep(&ms, NULL);
    }
}

/* The trailer that was judged, if it is still there. In memory: what stdio has of the file may be of before. */
static FILE *open_judged(checkpoint *c)
{
    size_t n = (size_t)c->seen.trailer_bytes;
    int os_error;
    free(c->trailer);
    c->trailer = calloc(n + 1, 1);
    errno = ENOMEM;
    if (!c->trailer)
        return NULL;
    if (n == 0 && (c->trailer_stream = fmemopen(c->trailer, 1, "rb"))) /* no C library has to know one of no bytes */
        (void)fgetc(c->trailer_stream);
    if (n == 0)
        return c->trailer_stream;
    errno = EAGAIN;
    if (file_read(fileno(c->file), c->trailer, &n, c->region_end, &os_error) != DS4KV_OK ||
        ds4kv_hash_seeded(c->trailer, n, c->frame.seal) != c->trailer_sum)
        return NULL;
    return c->trailer_stream = fmemopen(c->trailer, n, "rb");
}

FILE *trailer_open(checkpoint *c)
{
    ds4kv_fault fault;
    if (c->trailer_stream)
        fclose(c->trailer_stream);
    c->trailer_stream = NULL;
    for (int i = 0; i < OPENING_TRIES; i++) {
        int status = trailer_judge(c, &fault);
        if (status != DS4KV_OK) {
            errno = status == DS4KV_CORRUPT || status == DS4KV_TRUNCATED ? EBADMSG : fault.os_error;
            return NULL;
        }
        FILE *stream = open_judged(c);
        if (stream || errno != EAGAIN)
            return stream;
    }
    return NULL;
}
