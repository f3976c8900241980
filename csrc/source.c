/*
 * source.c - a payload that is read as a FILE *: what is fread is decoded from a region in `in`.
 *
 * There are three ways to the bytes. Where `in` is a regular file, workers read their blocks from it by themselves and
 * its position stays where it is. From anything else, a pipe or memory, blocks are fread here and put. And a region of
 * codec none is fread as it is, without a reader.
 */
#define _GNU_SOURCE /* fileno, fseeko */
#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cookie.h"
#include "ds4kv_stdio.h"
#include "frame.h"
#include "stream.h"

typedef struct {
    cookie cookie;
    FILE *in;
    bool in_file; /* workers read the blocks themselves; else they are read here, through in */
    off_t start;  /* in_file: of the region */
    uint64_t region_bytes;
    uint64_t raw_left;
    ds4kv_reader *reader; /* NULL: the payload is there as it is, or an error has come */
    pid_t owner;
    int error; /* errno of the first failure, for good */
    char buffer[STREAM_BUFFER_SIZE];
} source;

/* Reads what the ring has room for; false: it has none, or an error. */
static bool feed(source *source)
{
    void *room;
    int64_t size = ds4kv_reader_room(source->reader, &room);
    if (size <= 0) {
        source->error = stream_errno(size);
        return false;
    }
    errno = EIO;                                                /* if in gives no reason */
    size_t n = fread(room, 1, (size_t)size, source->in);
    if (n < (size_t)size && ferror(source->in)) {
        source->error = errno;
        return false;
    }
    source->error = stream_errno(ds4kv_reader_put(source->reader, n));
    if (source->error == 0 && n < (size_t)size)
        source->error = stream_errno(ds4kv_reader_finish(source->reader));
    return source->error == 0;
}

/* Up to n bytes of a payload that is there as it is. */
static size_t take_raw(source *source, char *raw, size_t n)
{
    if (source->owner != getpid()) {
        source->error = EBADF; /* in's position is the parent's */
        return 0;
    }
    errno = EIO;                                                /* if in gives no reason */
    size_t took = fread(raw, 1, n, source->in);
    if (took < n)
        source->error = ferror(source->in) ? errno : TRUNCATED_ERRNO;
    return took;
}

/* At least one payload byte to raw, or an error. */
static size_t take(source *source, char *raw, size_t n)
{
    if (!source->reader)
        return take_raw(source, raw, n);
    int64_t took = ds4kv_reader_take(source->reader, raw, n, source->in_file);
    while (took == 0 && feed(source))
        took = ds4kv_reader_take(source->reader, raw, n, 0);
    if (took == 0 && source->error == 0)
        took = ds4kv_reader_take(source->reader, raw, n, 1);
    if (took >= 0)
        return (size_t)took;
    ds4kv_fault fault;
    ds4kv_reader_fault(source->reader, &fault);
    source->error = took == DS4KV_IO ? fault.os_error : stream_errno(took);
    return 0;
}

/* All n bytes, unless the payload ends before or an error comes first: then fewer, and after that none or the error. */
static int64_t source_read(cookie *cookie, char *raw, size_t n)
{
    source *source = (void *)cookie;
    size_t done = 0;
    if (n > source->raw_left)
        n = (size_t)source->raw_left;
    if (source->error == 0 && source->reader && n > 0)
        source->error = stream_errno(ds4kv_reader_aim(source->reader, raw, n));
    while (source->error == 0 && done < n)
        done += take(source, raw + done, n - done);
    source->raw_left -= done;
    if (source->error != 0) {
        ds4kv_reader_free(source->reader); /* raw is the caller's again: no worker may write there */
        source->reader = NULL;
    } else if (source->in_file && source->reader && n > 0 && source->raw_left == 0) {
        off_t end = source->start + (off_t)source->region_bytes; /* the last record ended there */
        if (fseeko(source->in, end, SEEK_SET) != 0)
            source->error = errno;
    }
    return done > 0 || source->error == 0 ? (int64_t)done : -source->error;
}

static int source_close(cookie *cookie)
{
    source *source = (void *)cookie;
    int error = source->error;
    ds4kv_reader_free(source->reader);
    free(source);
    return error;
}

/* Reads and judges the frame at in's position. */
static int read_frame(ds4kv_frame *frame, FILE *in, uint64_t region_bytes, uint32_t chunk_size, uint32_t form)
{
    uint8_t head[MAX_FRAME_SIZE] = {0};
    ds4kv_fault fault;
    size_t size = ds4kv_frame_size(form);
    if (region_bytes < size)
        size = 0; /* too small for a frame: refused below */
    errno = EIO;                                                /* if in gives no reason */
    if (fread(head, 1, size, in) < size)
        return ferror(in) ? errno : TRUNCATED_ERRNO;
    return stream_errno(ds4kv_frame_decode(frame, head, region_bytes, chunk_size, form, &fault));
}

/* The payload's size, and who reads it. errno, or 0. */
static int open_region(source *source, uint32_t chunk_size, uint32_t form, int workers)
{
    ds4kv_frame frame;
    int error = read_frame(&frame, source->in, source->region_bytes, chunk_size, form);
    if (error != 0)
        return error;
    source->raw_left = frame.raw_total;
    error = stream_errno(ds4kv_reader_new(&source->reader, &frame, source->region_bytes, 0, ds4kv_frame_size(form),
                                          stream_workers(workers)));
    if (error == 0 && source->in_file)
        error = stream_errno(ds4kv_reader_from_file(source->reader, fileno(source->in), (uint64_t)source->start));
    return error;
}

FILE *ds4kv_fopen_reader(FILE *in, uint64_t region_bytes, uint32_t chunk_size, int workers, uint64_t *raw_total)
{
    uint32_t form = chunk_size == 0 ? DS4KV_FORM_RAW : DS4KV_FORM_PLAIN;
    return ds4kv_fopen_reader_as(in, region_bytes, chunk_size, form, workers, raw_total);
}

FILE *ds4kv_fopen_reader_as(FILE *in, uint64_t region_bytes, uint32_t chunk_size, uint32_t form, int workers,
                            uint64_t *raw_total)
{
    FILE *stream = NULL;
    struct stat facts;
    source *source = calloc(1, sizeof *source);
    if (!source)
        return NULL;
    source->cookie = (cookie){.read = source_read, .close = source_close};
    source->in = in;
    source->in_file = fstat(fileno(in), &facts) == 0 && S_ISREG(facts.st_mode);
    /* Workers read past in's buffer. Nothing of the region can still be in there, unwritten: in is at the region's
     * start, and seeking back to it has flushed what was. */
    source->start = source->in_file ? ftello(in) : 0;
    source->region_bytes = region_bytes;
    source->raw_left = region_bytes;
    source->owner = getpid();
    if (source->start < 0)
        source->error = errno;
    else if (form != DS4KV_FORM_RAW)
        source->error = open_region(source, chunk_size, form, workers);
    if (source->error == 0 && !(stream = cookie_open(&source->cookie)))
        source->error = errno;
    if (!stream) {
        errno = source_close(&source->cookie);
        return NULL;
    }
    (void)setvbuf(stream, source->buffer, _IOFBF, sizeof source->buffer);
    if (raw_total)
        *raw_total = source->raw_left;
    return stream;
}
