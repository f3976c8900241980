/*
 * block.h - LZ4 blocks: bytes to a block at a level, and back. Nothing else knows lz4.
 *
 * Law: it allocates nothing, but for LZ4HC's highest levels, which do so by themselves.
 */
#ifndef DS4KV_BLOCK_H
#define DS4KV_BLOCK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Memory that block_make needs at a level. */
size_t block_state_size(int level);

/* Makes a block of n bytes at level -1 to 12, and returns its size; 0: it is larger than `room`, or the highest levels
 * have no memory. There is room for any block in ds4kv_block_bound(n), and level -1 needs so much memory in any case. */
int block_make(int level, void *state, const uint8_t *bytes, size_t n, uint8_t *block, size_t room);

/* The same at a level that leaps, or at level 0 if that is smaller. `other` is memory for a second block. `likely` is what
 * level 0 may come to, 0 if nobody knows: level 0 isn't tried where the block is surely smaller. */
int block_make_smaller(int level, void *state, const uint8_t *bytes, size_t n, uint8_t *block, size_t room,
                       uint8_t *other, size_t likely);

/* Makes what it decodes to; false if that isn't exactly n bytes. */
bool block_read(const uint8_t *block, size_t size, uint8_t *bytes, size_t n);

/* Whether a level needs memory that may be missing. */
bool block_allocates(int level);

/* Whether a block of n bytes may take long enough that nobody should wait for its end. */
bool block_is_slow(int level, size_t n);

/* Whether a level may make a larger block than level 0 does. */
bool block_leaps(int level);

#endif
