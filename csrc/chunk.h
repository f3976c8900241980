/*
 * chunk.h - memory for chunks and blocks, which are large: megabytes each.
 *
 * Laws:
 *   - What is given back may be kept for who asks for the same next: crew.h says how long.
 *   - A table has a place for each chunk that can be under way at once. Its memory is allocated when a chunk first
 *     needs it, so that a small payload never pays for a large one.
 */
#ifndef DS4KV_CHUNK_H
#define DS4KV_CHUNK_H

#include <stddef.h>
#include <stdint.h>

/* Memory for `size` bytes that are mostly written in full: huge pages where the system grants them. NULL: none left. */
uint8_t *chunk_alloc(size_t size);

/* Gives it back; `size` is what was asked for. NULL is let pass. */
void chunk_free(uint8_t *memory, size_t size);

/* Place `i` of a table. NULL: no memory. */
uint8_t *chunk_buffer(uint8_t **table, uint64_t i, size_t size);

/* All places of a table are of the same size. */
void chunk_table_free(uint8_t **table, uint32_t n, size_t size);

#endif
