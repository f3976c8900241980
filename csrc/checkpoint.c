/*
 * checkpoint.c - one .kv file: opened and closed, or created and published.
 *
 * The file's stream and the payload's are two: the payload's is made by stdio.c and leaves the other at the region's
 * end. They are one and the same where codec none is written. What is read from a file by its number is read before
 * either stream begins.
 */
#define _GNU_SOURCE /* realpath, fdopen, fseeko, __fpurge */
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "ds4kv_stdio.h"
#include "internal.h"

#ifdef __linux__
#include <stdio_ext.h>
#define fpurge __fpurge
#endif

typedef struct {
    ds4kv_checkpoint seen; /* first: what callers have is a pointer to it */
    FILE *file;
    uint64_t region_start, region_end;
    ds4kv_frame frame; /* of a compressed region that is read */
    char *path; /* NULL: being read */
    char *temporary;
    pid_t owner;
    int os_error; /* of the payload's stream: close tells it */
} checkpoint;

static checkpoint *inside(ds4kv_checkpoint *seen)
{
    return (checkpoint *)(void *)seen;
}

static int io_fault(ds4kv_fault *fault, const char *what, int os_error)
{
    int status = os_error == ENOMEM ? DS4KV_NOMEM : DS4KV_IO;
    fault_set(fault, status, 0, "file", "%s: %s", what, strerror(os_error));
    fault->os_error = os_error;
    return status;
}

static int name_fault(ds4kv_fault *fault, int status, const char *path, const void *text, size_t text_bytes)
{
    const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
    char lower[44], right[44];
    if (strlen(name) != 43 || strcmp(name + 40, ".kv") != 0)
        return DS4KV_OK;
    for (int i = 0; i < 44; i++) {
        if (i < 40 && !isxdigit((unsigned char)name[i]))
            return DS4KV_OK;
        lower[i] = (char)tolower((unsigned char)name[i]);
    }
    ds4kv_checkpoint_name(text, text_bytes, right);
    if (strcmp(lower, right) == 0)
        return DS4KV_OK;
    return fault_set(fault, status, PREFIX_SIZE, "text", "the text's SHA-1 is %.40s, not the one in the file's name",
                     right);
}

void ds4kv_checkpoint_name(const void *text, size_t text_bytes, char name[44])
{
    sha1_hex(text, text_bytes, name);
    memcpy(name + 40, ".kv", 4);
}

/* Frees everything, and writes nothing more. What is buffered is forgotten: in a forked child it is the parent's to
 * write, and where the parent reads must not move. */
static void destroy(checkpoint *c)
{
    if (c->seen.payload && c->seen.payload != c->file)
        ds4kv_fabandon(c->seen.payload);
    if (c->file) {
        fpurge(c->file);
        fclose(c->file);
    }
    if (c->temporary && c->owner == getpid())
        unlink(c->temporary);
    free((char *)c->seen.text);
    free(c->path);
    free(c->temporary);
    free(c);
}

static checkpoint *new(ds4kv_fault *fault)
{
    checkpoint *c = calloc(1, sizeof *c);
    if (c)
        c->owner = getpid();
    else
        fault_set(fault, DS4KV_NOMEM, 0, "file", "no memory for a checkpoint");
    return c;
}

/* ---- reading ---- */

static int open_regular(checkpoint *c, const char *path, uint64_t *size, ds4kv_fault *fault)
{
    struct stat stat;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a FIFO would be waited for before it can be refused */
    if (fd < 0)
        return io_fault(fault, "can't be opened", errno);
    int os_error = fstat(fd, &stat) != 0 ? errno : S_ISDIR(stat.st_mode) ? EISDIR : S_ISREG(stat.st_mode) ? 0 : EINVAL;
    if (os_error == 0 && !(c->file = fdopen(fd, "rb")))
        os_error = errno;
    if (os_error != 0) {
        close(fd);
        return io_fault(fault, "can't be read as a regular file", os_error);
    }
    *size = (uint64_t)stat.st_size;
    return DS4KV_OK;
}

static int read_at(const checkpoint *c, void *bytes, size_t n, uint64_t offset, ds4kv_fault *fault)
{
    int os_error, status = file_read(fileno(c->file), bytes, &n, offset, &os_error);
    if (status == DS4KV_TRUNCATED)
        return fault_set(fault, status, offset + n, "file", "the file became shorter while it was read");
    return status == DS4KV_IO ? io_fault(fault, "can't be read", os_error) : status;
}

static int read_text(checkpoint *c, uint64_t left, ds4kv_fault *fault)
{
    uint32_t n = c->seen.text_bytes;
    if (n > left)
        return fault_set(fault, DS4KV_TRUNCATED, 48, "text_bytes",
                         "a text of %" PRIu32 " bytes is claimed, the file has %" PRIu64 " left", n, left);
    if (c->seen.header.payload_bytes > left - n)
        return fault_set(fault, DS4KV_TRUNCATED, 40, "payload_bytes",
                         "a region of %" PRIu64 " bytes is claimed, the file has %" PRIu64 " left",
                         c->seen.header.payload_bytes, left - n);
    char *text = malloc((size_t)n + 1);
    if (!text)
        return fault_set(fault, DS4KV_NOMEM, 48, "text_bytes", "no memory for a text of %" PRIu32 " bytes", n);
    text[n] = 0;
    c->seen.text = text;
    return read_at(c, text, n, PREFIX_SIZE, fault);
}

static int open_payload(checkpoint *c, int workers, ds4kv_fault *fault)
{
    const ds4kv_header *header = &c->seen.header;
    if (header->codec != DS4KV_CODEC_NONE) {
        /* stdio.c reads the frame as well, and has but an errno to say what is wrong with it. */
        uint8_t head[DS4KV_FRAME_SIZE];
        size_t n = header->payload_bytes < sizeof head ? 0 : sizeof head;
        int status = read_at(c, head, n, c->region_start, fault);
        if (status != DS4KV_OK)
            return status;
        status = ds4kv_frame_decode(&c->frame, head, header->payload_bytes, header->chunk_size, DS4KV_FORM_PLAIN,
                                    fault);
        if (status != DS4KV_OK) {
            fault->offset += c->region_start;
            return status;
        }
    }
    if (fseeko(c->file, (off_t)c->region_start, SEEK_SET) != 0)
        return io_fault(fault, "can't be read", errno);
    uint32_t chunk_size = header->codec == DS4KV_CODEC_NONE ? 0 : header->chunk_size;
    c->seen.payload = ds4kv_fopen_reader(c->file, header->payload_bytes, chunk_size, workers, &c->seen.raw_total);
    return c->seen.payload ? DS4KV_OK : io_fault(fault, "the payload can't be read", errno);
}

static int workers_fault(ds4kv_fault *fault, int workers)
{
    return workers >= 0 && workers <= DS4KV_MAX_WORKERS
               ? DS4KV_OK
               : fault_set(fault, DS4KV_PARAM, 0, "workers", "%d workers; 0 to %d can be", workers, DS4KV_MAX_WORKERS);
}

static int open_all(checkpoint *c, const char *path, int workers, ds4kv_fault *fault)
{
    uint64_t size = 0;
    int status = workers_fault(fault, workers);
    if (status == DS4KV_OK)
        status = open_regular(c, path, &size, fault);
    if (status == DS4KV_OK)
        status = layout_examine(&c->seen.header, &c->seen.text_bytes, fileno(c->file), size, fault);
    if (status == DS4KV_OK)
        status = read_text(c, size - PREFIX_SIZE, fault);
    if (status == DS4KV_OK)
        status = name_fault(fault, DS4KV_CORRUPT, path, c->seen.text, c->seen.text_bytes);
    if (status != DS4KV_OK)
        return status;
    c->region_start = PREFIX_SIZE + (uint64_t)c->seen.text_bytes;
    c->region_end = c->region_start + c->seen.header.payload_bytes;
    c->seen.trailer_bytes = size - c->region_end;
    return open_payload(c, workers, fault);
}

int ds4kv_checkpoint_open(ds4kv_checkpoint **out, const char *path, int workers, ds4kv_fault *fault)
{
    *out = NULL;
    checkpoint *c = new(fault);
    if (!c)
        return DS4KV_NOMEM;
    int status = open_all(c, path, workers, fault);
    if (status == DS4KV_OK)
        *out = &c->seen;
    else
        destroy(c);
    return status;
}

/* ---- writing ---- */

/* folder/name in memory of its own. */
static char *join(const char *folder, const char *name)
{
    size_t size = strlen(folder) + strlen(name) + 2;
    char *whole = malloc(size);
    if (whole)
        snprintf(whole, size, "%s/%s", folder, name);
    return whole;
}

/* `path` as it stays when the working directory changes, with its links followed, be it to where nothing is yet. They
 * come to an end: realpath has followed them, and says ELOOP where they don't. */
static char *resolve(const char *path)
{
    char *whole = realpath(path, NULL);
    if (whole || errno != ENOENT)
        return whole;

    const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
    char *parent = slash ? strndup(path, (size_t)(slash - path) + 1) : strdup(".");
    char *directory = parent ? realpath(parent, NULL) : NULL;
    free(parent);
    if (directory && *name == 0) {
        free(directory);
        errno = ENOENT;
        return NULL;
    }
    whole = directory ? join(directory, name) : NULL;

    char target[PATH_MAX];
    ssize_t n = whole ? readlink(whole, target, sizeof target - 1) : -1;
    if (n >= 0) {
        target[n] = 0;
        free(whole);
        whole = *target == '/' ? strdup(target) : join(directory, target);
        char *next = whole ? resolve(whole) : NULL;
        free(whole);
        whole = next;
    }
    free(directory);
    return whole;
}

/* The temporary file beside the target, under a name that a store of ds4kv removes once this process is gone. */
static int create_temporary(checkpoint *c, const char *path, ds4kv_fault *fault)
{
    struct stat stat_of_target;
    c->path = resolve(path);
    if (!c->path)
        return io_fault(fault, "can't be created", errno);
    if (stat(c->path, &stat_of_target) == 0 && !S_ISREG(stat_of_target.st_mode))
        return io_fault(fault, "not a regular file, and not to be replaced by one",
                        S_ISDIR(stat_of_target.st_mode) ? EISDIR : EEXIST);

    size_t size = strlen(c->path) + 32;
    char *name = malloc(size);
    int fd;
    if (!name)
        return io_fault(fault, "can't be created", ENOMEM);
    do {
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        uint32_t number = (uint32_t)now.tv_nsec ^ (uint32_t)now.tv_sec << 20 ^ (uint32_t)(uintptr_t)c;
        snprintf(name, size, "%s.tmp.%ld.%08" PRIx32, c->path, (long)c->owner, number);
        fd = open(name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    } while (fd < 0 && errno == EEXIST);
    if (fd < 0) {
        int os_error = errno;
        free(name);
        return io_fault(fault, "can't be created", os_error);
    }
    c->temporary = name;
    (void)flock(fd, LOCK_EX | LOCK_NB); /* tells stores elsewhere, where this process looks gone, that it is not */
    c->file = fdopen(fd, "wb");
    if (c->file)
        return DS4KV_OK;
    int os_error = errno;
    close(fd);
    return io_fault(fault, "can't be created", os_error);
}

static int write_front(checkpoint *c, const void *text, ds4kv_fault *fault)
{
    uint8_t front[PREFIX_SIZE];
    int status = ds4kv_header_pack(&c->seen.header, front, fault);
    if (status != DS4KV_OK)
        return status;
    put_u32(front + DS4KV_HEADER_SIZE, c->seen.text_bytes);
    size_t n = c->seen.text_bytes;
    if (fwrite(front, 1, sizeof front, c->file) != sizeof front || (n && fwrite(text, 1, n, c->file) != n) ||
        fflush(c->file) != 0)
        return io_fault(fault, "can't be written", errno);
    return DS4KV_OK;
}

static int create_all(checkpoint *c, const char *path, const void *text, size_t text_bytes, int workers,
                      ds4kv_fault *fault)
{
    uint8_t head[DS4KV_HEADER_SIZE];
    const ds4kv_header *header = &c->seen.header;
    int status = ds4kv_header_pack(header, head, fault);
    if (status == DS4KV_OK)
        status = workers_fault(fault, workers);
    if (status == DS4KV_OK && header->codec == DS4KV_CODEC_LZ4HC)
        status = fault_set(fault, DS4KV_PARAM, 7, "codec", "LZ4HC is read here, not written: use codec LZ4");
    if (status == DS4KV_OK && text_bytes > UINT32_MAX)
        status = fault_set(fault, DS4KV_PARAM, 48, "text_bytes", "a text of %zu bytes; its length has 32 bits",
                           text_bytes);
    if (status == DS4KV_OK)
        status = name_fault(fault, DS4KV_PARAM, path, text, text_bytes);
    if (status == DS4KV_OK)
        status = create_temporary(c, path, fault);
    if (status != DS4KV_OK)
        return status;

    c->seen.text_bytes = (uint32_t)text_bytes;
    c->region_start = PREFIX_SIZE + text_bytes;
    status = write_front(c, text, fault);
    if (status != DS4KV_OK)
        return status;
    c->seen.payload =
        header->codec == DS4KV_CODEC_NONE ? c->file : ds4kv_fopen_writer(c->file, header->chunk_size, workers);
    return c->seen.payload ? DS4KV_OK : io_fault(fault, "can't be written", errno);
}

int ds4kv_checkpoint_create(ds4kv_checkpoint **out, const char *path, const ds4kv_header *header, const void *text,
                            size_t text_bytes, int workers, ds4kv_fault *fault)
{
    *out = NULL;
    checkpoint *c = new(fault);
    if (!c)
        return DS4KV_NOMEM;
    c->seen.header = *header;
    c->seen.header.payload_bytes = 0;
    int status = create_all(c, path, text, text_bytes, workers, fault);
    if (status == DS4KV_OK)
        *out = &c->seen;
    else
        destroy(c);
    return status;
}

/* ---- the end ---- */

/* Closes the payload's stream, after which the file's is behind the region, if it was written; -1, with errno. */
static int end_payload(checkpoint *c)
{
    FILE *payload = c->seen.payload;
    c->seen.payload = NULL;
    if (!payload)
        return c->os_error == 0 ? 0 : -1;
    if (payload != c->file && fclose(payload) != 0)
        c->os_error = errno; /* the first error of all, as errors stick */
    else if (payload == c->file && ferror(payload))
        c->os_error = EIO; /* the fwrite that failed told its errno */
    if (c->path && c->os_error == 0) {
        off_t end = ftello(c->file);
        if (end < 0)
            c->os_error = errno;
        c->region_end = (uint64_t)end;
    }
    return c->os_error == 0 ? 0 : -1;
}

FILE *ds4kv_checkpoint_trailer(ds4kv_checkpoint *seen)
{
    checkpoint *c = inside(seen);
    if (c->owner != getpid()) {
        errno = EPERM;
        return NULL;
    }
    if (end_payload(c) != 0) {
        errno = c->os_error;
        return NULL;
    }
    return !c->path && fseeko(c->file, (off_t)c->region_end, SEEK_SET) != 0 ? NULL : c->file;
}

/* An errno has no room for what is wrong, and where: the region is read once more, up to there. */
static int find_fault(checkpoint *c, ds4kv_fault *fault)
{
    struct stat stat;
    if (c->seen.header.codec == DS4KV_CODEC_NONE && fstat(fileno(c->file), &stat) == 0)
        return fault_set(fault, DS4KV_TRUNCATED, (uint64_t)stat.st_size, "payload",
                         "the input ends within the payload");
    uint8_t raw[4096];
    ds4kv_reader *reader;
    int64_t status = ds4kv_reader_new(&reader, &c->frame, c->seen.header.payload_bytes, 0, DS4KV_FRAME_SIZE, 0);
    if (status == DS4KV_OK)
        status = ds4kv_reader_from_file(reader, fileno(c->file), c->region_start);
    for (uint64_t left = c->frame.raw_total; status >= 0 && left > 0; left -= (uint64_t)status)
        status = ds4kv_reader_take(reader, raw, sizeof raw, 1);
    if (status == DS4KV_CORRUPT || status == DS4KV_TRUNCATED) {
        ds4kv_reader_fault(reader, fault);
        fault->offset += c->region_start;
    } else {
        status = io_fault(fault, "the payload can't be read", status == DS4KV_NOMEM ? ENOMEM : EIO);
    }
    ds4kv_reader_free(reader);
    return (int)status;
}

/* What came of reading the payload, as far as it was read. */
static int judge(checkpoint *c, ds4kv_fault *fault)
{
    if (end_payload(c) == 0)
        return DS4KV_OK;
    bool is_proven = c->os_error == EBADMSG;
#ifdef ENODATA
    is_proven = is_proven || c->os_error == ENODATA;
#endif
    return is_proven ? find_fault(c, fault) : io_fault(fault, "the payload can't be read", c->os_error);
}

/* Of the file at `path`, which is absolute; that is cut. */
static int sync_directory(char *path, ds4kv_fault *fault)
{
    path[strrchr(path, '/') - path + 1] = 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    int os_error = fd < 0 || fsync(fd) != 0 ? errno : 0;
    if (fd >= 0)
        close(fd);
    return os_error ? io_fault(fault, "has its name, which can't be sent to the disk", os_error) : DS4KV_OK;
}

static int publish(checkpoint *c, ds4kv_fault *fault)
{
    uint8_t head[DS4KV_HEADER_SIZE];
    if (end_payload(c) != 0)
        return io_fault(fault, "the payload can't be written", c->os_error);
    c->seen.header.payload_bytes = c->region_end - c->region_start;
    int status = ds4kv_header_pack(&c->seen.header, head, fault);
    if (status != DS4KV_OK)
        return status;
    if (ferror(c->file))
        return io_fault(fault, "the trailer can't be written", EIO);
    if (fseeko(c->file, 0, SEEK_SET) != 0 || fwrite(head, 1, sizeof head, c->file) != sizeof head ||
        fflush(c->file) != 0)
        return io_fault(fault, "can't be written", errno);
    if (c->seen.fsync && fsync(fileno(c->file)) != 0)
        return io_fault(fault, "can't be sent to the disk", errno);
    FILE *file = c->file;
    c->file = NULL;
    if (fclose(file) != 0)
        return io_fault(fault, "can't be written", errno);
    if (rename(c->temporary, c->path) != 0)
        return io_fault(fault, "can't take its name", errno);
    free(c->temporary);
    c->temporary = NULL;
    return c->seen.fsync ? sync_directory(c->path, fault) : DS4KV_OK;
}

int ds4kv_checkpoint_close(ds4kv_checkpoint *seen, ds4kv_fault *fault)
{
    checkpoint *c = inside(seen);
    int status;
    if (c->owner != getpid())
        status = fault_set(fault, DS4KV_STATE, 0, "file", "a checkpoint is closed by the process that opened it");
    else
        status = c->path ? publish(c, fault) : judge(c, fault);
    destroy(c);
    return status;
}

void ds4kv_checkpoint_abandon(ds4kv_checkpoint *seen)
{
    if (seen)
        destroy(inside(seen));
}
