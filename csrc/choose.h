/*
 * choose.h - which words a chunk is of, and whether compressing it is worth the time: by a sample of it alone.
 */
#ifndef DS4KV_CHOOSE_H
#define DS4KV_CHOOSE_H

#include <stddef.h>
#include <stdint.h>

/* What it says if not 0 (bytes as they are), 16 or 32 (bit planes of such words). */
#define CHOOSE_STORE 1

#define CHOOSE_SCRATCH ((size_t)129 << 10)

/* Of n bytes; always the same for the same bytes and level. Above level 0 it goes by that. `state` is block_make's at level
 * 0, `scratch` CHOOSE_SCRATCH bytes. */
unsigned choose_word(const uint8_t *raw, size_t n, int level, void *state, uint8_t *scratch);

#endif
