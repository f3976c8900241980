/*
 * oneshot.c - a region that lies whole in memory, decoded into memory that is there.
 */
#include "ds4kv.h"

int ds4kv_decode(const void *region, uint64_t region_bytes, uint32_t chunk_size, uint32_t form, void *raw,
                 uint64_t raw_total, int workers, ds4kv_fault *fault)
{
    ds4kv_frame frame;
    int status = ds4kv_frame_decode(&frame, region, region_bytes, chunk_size, form, fault);
    if (status == DS4KV_OK && frame.raw_total != raw_total)
        status = DS4KV_PARAM;
    if (status != DS4KV_OK)
        return status;

    ds4kv_reader *reader;
    status = ds4kv_reader_new(&reader, &frame, region_bytes, 0, ds4kv_frame_size(form), workers);
    if (status != DS4KV_OK)
        return status;
    status = ds4kv_reader_from_memory(reader, region);
    if (status == DS4KV_OK)
        status = ds4kv_reader_aim(reader, raw, raw_total);
    for (uint64_t done = 0; status == DS4KV_OK && done < raw_total;) {
        int64_t took = ds4kv_reader_take(reader, (uint8_t *)raw + done, raw_total - done, 1);
        if (took < 0)
            status = (int)took;
        else
            done += (uint64_t)took;
    }
    if (status == DS4KV_CORRUPT || status == DS4KV_TRUNCATED)
        ds4kv_reader_fault(reader, fault);
    ds4kv_reader_free(reader);
    return status;
}
