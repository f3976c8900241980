/*
 * checkpoint.h - one .kv file while it is open: what it holds, its making and its unmaking.
 *
 * open.c opens one to read it, create.c makes one to write it, close.c ends either.
 *
 * A checkpoint has two streams. `file` is the whole file; `seen.payload` is what the engine reads or writes. Where the
 * region is compressed, the payload's is one that sink.c or source.c made on top of the file's. Where a raw
 * payload is written, both are one and the same.
 */
#ifndef DS4KV_CHECKPOINT_H
#define DS4KV_CHECKPOINT_H

#include <stdbool.h>
#include <stdio.h>
#include <sys/types.h>

#include "draft.h"
#include "ds4kv_file.h"

typedef struct {
    ds4kv_checkpoint seen; /* first: what callers have is a pointer to it */
    FILE *file;
    uint64_t region_start, region_end;
    /* Of the region that is read; all 0 for one that is raw. Of one that is written, form PACKED and its seal alone. */
    ds4kv_frame frame;
    uint64_t facts; /* layout packed, being written: what the header alone is known by */
    uint64_t trailer_sum; /* layout packed, being read */
    uint8_t *trailer; /* the same: all of it, once it was asked for, and a stream over that */
    FILE *trailer_stream;
    bool is_written;
    draft *draft; /* what is written, until it has its name */
    pid_t owner;
    int os_error; /* of the payload's stream: close tells it */
} checkpoint;

static inline checkpoint *inside(ds4kv_checkpoint *seen)
{
    return (checkpoint *)(void *)seen;
}

checkpoint *checkpoint_new(ds4kv_fault *fault);

/* Frees everything, and writes nothing more. */
void checkpoint_destroy(checkpoint *checkpoint);

/* Closes the payload's stream, after which the file's is behind the region, if it was written; -1, with os_error. */
int checkpoint_end_payload(checkpoint *checkpoint);

/* What both are asked for. These fill in a fault and return its status. */
int name_fault(ds4kv_fault *fault, int status, const char *path, const void *text, size_t text_bytes);
int workers_fault(ds4kv_fault *fault, int workers);

#endif
