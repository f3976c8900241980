/*
 * frame.c - the rules of the region: frame and record heads, to bytes and back.
 *
 * Every number of a file is judged here, before anybody acts on it: against the other numbers, against the bytes that
 * are left, and against what an LZ4 block can hold at all.
 */
#include "frame.h"

#include <inttypes.h>
#include <stdbool.h>

#include "bytes.h"
#include "fault.h"

#define LARGEST_RAW_SIZE 0x7e000000 /* that LZ4 takes at once */

/* A length byte of an LZ4 block adds at most 255 payload bytes, and no byte of a block adds more. */
#define MAX_EXPANSION 255

/* A block of one payload byte: token and literal. */
#define MIN_BLOCK_SIZE 2

static uint64_t chunks_in(uint64_t raw_total, uint32_t chunk_size)
{
    return raw_total / chunk_size + (raw_total % chunk_size != 0);
}

uint32_t ds4kv_block_bound(uint32_t raw_size)
{
    return raw_size > LARGEST_RAW_SIZE ? 0 : BLOCK_BOUND(raw_size);
}

uint32_t ds4kv_record_head_size(uint32_t form)
{
    return form == DS4KV_FORM_RAW ? 0 : form == DS4KV_FORM_CHECKED ? DS4KV_CHECKED_HEAD_SIZE : DS4KV_RECORD_HEAD_SIZE;
}

int ds4kv_frame_init(ds4kv_frame *frame, uint64_t raw_total, uint32_t chunk_size, uint32_t form)
{
    if (chunk_size == 0 || chunk_size > DS4KV_MAX_CHUNK_SIZE || form > DS4KV_FORM_CHECKED ||
        chunks_in(raw_total, chunk_size) > UINT32_MAX)
        return DS4KV_PARAM;
    *frame = (ds4kv_frame){raw_total, (uint32_t)chunks_in(raw_total, chunk_size), chunk_size, form};
    return DS4KV_OK;
}

void ds4kv_frame_encode(const ds4kv_frame *frame, uint8_t *head)
{
    put_u64(head, frame->raw_total);
    put_u32(head + 8, frame->chunk_count);
}

int ds4kv_frame_decode(ds4kv_frame *frame, const uint8_t *head, uint64_t region_bytes, uint32_t chunk_size,
                       uint32_t form, ds4kv_fault *fault)
{
    if (form == DS4KV_FORM_RAW)
        return ds4kv_frame_init(frame, region_bytes, chunk_size, form);
    if (chunk_size == 0 || chunk_size > DS4KV_MAX_CHUNK_SIZE || form > DS4KV_FORM_CHECKED)
        return DS4KV_PARAM;
    if (region_bytes < DS4KV_FRAME_SIZE)
        return fault_set(fault, DS4KV_CORRUPT, 0, "frame", "the region is %" PRIu64 " bytes, its frame alone is 12",
                         region_bytes);

    uint64_t raw_total = get_u64(head);
    uint32_t chunk_count = get_u32(head + 8);
    uint64_t records = region_bytes - DS4KV_FRAME_SIZE;
    uint32_t head_size = ds4kv_record_head_size(form);

    if (chunk_count != chunks_in(raw_total, chunk_size))
        return fault_set(fault, DS4KV_CORRUPT, 8, "chunk_count",
                         "%" PRIu32 " chunks of %" PRIu32 " bytes are claimed for %" PRIu64 " bytes of payload",
                         chunk_count, chunk_size, raw_total);
    if (chunk_count == 0 && form == DS4KV_FORM_CHECKED)
        return fault_set(fault, DS4KV_CORRUPT, 8, "chunk_count", "no chunks; a region of this layout has at least one");
    if (chunk_count == 0 && records != 0)
        return fault_set(fault, DS4KV_CORRUPT, DS4KV_FRAME_SIZE, "region",
                         "%" PRIu64 " bytes are left over after an empty frame", records);
    if (records / (head_size + MIN_BLOCK_SIZE) < chunk_count)
        return fault_set(fault, DS4KV_CORRUPT, 8, "chunk_count",
                         "%" PRIu32 " chunks can't be in %" PRIu64 " bytes of records", chunk_count, records);
    if (raw_total / MAX_EXPANSION > records - (uint64_t)chunk_count * head_size)
        return fault_set(fault, DS4KV_CORRUPT, 0, "raw_total",
                         "%" PRIu64 " bytes of payload can't be in %" PRIu64 " bytes of records", raw_total, records);

    *frame = (ds4kv_frame){raw_total, chunk_count, chunk_size, form};
    return DS4KV_OK;
}

uint64_t ds4kv_region_bound(uint64_t raw_total, uint32_t chunk_size, uint32_t form)
{
    if (form == DS4KV_FORM_RAW)
        return raw_total;
    uint64_t full = raw_total / chunk_size, rest = raw_total % chunk_size, head_size = ds4kv_record_head_size(form);
    return DS4KV_FRAME_SIZE + full * (head_size + ds4kv_block_bound(chunk_size)) +
           (rest != 0 ? head_size + ds4kv_block_bound((uint32_t)rest) : 0);
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
        put_u32(bytes + 8, head->checksum);
}

/* Whether an LZ4 block of this size could be of so many payload bytes, in a region of such chunks. */
static bool block_can_be(uint32_t block_size, uint32_t raw_size, uint32_t chunk_size)
{
    return block_size >= MIN_BLOCK_SIZE && block_size <= ds4kv_block_bound(chunk_size) &&
           raw_size / MAX_EXPANSION <= block_size;
}

int record_head_alone(record_head *head, const uint8_t *bytes, uint32_t chunk_size, uint32_t form, uint32_t index,
                      uint64_t offset, ds4kv_fault *fault)
{
    uint32_t raw_size = get_u32(bytes), block_size = get_u32(bytes + 4);
    if (raw_size == 0 || raw_size > chunk_size)
        return fault_set(fault, DS4KV_CORRUPT, offset, "raw_size", "chunk %" PRIu32 " claims %" PRIu32 " payload bytes",
                         index, raw_size);
    if (!block_can_be(block_size, raw_size, chunk_size))
        return fault_set(fault, DS4KV_CORRUPT, offset + 4, "block_size",
                         "chunk %" PRIu32 ": no block of %" PRIu32 " bytes holds %" PRIu32 " payload bytes", index,
                         block_size, raw_size);
    *head = (record_head){raw_size, block_size, form == DS4KV_FORM_CHECKED ? get_u32(bytes + 8) : 0};
    return DS4KV_OK;
}

int record_head_decode(record_head *head, const uint8_t *bytes, const ds4kv_frame *frame, uint64_t region_bytes,
                       uint32_t index, uint64_t offset, ds4kv_fault *fault)
{
    if (frame->form == DS4KV_FORM_RAW) {
        *head = (record_head){.raw_size = frame_raw_size(frame, index), .block_size = frame_raw_size(frame, index)};
        return DS4KV_OK;
    }
    uint32_t raw_size = get_u32(bytes), block_size = get_u32(bytes + 4);
    uint32_t head_size = ds4kv_record_head_size(frame->form);
    uint64_t left = region_bytes - offset; /* a wrong start may leave no room for the head itself */
    uint32_t after = frame->chunk_count - index - 1;
    uint64_t others = head_size + (uint64_t)after * (head_size + MIN_BLOCK_SIZE);

    if (raw_size != frame_raw_size(frame, index))
        return fault_set(fault, DS4KV_CORRUPT, offset, "raw_size",
                         "chunk %" PRIu32 " claims %" PRIu32 " payload bytes, and has %" PRIu32 " by the frame", index,
                         raw_size, frame_raw_size(frame, index));
    if (!block_can_be(block_size, raw_size, frame->chunk_size))
        return fault_set(fault, DS4KV_CORRUPT, offset + 4, "block_size",
                         "chunk %" PRIu32 ": no block of %" PRIu32 " bytes holds %" PRIu32 " payload bytes", index,
                         block_size, raw_size);
    if (left < others + block_size)
        return fault_set(fault, DS4KV_CORRUPT, offset + 4, "block_size",
                         "chunk %" PRIu32 " claims %" PRIu32 " bytes, the region has %" PRIu64 " left for it", index,
                         block_size, left < others ? 0 : left - others);
    if (after == 0 && left != others + block_size)
        return fault_set(fault, DS4KV_CORRUPT, offset + head_size + block_size, "region",
                         "%" PRIu64 " bytes are left over after the last record", left - others - block_size);

    *head = (record_head){raw_size, block_size, frame->form == DS4KV_FORM_CHECKED ? get_u32(bytes + 8) : 0};
    return DS4KV_OK;
}

int64_t ds4kv_record_size(const ds4kv_frame *frame, uint64_t region_bytes, uint32_t index, uint64_t offset,
                          const uint8_t *head, ds4kv_fault *fault)
{
    record_head found = {0};
    int status = record_head_decode(&found, head, frame, region_bytes, index, offset, fault);
    return status != DS4KV_OK ? status : (int64_t)ds4kv_record_head_size(frame->form) + found.block_size;
}
