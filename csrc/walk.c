/*
 * walk.c - a region in its file: the frame, and from record to record by their heads alone.
 *
 * The walk is for files that may be damaged. The frame may be what is damaged, so it is not asked: a head leads on if a
 * chunk of the file's size could have it, and its block lies within region and file. Any other ends the walk.
 */
#include <inttypes.h>

#include "ds4kv_file.h"
#include "fault.h"
#include "file.h"
#include "frame.h"

int ds4kv_frame_at(ds4kv_frame *frame, int fd, uint64_t start, uint64_t region_bytes, uint32_t chunk_size,
                   uint32_t form, ds4kv_fault *fault)
{
    uint8_t head[MAX_FRAME_SIZE];
    size_t n = region_bytes < ds4kv_frame_size(form) ? 0 : ds4kv_frame_size(form);
    int os_error, status = file_read(fd, head, &n, start, &os_error);
    if (status == DS4KV_IO)
        return fault_io(fault, start + n, "can't be read", os_error);
    if (status == DS4KV_TRUNCATED)
        return fault_set(fault, status, start + n, "frame", "the input ends within the frame");
    status = ds4kv_frame_decode(frame, head, region_bytes, chunk_size, form, fault);
    if (status == DS4KV_CORRUPT)
        fault->offset += start;
    return status;
}

static int ended(const ds4kv_record *record, uint64_t file_size, uint64_t region_end, ds4kv_fault *fault)
{
    if (file_size < region_end)
        return fault_set(fault, DS4KV_CORRUPT, record->offset < file_size ? record->offset : file_size, "region",
                         "chunk %" PRIu32 ": the file ends at byte %" PRIu64 ", the payload at %" PRIu64
                         " by the header",
                         record->index, file_size, region_end);
    return fault_set(fault, DS4KV_CORRUPT, record->offset < region_end ? record->offset : region_end, "region",
                     "chunk %" PRIu32 ": the region ends at byte %" PRIu64 ", before the record does", record->index,
                     region_end);
}

int ds4kv_record_at(ds4kv_record *record, int fd, uint64_t file_size, uint64_t start, uint64_t region_bytes,
                    uint32_t chunk_size, uint32_t form, ds4kv_fault *fault)
{
    uint64_t region_end = region_bytes > UINT64_MAX - start ? UINT64_MAX : start + region_bytes;
    uint8_t bytes[MAX_HEAD_SIZE];
    uint64_t end = file_size < region_end ? file_size : region_end;
    size_t head_size = ds4kv_record_head_size(form), n = head_size;
    if (record->offset == region_end && file_size >= region_end)
        return 0;
    if (record->offset > end || end - record->offset < head_size)
        return ended(record, file_size, region_end, fault);
    int os_error, status = file_read(fd, bytes, &n, record->offset, &os_error);
    if (status == DS4KV_IO)
        return fault_io(fault, record->offset, "can't be read", os_error);
    if (status == DS4KV_TRUNCATED)
        return fault_set(fault, status, record->offset + n, "file", "the file became shorter while it was read");

    uint64_t left = end - record->offset - head_size;
    record_head head;
    status = record_head_alone(&head, bytes, chunk_size, form, record->index, record->offset, fault);
    if (status != DS4KV_OK)
        return status;
    if (head.block_size > left)
        return ended(record, file_size, region_end, fault);
    record->raw_size = head.raw_size;
    record->size = (uint32_t)head_size + head.block_size;
    return 1;
}
