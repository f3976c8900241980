/*
 * trailer.h - layout packed: the trailer of a file that is read, and its sum.
 */
#ifndef DS4KV_TRAILER_H
#define DS4KV_TRAILER_H

#include "checkpoint.h"

/* Finds the trailer that is there now: trailer_bytes of what callers see. CORRUPT, TRUNCATED, IO. */
int trailer_judge(checkpoint *checkpoint, ds4kv_fault *fault);

/* A stream of it, whole and as it was judged, which the checkpoint closes. NULL, with errno: EBADMSG if it is damaged. */
FILE *trailer_open(checkpoint *checkpoint);

#endif
