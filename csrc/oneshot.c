/*
 * oneshot.c - a region that lies whole in memory, decoded into memory that is there.
 *
 * The same ring, with nothing of its own: workers read blocks where they lie and write chunks where they belong.
 */
#include "internal.h"

/* The status of the oldest chunk, which leaves the ring. */
static int collect(ring *ring, ds4kv_fault *fault)
{
    slot *slot = ring_peek(ring, true);
    int status = slot->status;
    if (status == DS4KV_CORRUPT)
        fault_block(fault, slot->offset, ring->drained, slot->dst_size);
    ring_pop(ring);
    return status;
}

int ds4kv_decode(const void *region, uint64_t region_bytes, uint32_t chunk_size, void *raw, uint64_t raw_total,
                 int workers, ds4kv_fault *fault)
{
    if (workers < 0 || workers > DS4KV_MAX_WORKERS)
        return DS4KV_PARAM;

    const uint8_t *bytes = region;
    ds4kv_frame frame;
    int status = ds4kv_frame_decode(&frame, bytes, region_bytes, chunk_size, fault);
    if (status == DS4KV_OK && frame.raw_total != raw_total)
        status = DS4KV_PARAM;
    if (status != DS4KV_OK)
        return status;

    uint32_t n_slots = 2 * (uint32_t)workers + 1;
    ring ring = {0};
    if (ring_init(&ring, codec_decoder(), workers, n_slots, n_slots) != DS4KV_OK)
        return DS4KV_NOMEM;

    uint64_t offset = DS4KV_FRAME_SIZE;
    for (uint32_t i = 0; i < frame.chunk_count; i++) {
        record_head head;
        status = record_head_decode(&head, bytes + offset, &frame, region_bytes, i, offset, fault);
        if (status == DS4KV_OK && ring_is_full(&ring))
            status = collect(&ring, fault);
        if (status != DS4KV_OK)
            break;
        slot *slot = ring_next(&ring);
        slot->offset = offset + DS4KV_RECORD_HEAD_SIZE;
        slot->src = bytes + slot->offset;
        slot->src_size = head.block_size;
        slot->dst = (uint8_t *)raw + (uint64_t)i * chunk_size;
        slot->dst_size = head.raw_size;
        ring_push(&ring, frame.chunk_count > 1);
        offset = slot->offset + head.block_size;
    }
    while (status == DS4KV_OK && ring.drained < ring.filled)
        status = collect(&ring, fault);
    ring_free(&ring);
    return status;
}
