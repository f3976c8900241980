/*
 * stdio.c - a payload as a FILE *: put and take behind fwrite and fread.
 *
 * Streams have a buffer that gathers what an engine writes or reads by 4 bytes. A large fwrite passes it by, and so
 * does a large fread in C libraries that hand the caller's memory on (musl): there, the core decodes to where it goes.
 * glibc fills the buffer for every fread from such a stream, and copies; unbuffered, it would ask byte by byte.
 */
#define _GNU_SOURCE /* fopencookie, sched_getaffinity */
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "ds4kv_stdio.h"

#define BUFFER_SIZE 65536 /* stays in a CPU's cache, for what is copied through; larger ones were no faster */

#ifdef ENODATA
#define TRUNCATED_ERRNO ENODATA
#else
#define TRUNCATED_ERRNO EIO
#endif

static int errno_of(int64_t status)
{
    switch (status) {
    case DS4KV_OK:
        return 0;
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

static int cut_to_cpus(int workers)
{
    long cpus = sysconf(_SC_NPROCESSORS_ONLN);
#ifdef CPU_COUNT
    cpu_set_t own;
    if (sched_getaffinity(0, sizeof own, &own) == 0)
        cpus = CPU_COUNT(&own);
#endif
    return workers <= DS4KV_MAX_WORKERS && cpus > 0 && workers > cpus ? (int)cpus : workers;
}

/* The C library doesn't lead from a stream to what is behind it; but fclose comes there on the thread that calls it. */
static _Thread_local bool is_abandoning;

void ds4kv_fabandon(FILE *stream)
{
    is_abandoning = true;
    (void)fclose(stream);
    is_abandoning = false;
}

/* ---- writer ---- */

typedef struct {
    FILE *out;
    off_t start;           /* of the region in out */
    uint64_t region_bytes; /* of it in out */
    ds4kv_writer *writer;
    int error; /* errno of the first failure, for good */
    char buffer[BUFFER_SIZE];
} sink;

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
    uint8_t head[DS4KV_FRAME_SIZE];
    ds4kv_writer_frame(sink->writer, &frame);
    ds4kv_frame_encode(&frame, head);
    return write_through(sink->out, head, sizeof head);
}

/* Writes the oldest record; false: there is none, or an error. */
static bool drain_one(sink *sink)
{
    const void *record;
    int64_t size = ds4kv_writer_take(sink->writer, &record);
    if (size <= 0) {
        sink->error = errno_of(size);
        return false;
    }
    sink->error = write_through(sink->out, record, (size_t)size);
    sink->region_bytes += (uint64_t)size;
    return sink->error == 0;
}

/* All n bytes, or -1. */
static ssize_t sink_write(void *cookie, const char *raw, size_t n)
{
    sink *sink = cookie;
    if (is_abandoning)
        return (ssize_t)n;
    for (size_t done = 0; sink->error == 0 && done < n;) {
        int64_t accepted = ds4kv_writer_put(sink->writer, raw + done, n - done, 0);
        if (accepted < 0) {
            sink->error = errno_of(accepted);
            break;
        }
        done += (size_t)accepted;
        if (done < n)
            drain_one(sink);
    }
    if (sink->error == 0)
        return (ssize_t)n;
    errno = sink->error;
    return -1;
}

/* A forked child gets no further than the first line. */
static void finish(sink *sink)
{
    sink->error = errno_of(ds4kv_writer_finish(sink->writer));
    while (sink->error == 0 && drain_one(sink))
        continue;
    if (sink->error == 0 && fseeko(sink->out, sink->start, SEEK_SET) != 0)
        sink->error = errno;
    if (sink->error == 0)
        sink->error = write_frame(sink);
    if (sink->error == 0 && fseeko(sink->out, sink->start + (off_t)sink->region_bytes, SEEK_SET) != 0)
        sink->error = errno;
}

static int sink_close(void *cookie)
{
    sink *sink = cookie;
    if (sink->error == 0 && !is_abandoning)
        finish(sink);
    int error = sink->error;
    ds4kv_writer_free(sink->writer);
    free(sink);
    if (error == 0)
        return 0;
    errno = error;
    return -1;
}

/* ---- reader ---- */

typedef struct {
    FILE *in;
    bool in_file; /* workers read the blocks themselves; else they are read here, through in */
    off_t start;  /* in_file: of the region */
    uint64_t region_bytes;
    uint64_t raw_left;
    ds4kv_reader *reader; /* NULL: the payload is there as it is, or an error has come */
    pid_t owner;
    int error; /* errno of the first failure, for good */
    char buffer[BUFFER_SIZE];
} source;

/* Reads what the ring has room for; false: it has none, or an error. */
static bool feed(source *source)
{
    void *room;
    int64_t size = ds4kv_reader_room(source->reader, &room);
    if (size <= 0) {
        source->error = errno_of(size);
        return false;
    }
    errno = EIO; /* if in gives no reason */
    size_t n = fread(room, 1, (size_t)size, source->in);
    if (n < (size_t)size && ferror(source->in)) {
        source->error = errno;
        return false;
    }
    source->error = errno_of(ds4kv_reader_put(source->reader, n));
    if (source->error == 0 && n < (size_t)size)
        source->error = errno_of(ds4kv_reader_finish(source->reader));
    return source->error == 0;
}

/* The same for a payload that is there as it is. */
static size_t take_raw(source *source, char *raw, size_t n)
{
    if (source->owner != getpid()) {
        source->error = EBADF; /* in's position is the parent's */
        return 0;
    }
    errno = EIO; /* if in gives no reason */
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
    source->error = took == DS4KV_IO ? fault.os_error : errno_of(took);
    return 0;
}

/* All n bytes, unless the payload ends before or an error comes first: then fewer, and then 0 or -1. */
static ssize_t source_read(void *cookie, char *raw, size_t n)
{
    source *source = cookie;
    size_t done = 0;
    if (n > source->raw_left)
        n = (size_t)source->raw_left;
    if (source->error == 0 && source->reader && n > 0)
        source->error = errno_of(ds4kv_reader_aim(source->reader, raw, n));
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
    if (done > 0 || source->error == 0)
        return (ssize_t)done;
    errno = source->error;
    return -1;
}

static int source_close(void *cookie)
{
    source *source = cookie;
    int error = source->error;
    ds4kv_reader_free(source->reader);
    free(source);
    if (error == 0)
        return 0;
    errno = error;
    return -1;
}

/* ---- both, as the C library wants them ---- */

#if defined(__APPLE__) || defined(__FreeBSD__) || defined(__NetBSD__) || defined(__OpenBSD__) || defined(__DragonFly__)

static int write_some(void *cookie, const char *raw, int n)
{
    return (int)sink_write(cookie, raw, (size_t)n);
}

static int read_some(void *cookie, char *raw, int n)
{
    return (int)source_read(cookie, raw, (size_t)n);
}

static FILE *sink_stream(sink *sink)
{
    return funopen(sink, NULL, write_some, NULL, sink_close);
}

static FILE *source_stream(source *source)
{
    return funopen(source, read_some, NULL, NULL, source_close);
}

#else

static ssize_t write_some(void *cookie, const char *raw, size_t n)
{
    ssize_t written = sink_write(cookie, raw, n);
#ifdef __GLIBC__ /* counts what is written without a look at its sign */
    return written < 0 ? 0 : written;
#else
    return written;
#endif
}

static FILE *sink_stream(sink *sink)
{
    return fopencookie(sink, "w", (cookie_io_functions_t){.write = write_some, .close = sink_close});
}

static FILE *source_stream(source *source)
{
    return fopencookie(source, "r", (cookie_io_functions_t){.read = source_read, .close = source_close});
}

#endif

FILE *ds4kv_fopen_writer(FILE *out, uint32_t chunk_size, int workers)
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
    sink->out = out;
    sink->start = start;
    sink->region_bytes = DS4KV_FRAME_SIZE;
    sink->error = errno_of(ds4kv_writer_new(&sink->writer, DS4KV_UNKNOWN, chunk_size, DS4KV_FORM_PLAIN, 0,
                                            cut_to_cpus(workers)));
    if (sink->error == 0)
        sink->error = write_frame(sink);
    if (sink->error == 0 && !(stream = sink_stream(sink)))
        sink->error = errno;
    if (!stream) {
        sink_close(sink);
        return NULL;
    }
    (void)setvbuf(stream, sink->buffer, _IOFBF, sizeof sink->buffer);
    return stream;
}

/* Reads and judges the frame at in's position. */
static int read_frame(ds4kv_frame *frame, FILE *in, uint64_t region_bytes, uint32_t chunk_size)
{
    uint8_t head[DS4KV_FRAME_SIZE] = {0};
    ds4kv_fault fault;
    size_t size = region_bytes < sizeof head ? 0 : sizeof head; /* too small for a frame: refused below */
    errno = EIO;                                                /* if in gives no reason */
    if (fread(head, 1, size, in) < size)
        return ferror(in) ? errno : TRUNCATED_ERRNO;
    return errno_of(ds4kv_frame_decode(frame, head, region_bytes, chunk_size, DS4KV_FORM_PLAIN, &fault));
}

/* The payload's size, and who reads it. errno, or 0. */
static int open_region(source *source, uint32_t chunk_size, int workers)
{
    ds4kv_frame frame;
    int error = read_frame(&frame, source->in, source->region_bytes, chunk_size);
    if (error != 0)
        return error;
    source->raw_left = frame.raw_total;
    error = errno_of(ds4kv_reader_new(&source->reader, &frame, source->region_bytes, 0, DS4KV_FRAME_SIZE,
                                      cut_to_cpus(workers)));
    if (error == 0 && source->in_file)
        error = errno_of(ds4kv_reader_from_file(source->reader, fileno(source->in), (uint64_t)source->start));
    return error;
}

FILE *ds4kv_fopen_reader(FILE *in, uint64_t region_bytes, uint32_t chunk_size, int workers, uint64_t *raw_total)
{
    FILE *stream = NULL;
    struct stat facts;
    source *source = calloc(1, sizeof *source);
    if (!source)
        return NULL;
    source->in = in;
    source->in_file = fstat(fileno(in), &facts) == 0 && S_ISREG(facts.st_mode);
    /* Nothing of the region waits in a buffer to be written: whoever wrote it went back to where it starts. */
    source->start = source->in_file ? ftello(in) : 0;
    source->region_bytes = region_bytes;
    source->raw_left = region_bytes;
    source->owner = getpid();
    if (source->start < 0)
        source->error = errno;
    else if (chunk_size != 0)
        source->error = open_region(source, chunk_size, workers);
    if (source->error == 0 && !(stream = source_stream(source)))
        source->error = errno;
    if (!stream) {
        source_close(source);
        return NULL;
    }
    (void)setvbuf(stream, source->buffer, _IOFBF, sizeof source->buffer);
    if (raw_total)
        *raw_total = source->raw_left;
    return stream;
}
