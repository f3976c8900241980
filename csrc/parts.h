/*
 * parts.h - payload that belongs in several pieces of memory, one after the other.
 */
#ifndef DS4KV_PARTS_H
#define DS4KV_PARTS_H

#include "ds4kv.h"

/* A part, and the payload position of its first byte. It moves forward only. */
typedef struct {
    const ds4kv_part *part; /* NULL: there are none */
    uint64_t start;
} parts_cursor;

/* Where the payload byte at `position` belongs, and how many of the `wanted` bytes from there on belong there side by
 * side: one part may end where the next one begins. They must all belong in the parts, and not before the cursor's. */
uint8_t *parts_at(parts_cursor *cursor, uint64_t position, size_t wanted, size_t *room);

/* Copies n payload bytes, the first of which is at `position`, to where they belong. */
void parts_fill(parts_cursor cursor, uint64_t position, const uint8_t *from, size_t n);

#endif
