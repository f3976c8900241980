/*
 * stream.h - what the two streams of a payload have in common: sink.c's, to be written, and source.c's, to be read.
 *
 * Their buffer gathers what an engine writes or reads by 4 bytes. A large fwrite passes it by, and so does a large
 * fread in C libraries that hand the caller's memory on (musl): there, the core decodes to where it goes. glibc fills
 * the buffer for every fread from such a stream, and copies; unbuffered, it would ask byte by byte.
 */
#ifndef DS4KV_STREAM_H
#define DS4KV_STREAM_H

#include <errno.h>
#include <stdint.h>

#define STREAM_BUFFER_SIZE 65536 /* stays in a CPU's cache, for what is copied through; larger ones were no faster */

#ifdef ENODATA
#define TRUNCATED_ERRNO ENODATA
#else
#define TRUNCATED_ERRNO EIO
#endif

/* The errno of a status, as ds4kv_stdio.h has it; 0 of OK, and of any number of bytes. */
int stream_errno(int64_t status);

/* As many workers as asked for, but no more than this process has CPUs. */
int stream_workers(int workers);

#endif
