/*
 * reader.c - payload out: the second half of a reader. intake.c is the first.
 *
 * Memory, where records are put: workers + 1 blocks, as one arrives while the others are decoded, and as many chunks of
 * payload as workers. Where the region lies there: the blocks are the workers' own, and chunks of payload are
 * workers + 1, as one is copied out while the others are decoded.
 *
 * A chunk that is aimed at the caller's memory needs none of its own. In forms with byte streams each worker has a
 * chunk more.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "bytes.h"
#include "chunk.h"
#include "fault.h"
#include "forms.h"
#include "intake.h"

int ds4kv_reader_new(ds4kv_reader **out, const ds4kv_frame *frame, uint64_t region_bytes, uint32_t first_chunk,
                     uint64_t first_offset, int workers)
{
    *out = NULL;
    if (workers < 0 || workers > DS4KV_MAX_WORKERS || first_chunk > frame->chunk_count || first_offset > region_bytes)
        return DS4KV_PARAM;

    ds4kv_reader *reader = calloc(1, sizeof *reader);
    if (!reader)
        return DS4KV_NOMEM;
    reader->frame = *frame;
    reader->region_bytes = region_bytes;
    reader->first_chunk = first_chunk;
    reader->head_size = ds4kv_record_head_size(frame->form);
    reader->offset = first_offset;
    reader->n_block = min_u32((uint32_t)workers + 1, (uint64_t)reader_chunk_count(reader) + 1);
    reader->n_chunk = min_u32(workers ? (uint32_t)workers : 1, (uint64_t)reader_chunk_count(reader) + 1);
    reader->blocks = calloc(reader->n_block, sizeof *reader->blocks);
    reader->chunks = calloc(reader->n_block, sizeof *reader->chunks); /* n_block: as the source may have it */
    if (!reader->blocks || !reader->chunks ||
        ring_init(&reader->ring, form_decoder(frame->form, frame_raw_size(frame, 0)), workers,
                  reader->n_block + reader->n_chunk, reader->n_chunk)) {
        ds4kv_reader_free(reader);
        return DS4KV_NOMEM;
    }
    *out = reader;
    return DS4KV_OK;
}

/* What is wrong with a chunk by the slot that it was decoded in. */
static int judge_slot(ds4kv_reader *reader, const slot *slot)
{
    uint64_t index = reader->first_chunk + reader->ring.drained;
    if (slot->status != DS4KV_CORRUPT)
        return intake_judge(reader, slot->status, slot->offset + slot->src_size, index, slot->os_error);
    if (slot->wrong == WRONG_SUM)
        return fault_set(&reader->fault, DS4KV_CORRUPT, slot->offset, "record",
                         "chunk %" PRIu64 ": its bytes have changed since they were written", index);
    if (slot->wrong == WRONG_CHECKSUM && reader->frame.form == DS4KV_FORM_PACKED)
        return fault_set(&reader->fault, DS4KV_CORRUPT, slot->offset + PACKED_SUM_AT, "checksum",
                         "chunk %" PRIu64 " is not the one that was written to this file and place", index);
    if (slot->wrong == WRONG_CHECKSUM)
        return fault_set(&reader->fault, DS4KV_CORRUPT, slot->offset + DS4KV_RECORD_HEAD_SIZE, "checksum",
                         "chunk %" PRIu64 " has another XXH32 than %08" PRIx64, index, slot->checksum);
    return fault_set(&reader->fault, DS4KV_CORRUPT, slot->offset + reader->head_size, "block",
                     "chunk %" PRIu64 ": this is no LZ4 block of %zu payload bytes", index, slot->dst_size);
}

int ds4kv_reader_aim_parts(ds4kv_reader *reader, const ds4kv_part *parts, size_t n_parts)
{
    int status = reader_enter(reader);
    if (status != DS4KV_OK)
        return status;
    for (uint64_t i = reader->ring.drained; i < reader->ring.filled; i++)
        if (reader->ring.slots[i % reader->ring.n_slots].parts.part)
            return DS4KV_STATE; /* a worker is in the parts of an earlier aim */
    reader->aim_number++;
    reader->aim_start = reader->aim_end = reader->raw_taken;
    for (size_t i = 0; i < n_parts; i++)
        reader->aim_end += parts[i].size;
    reader->aim_is_large = (reader->aim_end - reader->aim_start) / reader->frame.chunk_size >=
                           (uint64_t)reader->ring.n_workers;
    reader->arriving_part = reader->taken_part = (parts_cursor){parts, reader->aim_start};
    return DS4KV_OK;
}

int ds4kv_reader_aim(ds4kv_reader *reader, void *dst, size_t n)
{
    int status = reader_enter(reader);
    if (status != DS4KV_OK)
        return status;
    reader->whole = (ds4kv_part){dst, n};
    return ds4kv_reader_aim_parts(reader, &reader->whole, 1);
}

int64_t ds4kv_reader_aimed(ds4kv_reader *reader)
{
    int status = reader_enter(reader);
    if (status != DS4KV_OK)
        return status;
    return reader->aim_end > reader->raw_taken ? (int64_t)(reader->aim_end - reader->raw_taken) : 0;
}

int ds4kv_reader_wait(ds4kv_reader *reader, int ms)
{
    if (reader_enter(reader) != DS4KV_OK)
        return 1;
    if (reader->source != PUT)
        intake_ahead(reader);
    return ring_wait(&reader->ring, ms);
}

/* Moves n bytes of a chunk to where the caller's memory has their place. */
static void place(ds4kv_reader *reader, const uint8_t *from, size_t n)
{
    uint64_t position = reader->raw_taken;
    for (size_t done = 0, piece; done < n; done += piece) {
        uint8_t *to = parts_at(&reader->taken_part, position + done, n - done, &piece);
        ring_copy(&reader->ring, to, from + done, piece);
    }
}

/* Moves n bytes of a chunk to dst, or with dst NULL to where they were aimed, if they aren't there yet. */
static void move(ds4kv_reader *reader, const slot *slot, uint8_t *dst, size_t n)
{
    const uint8_t *from = slot->dst + reader->chunk_taken;
    bool is_there = slot->aim_number == reader->aim_number && (slot->aimed || slot->parts.part);
    if (!dst && !is_there)
        place(reader, from, n);
    else if (dst && slot->aimed && dst != from)
        memmove(dst, from, n);
    else if (dst && !slot->aimed)
        ring_copy(&reader->ring, dst, from, n);
}

int64_t ds4kv_reader_take(ds4kv_reader *reader, void *dst, size_t n, int wait)
{
    int status = reader_enter(reader);
    if (status != DS4KV_OK)
        return status;
    if (!dst && n > reader->aim_end - min_u64(reader->raw_taken, reader->aim_end))
        return DS4KV_PARAM;
    size_t taken = 0;
    while (taken < n) {
        if (reader->source != PUT)
            intake_ahead(reader);
        slot *slot = ring_peek(&reader->ring, wait && taken == 0);
        if (!slot)
            break;
        if (slot->status != DS4KV_OK && taken > 0)
            break; /* the good bytes first */
        if (slot->status != DS4KV_OK)
            return reader->status = judge_slot(reader, slot);
        if (dst && slot->parts.part) { /* it is in the parts, and perhaps nowhere else */
            if (taken > 0)
                break;
            return DS4KV_PARAM;
        }

        size_t part = slot->dst_size - reader->chunk_taken;
        if (part > n - taken)
            part = n - taken;
        move(reader, slot, dst ? (uint8_t *)dst + taken : NULL, part);
        taken += part;
        reader->raw_taken += part;
        reader->chunk_taken += part;
        if (reader->chunk_taken == slot->dst_size) {
            reader->chunk_taken = 0;
            ring_pop(&reader->ring);
        }
    }
    if (taken == 0 && n > 0 && reader->ring.drained == reader->ring.filled)
        reader->status = reader->ahead;
    return taken ? (int64_t)taken : reader->status;
}

void ds4kv_reader_fault(const ds4kv_reader *reader, ds4kv_fault *fault)
{
    *fault = reader->fault;
}

static void release(void *object)
{
    ds4kv_reader *reader = object;
    ring_clear(&reader->ring);
    chunk_table_free(reader->blocks, reader->n_block, intake_block_size(reader));
    chunk_table_free(reader->chunks, reader->n_chunk, intake_chunk_size(reader));
    free(reader);
}

void ds4kv_reader_free(ds4kv_reader *reader)
{
    if (reader)
        ring_end(&reader->ring, release, reader);
}
