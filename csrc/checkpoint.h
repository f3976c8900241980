/*
 * checkpoint.h - what open.c, create.c and checkpoint.c know of a checkpoint.
 */
#ifndef DS4KV_CHECKPOINT_H
#define DS4KV_CHECKPOINT_H

#include <stdio.h>

#include "draft.h"
#include "internal.h"

typedef struct {
    ds4kv_checkpoint seen; /* first: what callers have is a pointer to it */
    FILE *file;
    uint64_t region_start, region_end;
    ds4kv_frame frame; /* of the region that is read; all 0 for one that is raw */
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

/* These fill in a fault and return its status. */
int io_fault(ds4kv_fault *fault, const char *what, int os_error);
int name_fault(ds4kv_fault *fault, int status, const char *path, const void *text, size_t text_bytes);
int workers_fault(ds4kv_fault *fault, int workers);

/* ---- open.c ---- */

/* What came of reading the payload, as far as it was read. */
int checkpoint_judge(checkpoint *checkpoint, ds4kv_fault *fault);

/* ---- create.c ---- */

/* The payload once more, as it is, if v2-checked saves too little of it. errno, or 0. */
int checkpoint_store_raw_if_better(checkpoint *checkpoint);

/* Writes the header as it is in the end, and gives the file its name. */
int checkpoint_publish(checkpoint *checkpoint, ds4kv_fault *fault);

#endif
