/*
 * sink.h - a payload that is written as a FILE *, in a file that has a seal.
 *
 * sink.c has the other ways to open one as well; they are declared in ds4kv_stdio.h.
 */
#ifndef DS4KV_SINK_H
#define DS4KV_SINK_H

#include "ds4kv_stdio.h"

/* ds4kv_fopen_writer_as; form PACKED has the seal in its frame, the others have none. */
FILE *sink_open(FILE *out, uint32_t chunk_size, uint32_t form, int level, uint64_t seal, int workers);

#endif
