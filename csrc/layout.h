/*
 * layout.h - which of the five layouts a file has, as the header alone doesn't say.
 */
#ifndef DS4KV_LAYOUT_H
#define DS4KV_LAYOUT_H

#include "ds4kv_file.h"

/* Reads the header of an open file and the size of its text, and refuses layouts that are not read. Sizes that point past
 * the file's end are the caller's to judge. */
int layout_examine(ds4kv_header *header, uint32_t *text_bytes, int fd, uint64_t file_size, ds4kv_fault *fault);

#endif
