/*
 * packed.h - a chunk of form PACKED to its record, and back.
 *
 * Its laws are codec.h's.
 */
#ifndef DS4KV_PACKED_H
#define DS4KV_PACKED_H

#include "codec.h"

codec packed_encoder(int level, size_t raw_bound);
codec packed_decoder(size_t raw_bound);

/* Of records with blocks of at most block_bound bytes, which whoever runs the slot reads from a file. */
codec packed_file_decoder(size_t raw_bound, int fd, uint64_t start, size_t block_bound);

#endif
