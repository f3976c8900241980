/*
 * copy.h - large copies, to memory that is not looked at soon.
 */
#ifndef DS4KV_COPY_H
#define DS4KV_COPY_H

#include <stddef.h>
#include <stdint.h>

/* As memcpy, past the caches if it is much. */
void copy_far(uint8_t *to, const uint8_t *from, size_t n);

#endif
