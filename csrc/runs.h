/*
 * runs.h - an LZ4 encoder that looks for nothing but runs of one byte.
 */
#ifndef DS4KV_RUNS_H
#define DS4KV_RUNS_H

#include <stddef.h>
#include <stdint.h>

/* Makes an LZ4 block of n >= 1 bytes, and returns its size, which is at most ds4kv_block_bound(n). */
int runs_block(uint8_t *block, const uint8_t *bytes, size_t n);

/* Makes one that holds them as they are. */
int literal_block(uint8_t *block, const uint8_t *bytes, size_t n);

#endif
