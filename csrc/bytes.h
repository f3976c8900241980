/*
 * bytes.h - numbers as files have them: little-endian, at any address.
 */
#ifndef DS4KV_BYTES_H
#define DS4KV_BYTES_H

#include <stdint.h>

static inline uint32_t get_u32(const uint8_t *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static inline uint64_t get_u64(const uint8_t *p)
{
    return (uint64_t)get_u32(p + 4) << 32 | get_u32(p);
}

static inline void put_u32(uint8_t *p, uint32_t v)
{
    for (int i = 0; i < 4; i++)
        p[i] = (uint8_t)(v >> 8 * i);
}

static inline void put_u64(uint8_t *p, uint64_t v)
{
    put_u32(p, (uint32_t)v);
    put_u32(p + 4, (uint32_t)(v >> 32));
}

static inline uint64_t min_u64(uint64_t a, uint64_t b)
{
    return b < a ? b : a;
}

static inline uint32_t min_u32(uint32_t a, uint64_t b)
{
    return b < a ? (uint32_t)b : a;
}

#endif
