/*
 * reader.c - records in, payload out.
 *
 * The input is asked for, not offered: room says where the next bytes of the region belong, so that the owner of the
 * file reads them right into place. Each block is asked for together with the record head behind it. Memory is
 * workers + 1 blocks (one arrives while the others are decoded) and as many chunks of payload as workers; a chunk that
 * is aimed at the caller's memory needs none of its own. In forms with byte streams each worker has a chunk more.
 *
 * A region that is all there, in memory or in a file, is not asked for: as many chunks as the ring has slots are on
 * their way at any time, and whoever decodes a block reads it first. There, blocks are memory of the workers', and
 * chunks of payload are workers + 1, as one is copied out while the others are decoded.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "bytes.h"
#include "chunk.h"
#include "fault.h"
#include "file.h"
#include "frame.h"
#include "ring.h"

struct ds4kv_reader {
    ring ring;
    int status; /* the first error, for good */
    ds4kv_fault fault;
    ds4kv_frame frame;
    uint64_t region_bytes;
    uint32_t first_chunk; /* chunk `first_chunk + i` is number i of the ring */

    const uint64_t *sums; /* of all records of the region, or NULL */

    uint32_t head_size;
    uint64_t offset;                        /* of the record that arrives, in the region */
    uint8_t bytes[DS4KV_CHECKED_HEAD_SIZE]; /* its head, for as long as that is all there is of it */
    record_head head;                       /* the same, once judged; block_size 0: not yet */
    size_t arrived;                         /* bytes of what was asked for */
    size_t room;                            /* bytes that may be put now: the room given out */

    enum { PUT, MEMORY, OPEN_FILE } source;
    const uint8_t *memory; /* MEMORY: the region */
    int fd;                /* OPEN_FILE: it begins at file_start */
    uint64_t file_start;
    int ahead; /* the first error of what lies there: told once all before it is taken */

    uint64_t raw_taken; /* payload bytes taken, since first_chunk */
    size_t chunk_taken; /* of them, from the oldest chunk */
    uint8_t *aim;       /* the caller's memory for payload bytes aim_start up to aim_end */
    uint64_t aim_start, aim_end;

    uint32_t n_block, n_chunk;
    uint8_t **blocks, **chunks;
};

static uint32_t chunks_here(const ds4kv_reader *reader)
{
    return reader->frame.chunk_count - reader->first_chunk;
}

static size_t largest_chunk(const ds4kv_frame *frame)
{
    return min_u32(frame->chunk_size, frame->raw_total);
}

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
    reader->n_block = min_u32((uint32_t)workers + 1, (uint64_t)chunks_here(reader) + 1);
    reader->n_chunk = min_u32(workers ? (uint32_t)workers : 1, (uint64_t)chunks_here(reader) + 1);
    reader->blocks = calloc(reader->n_block, sizeof *reader->blocks);
    reader->chunks = calloc(reader->n_block, sizeof *reader->chunks); /* n_block: as the source may have it */
    if (!reader->blocks || !reader->chunks ||
        ring_init(&reader->ring, codec_decoder(frame->form, largest_chunk(frame)), workers,
                  reader->n_block + reader->n_chunk, reader->n_chunk)) {
        ds4kv_reader_free(reader);
        return DS4KV_NOMEM;
    }
    *out = reader;
    return DS4KV_OK;
}

static int enter(ds4kv_reader *reader)
{
    if (!reader)
        return DS4KV_STATE;
    if (reader->status == DS4KV_OK && ring_is_foreign(&reader->ring))
        reader->status = DS4KV_STATE;
    return reader->status;
}

/* Number of the record that arrives, in the ring. */
static uint64_t arriving(const ds4kv_reader *reader)
{
    return reader->ring.filled;
}

static uint32_t chunk_index(const ds4kv_reader *reader)
{
    return reader->first_chunk + (uint32_t)arriving(reader);
}

static bool is_complete(const ds4kv_reader *reader)
{
    return arriving(reader) == chunks_here(reader);
}

static bool is_last(const ds4kv_reader *reader)
{
    return arriving(reader) + 1 == chunks_here(reader);
}

static size_t largest_block(const ds4kv_reader *reader)
{
    return min_u32(ds4kv_block_bound(reader->frame.chunk_size), reader->region_bytes);
}

/* What is asked for at once: a record head, or a block and the head behind it. */
static size_t wanted(const ds4kv_reader *reader)
{
    if (reader->head.block_size == 0)
        return reader->head_size;
    return reader->head.block_size + (is_last(reader) ? 0 : (size_t)reader->head_size);
}

/* For a record, and the head behind it. */
static uint8_t *record_buffer(ds4kv_reader *reader)
{
    return chunk_buffer(reader->blocks, arriving(reader) % reader->n_block,
                        largest_block(reader) + 2 * (size_t)reader->head_size);
}

int64_t ds4kv_reader_room(ds4kv_reader *reader, void **room)
{
    int status = enter(reader);
    if (status != DS4KV_OK)
        return status;
    if (is_complete(reader) || reader->source != PUT)
        return 0;
    if (reader->frame.form == DS4KV_FORM_RAW)
        return DS4KV_STATE;
    uint8_t *memory = reader->bytes;
    if (reader->head.block_size != 0) {
        uint64_t index = arriving(reader);
        if (ring_is_full(&reader->ring) ||
            (index >= reader->n_block && !ring_done(&reader->ring, index - reader->n_block)))
            return 0;
        if (!(memory = record_buffer(reader)))
            return reader->status = DS4KV_NOMEM;
        memory += reader->head_size;
    }
    *room = memory + reader->arrived;
    reader->room = wanted(reader) - reader->arrived;
    return (int64_t)reader->room;
}

/* Where the arriving chunk is decoded to: the caller's memory if it fits there whole, else ours. */
static void set_destination(ds4kv_reader *reader, slot *slot)
{
    uint64_t start = arriving(reader) * reader->frame.chunk_size;
    slot->aimed = start >= reader->aim_start && start + reader->head.raw_size <= reader->aim_end;
    slot->dst = slot->aimed ? reader->aim + (start - reader->aim_start)
                            : chunk_buffer(reader->chunks, arriving(reader) % reader->n_chunk,
                                           largest_chunk(&reader->frame));
    slot->dst_size = reader->head.raw_size;
}

/* record NULL: whoever runs the slot reads it from the file. */
static int push_record(ds4kv_reader *reader, const uint8_t *record)
{
    slot *slot = ring_next(&reader->ring);
    slot->src = record;
    slot->src_size = reader->head_size + (size_t)reader->head.block_size;
    set_destination(reader, slot);
    slot->offset = reader->offset;
    slot->checksum = reader->head.checksum;
    slot->sum = reader->sums ? reader->sums[chunk_index(reader)] : 0;
    if (!slot->dst)
        return DS4KV_NOMEM;
    reader->offset += slot->src_size;
    reader->head.block_size = 0;
    ring_push(&reader->ring, chunks_here(reader) > 1);
    return DS4KV_OK;
}

static int decode_head(ds4kv_reader *reader)
{
    return record_head_decode(&reader->head, reader->bytes, &reader->frame, reader->region_bytes, chunk_index(reader),
                              reader->offset, &reader->fault);
}

/* `status` of what was read at `offset` for chunk `index`, and the fault behind it. */
static int judge(ds4kv_reader *reader, int status, uint64_t offset, uint64_t index, int os_error)
{
    ds4kv_fault *fault = &reader->fault;
    if (status == DS4KV_TRUNCATED)
        fault_set(fault, status, offset, "region", "the input ends in chunk %" PRIu64 " of %" PRIu32, index,
                  reader->frame.chunk_count);
    if (status == DS4KV_IO)
        fault_set(fault, status, offset, "region", "chunk %" PRIu64 " can't be read", index);
    fault->os_error = os_error;
    return status;
}

/* What is wrong with a chunk by the slot that it was decoded in. */
static int judge_slot(ds4kv_reader *reader, const slot *slot)
{
    uint64_t index = reader->first_chunk + reader->ring.drained;
    if (slot->status != DS4KV_CORRUPT)
        return judge(reader, slot->status, slot->offset + slot->src_size, index, slot->os_error);
    if (slot->wrong == WRONG_SUM)
        return fault_set(&reader->fault, DS4KV_CORRUPT, slot->offset, "record",
                         "chunk %" PRIu64 ": its bytes have changed since they were written", index);
    if (slot->wrong == WRONG_CHECKSUM)
        return fault_set(&reader->fault, DS4KV_CORRUPT, slot->offset + DS4KV_RECORD_HEAD_SIZE, "checksum",
                         "chunk %" PRIu64 " has another XXH32 than %08" PRIx32, index, slot->checksum);
    return fault_set(&reader->fault, DS4KV_CORRUPT, slot->offset + reader->head_size, "block",
                     "chunk %" PRIu64 ": this is no LZ4 block of %zu payload bytes", index, slot->dst_size);
}

/* The head of the record that arrives, from where it lies. */
static int fetch_head(ds4kv_reader *reader)
{
    int status = DS4KV_OK, os_error = 0;
    size_t size = reader->head_size;
    if (reader->source == MEMORY) /* a wrong start may leave no room for a head, which is then judged by that */
        memcpy(reader->bytes, reader->memory + reader->offset,
               min_u32(reader->head_size, reader->region_bytes - reader->offset));
    else
        status = file_read(reader->fd, reader->bytes, &size, reader->file_start + reader->offset, &os_error);
    if (status != DS4KV_OK)
        return judge(reader, status, reader->offset + size, chunk_index(reader), os_error);
    return decode_head(reader);
}

/* Keeps the ring full of what lies there, up to the first fault. */
static void push_ahead(ds4kv_reader *reader)
{
    while (reader->ahead == DS4KV_OK && !is_complete(reader) && !ring_is_full(&reader->ring)) {
        if ((reader->ahead = fetch_head(reader)) != DS4KV_OK)
            return;
        reader->ahead = push_record(reader, reader->source == MEMORY ? reader->memory + reader->offset : NULL);
    }
}

int ds4kv_reader_sums(ds4kv_reader *reader, const uint64_t *sums)
{
    int status = enter(reader);
    if (status != DS4KV_OK)
        return status;
    if (arriving(reader) > 0)
        return DS4KV_STATE;
    reader->sums = sums;
    reader->ring.codec.sums = true;
    return DS4KV_OK;
}

/* Where nothing was asked for or decoded yet. */
static int set_source(ds4kv_reader *reader, int source, int fd, uint64_t start)
{
    int status = enter(reader);
    if (status != DS4KV_OK)
        return status;
    if (reader->source != PUT || reader->arrived > 0 || reader->room > 0 || arriving(reader) > 0)
        return DS4KV_STATE;
    const ds4kv_frame *frame = &reader->frame;
    reader->source = source;
    reader->fd = fd;
    reader->file_start = start;
    reader->n_chunk = reader->n_block;
    reader->ring.n_out = reader->n_chunk;
    if (source == OPEN_FILE)
        reader->ring.codec = codec_file_decoder(frame->form, largest_chunk(frame), fd, start, largest_block(reader));
    reader->ring.codec.sums = reader->sums != NULL;
    return DS4KV_OK;
}

int ds4kv_reader_from_memory(ds4kv_reader *reader, const void *region)
{
    int status = set_source(reader, MEMORY, -1, 0);
    if (status == DS4KV_OK)
        reader->memory = region;
    return status;
}

int ds4kv_reader_from_file(ds4kv_reader *reader, int fd, uint64_t start)
{
    return set_source(reader, OPEN_FILE, fd, start);
}

int ds4kv_reader_put(ds4kv_reader *reader, size_t n)
{
    int status = enter(reader);
    if (status != DS4KV_OK)
        return status;
    if (n > reader->room)
        return DS4KV_PARAM;
    reader->arrived += n;
    reader->room -= n;
    if (n == 0 || reader->room > 0)
        return DS4KV_OK;

    reader->arrived = 0;
    if (reader->head.block_size != 0) {
        uint8_t *record = record_buffer(reader);
        memcpy(record, reader->bytes, reader->head_size); /* it was known before the rest had memory */
        memcpy(reader->bytes, record + reader->head_size + reader->head.block_size,
               is_last(reader) ? 0 : reader->head_size);
        if ((reader->status = push_record(reader, record)) != DS4KV_OK)
            return reader->status;
    }
    return is_complete(reader) ? DS4KV_OK : (reader->status = decode_head(reader));
}

int ds4kv_reader_finish(ds4kv_reader *reader)
{
    int status = enter(reader);
    if (status != DS4KV_OK || is_complete(reader) || reader->source != PUT)
        return status;
    uint64_t end = reader->offset + reader->arrived;
    if (reader->head.block_size != 0)
        end += reader->head_size;
    return reader->status = judge(reader, DS4KV_TRUNCATED, end, chunk_index(reader), 0);
}

int ds4kv_reader_aim(ds4kv_reader *reader, void *dst, size_t n)
{
    int status = enter(reader);
    if (status != DS4KV_OK)
        return status;
    reader->aim = dst;
    reader->aim_start = reader->raw_taken;
    reader->aim_end = reader->raw_taken + n;
    return DS4KV_OK;
}

int64_t ds4kv_reader_aimed(ds4kv_reader *reader)
{
    int status = enter(reader);
    if (status != DS4KV_OK)
        return status;
    return reader->aim_end > reader->raw_taken ? (int64_t)(reader->aim_end - reader->raw_taken) : 0;
}

int ds4kv_reader_wait(ds4kv_reader *reader, int ms)
{
    if (enter(reader) != DS4KV_OK)
        return 1;
    if (reader->source != PUT)
        push_ahead(reader);
    return ring_wait(&reader->ring, ms);
}

int64_t ds4kv_reader_take(ds4kv_reader *reader, void *dst, size_t n, int wait)
{
    int status = enter(reader);
    if (status != DS4KV_OK)
        return status;
    size_t taken = 0;
    while (taken < n) {
        if (reader->source != PUT)
            push_ahead(reader);
        slot *slot = ring_peek(&reader->ring, wait && taken == 0);
        if (!slot)
            break;
        if (slot->status != DS4KV_OK && taken > 0)
            break; /* the good bytes first */
        if (slot->status != DS4KV_OK)
            return reader->status = judge_slot(reader, slot);

        size_t part = slot->dst_size - reader->chunk_taken;
        if (part > n - taken)
            part = n - taken;
        const uint8_t *from = slot->dst + reader->chunk_taken;
        uint8_t *to = (uint8_t *)dst + taken;
        if (from != to) /* not aimed */
            memmove(to, from, part);
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
    chunk_table_free(reader->blocks, reader->n_block);
    chunk_table_free(reader->chunks, reader->n_chunk);
    free(reader);
}

void ds4kv_reader_free(ds4kv_reader *reader)
{
    if (reader)
        ring_end(&reader->ring, release, reader);
}
