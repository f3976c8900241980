/*
 * close.c - the end of a checkpoint, whether it was read or written.
 */
#define _GNU_SOURCE /* fseeko */
#include <errno.h>
#include <unistd.h>

#include "checkpoint.h"
#include "create.h"
#include "fault.h"
#include "open.h"
#include "trailer.h"

FILE *ds4kv_checkpoint_trailer(ds4kv_checkpoint *seen)
{
    checkpoint *c = inside(seen);
    if (c->owner != getpid()) {
        errno = EPERM;
        return NULL;
    }
    if ((c->is_written ? create_end_payload(c) : checkpoint_end_payload(c)) != 0) {
        errno = c->os_error;
        return NULL;
    }
    if (c->is_written)
        return c->file;
    if (c->frame.form == DS4KV_FORM_PACKED)
        return trailer_open(c);
    return fseeko(c->file, (off_t)c->region_end, SEEK_SET) == 0 ? c->file : NULL;
}

int ds4kv_checkpoint_close(ds4kv_checkpoint *seen, ds4kv_fault *fault)
{
    checkpoint *c = inside(seen);
    int status;
    if (c->owner != getpid())
        status = fault_set(fault, DS4KV_STATE, 0, "file", "a checkpoint is closed by the process that opened it");
    else
        status = c->is_written ? create_publish(c, fault) : open_judge(c, fault);
    checkpoint_destroy(c);
    return status;
}

void ds4kv_checkpoint_abandon(ds4kv_checkpoint *seen)
{
    if (seen)
        checkpoint_destroy(inside(seen));
}
