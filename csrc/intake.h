/*
 * intake.h - the first half of a reader: records in. The other half, payload out, is reader.c.
 *
 * Records come in one of two ways.
 *   - PUT: whoever owns the file asks for room, reads the next bytes of the region right into it, puts them. Each
 *     block is asked for together with the record head behind it, so a record is one read.
 *   - MEMORY and OPEN_FILE: the region lies there, whole. Only record heads are read here, whoever decodes a block
 *     reads it first. As many chunks as the ring has slots are on their way at any time.
 *
 * Laws:
 *   - A record is pushed into the ring once its head was judged, and not before.
 *   - Where the region lies there, the first error is kept in `ahead` until all that is good before it was taken.
 */
#ifndef DS4KV_INTAKE_H
#define DS4KV_INTAKE_H

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
    uint8_t bytes[MAX_HEAD_SIZE];           /* its head, for as long as that is all there is of it */
    record_head head;                       /* the same, once judged; block_size 0: not yet */
    size_t arrived;                         /* bytes of what was asked for */
    size_t room;                            /* bytes that may be put now: the room given out */

    enum { PUT, MEMORY, OPEN_FILE } source;
    const uint8_t *memory; /* MEMORY: the region */
    int fd;                /* OPEN_FILE: it begins at file_start */
    uint64_t file_start;
    int ahead; /* the first error of what lies there */

    uint64_t raw_taken; /* payload bytes taken, since first_chunk */
    size_t chunk_taken; /* of them, from the oldest chunk */
    ds4kv_part whole;   /* the only part, where the caller's memory is in one piece */
    parts_cursor arriving_part, taken_part; /* of the caller's memory for payload bytes aim_start up to aim_end */
    uint64_t aim_start, aim_end;
    uint32_t aim_number;
    bool aim_is_large; /* it has a chunk for every worker */

    uint32_t n_block, n_chunk;
    uint8_t **blocks, **chunks;
};

/* What every call begins with: the sticky error. */
static inline int reader_enter(ds4kv_reader *reader)
{
    if (!reader)
        return DS4KV_STATE;
    if (reader->status == DS4KV_OK && ring_is_foreign(&reader->ring))
        reader->status = DS4KV_STATE;
    return reader->status;
}

/* Chunks that this reader has to read. */
static inline uint32_t reader_chunk_count(const ds4kv_reader *reader)
{
    return reader->frame.chunk_count - reader->first_chunk;
}

/* Bytes of memory for a block that is put, and for a chunk. */
size_t intake_block_size(const ds4kv_reader *reader);
size_t intake_chunk_size(const ds4kv_reader *reader);

/* MEMORY, OPEN_FILE: keeps the ring full of what lies there, up to the first error. */
void intake_ahead(ds4kv_reader *reader);

/* `status` of what was read at `offset` for chunk `index`, and the fault behind it. */
int intake_judge(ds4kv_reader *reader, int status, uint64_t offset, uint64_t index, int os_error);

#endif
