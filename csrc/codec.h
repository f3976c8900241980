/*
 * codec.h - what a ring does to a slot: a chunk to its record, or a record to its chunk.
 *
 * Laws:
 *   - A codec is a value: it is set up once, never changes while it runs, and any number of threads run it at once.
 *   - It allocates nothing. Each thread brings scratch memory of its own, of scratch_size bytes.
 *   - Once `stop` is true nobody wants the slot any more, and what reads from a file reads no further.
 */
#ifndef DS4KV_CODEC_H
#define DS4KV_CODEC_H

#include "slot.h"

typedef struct codec {
    int (*run)(const struct codec *codec, void *scratch, slot *slot, const atomic_bool *stop);
    size_t scratch_size;
    size_t streams_at; /* where in the scratch a transposed chunk is */
    size_t other_at;   /* where in it there is room for a second block, to compare; 0: none is made */
    uint32_t form;
    int level;
    bool leaves_stored; /* encoding, form PACKED: a chunk that is stored is not copied behind its head */
    bool sums;        /* encoding: makes slot.sum; decoding: checks it */
    int fd;           /* decoding: the file that has the records of slots without src */
    uint64_t start;   /* of the region in that file */
    bool is_slow;     /* a chunk may take seconds, and can't be cut short: whoever ends a ring must not wait for it */
    bool reads_first; /* of a slow one: it reads src in its first milliseconds, so src may be the caller's memory */
} codec;

#endif
