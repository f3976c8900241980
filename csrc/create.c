/*
 * create.c - a checkpoint that is written, to a draft that takes its name in the end.
 */
#define _GNU_SOURCE /* fseeko */
#include "create.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bytes.h"
#include "fault.h"
#include "file.h"
#include "forms.h"
#include "seal.h"
#include "sink.h"

#define CHECKED_LEVEL 1 /* LZ4HC, as ds4 has it */
#define LEAST_SAVING 64 /* v2-checked is kept if it saves one byte of 64 */

/* Why writing to the draft failed: the first error that its stream has met, or else errno. */
static int why(const checkpoint *c)
{
    int os_error = errno;
    return draft_error(c->draft) ? draft_error(c->draft) : os_error;
}

/* What layout packed knows this header and text by, or the header alone. */
static uint64_t seal_of(const checkpoint *c, const uint8_t *head, const void *text, size_t text_bytes)
{
    uint8_t front[DS4KV_PREFIX_SIZE];
    memcpy(front, head, DS4KV_HEADER_SIZE);
    put_u32(front + DS4KV_HEADER_SIZE, c->seen.text_bytes);
    return ds4kv_seal(front, text, text_bytes);
}

/* Makes a draft for the target, and its stream. errno, or 0. */
static int begin_draft(checkpoint *c, const char *target)
{
    int os_error = draft_new(&c->draft, target);
    if (os_error == 0 && !(c->file = draft_stream(c->draft)))
        os_error = errno;
    return os_error;
}

static int write_front(checkpoint *c, const void *text, ds4kv_fault *fault)
{
    uint8_t front[DS4KV_PREFIX_SIZE];
    int status = ds4kv_header_pack(&c->seen.header, front, fault);
    if (status != DS4KV_OK)
        return status;
    put_u32(front + DS4KV_HEADER_SIZE, c->seen.text_bytes);
    size_t n = c->seen.text_bytes;
    if (fwrite(front, 1, sizeof front, c->file) != sizeof front || (n && fwrite(text, 1, n, c->file) != n) ||
        fflush(c->file) != 0)
        return fault_io(fault, 0, "can't be written", why(c));
    return DS4KV_OK;
}

static int create_all(checkpoint *c, const char *path, const void *text, size_t text_bytes, int level, int workers,
                      ds4kv_fault *fault)
{
    uint8_t head[DS4KV_HEADER_SIZE];
    const ds4kv_header *header = &c->seen.header;
    int form = ds4kv_header_form(header), status = ds4kv_header_pack(header, head, fault);
    if (status == DS4KV_OK)
        status = workers_fault(fault, workers);
    if (status == DS4KV_OK && header->layout == DS4KV_LAYOUT_V2_MID)
        status = fault_set(fault, DS4KV_PARAM, 21, "layout", "v2-mid is read here, not written: use v2-checked");
    if (status == DS4KV_OK && header->codec == DS4KV_CODEC_LZ4HC)
        status = fault_set(fault, DS4KV_PARAM, 7, "codec", "LZ4HC is read here, not written: use codec LZ4");
    if (status == DS4KV_OK && text_bytes > UINT32_MAX)
        status = fault_set(fault, DS4KV_PARAM, 48, "text_bytes", "a text of %zu bytes; its length has 32 bits",
                           text_bytes);
    if (status == DS4KV_OK && !form_has_level((uint32_t)form, level))
        status = fault_set(fault, DS4KV_PARAM, 0, "level",
                           "level %d; 0 to %d can be, in v2-checked and packed -1 too, in codec none 0", level,
                           DS4KV_MAX_LEVEL);
    if (status == DS4KV_OK)
        status = name_fault(fault, DS4KV_PARAM, path, text, text_bytes);
    if (status != DS4KV_OK)
        return status;
    int os_error = begin_draft(c, path);
    if (os_error != 0)
        return fault_io(fault, 0,
                        os_error == EISDIR || os_error == EEXIST ? "not a regular file, and not to be replaced by one"
                                                                 : "can't be created",
                        os_error);

    c->seen.text_bytes = (uint32_t)text_bytes;
    c->region_start = DS4KV_PREFIX_SIZE + text_bytes;
    status = write_front(c, text, fault);
    if (status != DS4KV_OK)
        return status;
    if (form == DS4KV_FORM_PACKED) {
        c->frame.seal = seal_of(c, head, text, text_bytes);
        c->facts = seal_of(c, head, NULL, 0);
        c->frame.form = DS4KV_FORM_PACKED;
    }
    c->seen.payload = form == DS4KV_FORM_RAW
                          ? c->file
                          : sink_open(c->file, header->chunk_size, (uint32_t)form, level, c->frame.seal, workers);
    return c->seen.payload ? DS4KV_OK : fault_io(fault, 0, "can't be written", why(c));
}

int ds4kv_checkpoint_create(ds4kv_checkpoint **out, const char *path, const ds4kv_header *header, const void *text,
                            size_t text_bytes, int workers, ds4kv_fault *fault)
{
    int level = ds4kv_header_form(header) == DS4KV_FORM_CHECKED ? CHECKED_LEVEL : 0;
    return ds4kv_checkpoint_create_as(out, path, header, text, text_bytes, level, workers, fault);
}

int ds4kv_checkpoint_create_as(ds4kv_checkpoint **out, const char *path, const ds4kv_header *header, const void *text,
                               size_t text_bytes, int level, int workers, ds4kv_fault *fault)
{
    *out = NULL;
    checkpoint *c = checkpoint_new(fault);
    if (!c)
        return DS4KV_NOMEM;
    c->is_written = true;
    c->seen.header = *header;
    c->seen.header.payload_bytes = 0;
    int status = create_all(c, path, text, text_bytes, level, workers, fault);
    if (status == DS4KV_OK)
        *out = &c->seen;
    else
        checkpoint_destroy(c);
    return status;
}

/* ---- what v2-checked saves too little of ---- */

static int copy(FILE *to, FILE *from, uint64_t n)
{
    char piece[65536];
    errno = EIO; /* if a stream gives no reason */
    for (size_t part; n > 0; n -= part) {
        part = n < sizeof piece ? (size_t)n : sizeof piece;
        if (fread(piece, 1, part, from) != part || fwrite(piece, 1, part, to) != part)
            return errno;
    }
    return fflush(to) == 0 ? 0 : errno;
}

/* Copies header, text and payload of the draft `from` to a new draft of c's, with the payload as it is. errno, or 0. */
static int copy_raw(checkpoint *c, const draft *from, uint64_t region_bytes)
{
    uint64_t raw_total;
    FILE *in = fopen(draft_path(from), "rbe");
    int error = in ? begin_draft(c, draft_target(from)) : errno;
    if (error == 0)
        error = copy(c->file, in, c->region_start);
    if (error == 0 && region_bytes > DS4KV_FRAME_SIZE) {
        FILE *payload = ds4kv_fopen_reader_as(in, region_bytes, c->seen.header.chunk_size, DS4KV_FORM_CHECKED, 0,
                                              &raw_total);
        error = payload ? copy(c->file, payload, raw_total) : errno;
        if (payload)
            fclose(payload);
    }
    if (in)
        fclose(in);
    return error;
}

/* If compressing saves less than 1/64, the checkpoint is made again with its payload as it is, in a new draft. So is
 * one of no payload, which v2-checked can't hold. errno, or 0. */
static int store_raw_if_better(checkpoint *c)
{
    uint8_t head[DS4KV_FRAME_SIZE];
    size_t n = sizeof head;
    off_t end = ftello(c->file);
    int os_error = errno;
    if (end < 0 || file_read(draft_fd(c->draft), head, &n, c->region_start, &os_error) != DS4KV_OK)
        return os_error;
    uint64_t raw_total = get_u64(head), region_bytes = (uint64_t)end - c->region_start;
    if (raw_total > region_bytes && LEAST_SAVING * (raw_total - region_bytes) >= raw_total)
        return 0;

    FILE *file = c->file;
    draft *compressed = c->draft;
    c->file = NULL;
    c->draft = NULL;
    int error = copy_raw(c, compressed, region_bytes);
    fclose(file);
    draft_free(compressed);
    c->seen.header.layout = DS4KV_LAYOUT_V1;
    c->seen.header.codec = DS4KV_CODEC_NONE;
    c->seen.header.chunk_size = 0;
    return error;
}

/* ---- the end ---- */

/* Whether nothing of a payload has come to the file but the room for its frame. */
static bool is_empty(const checkpoint *c)
{
    return ftello(c->file) == (off_t)(c->region_start + DS4KV_FRAME_SIZE);
}

int create_end_payload(checkpoint *c)
{
    bool is_first = c->seen.payload != NULL, is_checked = c->seen.header.layout == DS4KV_LAYOUT_V2_CHECKED;
    (void)checkpoint_end_payload(c);
    if (is_first && is_checked && c->os_error == EINVAL && is_empty(c))
        c->os_error = 0; /* the layout has no payload of no bytes: as it is, there is one */
    if (is_first && is_checked && c->os_error == 0)
        c->os_error = store_raw_if_better(c);
    if (is_first && c->os_error == 0) {
        off_t end = ftello(c->file);
        if (end < 0)
            c->os_error = errno;
        c->region_end = (uint64_t)end;
    }
    return c->os_error == 0 ? 0 : -1;
}

/* Layout packed: puts the trailer's sum behind it. If there is no trailer, the header has no flag of a tool map, which
 * would be one that is lost. errno, or 0. */
static int seal_trailer(checkpoint *c, uint8_t *head)
{
    uint8_t bytes[DS4KV_TRAILER_SUM_SIZE];
    uint64_t sum;
    int os_error = 0;
    off_t end = fflush(c->file) == 0 ? ftello(c->file) : -1;
    if (end < 0)
        return why(c);
    uint64_t trailer_bytes = (uint64_t)end - c->region_end;
    if (trailer_bytes == 0) {
        head[EXT_FLAGS_AT] &= (uint8_t)~DS4KV_EXT_TOOL_MAP;
        return 0;
    }
    if (trailer_sum(&sum, draft_fd(c->draft), c->region_end, trailer_bytes, c->frame.seal, &os_error) != DS4KV_OK)
        return os_error ? os_error : EIO;
    put_u64(bytes, sum);
    return fwrite(bytes, 1, sizeof bytes, c->file) == sizeof bytes ? 0 : why(c);
}

/* Layout packed: the sum of every chunk is of the header as it was in the beginning. */
static int judge_facts(const checkpoint *c, const uint8_t *head, ds4kv_fault *fault)
{
    return seal_of(c, head, NULL, 0) == c->facts
               ? DS4KV_OK
               : fault_set(fault, DS4KV_PARAM, 0, "header",
                           "layout packed seals the header when the payload begins: it can't be changed after");
}

int create_publish(checkpoint *c, ds4kv_fault *fault)
{
    uint8_t head[DS4KV_HEADER_SIZE];
    if (create_end_payload(c) != 0)
        return fault_io(fault, 0, "the payload can't be written", c->os_error);
    c->seen.header.payload_bytes = c->region_end - c->region_start;
    int os_error = 0, status = ds4kv_header_pack(&c->seen.header, head, fault);
    if (status == DS4KV_OK && c->frame.form == DS4KV_FORM_PACKED) {
        status = judge_facts(c, head, fault);
        os_error = status == DS4KV_OK ? seal_trailer(c, head) : 0;
    }
    if (status != DS4KV_OK)
        return status;
    if (os_error != 0)
        return fault_io(fault, 0, "the trailer can't be written", os_error);
    if (fseeko(c->file, 0, SEEK_SET) != 0 || fwrite(head, 1, sizeof head, c->file) != sizeof head ||
        fflush(c->file) != 0 || draft_error(c->draft) != 0)
        return fault_io(fault, 0, "can't be written", why(c));
    if (c->seen.fsync && fsync(draft_fd(c->draft)) != 0)
        return fault_io(fault, 0, "can't be sent to the disk", errno);
    FILE *file = c->file;
    c->file = NULL;
    if (fclose(file) != 0)
        return fault_io(fault, 0, "can't be written", why(c));
    if ((os_error = draft_publish(c->draft)) != 0)
        return fault_io(fault, 0, "can't take its name", os_error);
    if (c->seen.fsync && (os_error = draft_sync_name(c->draft)) != 0)
        return fault_io(fault, 0, "has its name, which can't be sent to the disk", os_error);
    return DS4KV_OK;
}
