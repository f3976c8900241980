/*
 * planes.h - a chunk as the bit planes of its words, and back.
 */
#ifndef DS4KV_PLANES_H
#define DS4KV_PLANES_H

#include <stddef.h>
#include <stdint.h>

/* Each block of this many bytes has planes of its own, the last one of what is left. So a chunk may also be moved by
 * several calls, as long as all but the last move whole blocks. */
#define PLANES_BLOCK ((size_t)256 << 10)

/* What is left over after a multiple of this isn't moved. */
#define PLANES_GRAIN ((size_t)2048)

/* Of n bytes in words of 16 or 32 bits. */
void planes_split(uint8_t *planes, const uint8_t *raw, size_t n, unsigned word);
void planes_join(uint8_t *raw, const uint8_t *planes, size_t n, unsigned word);

#endif
