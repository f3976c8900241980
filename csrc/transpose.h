/*
 * transpose.h - a chunk as its four byte streams, and back. Both return the XXH32 of the n raw bytes.
 */
#ifndef DS4KV_TRANSPOSE_H
#define DS4KV_TRANSPOSE_H

#include <stddef.h>
#include <stdint.h>

uint32_t transpose(uint8_t *streams, const uint8_t *raw, size_t n);
uint32_t restore(uint8_t *raw, const uint8_t *streams, size_t n);

#endif
