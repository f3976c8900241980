/*
 * planes.c - a chunk as the bit planes of its words, and back.
 *
 * Bit p of all the words of a block stands together: the signs of floats, then each bit of their exponents, then the
 * mantissas'. The exponents are Gray codes before, so that a step from one to the next changes one bit of them and not
 * many. What is rounded or alike in size becomes long runs, and LZ4 finds those.
 *
 * A block is PLANES_BLOCK bytes, or at the end fewer, a multiple of GRAIN. Of k bytes plane p lies at p * k / word. Its
 * byte i holds the bits of words 8i to 8i + 7, the first of them lowest. What is left over follows as it is. Words are
 * little-endian.
 *
 * The work goes by tiles of 512 words, of which each plane has 64 bytes: one line of a cache. Planes of a block lie 8 or
 * 16 KiB apart, where a cache has room for few lines at once, so each is written whole.
 */
#include "planes.h"

#include <string.h>

#define GRAIN ((size_t)2048)
#define LINE 64              /* bytes */
#define TILE_WORDS (8 * LINE)
#define MAX_WORD 32

/* A bit of a Gray code is the bit of the exponent and the one above it, xor. These are the bits that change: all of the
 * exponent but its highest; of 16 bits, which may be of two kinds of floats, as if it were bfloat16's. */
#define GRAY_LOW(word) ((word) - 9)
#define GRAY_HIGH(word) ((word) - 3)

/* One tile; its lines are `stride` bytes apart. */
typedef void splitter(uint8_t *planes, size_t stride, const uint8_t *raw, unsigned word);
typedef void joiner(uint8_t *raw, const uint8_t *planes, size_t stride, unsigned word);

/* ---- by definition ---- */

static uint32_t gray_mask(unsigned word)
{
    return word == 32 ? 0x3f800000 : 0x3f80;
}

static void split_scalar(uint8_t *planes, size_t stride, const uint8_t *raw, unsigned word)
{
    for (unsigned p = 0; p < word; p++)
        memset(planes + p * stride, 0, LINE);
    for (size_t i = 0; i < TILE_WORDS; i++) {
        uint32_t bits = 0;
        for (unsigned b = 0; b < word / 8; b++)
            bits |= (uint32_t)*raw++ << 8 * b;
        bits ^= bits >> 1 & gray_mask(word);
        for (unsigned p = 0; p < word; p++)
            planes[p * stride + i / 8] |= (uint8_t)((bits >> p & 1) << i % 8);
    }
}

static void join_scalar(uint8_t *raw, const uint8_t *planes, size_t stride, unsigned word)
{
    for (size_t i = 0; i < TILE_WORDS; i++) {
        uint32_t bits = 0;
        for (unsigned p = 0; p < word; p++)
            bits |= (uint32_t)(planes[p * stride + i / 8] >> i % 8 & 1) << p;
        for (unsigned p = GRAY_HIGH(word); p >= GRAY_LOW(word); p--)
            bits ^= bits >> 1 & (uint32_t)1 << p;
        for (unsigned b = 0; b < word / 8; b++)
            *raw++ = (uint8_t)(bits >> 8 * b);
    }
}

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__

/* ---- by vectors ---- */

/* Of 16 bytes, which every processor of these has: GCC and clang make SSE2 or NEON of them. */
typedef uint8_t vec __attribute__((vector_size(16)));
typedef uint16_t vec16 __attribute__((vector_size(16)));

#define INLINE inline __attribute__((always_inline))
#define LOW_HALVES 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define HIGH_HALVES 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31

#ifdef __clang__
#define ZIP(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define ZIP(a, b, ...) __builtin_shuffle(a, b, (vec){__VA_ARGS__})
#endif

static INLINE vec load(const uint8_t *at)
{
    vec v;
    memcpy(&v, at, sizeof v);
    return v;
}

static INLINE void store(uint8_t *at, vec v)
{
    memcpy(at, &v, sizeof v);
}

/* Rows 0 to 7 and 8 to 15 are zipped together; four times that is rows for columns. */
static INLINE void zip(vec *out, const vec *in)
{
    for (int i = 0; i < 8; i++) {
        out[2 * i] = ZIP(in[i], in[i + 8], LOW_HALVES);
        out[2 * i + 1] = ZIP(in[i], in[i + 8], HIGH_HALVES);
    }
}

/* 16 rows of 16 bytes become columns. */
static INLINE void flip_bytes(vec *rows)
{
    vec other[16];
    zip(other, rows);
    zip(rows, other);
    zip(other, rows);
    zip(rows, other);
}

/* Bits `distance` apart in a byte are exchanged for those in vectors as far apart. */
static INLINE void exchange(vec *low, vec *high, int distance, uint8_t mask)
{
    vec mixed = ((vec)((vec16)*low >> distance) ^ *high) & mask;
    *high ^= mixed;
    *low ^= (vec)((vec16)mixed << distance);
}

/* Bit p of byte i of vector j becomes bit j of byte i of vector p. */
static INLINE void flip_bits(vec *v)
{
    for (int j = 0; j < 4; j++)
        exchange(v + j, v + j + 4, 4, 0x0f);
    for (int j = 0; j < 8; j += 4) {
        exchange(v + j, v + j + 2, 2, 0x33);
        exchange(v + j + 1, v + j + 3, 2, 0x33);
    }
    for (int j = 0; j < 8; j += 2)
        exchange(v + j, v + j + 1, 1, 0x55);
}

/* 128 words, in columns: vector j of byte b of them has words j, j + 8, ... in its bytes. */
static INLINE void words_to_columns(vec columns[][8], const uint8_t *raw, unsigned bytes)
{
    for (unsigned part = 0; part < bytes / 2; part++) {
        vec rows[16];
        for (unsigned i = 0; i < 16; i++)
            rows[i] = load(raw + 8 * bytes * i + 16 * part);
        flip_bytes(rows);
        for (unsigned i = 0; i < 16; i++)
            columns[i % bytes][(16 * part + i) / bytes] = rows[i];
    }
}

static INLINE void columns_to_words(uint8_t *raw, vec columns[][8], unsigned bytes)
{
    for (unsigned part = 0; part < bytes / 2; part++) {
        vec rows[16];
        for (unsigned i = 0; i < 16; i++)
            rows[i] = columns[i % bytes][(16 * part + i) / bytes];
        flip_bytes(rows);
        for (unsigned i = 0; i < 16; i++)
            store(raw + 8 * bytes * i + 16 * part, rows[i]);
    }
}

static INLINE void split_tile(uint8_t *planes, size_t stride, const uint8_t *raw, unsigned word)
{
    vec line[MAX_WORD][LINE / 16];
    for (unsigned quarter = 0; quarter < LINE / 16; quarter++) {
        vec columns[4][8];
        words_to_columns(columns, raw + 16 * word * quarter, word / 8);
        for (unsigned b = 0; b < word / 8; b++) {
            flip_bits(columns[b]);
            for (unsigned p = 0; p < 8; p++)
                line[8 * b + p][quarter] = columns[b][p];
        }
    }
    for (unsigned p = 0; p < word; p++)
        for (unsigned quarter = 0; quarter < LINE / 16; quarter++) {
            vec v = line[p][quarter];
            if (p >= GRAY_LOW(word) && p <= GRAY_HIGH(word))
                v ^= line[p + 1][quarter];
            store(planes + p * stride + 16 * quarter, v);
        }
}

static INLINE void join_tile(uint8_t *raw, const uint8_t *planes, size_t stride, unsigned word)
{
    vec line[MAX_WORD][LINE / 16];
    for (unsigned p = word; p-- > 0;)
        for (unsigned quarter = 0; quarter < LINE / 16; quarter++) {
            line[p][quarter] = load(planes + p * stride + 16 * quarter);
            if (p >= GRAY_LOW(word) && p <= GRAY_HIGH(word))
                line[p][quarter] ^= line[p + 1][quarter];
        }
    for (unsigned quarter = 0; quarter < LINE / 16; quarter++) {
        vec columns[4][8];
        for (unsigned b = 0; b < word / 8; b++) {
            for (unsigned p = 0; p < 8; p++)
                columns[b][p] = line[8 * b + p][quarter];
            flip_bits(columns[b]);
        }
        columns_to_words(raw + 16 * word * quarter, columns, word / 8);
    }
}

static void split_fast(uint8_t *planes, size_t stride, const uint8_t *raw, unsigned word)
{
    if (word == 32)
        split_tile(planes, stride, raw, 32);
    else
        split_tile(planes, stride, raw, 16);
}

static void join_fast(uint8_t *raw, const uint8_t *planes, size_t stride, unsigned word)
{
    if (word == 32)
        join_tile(raw, planes, stride, 32);
    else
        join_tile(raw, planes, stride, 16);
}

#define HAS_VECTORS 1

#else

#define HAS_VECTORS 0
#define split_fast split_scalar
#define join_fast join_scalar

#endif

/* ---- a whole chunk ---- */

static size_t block_at(size_t at, size_t n)
{
    return (n - at < PLANES_BLOCK ? n - at : PLANES_BLOCK) / GRAIN * GRAIN;
}

static void split(splitter *tile, uint8_t *planes, const uint8_t *raw, size_t n, unsigned word)
{
    size_t at = 0, tile_size = TILE_WORDS * word / 8;
    for (size_t size; (size = block_at(at, n)); at += size)
        for (size_t i = 0; i < size / tile_size; i++)
            tile(planes + at + LINE * i, size / word, raw + at + tile_size * i, word);
    for (; at < n; at++)
        planes[at] = raw[at];
}

static void join(joiner *tile, uint8_t *raw, const uint8_t *planes, size_t n, unsigned word)
{
    size_t at = 0, tile_size = TILE_WORDS * word / 8;
    for (size_t size; (size = block_at(at, n)); at += size)
        for (size_t i = 0; i < size / tile_size; i++)
            tile(raw + at + tile_size * i, planes + at + LINE * i, size / word, word);
    for (; at < n; at++)
        raw[at] = planes[at];
}

void planes_split(uint8_t *planes, const uint8_t *raw, size_t n, unsigned word)
{
    split(HAS_VECTORS ? split_fast : split_scalar, planes, raw, n, word);
}

void planes_join(uint8_t *raw, const uint8_t *planes, size_t n, unsigned word)
{
    join(HAS_VECTORS ? join_fast : join_scalar, raw, planes, n, word);
}
