/*
 * oneshot.c - a region that lies whole in memory, decoded into memory that is there.
 *
 * The same ring, with nothing of its own: workers read blocks where they lie and write chunks where they belong.
 */
#define _GNU_SOURCE /* madvise, under -std=c11 */
#include <errno.h>
#include <sys/mman.h>
#include <unistd.h>

#include "internal.h"

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22 /* Linux 5.14; older kernels answer EINVAL, other systems have other numbers */
#endif

/* Faults pages in while that can still be refused: past this, a page that can't be read is a signal. */
static int populate(const uint8_t *start, size_t size)
{
#ifdef __linux__
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    uintptr_t from = (uintptr_t)start & ~(page - 1);
    uintptr_t to = (uintptr_t)start + size;
    while (madvise((void *)from, to - from, MADV_POPULATE_READ) != 0)
        if (errno == EINVAL || errno == ENOSYS)
            return DS4KV_PARAM;
        else if (errno != EINTR && errno != EAGAIN)
            return errno == ENOMEM ? DS4KV_NOMEM : DS4KV_IO;
    return DS4KV_OK;
#else
    (void)start, (void)size;
    return DS4KV_PARAM;
#endif
}

static int decode_mapped(const codec *codec, void *scratch, slot *slot)
{
    int status = populate(slot->src, slot->src_size);
    return status == DS4KV_OK ? codec_decoder().run(codec, scratch, slot) : status;
}

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
                 int workers, int mapped, ds4kv_fault *fault)
{
    if (workers < 0 || workers > DS4KV_MAX_WORKERS)
        return DS4KV_PARAM;

    const uint8_t *bytes = region;
    ds4kv_frame frame;
    int status = DS4KV_OK;
    if (mapped && region_bytes >= DS4KV_FRAME_SIZE)
        status = populate(bytes, DS4KV_FRAME_SIZE);
    if (status == DS4KV_OK)
        status = ds4kv_frame_decode(&frame, bytes, region_bytes, chunk_size, fault);
    if (status == DS4KV_OK && frame.raw_total != raw_total)
        status = DS4KV_PARAM;
    if (status != DS4KV_OK)
        return status;

    codec codec = codec_decoder();
    if (mapped)
        codec.run = decode_mapped;
    uint32_t n_slots = 2 * (uint32_t)workers + 1;
    ring ring = {0};
    if (ring_init(&ring, codec, workers, n_slots, n_slots) != DS4KV_OK)
        return DS4KV_NOMEM;

    uint64_t offset = DS4KV_FRAME_SIZE;
    for (uint32_t i = 0; i < frame.chunk_count && status == DS4KV_OK; i++) {
        record_head head;
        if (mapped)
            status = populate(bytes + offset, DS4KV_RECORD_HEAD_SIZE);
        if (status == DS4KV_OK)
            status = record_head_decode(&head, bytes + offset, &frame, region_bytes, i, offset, fault);
        if (status == DS4KV_OK && ring.filled - ring.drained == n_slots)
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
