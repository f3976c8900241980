/*
 * intake.c - the first half of a reader: records in, which their owner puts, or which are read where they lie.
 */
#include "intake.h"

#include <inttypes.h>
#include <string.h>

#include "bytes.h"
#include "chunk.h"
#include "fault.h"
#include "file.h"
#include "forms.h"

/* Number of the record that arrives, in the ring. */
static uint64_t arriving(const ds4kv_reader *reader)
{
    return reader->ring.filled;
}

static uint32_t chunk_index(const ds4kv_reader *reader)
{
    return reader->first_chunk + (uint32_t)arriving(reader);
}

/* Whether all records have come. */
static bool is_complete(const ds4kv_reader *reader)
{
    return arriving(reader) == reader_chunk_count(reader);
}

static bool is_last(const ds4kv_reader *reader)
{
    return arriving(reader) + 1 == reader_chunk_count(reader);
}

static size_t largest_block(const ds4kv_reader *reader)
{
    return min_u32(ds4kv_block_bound(reader->frame.chunk_size), reader->region_bytes);
}

size_t intake_block_size(const ds4kv_reader *reader)
{
    return largest_block(reader) + 2 * (size_t)reader->head_size; /* a record, and the head behind it */
}

size_t intake_chunk_size(const ds4kv_reader *reader)
{
    return frame_raw_size(&reader->frame, 0); /* the first chunk is the largest */
}

static uint64_t arriving_position(const ds4kv_reader *reader)
{
    return arriving(reader) * reader->frame.chunk_size;
}

/* Whether the arriving chunk may be decoded now. While the caller waits for much memory to be filled, what belongs behind
 * it is left alone: the next call may have memory for that too, and what is decoded to ours must be copied. */
static bool is_wanted(const ds4kv_reader *reader)
{
    return !reader->aim_is_large || reader->raw_taken >= reader->aim_end || arriving_position(reader) < reader->aim_end;
}

/* Where the arriving chunk is decoded to: the caller's memory if it fits in one part of it whole, else ours. From there
 * the worker copies it, if all of it belongs in parts of the caller's. */
static void set_destination(ds4kv_reader *reader, slot *slot)
{
    uint64_t start = arriving_position(reader);
    size_t room = 0;
    slot->parts.part = NULL;
    slot->aim_number = reader->aim_number;
    if (start >= reader->aim_start && start + reader->head.raw_size <= reader->aim_end) {
        slot->dst = parts_at(&reader->arriving_part, start, reader->head.raw_size, &room);
        slot->parts = reader->arriving_part;
        slot->position = start;
    }
    bool is_read_in_place = reader->frame.form == DS4KV_FORM_RAW && reader->source == OPEN_FILE && !reader->sums;
    slot->aimed = room >= reader->head.raw_size || (slot->parts.part && is_read_in_place);
    if (room >= reader->head.raw_size)
        slot->parts.part = NULL; /* it is in its place */
    if (!slot->aimed)
        slot->dst = chunk_buffer(reader->chunks, arriving(reader) % reader->n_chunk, intake_chunk_size(reader));
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
    slot->transform = reader->head.transform;
    slot->seed = frame_seed(&reader->frame, chunk_index(reader));
    slot->sum = reader->sums ? reader->sums[chunk_index(reader)] : 0;
    if (!slot->dst)
        return DS4KV_NOMEM;
    reader->offset += slot->src_size;
    reader->head.block_size = 0;
    ring_push(&reader->ring, reader_chunk_count(reader) > 1);
    return DS4KV_OK;
}

static int decode_head(ds4kv_reader *reader)
{
    return record_head_decode(&reader->head, reader->bytes, &reader->frame, reader->region_bytes, chunk_index(reader),
                              reader->offset, &reader->fault);
}

int intake_judge(ds4kv_reader *reader, int status, uint64_t offset, uint64_t index, int os_error)
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

int ds4kv_reader_sums(ds4kv_reader *reader, const uint64_t *sums)
{
    int status = reader_enter(reader);
    if (status != DS4KV_OK)
        return status;
    if (arriving(reader) > 0)
        return DS4KV_STATE;
    if (reader->frame.form == DS4KV_FORM_PACKED) /* which has its own */
        return DS4KV_PARAM;
    reader->sums = sums;
    reader->ring.codec.sums = true;
    return DS4KV_OK;
}

/* ---- asked for, and put ---- */

/* What is asked for at once: a record head, or a block and the head behind it. */
static size_t wanted(const ds4kv_reader *reader)
{
    if (reader->head.block_size == 0)
        return reader->head_size;
    return reader->head.block_size + (is_last(reader) ? 0 : (size_t)reader->head_size);
}

static uint8_t *record_buffer(ds4kv_reader *reader)
{
    return chunk_buffer(reader->blocks, arriving(reader) % reader->n_block, intake_block_size(reader));
}

int64_t ds4kv_reader_room(ds4kv_reader *reader, void **room)
{
    int status = reader_enter(reader);
    if (status != DS4KV_OK)
        return status;
    if (is_complete(reader) || reader->source != PUT)
        return 0;
    if (reader->frame.form == DS4KV_FORM_RAW)
        return DS4KV_STATE;
    if (reader->head.block_size != 0 && !is_wanted(reader))
        return 0;
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

int ds4kv_reader_put(ds4kv_reader *reader, size_t n)
{
    int status = reader_enter(reader);
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
    int status = reader_enter(reader);
    if (status != DS4KV_OK || is_complete(reader) || reader->source != PUT)
        return status;
    uint64_t end = reader->offset + reader->arrived;
    if (reader->head.block_size != 0)
        end += reader->head_size;
    return reader->status = intake_judge(reader, DS4KV_TRUNCATED, end, chunk_index(reader), 0);
}

/* ---- where it lies ---- */

/* Only before anything was asked for or decoded. */
static int set_source(ds4kv_reader *reader, int source, int fd, uint64_t start)
{
    int status = reader_enter(reader);
    if (status != DS4KV_OK)
        return status;
    if (reader->source != PUT || reader->arrived > 0 || reader->room > 0 || arriving(reader) > 0)
        return DS4KV_STATE;
    uint32_t form = reader->frame.form, largest_chunk = frame_raw_size(&reader->frame, 0);
    reader->source = source;
    reader->fd = fd;
    reader->file_start = start;
    reader->n_chunk = reader->n_block;
    reader->ring.n_out = reader->n_chunk;
    if (source == OPEN_FILE)
        reader->ring.codec = form_file_decoder(form, largest_chunk, fd, start, largest_block(reader));
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

/* Reads and judges the head of the record that arrives. */
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
        return intake_judge(reader, status, reader->offset + size, chunk_index(reader), os_error);
    return decode_head(reader);
}

void intake_ahead(ds4kv_reader *reader)
{
    while (reader->ahead == DS4KV_OK && !is_complete(reader) && !ring_is_full(&reader->ring) && is_wanted(reader)) {
        if ((reader->ahead = fetch_head(reader)) != DS4KV_OK)
            return;
        reader->ahead = push_record(reader, reader->source == MEMORY ? reader->memory + reader->offset : NULL);
    }
}
