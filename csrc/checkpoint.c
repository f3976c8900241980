/*
 * checkpoint.c - one .kv file from its opening to its close; open.c reads one, create.c writes one.
 *
 * A checkpoint has two streams: its file's and its payload's. stdio.c makes the payload's, which leaves the file's at
 * the region's end. Where codec none is written, they are one and the same.
 */
#define _GNU_SOURCE /* __fpurge, fseeko */
#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "checkpoint.h"
#include "ds4kv_stdio.h"

#ifdef __linux__
#include <stdio_ext.h>
#define fpurge __fpurge
#endif

int io_fault(ds4kv_fault *fault, const char *what, int os_error)
{
    int status = os_error == ENOMEM ? DS4KV_NOMEM : DS4KV_IO;
    fault_set(fault, status, 0, "file", "%s: %s", what, strerror(os_error));
    fault->os_error = os_error;
    return status;
}

int name_fault(ds4kv_fault *fault, int status, const char *path, const void *text, size_t text_bytes)
{
    const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
    char lower[44], right[44];
    if (strlen(name) != 43 || strcmp(name + 40, ".kv") != 0)
        return DS4KV_OK;
    for (int i = 0; i < 44; i++) {
        if (i < 40 && !isxdigit((unsigned char)name[i]))
            return DS4KV_OK;
        lower[i] = (char)tolower((unsigned char)name[i]);
    }
    ds4kv_checkpoint_name(text, text_bytes, right);
    if (strcmp(lower, right) == 0)
        return DS4KV_OK;
    return fault_set(fault, status, DS4KV_PREFIX_SIZE, "text", "the text's SHA-1 is %.40s, not the one in the file's name",
                     right);
}

int workers_fault(ds4kv_fault *fault, int workers)
{
    return workers >= 0 && workers <= DS4KV_MAX_WORKERS
               ? DS4KV_OK
               : fault_set(fault, DS4KV_PARAM, 0, "workers", "%d workers; 0 to %d can be", workers, DS4KV_MAX_WORKERS);
}

void ds4kv_checkpoint_name(const void *text, size_t text_bytes, char name[44])
{
    sha1_hex(text, text_bytes, name);
    memcpy(name + 40, ".kv", 4);
}

/* Frees everything, and writes nothing more. What is buffered is forgotten: in a forked child it is the parent's to
 * write, and where the parent reads must not move. */
void checkpoint_destroy(checkpoint *c)
{
    if (c->seen.payload && c->seen.payload != c->file)
        ds4kv_fabandon(c->seen.payload);
    if (c->file) {
        fpurge(c->file);
        fclose(c->file);
    }
    draft_free(c->draft);
    free((char *)c->seen.text);
    free(c);
}

checkpoint *checkpoint_new(ds4kv_fault *fault)
{
    checkpoint *c = calloc(1, sizeof *c);
    if (c)
        c->owner = getpid();
    else
        fault_set(fault, DS4KV_NOMEM, 0, "file", "no memory for a checkpoint");
    return c;
}

/* Whether nothing of a payload has come to the file but the room for its frame. */
static bool is_empty(const checkpoint *c)
{
    return ftello(c->file) == (off_t)(c->region_start + DS4KV_FRAME_SIZE);
}

int checkpoint_end_payload(checkpoint *c)
{
    FILE *payload = c->seen.payload;
    c->seen.payload = NULL;
    if (!payload)
        return c->os_error == 0 ? 0 : -1;
    bool is_checked = c->seen.header.layout == DS4KV_LAYOUT_V2_CHECKED;
    if (payload != c->file && fclose(payload) != 0 && !(c->is_written && is_checked && errno == EINVAL && is_empty(c)))
        c->os_error = errno; /* the first error of all, as errors stick */
    else if (payload == c->file && (ferror(payload) || draft_error(c->draft)))
        c->os_error = draft_error(c->draft) ? draft_error(c->draft) : EIO;
    if (c->is_written && c->os_error == 0 && is_checked)
        c->os_error = checkpoint_store_raw_if_better(c);
    if (c->is_written && c->os_error == 0) {
        off_t end = ftello(c->file);
        if (end < 0)
            c->os_error = errno;
        c->region_end = (uint64_t)end;
    }
    return c->os_error == 0 ? 0 : -1;
}

FILE *ds4kv_checkpoint_trailer(ds4kv_checkpoint *seen)
{
    checkpoint *c = inside(seen);
    if (c->owner != getpid()) {
        errno = EPERM;
        return NULL;
    }
    if (checkpoint_end_payload(c) != 0) {
        errno = c->os_error;
        return NULL;
    }
    return !c->is_written && fseeko(c->file, (off_t)c->region_end, SEEK_SET) != 0 ? NULL : c->file;
}

int ds4kv_checkpoint_close(ds4kv_checkpoint *seen, ds4kv_fault *fault)
{
    checkpoint *c = inside(seen);
    int status;
    if (c->owner != getpid())
        status = fault_set(fault, DS4KV_STATE, 0, "file", "a checkpoint is closed by the process that opened it");
    else
        status = c->is_written ? checkpoint_publish(c, fault) : checkpoint_judge(c, fault);
    checkpoint_destroy(c);
    return status;
}

void ds4kv_checkpoint_abandon(ds4kv_checkpoint *seen)
{
    if (seen)
        checkpoint_destroy(inside(seen));
}
