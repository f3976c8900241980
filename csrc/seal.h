/*
 * seal.h - layout packed: what a file's header, text and trailer are known by.
 *
 * seal.c has ds4kv_seal as well; it is declared in ds4kv_file.h.
 */
#ifndef DS4KV_SEAL_H
#define DS4KV_SEAL_H

#include "ds4kv_file.h"

#define EXT_FLAGS_AT 6 /* in the header */

/* CORRUPT if the frame's seal is not that of this header and text. `head` is 52 bytes. */
int seal_judge(const ds4kv_frame *frame, const uint8_t *head, const void *text, size_t text_bytes, ds4kv_fault *fault);

/* The sum of a trailer of so many bytes at `offset` of an open file. OK, or what file_read says. */
int trailer_sum(uint64_t *sum, int fd, uint64_t offset, uint64_t trailer_bytes, uint64_t seal, int *os_error);

#endif
