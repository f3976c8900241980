/*
 * slot.h - one chunk on its way through a ring: what a codec is to do, and what came of it.
 *
 * Law: a slot is one thread's at a time. The owner of the ring has it until it pushes it, and again when it is done;
 * between, a worker. Only is_read may be looked at by the owner meanwhile.
 */
#ifndef DS4KV_SLOT_H
#define DS4KV_SLOT_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "parts.h"

typedef struct {
    /* What is to be done. */
    const uint8_t *src; /* NULL: a record that the worker reads from the codec's file */
    uint8_t *dst;
    size_t src_size;    /* reading from a file, afterwards: how much of it was there */
    size_t dst_size;    /* decoding: of the chunk; encoding: room for the record, and afterwards its size */
    uint64_t offset;    /* decoding: of the record in its region */
    uint64_t checksum;  /* decoding: what the record head has */
    uint32_t transform; /* decoding, form PACKED: a TRANSFORM, as it has */
    uint64_t seed;      /* form PACKED: of the checksum */
    uint64_t sum;       /* of the record; decoding: what it should be; encoding, afterwards: what it is */
    bool lent;          /* src is the caller's own memory */
    bool aimed;         /* the result goes to the caller's own memory alone: to dst, or right into parts */
    parts_cursor parts; /* decoding: several parts of the caller's memory that the chunk belongs in, or none */
    uint64_t position;  /* of the chunk in the payload, for that */
    uint32_t aim_number; /* which aim of the caller's that was */

    /* What came of it. */
    int status;
    int os_error;                                          /* of status IO */
    const uint8_t *stored; /* encoding: the record is a head alone, and this is the chunk behind it; or NULL */
    enum { WRONG_SUM, WRONG_BLOCK, WRONG_CHECKSUM } wrong; /* of status CORRUPT */
    atomic_bool is_read;                                   /* src is not needed any more */
    bool done;                                             /* under the ring's mutex: all of the above is there */
} slot;

/* What a worker ends with when the bytes are proven wrong. */
static inline int slot_is_wrong(slot *slot, int what)
{
    slot->wrong = what;
    return DS4KV_CORRUPT;
}

#endif
