/*
 * writer.c - payload in, records out.
 *
 * Payload is gathered into chunks. A full chunk goes into the ring when the next byte comes, and not before: so the
 * last one is known as such.
 *
 * Memory, in chunks:
 *     of payload   workers + 1, as one is filled while the others are compressed; none for a chunk that is lent
 *     of records   workers; one more if all of the payload is lent: it is written while the others are made
 *     of streams   workers, in forms CHECKED and PACKED
 *
 * In form PLAIN, LZ4HC reads a chunk to its end, which may be seconds away, and free doesn't wait for that. So there a
 * lent chunk is copied after all; beside LZ4HC that costs nothing.
 */
#include <stdlib.h>
#include <string.h>

#include "bytes.h"
#include "chunk.h"
#include "forms.h"
#include "frame.h"
#include "ring.h"

struct ds4kv_writer {
    ring ring;
    int status;         /* the first error, for good */
    bool finished;
    bool record_out;    /* the oldest record is lent to the caller */
    uint64_t sum;       /* of the record taken last */
    const uint8_t *stored; /* the chunk behind it, if it is a head alone */
    size_t stored_size;
    uint64_t raw_limit; /* the raw_total given, or DS4KV_UNKNOWN */
    ds4kv_frame frame;  /* raw_total: bytes put; chunk_count: chunks pushed */
    uint32_t fill;      /* bytes in the open chunk, in ring_next's slot */
    uint32_t n_raw, n_record;
    uint8_t **raws, **records;
};

/* Chunks that the payload can have at most, so that small ones don't ask for large memory. */
static uint32_t most_chunks(const ds4kv_writer *writer, uint32_t wanted)
{
    uint64_t full = writer->raw_limit / writer->frame.chunk_size;
    return full < wanted ? (uint32_t)full + 1 : wanted;
}

static uint32_t most_raw_size(const ds4kv_writer *writer)
{
    return min_u32(writer->frame.chunk_size, writer->raw_limit);
}

static size_t record_room(const ds4kv_writer *writer)
{
    return ds4kv_record_head_size(writer->frame.form) + (size_t)ds4kv_block_bound(most_raw_size(writer));
}

int ds4kv_writer_new(ds4kv_writer **out, uint64_t raw_total, uint32_t chunk_size, uint32_t form, int level, int workers)
{
    ds4kv_frame frame;
    *out = NULL;
    if (!form_has_level(form, level) || workers < 0 || workers > DS4KV_MAX_WORKERS)
        return DS4KV_PARAM;
    if (form == DS4KV_FORM_RAW || form == DS4KV_FORM_TRANSPOSED || (form == DS4KV_FORM_CHECKED && raw_total == 0))
        return DS4KV_PARAM;
    if (ds4kv_frame_init(&frame, raw_total == DS4KV_UNKNOWN ? 0 : raw_total, chunk_size, form) != DS4KV_OK)
        return DS4KV_PARAM;

    ds4kv_writer *writer = calloc(1, sizeof *writer);
    if (!writer)
        return DS4KV_NOMEM;
    writer->raw_limit = raw_total;
    writer->frame.chunk_size = chunk_size;
    writer->frame.form = form;
    writer->n_raw = most_chunks(writer, (uint32_t)workers + 1);
    writer->n_record = most_chunks(writer, workers ? (uint32_t)workers : 1);
    writer->raws = calloc(writer->n_raw, sizeof *writer->raws);
    writer->records = calloc(writer->n_raw, sizeof *writer->records); /* n_raw: as many if all is lent */
    if (!writer->raws || !writer->records ||
        ring_init(&writer->ring, form_encoder(form, level, most_raw_size(writer)), workers,
                  writer->n_raw + writer->n_record, writer->n_record)) {
        ds4kv_writer_free(writer);
        return DS4KV_NOMEM;
    }
    *out = writer;
    return DS4KV_OK;
}

/* What every call begins with: the sticky error, and the end of the record lent by the last take. */
static int enter(ds4kv_writer *writer)
{
    if (!writer)
        return DS4KV_STATE;
    if (writer->status == DS4KV_OK && ring_is_foreign(&writer->ring))
        writer->status = DS4KV_STATE;
    if (writer->status == DS4KV_OK && writer->record_out) {
        ring_pop(&writer->ring);
        writer->record_out = false;
        writer->stored_size = 0;
    }
    return writer->status;
}

int ds4kv_writer_nice(ds4kv_writer *writer, int nice)
{
    int status = enter(writer);
    if (status != DS4KV_OK)
        return status;
    if (nice < 0 || nice > 19)
        return DS4KV_PARAM;
    writer->ring.nice = nice;
    return DS4KV_OK;
}

/* What is chosen before the first put, and for form PACKED or for the others alone. */
static int enter_to_choose(ds4kv_writer *writer, bool is_for_packed)
{
    int status = enter(writer);
    if (status != DS4KV_OK)
        return status;
    if (writer->frame.raw_total > 0)
        return DS4KV_STATE;
    return (writer->frame.form == DS4KV_FORM_PACKED) == is_for_packed ? DS4KV_OK : DS4KV_PARAM;
}

int ds4kv_writer_sums(ds4kv_writer *writer)
{
    int status = enter_to_choose(writer, false); /* form PACKED has its own */
    if (status == DS4KV_OK)
        writer->ring.codec.sums = true;
    return status;
}

int ds4kv_writer_seal(ds4kv_writer *writer, uint64_t seal)
{
    int status = enter_to_choose(writer, true);
    if (status == DS4KV_OK)
        writer->frame.seal = seal;
    return status;
}

int ds4kv_writer_leave_stored(ds4kv_writer *writer)
{
    int status = enter_to_choose(writer, true);
    if (status == DS4KV_OK)
        writer->ring.codec.leaves_stored = true;
    return status;
}

uint64_t ds4kv_writer_sum(const ds4kv_writer *writer)
{
    return writer->sum;
}

int64_t ds4kv_writer_stored(const ds4kv_writer *writer, const void **chunk)
{
    *chunk = writer->stored;
    return (int64_t)writer->stored_size;
}

static int push_open_chunk(ds4kv_writer *writer, bool more)
{
    if (writer->frame.chunk_count == UINT32_MAX)
        return writer->status = DS4KV_PARAM;
    slot *slot = ring_next(&writer->ring);
    slot->src_size = writer->fill;
    if (writer->frame.form == DS4KV_FORM_PACKED && writer->frame.chunk_count == 0)
        writer->frame.first_sum = ds4kv_hash(slot->src, writer->fill);
    slot->seed = frame_seed(&writer->frame, writer->frame.chunk_count);
    writer->fill = 0;
    writer->frame.chunk_count++;
    ring_push(&writer->ring, more);
    return DS4KV_OK;
}

/* Whether chunk `index` is still to be written from where it lies. */
static bool is_left(ds4kv_writer *writer, uint64_t index)
{
    ring *ring = &writer->ring;
    return index >= ring->drained && ring_done(ring, index) && ring->slots[index % ring->n_slots].stored;
}

/* Room for one more chunk: its raw memory and its record's are told by its number, as slots are. */
static bool can_open(ds4kv_writer *writer)
{
    if (ring_is_full(&writer->ring))
        return false;
    if (writer->ring.filled < writer->n_raw)
        return true;
    uint64_t before = writer->ring.filled - writer->n_raw;
    return ring_done(&writer->ring, before) && !is_left(writer, before);
}

static int open_chunk(ds4kv_writer *writer, const uint8_t *lent)
{
    uint64_t index = writer->ring.filled;
    slot *slot = ring_next(&writer->ring);
    size_t record_size = record_room(writer);
    slot->dst = chunk_buffer(writer->records, index % writer->n_record, record_size);
    slot->dst_size = record_size;
    slot->src = lent ? lent : chunk_buffer(writer->raws, index % writer->n_raw, most_raw_size(writer));
    slot->lent = lent != NULL;
    return slot->src && slot->dst ? DS4KV_OK : (writer->status = DS4KV_NOMEM);
}

int64_t ds4kv_writer_put(ds4kv_writer *writer, const void *raw, size_t n, int lent)
{
    int status = enter(writer);
    if (status != DS4KV_OK)
        return status;
    if (writer->finished)
        return DS4KV_STATE;
    if (n > writer->raw_limit - writer->frame.raw_total)
        return DS4KV_PARAM;

    lent = lent && (!writer->ring.codec.is_slow || writer->ring.codec.reads_first);
    uint32_t chunk_size = writer->frame.chunk_size;
    bool completes = n == writer->raw_limit - writer->frame.raw_total;
    if (lent && completes && writer->frame.raw_total == 0)
        writer->ring.n_out = writer->n_record = writer->n_raw;
    const uint8_t *from = raw;
    size_t left = n;
    while (left > 0) {
        if (writer->fill == chunk_size && push_open_chunk(writer, true) != DS4KV_OK)
            return writer->status;
        bool in_place = false;
        if (writer->fill == 0) {
            in_place = lent && (left >= chunk_size || completes);
            /* A record that is ready goes first, as its memory is what the next chunk waits for. But a chunk in place takes no
             * time: workers have it before the record is written. */
            if (!can_open(writer) || (!in_place && ring_peek(&writer->ring, false)))
                break;
            if (open_chunk(writer, in_place ? from : NULL) != DS4KV_OK)
                return writer->status;
        }
        uint32_t part = min_u32(chunk_size - writer->fill, left);
        if (!in_place)
            memcpy(writer->raws[writer->ring.filled % writer->n_raw] + writer->fill, from, part);
        writer->fill += part;
        from += part;
        left -= part;
    }
    writer->frame.raw_total += n - left;
    return (int64_t)(n - left);
}

int64_t ds4kv_writer_lent(ds4kv_writer *writer)
{
    int status = enter(writer);
    if (status != DS4KV_OK)
        return status;
    ring *ring = &writer->ring;
    int64_t lent = writer->fill && ring_next(ring)->lent;
    for (uint64_t i = ring->drained; i < ring->filled; i++) {
        slot *slot = &ring->slots[i % ring->n_slots];
        lent += slot->lent && (ring_done(ring, i) ? is_left(writer, i) : !atomic_load(&slot->is_read));
    }
    return lent;
}

int ds4kv_writer_finish(ds4kv_writer *writer)
{
    int status = enter(writer);
    if (status != DS4KV_OK)
        return status;
    if (writer->finished || (writer->raw_limit != DS4KV_UNKNOWN && writer->frame.raw_total != writer->raw_limit))
        return DS4KV_STATE;
    if (writer->frame.form == DS4KV_FORM_CHECKED && writer->frame.raw_total == 0)
        return writer->status = DS4KV_PARAM;
    writer->finished = true;
    bool alone = writer->ring.filled == writer->ring.drained;
    return writer->fill ? push_open_chunk(writer, !alone) : DS4KV_OK;
}

/* What a take begins with: a chunk that is full is on its way. */
static int begin_take(ds4kv_writer *writer)
{
    int status = enter(writer);
    if (status == DS4KV_OK && writer->fill == writer->frame.chunk_size)
        status = push_open_chunk(writer, false);
    return status;
}

int ds4kv_writer_wait(ds4kv_writer *writer, int ms)
{
    return begin_take(writer) != DS4KV_OK || ring_wait(&writer->ring, ms);
}

int64_t ds4kv_writer_take(ds4kv_writer *writer, const void **record)
{
    int status = begin_take(writer);
    if (status != DS4KV_OK)
        return status;
    slot *slot = ring_peek(&writer->ring, true);
    if (!slot)
        return 0;
    if (slot->status != DS4KV_OK)
        return writer->status = slot->status;
    writer->record_out = true;
    writer->sum = slot->sum;
    writer->stored = slot->stored;
    writer->stored_size = slot->stored ? slot->src_size : 0;
    *record = slot->dst;
    return (int64_t)slot->dst_size;
}

void ds4kv_writer_frame(const ds4kv_writer *writer, ds4kv_frame *frame)
{
    *frame = writer->frame;
}

static void release(void *object)
{
    ds4kv_writer *writer = object;
    ring_clear(&writer->ring);
    chunk_table_free(writer->raws, writer->n_raw, most_raw_size(writer));
    chunk_table_free(writer->records, writer->n_record, record_room(writer));
    free(writer);
}

void ds4kv_writer_free(ds4kv_writer *writer)
{
    if (writer)
        ring_end(&writer->ring, release, writer);
}
