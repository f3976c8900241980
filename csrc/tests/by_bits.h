/*
 * by_bits.h - what bit planes are, bit by bit. It is slow, and shares nothing with the core.
 */
#ifndef BY_BITS_H
#define BY_BITS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* Where bit `bit` of word `i` is, of a block of k bytes. */
static inline size_t plane_place(size_t i, unsigned bit, size_t k, unsigned word)
{
    return bit * (k / word) * 8 + i;
}

static inline bool bit_of(const uint8_t *bytes, size_t at)
{
    return bytes[at / 8] >> at % 8 & 1;
}

/* The planes of one block. */
static inline void by_bits(uint8_t *planes, const uint8_t *raw, size_t k, unsigned word)
{
    memset(planes, 0, k);
    for (size_t i = 0; i < 8 * k / word; i++)
        for (unsigned bit = 0; bit < word; bit++) {
            bool is_set = bit_of(raw, i * word + bit);
            if (word == 32 ? bit >= 23 && bit < 30 : bit >= 7 && bit < 14)
                is_set ^= bit_of(raw, i * word + bit + 1);
            size_t at = plane_place(i, bit, k, word);
            planes[at / 8] |= (uint8_t)(is_set << at % 8);
        }
}

#endif
