/*
 * ds4kv_stdio.h - the payload of a .kv checkpoint as a FILE *.
 *
 * For engines that save by fwrite and load by fread. What is written to a writer's stream arrives in `out` as a
 * compressed region, what is read from a reader's stream is the payload of one in `in`. The bytes are those that
 * ds4kv.h makes, the same for any number of workers.
 *
 *     FILE *payload = ds4kv_fopen_writer(out, chunk_size, workers);
 *     bool saved = payload && save_payload(payload);
 *     if (payload && fclose(payload) != 0)
 *         saved = false;
 *
 * Laws:
 *   - `out` and `in` are the stream's alone from fopen to fclose. They stay open, and must be until then.
 *   - Streams don't seek. fclose ends what the threads are at and gives back the memory, whatever came before. So does
 *     ds4kv_fabandon, which writes nothing more.
 *   - Errors stick: after the first one, reads, writes and fclose fail with its errno. What fwrite takes is compressed
 *     and written later, so only fclose says that all of it is in `out`; an fsync is the caller's.
 *   - workers are 0 (all is done by the thread that reads or writes) to 64, cut to the CPUs of the process: more take
 *     memory and give nothing. Memory is at most 2 x workers + 1 chunks, 2 without workers.
 *   - After fork() the child's copy of a stream fails with EBADF and leaves `out` and `in` alone; fclose frees it.
 *
 * errno:
 *     EBADMSG   the region is corrupt: its bytes are proven wrong
 *     ENODATA   `in` ended before the region did; EIO where there is no ENODATA
 *     EINVAL    chunk_size outside 1..64 MiB, workers outside 0..64, no such form or level, a payload of more chunks
 *               than a u32 counts, or an empty one in form CHECKED
 *     ESPIPE    `out` can't go back to its frame: it is a pipe, or opened for appending
 *     EBADF     in a forked child
 *     ENOMEM    no memory
 *     any other is the system's, of reading `in` or writing `out` (EIO, ENOSPC, EFBIG)
 */
#ifndef DS4KV_STDIO_H
#define DS4KV_STDIO_H

#include <stdio.h>

#include "ds4kv.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A stream to fwrite the payload to, buffered. The region begins at out's position, with a frame that fclose fills in;
 * out is then at the region's end. Before, and after an error, what is there is a frame of no chunks: no reader takes
 * records behind it. NULL and errno on failure. */
DS4KV_API FILE *ds4kv_fopen_writer(FILE *out, uint32_t chunk_size, int workers);

/* The same in any form that is written, at any level; ds4kv_writer_new in ds4kv.h has their numbers. In form PACKED the
 * region has a seal of 0: no file's header has that one. For files of layout packed, ds4kv_file.h. */
DS4KV_API FILE *ds4kv_fopen_writer_as(FILE *out, uint32_t chunk_size, uint32_t form, int level, int workers);

/* A stream to fread the payload from, buffered. The region is region_bytes bytes at in's position; chunk_size is the
 * one in the file's header, or 0 for a region of codec none, which is the payload as it is. *raw_total becomes the
 * payload's size; raw_total may be NULL. Once the last byte is read, in is at the region's end; before, it is anywhere.
 * The stream may be closed at any time. NULL and errno on failure. */
DS4KV_API FILE *ds4kv_fopen_reader(FILE *in, uint64_t region_bytes, uint32_t chunk_size, int workers,
                                   uint64_t *raw_total);

/* The same of a region in any form; DS4KV_FORM_RAW is what chunk_size 0 says above. */
DS4KV_API FILE *ds4kv_fopen_reader_as(FILE *in, uint64_t region_bytes, uint32_t chunk_size, uint32_t form, int workers,
                                      uint64_t *raw_total);

/* Closes a stream of either kind. Of a writer's, nothing more is compressed or written. */
DS4KV_API void ds4kv_fabandon(FILE *stream);

#ifdef __cplusplus
}
#endif

#endif
