/*
 * planes.c - a chunk as the bit planes of its words, and back.
 *
 * Bit p of all the words of a block stands together, for each p. Numbers that are alike in size, or rounded, then make
 * long runs, and LZ4 finds those. The bits of a float's exponent are a Gray code there: from one exponent to the next
 * only one bit changes, and not many.
 *
 * A block is PLANES_BLOCK bytes, or at the end fewer, a multiple of PLANES_GRAIN. Of k bytes plane p lies at p * k / word;
 * its byte i holds that bit of the words 8i to 8i + 7, the first of them lowest. What is left over follows as it is.
 * Words are little-endian.
 *
 * The work goes by tiles of 512 words, of which each plane has 64 bytes: a line of the cache. Planes are 8 or 16 KiB
 * apart, and of lines so far apart a cache holds but a few. So each is written whole.
 */
#include "planes.h"

#include <stdbool.h>
#include <string.h>

#define LINE 64 /* bytes */
#define TILE_WORDS (8 * LINE)

/* One tile. Its lines are `stride` bytes apart. */
typedef void splitter(uint8_t *planes, size_t stride, const uint8_t *raw, unsigned word);
typedef void joiner(uint8_t *raw, const uint8_t *planes, size_t stride, unsigned word);

/* Whether plane p is the xor of bit p and the bit above. Those are the bits of an exponent, but its highest; words of 16
 * bits are taken for bfloat16, and float16 is no worse for it. */
static inline bool is_gray(unsigned p, unsigned word)
{
    return p >= word - 9 && p <= word - 3;
}

/* ---- by definition ---- */

static void split_scalar(uint8_t *planes, size_t stride, const uint8_t *raw, unsigned word)
{
    for (unsigned p = 0; p < word; p++)
        memset(planes + p * stride, 0, LINE);
    for (size_t i = 0; i < TILE_WORDS; i++) {
        uint32_t bits = 0;
        for (unsigned b = 0; b < word / 8; b++)
            bits |= (uint32_t)*raw++ << 8 * b;
        for (unsigned p = 0; p < word; p++) {
            uint32_t bit = is_gray(p, word) ? bits >> p ^ bits >> (p + 1) : bits >> p;
            planes[p * stride + i / 8] |= (uint8_t)((bit & 1) << i % 8);
        }
    }
}

static void join_scalar(uint8_t *raw, const uint8_t *planes, size_t stride, unsigned word)
{
    for (size_t i = 0; i < TILE_WORDS; i++) {
        uint32_t bits = 0;
        for (unsigned p = word; p-- > 0;) {
            uint32_t bit = (uint32_t)planes[p * stride + i / 8] >> i % 8;
            bits |= ((is_gray(p, word) ? bit ^ bits >> (p + 1) : bit) & 1) << p;
        }
        for (unsigned b = 0; b < word / 8; b++)
            *raw++ = (uint8_t)(bits >> 8 * b);
    }
}

/* ---- by vectors ---- */

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__ && (defined(__SSE2__) || !defined(__i386__))

#define WIDTH 16
#define TARGET
#include "tile.h"

#define HAS_VECTORS 1

#else

#define HAS_VECTORS 0
#define split_tile_16 split_scalar
#define join_tile_16 join_scalar

#endif

#if defined(__x86_64__)

/* 1.5 times as fast. */
#define WIDTH 32
#define TARGET __attribute__((target("avx2")))
#include "tile.h"

#define HAS_WIDE __builtin_cpu_supports("avx2")

#else

#define HAS_WIDE 0
#define split_tile_32 split_scalar
#define join_tile_32 join_scalar

#endif

/* ---- a whole chunk ---- */

/* The size of the block that begins at `at`; 0 if there is none. */
static size_t block_size(size_t at, size_t n)
{
    return (n - at < PLANES_BLOCK ? n - at : PLANES_BLOCK) / PLANES_GRAIN * PLANES_GRAIN;
}

static void split(splitter *tile, uint8_t *planes, const uint8_t *raw, size_t n, unsigned word)
{
    size_t at = 0, tile_size = TILE_WORDS * word / 8;
    for (size_t size; (size = block_size(at, n)); at += size)
        for (size_t i = 0; i < size / tile_size; i++)
            tile(planes + at + LINE * i, size / word, raw + at + tile_size * i, word);
    if (at < n)
        memcpy(planes + at, raw + at, n - at);
}

static void join(joiner *tile, uint8_t *raw, const uint8_t *planes, size_t n, unsigned word)
{
    size_t at = 0, tile_size = TILE_WORDS * word / 8;
    for (size_t size; (size = block_size(at, n)); at += size)
        for (size_t i = 0; i < size / tile_size; i++)
            tile(raw + at + tile_size * i, planes + at + LINE * i, size / word, word);
    if (at < n)
        memcpy(raw + at, planes + at, n - at);
}

void planes_split(uint8_t *planes, const uint8_t *raw, size_t n, unsigned word)
{
    split(HAS_WIDE ? split_tile_32 : HAS_VECTORS ? split_tile_16 : split_scalar, planes, raw, n, word);
}

void planes_join(uint8_t *raw, const uint8_t *planes, size_t n, unsigned word)
{
    join(HAS_WIDE ? join_tile_32 : HAS_VECTORS ? join_tile_16 : join_scalar, raw, planes, n, word);
}
