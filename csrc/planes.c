#include "planes.h"
#include <string.h>
static void one(uint8_t *to, const uint8_t *from, size_t k, unsigned word, int join)
{
    size_t E = word / 8, words = k / E, per = k / word;
    uint32_t mask = word == 32 ? 0x3f800000u : 0x3f80u;
    if (!join)
        memset(to, 0, k);
    for (size_t i = 0; i < words; i++) {
        uint32_t w = 0;
        if (!join) {
            for (size_t b = 0; b < E; b++)
                w |= (uint32_t)from[i * E + b] << 8 * b;
            w ^= w >> 1 & mask;
            for (unsigned p = 0; p < word; p++)
                to[p * per + i / 8] |= (uint8_t)((w >> p & 1) << i % 8);
        } else {
            for (unsigned p = 0; p < word; p++)
                w |= (uint32_t)(from[p * per + i / 8] >> i % 8 & 1) << p;
            for (int p = word == 32 ? 29 : 13; p >= (word == 32 ? 23 : 7); p--)
                w ^= (w >> 1) & (1u << p);
            for (size_t b = 0; b < E; b++)
                to[i * E + b] = (uint8_t)(w >> 8 * b);
        }
    }
}
static void all(uint8_t *to, const uint8_t *from, size_t n, unsigned word, int join)
{
    size_t at = 0;
    while (n - at >= 2048) {
        size_t k = n - at < PLANES_BLOCK ? (n - at) & ~(size_t)2047 : PLANES_BLOCK;
        one(to + at, from + at, k, word, join);
        at += k;
    }
    memcpy(to + at, from + at, n - at);
}
void planes_split(uint8_t *planes, const uint8_t *raw, size_t n, unsigned word)
{
    all(planes, raw, n, word, 0);
}
void planes_join(uint8_t *raw, const uint8_t *planes, size_t n, unsigned word)
{
    all(raw, planes, n, word, 1);
}
