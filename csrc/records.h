/*
 * records.h - a chunk to its record, and back, in the forms that ds4 knows: PLAIN, TRANSPOSED and CHECKED; and chunks of
 * form RAW, which are read as they are.
 *
 * Its laws are codec.h's. records.c has ds4kv_is_hopeless as well; it is declared in ds4kv.h.
 */
#ifndef DS4KV_RECORDS_H
#define DS4KV_RECORDS_H

#include "codec.h"

codec records_encoder(uint32_t form, int level, size_t raw_bound);
codec records_decoder(uint32_t form, size_t raw_bound);
codec records_file_decoder(uint32_t form, size_t raw_bound, int fd, uint64_t start, size_t block_bound);

#endif
