/*
 * chunk.c - memory for chunks and blocks.
 *
 * A fresh chunk of 16 MiB is 4096 page faults with small pages, and 8 with huge ones.
 */
#define _GNU_SOURCE /* madvise, under -std=c11 */
#include "chunk.h"

#include <stdlib.h>
#include <sys/mman.h>

#include "crew.h"

#define HUGE_PAGE ((size_t)2 << 20)

static size_t in_huge_pages(size_t size)
{
    return (size + HUGE_PAGE - 1) & ~(HUGE_PAGE - 1);
}

uint8_t *chunk_alloc(size_t size)
{
    if (size < HUGE_PAGE)
        return malloc(size);
    size_t whole = size & ~(HUGE_PAGE - 1), all = in_huge_pages(size);
    uint8_t *memory = crew_memory(all);
    if (memory)
        return memory;
    if (!(memory = aligned_alloc(HUGE_PAGE, all))) {
        crew_drop_memory();
        memory = aligned_alloc(HUGE_PAGE, all);
    }
#ifdef MADV_HUGEPAGE
    /* A wish: where it is refused, small pages do. The odd end of a block bound is not worth a huge page. */
    if (memory)
        (void)madvise(memory, whole, MADV_HUGEPAGE);
#endif
    return memory;
}

void chunk_free(uint8_t *memory, size_t size)
{
    if (size < HUGE_PAGE)
        free(memory);
    else
        crew_give_back(memory, in_huge_pages(size));
}

uint8_t *chunk_buffer(uint8_t **table, uint64_t i, size_t size)
{
    if (!table[i])
        table[i] = chunk_alloc(size);
    return table[i];
}

void chunk_table_free(uint8_t **table, uint32_t n, size_t size)
{
    if (table)
        for (uint32_t i = 0; i < n; i++)
            chunk_free(table[i], size);
    free(table);
}
