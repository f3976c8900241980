/*
 * transpose.c - a chunk as four byte streams and back, and the XXH32 of its raw bytes on the way.
 *
 * Of n bytes, with m = n / 4, stream b (0 to 3) holds bytes b, b + 4, b + 8, ... and lies at b * m; the n % 4 bytes
 * left over follow as they are. So the exponents of 32-bit floats stand together, and their zero bytes too, which is
 * what LZ4 finds repeats in.
 *
 * XXH32 waits for its own multiplications most of the time. Done by pieces that are still in the nearest cache, the
 * transpose fills that time: both together take 1.2 times as long as XXH32 alone, one after the other 1.75 times.
 */
#include "transpose.h"

#define XXH_INLINE_ALL
#include "xxhash.h"

#define PIECE 256 /* 32-bit words */

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

/* ---- words first up to last, m in all ---- */

typedef void mover(uint8_t *to, const uint8_t *from, size_t m, size_t first, size_t last);

static void split_scalar(uint8_t *streams, const uint8_t *raw, size_t m, size_t first, size_t last)
{
    for (size_t i = first; i < last; i++)
        for (size_t b = 0; b < 4; b++)
            streams[b * m + i] = raw[4 * i + b];
}

static void join_scalar(uint8_t *raw, const uint8_t *streams, size_t m, size_t first, size_t last)
{
    for (size_t i = first; i < last; i++)
        for (size_t b = 0; b < 4; b++)
            raw[4 * i + b] = streams[b * m + i];
}

#if defined(__x86_64__) || defined(__i386__)

/* 16 words a turn. AVX2 was no faster: memory is what takes the time. */
__attribute__((target("ssse3"))) static void split_ssse3(uint8_t *streams, const uint8_t *raw, size_t m, size_t first,
                                                         size_t last)
{
    const __m128i by_byte = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    size_t i = first;
    for (; i + 16 <= last; i += 16) {
        __m128i word[4];
        for (int k = 0; k < 4; k++)
            word[k] = _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)(raw + 4 * i + 16 * k)), by_byte);
        __m128i low01 = _mm_unpacklo_epi32(word[0], word[1]), low23 = _mm_unpacklo_epi32(word[2], word[3]);
        __m128i high01 = _mm_unpackhi_epi32(word[0], word[1]), high23 = _mm_unpackhi_epi32(word[2], word[3]);
        _mm_storeu_si128((__m128i *)(streams + i), _mm_unpacklo_epi64(low01, low23));
        _mm_storeu_si128((__m128i *)(streams + m + i), _mm_unpackhi_epi64(low01, low23));
        _mm_storeu_si128((__m128i *)(streams + 2 * m + i), _mm_unpacklo_epi64(high01, high23));
        _mm_storeu_si128((__m128i *)(streams + 3 * m + i), _mm_unpackhi_epi64(high01, high23));
    }
    split_scalar(streams, raw, m, i, last);
}

__attribute__((target("ssse3"))) static void join_ssse3(uint8_t *raw, const uint8_t *streams, size_t m, size_t first,
                                                        size_t last)
{
    size_t i = first;
    for (; i + 16 <= last; i += 16) {
        __m128i stream[4];
        for (size_t b = 0; b < 4; b++)
            stream[b] = _mm_loadu_si128((const __m128i *)(streams + b * m + i));
        __m128i low01 = _mm_unpacklo_epi8(stream[0], stream[1]), low23 = _mm_unpacklo_epi8(stream[2], stream[3]);
        __m128i high01 = _mm_unpackhi_epi8(stream[0], stream[1]), high23 = _mm_unpackhi_epi8(stream[2], stream[3]);
        _mm_storeu_si128((__m128i *)(raw + 4 * i), _mm_unpacklo_epi16(low01, low23));
        _mm_storeu_si128((__m128i *)(raw + 4 * i + 16), _mm_unpackhi_epi16(low01, low23));
        _mm_storeu_si128((__m128i *)(raw + 4 * i + 32), _mm_unpacklo_epi16(high01, high23));
        _mm_storeu_si128((__m128i *)(raw + 4 * i + 48), _mm_unpackhi_epi16(high01, high23));
    }
    join_scalar(raw, streams, m, i, last);
}

#define HAS_SIMD __builtin_cpu_supports("ssse3")
#define split_simd split_ssse3
#define join_simd join_ssse3

#elif defined(__ARM_NEON)

static void split_neon(uint8_t *streams, const uint8_t *raw, size_t m, size_t first, size_t last)
{
    size_t i = first;
    for (; i + 16 <= last; i += 16) {
        uint8x16x4_t stream = vld4q_u8(raw + 4 * i);
        for (size_t b = 0; b < 4; b++)
            vst1q_u8(streams + b * m + i, stream.val[b]);
    }
    split_scalar(streams, raw, m, i, last);
}

static void join_neon(uint8_t *raw, const uint8_t *streams, size_t m, size_t first, size_t last)
{
    size_t i = first;
    for (; i + 16 <= last; i += 16) {
        uint8x16x4_t stream;
        for (size_t b = 0; b < 4; b++)
            stream.val[b] = vld1q_u8(streams + b * m + i);
        vst4q_u8(raw + 4 * i, stream);
    }
    join_scalar(raw, streams, m, i, last);
}

#define HAS_SIMD 1
#define split_simd split_neon
#define join_simd join_neon

#else

#define HAS_SIMD 0
#define split_simd split_scalar
#define join_simd join_scalar

#endif

/* ---- a whole chunk ---- */

typedef void consumer(xxh_u32 *lanes, const uint8_t *raw, size_t n);

/* XXH32_consumeLong, with its lanes held apart: compilers would make one vector of them, which takes twice as long. */
static void consume(xxh_u32 *lanes, const uint8_t *raw, size_t n)
{
    xxh_u32 a = lanes[0], b = lanes[1], c = lanes[2], d = lanes[3];
    for (const uint8_t *end = raw + n; raw < end; raw += 16) {
        a = XXH32_round(a, XXH_readLE32(raw));
        b = XXH32_round(b, XXH_readLE32(raw + 4));
        c = XXH32_round(c, XXH_readLE32(raw + 8));
        d = XXH32_round(d, XXH_readLE32(raw + 12));
        XXH_COMPILER_GUARD(a);
        XXH_COMPILER_GUARD(b);
        XXH_COMPILER_GUARD(c);
        XXH_COMPILER_GUARD(d);
    }
    lanes[0] = a, lanes[1] = b, lanes[2] = c, lanes[3] = d;
}

#if defined(__x86_64__) || defined(__i386__)

/* The four lanes as one vector. It waits for two multiplications in a row: 3 cycles each on processors of AMD's, where
 * this is 1.3 times as fast, and 10 on others, where it is slower. */
__attribute__((target("sse4.1"))) static void consume_sse41(xxh_u32 *lanes, const uint8_t *raw, size_t n)
{
    const __m128i prime1 = _mm_set1_epi32((int)XXH_PRIME32_1), prime2 = _mm_set1_epi32((int)XXH_PRIME32_2);
    __m128i lane = _mm_loadu_si128((const __m128i *)lanes);
    for (const uint8_t *end = raw + n; raw < end; raw += 16) {
        __m128i word = _mm_mullo_epi32(_mm_loadu_si128((const __m128i *)raw), prime2);
        lane = _mm_add_epi32(lane, word);
        lane = _mm_or_si128(_mm_slli_epi32(lane, 13), _mm_srli_epi32(lane, 19));
        lane = _mm_mullo_epi32(lane, prime1);
    }
    _mm_storeu_si128((__m128i *)lanes, lane);
}

#define consume_fast (__builtin_cpu_is("amd") && __builtin_cpu_supports("sse4.1") ? consume_sse41 : consume)

#else

#define consume_fast consume

#endif

/* The words whose checksum can be taken by pieces: all but what does not fill XXH32's 16-byte stripes. */
static size_t striped(size_t m)
{
    return m & ~(size_t)3;
}

static uint32_t digest(const xxh_u32 *lanes, const uint8_t *raw, size_t n)
{
    xxh_u32 hash = n < 16 ? XXH_PRIME32_5 : XXH32_mergeAccs(lanes);
    size_t left = n - 4 * striped(n / 4);
    return XXH32_finalize(hash + (xxh_u32)n, raw + n - left, left, XXH_unaligned);
}

/* From words to streams or back, by the way there is for it, with the XXH32 of the raw bytes. */
static uint32_t move(mover *simd, mover *scalar, uint8_t *to, const uint8_t *from, const uint8_t *raw, size_t n)
{
    mover *fast = HAS_SIMD ? simd : scalar;
    consumer *consume_piece = consume_fast;
    size_t m = n / 4, end = striped(m);
    xxh_u32 lanes[4];
    XXH32_initAccs(lanes, 0);
    for (size_t first = 0; first < end; first += PIECE) {
        size_t last = end - first < PIECE ? end : first + PIECE;
        fast(to, from, m, first, last);
        consume_piece(lanes, raw + 4 * first, 4 * (last - first));
    }
    scalar(to, from, m, end, m);
    for (size_t i = 4 * m; i < n; i++)
        to[i] = from[i];
    return digest(lanes, raw, n);
}

uint32_t transpose(uint8_t *streams, const uint8_t *raw, size_t n)
{
    return move(split_simd, split_scalar, streams, raw, raw, n);
}

uint32_t restore(uint8_t *raw, const uint8_t *streams, size_t n)
{
    return move(join_simd, join_scalar, raw, streams, raw, n);
}
