/*
 * frame.c - the rules of the region: frame and record heads, to bytes and back.
 *
 * Every number of a file is judged here, before anybody acts on it: against the other numbers, against the bytes that
 * are left, and against what an LZ4 block can hold at all.
 */
#include "frame.h"

#include <inttypes.h>

#include "bytes.h"
#include "fault.h"

#define LARGEST_RAW_SIZE 0x7e000000 /* that LZ4 takes at once */

/* A length byte of an LZ4 block adds at most 255 payload bytes, and no byte of a block adds more. */
#define MAX_EXPANSION 255

/* A block of one payload byte: token and literal. In form PACKED it is stored as it is. */
#define MIN_BLOCK_SIZE 2
#define MIN_STORED_SIZE 1

static uint64_t chunks_in(uint64_t raw_total, uint32_t chunk_size)
{
    return raw_total / chunk_size + (raw_total % chunk_size != 0);
}

uint32_t ds4kv_block_bound(uint32_t raw_size)
{
    return raw_size > LARGEST_RAW_SIZE ? 0 : BLOCK_BOUND(raw_size);
}

uint32_t ds4kv_frame_size(uint32_t form)
{
    return form == DS4KV_FORM_RAW ? 0 : form == DS4KV_FORM_PACKED ? DS4KV_PACKED_FRAME_SIZE : DS4KV_FRAME_SIZE;
}

uint32_t ds4kv_record_head_size(uint32_t form)
{
    return form == DS4KV_FORM_RAW       ? 0
           : form == DS4KV_FORM_CHECKED ? DS4KV_CHECKED_HEAD_SIZE
           : form == DS4KV_FORM_PACKED  ? DS4KV_PACKED_HEAD_SIZE
                                        : DS4KV_RECORD_HEAD_SIZE;
}

static uint32_t min_block_size(uint32_t form)
{
    return form == DS4KV_FORM_PACKED ? MIN_STORED_SIZE : MIN_BLOCK_SIZE;
}

static uint32_t max_block_size(uint32_t raw_size, uint32_t form)
{
    return form == DS4KV_FORM_PACKED ? raw_size : ds4kv_block_bound(raw_size);
}

uint64_t frame_seed(const ds4kv_frame *frame, uint32_t index)
{
    return frame->seal + frame->first_sum + index;
}

int ds4kv_frame_init(ds4kv_frame *frame, uint64_t raw_total, uint32_t chunk_size, uint32_t form)
{
    if (chunk_size == 0 || chunk_size > DS4KV_MAX_CHUNK_SIZE || form > DS4KV_FORM_PACKED ||
        chunks_in(raw_total, chunk_size) > UINT32_MAX)
        return DS4KV_PARAM;
    *frame = (ds4kv_frame){raw_total, (uint32_t)chunks_in(raw_total, chunk_size), chunk_size, form, 0, 0};
    return DS4KV_OK;
}

/* ---- what form PACKED has in its frame beside total and count: u32 0, seal, first_sum, and the sum of all before it ---- */

#define ZERO_AT 12
#define FIRST_SUM_AT 24
#define OWN_SUM_AT 32

bool is_packed_frame(const uint8_t *head)
{
    return get_u32(head + ZERO_AT) == 0 && ds4kv_hash(head, OWN_SUM_AT) == get_u64(head + OWN_SUM_AT);
}

static void encode_packed(const ds4kv_frame *frame, uint8_t *head)
{
    put_u32(head + ZERO_AT, 0);
    put_u64(head + FRAME_SEAL_AT, frame->seal);
    put_u64(head + FIRST_SUM_AT, frame->first_sum);
    put_u64(head + OWN_SUM_AT, ds4kv_hash(head, OWN_SUM_AT));
}

void ds4kv_frame_encode(const ds4kv_frame *frame, uint8_t *head)
{
    put_u64(head, frame->raw_total);
    put_u32(head + 8, frame->chunk_count);
    if (frame->form == DS4KV_FORM_PACKED)
        encode_packed(frame, head);
}

int ds4kv_frame_decode(ds4kv_frame *frame, const uint8_t *head, uint64_t region_bytes, uint32_t chunk_size,
                       uint32_t form, ds4kv_fault *fault)
{
    if (form == DS4KV_FORM_RAW)
        return ds4kv_frame_init(frame, region_bytes, chunk_size, form);
    if (chunk_size == 0 || chunk_size > DS4KV_MAX_CHUNK_SIZE || form > DS4KV_FORM_PACKED)
        return DS4KV_PARAM;
    uint32_t frame_size = ds4kv_frame_size(form), head_size = ds4kv_record_head_size(form);
    bool is_packed = form == DS4KV_FORM_PACKED;
    if (region_bytes < frame_size)
        return fault_set(fault, DS4KV_CORRUPT, 0, "frame",
                         "the region is %" PRIu64 " bytes, its frame alone is %" PRIu32, region_bytes, frame_size);
    if (is_packed && !is_packed_frame(head))
        return fault_set(fault, DS4KV_CORRUPT, 0, "frame", "the frame is not what was written, by its own sum");

    uint64_t raw_total = get_u64(head);
    uint32_t chunk_count = get_u32(head + 8);
    uint64_t records = region_bytes - frame_size;

    if (chunk_count != chunks_in(raw_total, chunk_size))
        return fault_set(fault, DS4KV_CORRUPT, 8, "chunk_count",
                         "%" PRIu32 " chunks of %" PRIu32 " bytes are claimed for %" PRIu64 " bytes of payload",
                         chunk_count, chunk_size, raw_total);
    if (chunk_count == 0 && form == DS4KV_FORM_CHECKED)
        return fault_set(fault, DS4KV_CORRUPT, 8, "chunk_count", "no chunks; a region of this layout has at least one");
    if (chunk_count == 0 && records != 0)
        return fault_set(fault, DS4KV_CORRUPT, frame_size, "region",
                         "%" PRIu64 " bytes are left over after an empty frame", records);
    if (records / (head_size + min_block_size(form)) < chunk_count)
        return fault_set(fault, DS4KV_CORRUPT, 8, "chunk_count",
                         "%" PRIu32 " chunks can't be in %" PRIu64 " bytes of records", chunk_count, records);
    if (raw_total / MAX_EXPANSION > records - (uint64_t)chunk_count * head_size)
        return fault_set(fault, DS4KV_CORRUPT, 0, "raw_total",
                         "%" PRIu64 " bytes of payload can't be in %" PRIu64 " bytes of records", raw_total, records);

    *frame = (ds4kv_frame){raw_total,
                           chunk_count,
                           chunk_size,
                           form,
                           is_packed ? get_u64(head + FRAME_SEAL_AT) : 0,
                           is_packed ? get_u64(head + FIRST_SUM_AT) : 0};
    return DS4KV_OK;
}

uint64_t ds4kv_region_bound(uint64_t raw_total, uint32_t chunk_size, uint32_t form)
{
    if (form == DS4KV_FORM_RAW)
        return raw_total;
    uint64_t full = raw_total / chunk_size, rest = raw_total % chunk_size, head_size = ds4kv_record_head_size(form);
    return ds4kv_frame_size(form) + full * (head_size + max_block_size(chunk_size, form)) +
           (rest != 0 ? head_size + max_block_size((uint32_t)rest, form) : 0);
}

uint32_t frame_raw_size(const ds4kv_frame *frame, uint32_t index)
{
    return min_u32(frame->chunk_size, frame->raw_total - (uint64_t)index * frame->chunk_size);
}

void record_head_encode(const record_head *head, uint32_t form, uint8_t *bytes)
{
    put_u32(bytes, head->raw_size);
    put_u32(bytes + 4, head->block_size);
    if (form == DS4KV_FORM_CHECKED)
        put_u32(bytes + 8, (uint32_t)head->checksum);
    if (form == DS4KV_FORM_PACKED) {
        put_u32(bytes + 8, head->transform);
        put_u64(bytes + PACKED_SUM_AT, head->checksum);
    }
}

static record_head get_head(const uint8_t *bytes, uint32_t form)
{
    record_head head = {.raw_size = get_u32(bytes), .block_size = get_u32(bytes + 4)};
    if (form == DS4KV_FORM_CHECKED)
        head.checksum = get_u32(bytes + 8);
    if (form == DS4KV_FORM_PACKED) {
        head.transform = get_u32(bytes + 8);
        head.checksum = get_u64(bytes + PACKED_SUM_AT);
    }
    return head;
}

/* Whether a block could be of so many payload bytes, in a region of such chunks. */
static int judge_block(const record_head *head, uint32_t chunk_size, uint32_t form, uint32_t index, uint64_t offset,
                       ds4kv_fault *fault)
{
    uint32_t raw_size = head->raw_size, block_size = head->block_size;
    uint32_t least = form == DS4KV_FORM_PACKED && block_size == raw_size ? MIN_STORED_SIZE : MIN_BLOCK_SIZE;
    uint32_t most = max_block_size(form == DS4KV_FORM_PACKED ? raw_size : chunk_size, form);
    if (block_size < least || block_size > most || raw_size / MAX_EXPANSION > block_size)
        return fault_set(fault, DS4KV_CORRUPT, offset + 4, "block_size",
                         "chunk %" PRIu32 ": no block of %" PRIu32 " bytes holds %" PRIu32 " payload bytes", index,
                         block_size, raw_size);
    if (head->transform > TRANSFORM_PLANES_32 || (head->transform != TRANSFORM_NONE && block_size == raw_size))
        return fault_set(fault, DS4KV_CORRUPT, offset + 8, "transform",
                         "chunk %" PRIu32 ": transform %" PRIu32 " of a block of %" PRIu32 " bytes", index,
                         head->transform, block_size);
    return DS4KV_OK;
}

int record_head_alone(record_head *head, const uint8_t *bytes, uint32_t chunk_size, uint32_t form, uint32_t index,
                      uint64_t offset, ds4kv_fault *fault)
{
    record_head found = get_head(bytes, form);
    if (found.raw_size == 0 || found.raw_size > chunk_size)
        return fault_set(fault, DS4KV_CORRUPT, offset, "raw_size", "chunk %" PRIu32 " claims %" PRIu32 " payload bytes",
                         index, found.raw_size);
    int status = judge_block(&found, chunk_size, form, index, offset, fault);
    if (status == DS4KV_OK)
        *head = found;
    return status;
}

int record_head_decode(record_head *head, const uint8_t *bytes, const ds4kv_frame *frame, uint64_t region_bytes,
                       uint32_t index, uint64_t offset, ds4kv_fault *fault)
{
    if (frame->form == DS4KV_FORM_RAW) {
        *head = (record_head){.raw_size = frame_raw_size(frame, index), .block_size = frame_raw_size(frame, index)};
        return DS4KV_OK;
    }
    record_head found = get_head(bytes, frame->form);
    uint32_t block_size = found.block_size, head_size = ds4kv_record_head_size(frame->form);
    uint64_t left = region_bytes - offset; /* a wrong start may leave no room for the head itself */
    uint32_t after = frame->chunk_count - index - 1;
    uint64_t others = head_size + (uint64_t)after * (head_size + min_block_size(frame->form));

    if (found.raw_size != frame_raw_size(frame, index))
        return fault_set(fault, DS4KV_CORRUPT, offset, "raw_size",
                         "chunk %" PRIu32 " claims %" PRIu32 " payload bytes, and has %" PRIu32 " by the frame", index,
                         found.raw_size, frame_raw_size(frame, index));
    int status = judge_block(&found, frame->chunk_size, frame->form, index, offset, fault);
    if (status != DS4KV_OK)
        return status;
    if (left < others + block_size)
        return fault_set(fault, DS4KV_CORRUPT, offset + 4, "block_size",
                         "chunk %" PRIu32 " claims %" PRIu32 " bytes, the region has %" PRIu64 " left for it", index,
                         block_size, left < others ? 0 : left - others);
    if (after == 0 && left != others + block_size)
        return fault_set(fault, DS4KV_CORRUPT, offset + head_size + block_size, "region",
                         "%" PRIu64 " bytes are left over after the last record", left - others - block_size);

    *head = found;
    return DS4KV_OK;
}

int64_t ds4kv_record_size(const ds4kv_frame *frame, uint64_t region_bytes, uint32_t index, uint64_t offset,
                          const uint8_t *head, ds4kv_fault *fault)
{
    record_head found = {0};
    int status = record_head_decode(&found, head, frame, region_bytes, index, offset, fault);
    return status != DS4KV_OK ? status : (int64_t)ds4kv_record_head_size(frame->form) + found.block_size;
}
