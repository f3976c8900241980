/*
 * parts.c - payload that belongs in several pieces of memory.
 */
#include "parts.h"

#include "bytes.h"
#include "copy.h"

uint8_t *parts_at(parts_cursor *cursor, uint64_t position, size_t wanted, size_t *room)
{
    while (position - cursor->start >= cursor->part->size) {
        cursor->start += cursor->part->size;
        cursor->part++;
    }
    const ds4kv_part *part = cursor->part;
    uint8_t *at = (uint8_t *)part->bytes + (position - cursor->start);
    uint8_t *end = (uint8_t *)part->bytes + part->size;
    while ((size_t)(end - at) < wanted) {
        part++;
        if (part->size > 0 && part->bytes != end)
            break;
        end += part->size;
    }
    *room = min_u64((uint64_t)(end - at), wanted);
    return at;
}

void parts_fill(parts_cursor cursor, uint64_t position, const uint8_t *from, size_t n)
{
    while (n > 0) {
        size_t piece;
        uint8_t *to = parts_at(&cursor, position, n, &piece);
        copy_far(to, from, piece);
        position += piece;
        from += piece;
        n -= piece;
    }
}
