/*
 * chunk.c - memory for chunks and blocks.
 *
 * A fresh chunk of 16 MiB is 4096 page faults with small pages, and 8 with huge ones.
 */
#define _GNU_SOURCE /* madvise, under -std=c11 */
#include "chunk.h"

#include <stdlib.h>
#include <sys/mman.h>

#define HUGE_PAGE ((size_t)2 << 20)

uint8_t *chunk_alloc(size_t size)
{
    if (size < HUGE_PAGE)
        return malloc(size);
    size_t whole = size & ~(HUGE_PAGE - 1);
    uint8_t *memory = aligned_alloc(HUGE_PAGE, whole == size ? size : whole + HUGE_PAGE);
#ifdef MADV_HUGEPAGE
    /* A wish: where it is refused, small pages do. The odd end of a block bound is not worth a huge page. */
    if (memory)
        (void)madvise(memory, whole, MADV_HUGEPAGE);
#endif
    return memory;
}

uint8_t *chunk_buffer(uint8_t **table, uint64_t i, size_t size)
{
    if (!table[i])
        table[i] = chunk_alloc(size);
    return table[i];
}

void chunk_table_free(uint8_t **table, uint32_t n)
{
    if (table)
        for (uint32_t i = 0; i < n; i++)
            free(table[i]);
    free(table);
}
