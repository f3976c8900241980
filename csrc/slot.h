/*
 * slot.h - one chunk on its way through a ring: what a codec is to do with it, and what came of it.
 *
 * Law: one thread at a time has a slot. The pusher has it before the push and after the chunk is done; between, a worker.
 */
#ifndef DS4KV_SLOT_H
#define DS4KV_SLOT_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct {
    const uint8_t *src; /* pusher writes before the push, worker reads; NULL: the worker reads it from the codec's file */
    uint8_t *dst;       /* pusher writes before the push, worker writes behind it */
    size_t src_size;    /* pusher; worker: bytes that it could read */
    size_t dst_size;    /* pusher: room at dst; worker: bytes it made */
    uint64_t offset;    /* pusher: where the record is in its region, for faults and reading */
    uint32_t checksum;  /* pusher, decoding: what the record's head has */
    uint64_t sum;       /* pusher, decoding: what the record should have; worker, encoding: what it has */
    int status;         /* worker */
    int os_error;       /* worker: errno behind status IO */
    enum { WRONG_SUM, WRONG_BLOCK, WRONG_CHECKSUM } wrong; /* worker: behind status CORRUPT */
    bool lent;           /* pusher: src is the caller's own memory */
    bool aimed;          /* pusher: dst is the caller's own memory */
    bool done;           /* under the ring's mutex: the worker is through with it */
    atomic_bool is_read; /* worker: src is not needed any more */
} slot;

#endif
