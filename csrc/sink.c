/*
 * sink.c - a payload that is written as a FILE *: what is fwritten arrives in `out` as a region.
 *
 * The frame comes first in the region and is known last. So it is written twice: in the beginning for an empty payload,
 * behind which no reader takes records; and in fclose, when all records are there.
 */
#define _GNU_SOURCE /* fileno, fseeko */
#include "sink.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/types.h>

#include "cookie.h"
#include "frame.h"
#include "stream.h"

typedef struct {
    cookie cookie;
    FILE *out;
    off_t start;           /* of the region in out */
    uint64_t region_bytes; /* of it in out */
    ds4kv_writer *writer;
    int error; /* errno of the first failure, for good */
    char buffer[STREAM_BUFFER_SIZE];
} sink;

/* Which stream is being abandoned can't be told to it: the C library doesn't lead from a FILE * to what is behind it.
 * But its fclose comes here on the thread that calls it. A source has nothing to write, and doesn't ask. */
static _Thread_local bool is_abandoning;

void ds4kv_fabandon(FILE *stream)
{
    is_abandoning = true;
    (void)fclose(stream);
    is_abandoning = false;
}

/* Nothing stays in out's own buffer: a forked child that ends would write it too. errno, or 0. */
static int write_through(FILE *out, const void *bytes, size_t n)
{
    errno = EIO; /* if out gives no reason */
    return fwrite(bytes, 1, n, out) == n && fflush(out) == 0 ? 0 : errno;
}

/* The frame of what was put so far, at out's position. */
static int write_frame(sink *sink)
{
    ds4kv_frame frame;
    uint8_t head[MAX_FRAME_SIZE];
    ds4kv_writer_frame(sink->writer, &frame);
    ds4kv_frame_encode(&frame, head);
    return write_through(sink->out, head, ds4kv_frame_size(frame.form));
}

/* Writes the oldest record; false: there is none, or an error. */
static bool drain_one(sink *sink)
{
    const void *record;
    int64_t size = ds4kv_writer_take(sink->writer, &record);
    if (size <= 0) {
        sink->error = stream_errno(size);
        return false;
    }
    sink->error = write_through(sink->out, record, (size_t)size);
    sink->region_bytes += (uint64_t)size;
    return sink->error == 0;
}

/* All n bytes, or an error. */
static int64_t sink_write(cookie *cookie, const char *raw, size_t n)
{
    sink *sink = (void *)cookie;
    if (is_abandoning)
        return (int64_t)n;
    for (size_t done = 0; sink->error == 0 && done < n;) {
        int64_t accepted = ds4kv_writer_put(sink->writer, raw + done, n - done, 0);
        if (accepted < 0) {
            sink->error = stream_errno(accepted);
            break;
        }
        done += (size_t)accepted;
        if (done < n)
            drain_one(sink);
    }
    return sink->error == 0 ? (int64_t)n : -sink->error;
}

/* In a forked child ds4kv_writer_finish fails, and out is left alone. */
static void finish(sink *sink)
{
    sink->error = stream_errno(ds4kv_writer_finish(sink->writer));
    while (sink->error == 0 && drain_one(sink))
        continue;
    if (sink->error == 0 && fseeko(sink->out, sink->start, SEEK_SET) != 0)
        sink->error = errno;
    if (sink->error == 0)
        sink->error = write_frame(sink);
    if (sink->error == 0 && fseeko(sink->out, sink->start + (off_t)sink->region_bytes, SEEK_SET) != 0)
        sink->error = errno;
}

static int sink_close(cookie *cookie)
{
    sink *sink = (void *)cookie;
    if (sink->error == 0 && !is_abandoning)
        finish(sink);
    int error = sink->error;
    ds4kv_writer_free(sink->writer);
    free(sink);
    return error;
}

FILE *ds4kv_fopen_writer(FILE *out, uint32_t chunk_size, int workers)
{
    return ds4kv_fopen_writer_as(out, chunk_size, DS4KV_FORM_PLAIN, 0, workers);
}

FILE *ds4kv_fopen_writer_as(FILE *out, uint32_t chunk_size, uint32_t form, int level, int workers)
{
    return sink_open(out, chunk_size, form, level, 0, workers);
}

FILE *sink_open(FILE *out, uint32_t chunk_size, uint32_t form, int level, uint64_t seal, int workers)
{
    FILE *stream = NULL;
    int mode = fcntl(fileno(out), F_GETFL); /* -1: no descriptor behind it, as in memory */
    off_t start = ftello(out);
    if (start < 0)
        return NULL;
    if (mode != -1 && mode & O_APPEND) {
        errno = ESPIPE;
        return NULL;
    }
    sink *sink = malloc(sizeof *sink);
    if (!sink)
        return NULL;
    sink->cookie = (cookie){.write = sink_write, .close = sink_close};
    sink->out = out;
    sink->start = start;
    sink->region_bytes = ds4kv_frame_size(form);
    sink->error = stream_errno(
        ds4kv_writer_new(&sink->writer, DS4KV_UNKNOWN, chunk_size, form, level, stream_workers(workers)));
    if (sink->error == 0 && form == DS4KV_FORM_PACKED)
        sink->error = stream_errno(ds4kv_writer_seal(sink->writer, seal));
    if (sink->error == 0)
        sink->error = write_frame(sink);
    if (sink->error == 0 && !(stream = cookie_open(&sink->cookie)))
        sink->error = errno;
    if (!stream) {
        errno = sink_close(&sink->cookie);
        return NULL;
    }
    (void)setvbuf(stream, sink->buffer, _IOFBF, sizeof sink->buffer);
    return stream;
}
