/*
 * checkpoint.c - what open.c, create.c and close.c share: a file's name, an object made and freed, a payload's end.
 */
#include "checkpoint.h"

#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "ds4kv_stdio.h"
#include "fault.h"
#include "sha1.h"

#ifdef __linux__
#include <stdio_ext.h>
#define fpurge __fpurge
#endif

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
    return fault_set(fault, status, DS4KV_PREFIX_SIZE, "text",
                     "the text's SHA-1 is %.40s, not the one in the file's name", right);
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

/* What is buffered is forgotten, not written: this may be a forked child, whose buffers are copies of the parent's. And
 * fclose must not move the position of a file that is read, which parent and child share. */
void checkpoint_destroy(checkpoint *c)
{
    if (c->seen.payload && c->seen.payload != c->file)
        ds4kv_fabandon(c->seen.payload);
    if (c->file) {
        fpurge(c->file);
        fclose(c->file);
    }
    if (c->trailer_stream)
        fclose(c->trailer_stream);
    free(c->trailer);
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

int checkpoint_end_payload(checkpoint *c)
{
    FILE *payload = c->seen.payload;
    c->seen.payload = NULL;
    if (payload && payload != c->file && fclose(payload) != 0)
        c->os_error = errno; /* the first error of all, as errors stick */
    else if (payload && payload == c->file && (ferror(payload) || draft_error(c->draft)))
        c->os_error = draft_error(c->draft) ? draft_error(c->draft) : EIO;
    return c->os_error == 0 ? 0 : -1;
}
