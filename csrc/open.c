/*
 * open.c - a checkpoint that is read: what is wrong with it is found before anything is allocated for it.
 *
 * What is read from the file by its number is read before its stream begins.
 */
#define _GNU_SOURCE /* fdopen, fseeko */
#include "open.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "ds4kv_stdio.h"
#include "fault.h"
#include "file.h"
#include "seal.h"
#include "stream.h"
#include "trailer.h"

static int open_regular(checkpoint *c, const char *path, uint64_t *size, ds4kv_fault *fault)
{
    struct stat stat;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a FIFO would be waited for before it can be refused */
    if (fd < 0)
        return fault_io(fault, 0, "can't be opened", errno);
    int os_error = fstat(fd, &stat) != 0 ? errno : S_ISDIR(stat.st_mode) ? EISDIR : S_ISREG(stat.st_mode) ? 0 : EINVAL;
    if (os_error == 0 && !(c->file = fdopen(fd, "rb")))
        os_error = errno;
    if (os_error != 0) {
        close(fd);
        return fault_io(fault, 0, "can't be read as a regular file", os_error);
    }
    *size = (uint64_t)stat.st_size;
    return DS4KV_OK;
}

static int read_at(const checkpoint *c, void *bytes, size_t n, uint64_t offset, ds4kv_fault *fault)
{
    int os_error, status = file_read(fileno(c->file), bytes, &n, offset, &os_error);
    if (status == DS4KV_TRUNCATED)
        return fault_set(fault, status, offset + n, "file", "the file became shorter while it was read");
    return status == DS4KV_IO ? fault_io(fault, 0, "can't be read", os_error) : status;
}

static int read_text(checkpoint *c, ds4kv_fault *fault)
{
    uint32_t n = c->seen.text_bytes;
    char *text = malloc((size_t)n + 1);
    if (!text)
        return fault_set(fault, DS4KV_NOMEM, 48, "text_bytes", "no memory for a text of %" PRIu32 " bytes", n);
    text[n] = 0;
    c->seen.text = text;
    return read_at(c, text, n, DS4KV_PREFIX_SIZE, fault);
}

static int judge_packed(checkpoint *c, const uint8_t *head, ds4kv_fault *fault)
{
    int status = seal_judge(&c->frame, head, c->seen.text, c->seen.text_bytes, fault);
    return status == DS4KV_OK ? trailer_judge(c, fault) : status;
}

static int open_payload(checkpoint *c, const uint8_t *head, int workers, ds4kv_fault *fault)
{
    const ds4kv_header *header = &c->seen.header;
    int form = ds4kv_header_form(header);
    if (form != DS4KV_FORM_RAW) {
        /* source.c reads the frame as well, and has but an errno to say what is wrong with it. */
        uint32_t frame_form = form < 0 ? DS4KV_FORM_PLAIN : (uint32_t)form; /* their frames are the same */
        int status = ds4kv_frame_at(&c->frame, fileno(c->file), c->region_start, header->payload_bytes,
                                    header->chunk_size, frame_form, fault);
        if (status != DS4KV_OK)
            return status;
        if (form < 0)
            form = ds4kv_mid_form(fileno(c->file), c->region_start, header->payload_bytes, header->chunk_size, fault);
        if (form < 0)
            return form;
        c->frame.form = (uint32_t)form;
        if (form == DS4KV_FORM_PACKED && (status = judge_packed(c, head, fault)) != DS4KV_OK)
            return status;
    }
    if (fseeko(c->file, (off_t)c->region_start, SEEK_SET) != 0)
        return fault_io(fault, 0, "can't be read", errno);
    c->seen.payload = ds4kv_fopen_reader_as(c->file, header->payload_bytes, header->chunk_size, c->frame.form, workers,
                                            &c->seen.raw_total);
    return c->seen.payload ? DS4KV_OK : fault_io(fault, 0, "the payload can't be read", errno);
}

static int open_all(checkpoint *c, const char *path, int workers, ds4kv_fault *fault)
{
    ds4kv_outline outline;
    uint64_t size = 0;
    int status = workers_fault(fault, workers);
    if (status == DS4KV_OK)
        status = open_regular(c, path, &size, fault);
    if (status == DS4KV_OK)
        status = ds4kv_examine(&outline, fileno(c->file), size, fault);
    if (status != DS4KV_OK)
        return status;
    c->seen.header = outline.header;
    c->seen.text_bytes = outline.text_bytes;
    c->region_start = outline.region_start;
    c->region_end = c->region_start + outline.header.payload_bytes;
    c->seen.trailer_bytes = size - c->region_end;
    status = read_text(c, fault);
    if (status == DS4KV_OK)
        status = name_fault(fault, DS4KV_CORRUPT, path, c->seen.text, c->seen.text_bytes);
    return status == DS4KV_OK ? open_payload(c, outline.head, workers, fault) : status;
}

int ds4kv_checkpoint_open(ds4kv_checkpoint **out, const char *path, int workers, ds4kv_fault *fault)
{
    *out = NULL;
    checkpoint *c = checkpoint_new(fault);
    if (!c)
        return DS4KV_NOMEM;
    int status = open_all(c, path, workers, fault);
    if (status == DS4KV_OK)
        *out = &c->seen;
    else
        checkpoint_destroy(c);
    return status;
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
    int64_t status = ds4kv_reader_new(&reader, &c->frame, c->seen.header.payload_bytes, 0,
                                      ds4kv_frame_size(c->frame.form), 0);
    if (status == DS4KV_OK)
        status = ds4kv_reader_from_file(reader, fileno(c->file), c->region_start);
    for (uint64_t left = c->frame.raw_total; status >= 0 && left > 0; left -= (uint64_t)status)
        status = ds4kv_reader_take(reader, raw, sizeof raw, 1);
    if (status == DS4KV_CORRUPT || status == DS4KV_TRUNCATED) {
        ds4kv_reader_fault(reader, fault);
        fault->offset += c->region_start;
    } else {
        status = fault_io(fault, 0, "the payload can't be read", status == DS4KV_NOMEM ? ENOMEM : EIO);
    }
    ds4kv_reader_free(reader);
    return (int)status;
}

int open_judge(checkpoint *c, ds4kv_fault *fault)
{
    if (checkpoint_end_payload(c) == 0)
        return DS4KV_OK;
    bool is_proven = c->os_error == EBADMSG || (c->os_error == TRUNCATED_ERRNO && TRUNCATED_ERRNO != EIO);
    return is_proven ? find_fault(c, fault) : fault_io(fault, 0, "the payload can't be read", c->os_error);
}
