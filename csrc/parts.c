/*
 * parts.c - payload that belongs in several pieces of memory.
 */
#include "parts.h"

#include <string.h>

uint8_t *parts_at(parts_cursor *cursor, uint64_t position, size_t *room)
{
    while (position - cursor->start >= cursor->part->size) {
        cursor->start += cursor->part->size;
        cursor->part++;
    }
    size_t at = (size_t)(position - cursor->start);
    *room = cursor->part->size - at;
    return (uint8_t *)cursor->part->bytes + at;
}

void parts_fill(parts_cursor cursor, uint64_t position, const uint8_t *from, size_t n)
{
    while (n > 0) {
        size_t room, piece;
        uint8_t *to = parts_at(&cursor, position, &room);
        piece = room < n ? room : n;
        memcpy(to, from, piece);
        position += piece;
        from += piece;
        n -= piece;
    }
}
