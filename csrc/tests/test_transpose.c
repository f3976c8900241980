/*
 * test_transpose.c - the byte streams of a chunk against their definition, and XXH32 against its vectors.
 *
 * transpose.c is included and not linked: its ways are its own, and each is to be tested, whichever this machine takes.
 */
#include "../transpose.c"

#include "region.h"

static void check_words(const char *name, mover *split, mover *join, size_t m, size_t first, size_t last)
{
    CASE("%s: words %zu up to %zu of %zu", name, first, last, m);
    bytes raw = payload_new(RANDOM, 4 * m), streams = guarded_new(4 * m), back = guarded_new(4 * m);
    memset(streams.at, 0xa5, streams.n);
    memset(back.at, 0xa5, back.n);
    split(streams.at, raw.at, m, first, last);
    for (size_t i = 0; i < 4 * m; i++)
        CHECK_EQ(streams.at[transposed(i, 4 * m)], i / 4 >= first && i / 4 < last ? raw.at[i] : 0xa5);
    join(back.at, streams.at, m, first, last);
    for (size_t i = 0; i < 4 * m; i++)
        CHECK_EQ(back.at[i], i / 4 >= first && i / 4 < last ? raw.at[i] : 0xa5);
    free(raw.at);
    free(guarded_open(streams, 0).at);
    free(guarded_open(back, 0).at);
}

static void test_words(const char *name, mover *split, mover *join)
{
    for (size_t m = 0; m <= 80; m++)
        for (size_t first = 0; first <= m && first < 20; first += 3)
            for (size_t last = first; last <= m; last++)
                check_words(name, split, join, m, first, last);
}

static void check_chunk(size_t n)
{
    CASE("a chunk of %zu bytes", n);
    bytes raw = payload_new(RANDOM, n), streams = guarded_new(n), back = guarded_new(n);
    CHECK_EQ(transpose(streams.at, raw.at, n), xxh32(raw.at, n));
    for (size_t i = 0; i < n; i++)
        CHECK_EQ(streams.at[transposed(i, n)], raw.at[i]);
    CHECK_EQ(restore(back.at, streams.at, n), xxh32(raw.at, n));
    CHECK(memcmp(back.at, raw.at, n) == 0);
    free(raw.at);
    free(guarded_open(streams, 0).at);
    free(guarded_open(back, 0).at);
}

static void check_vector(const uint8_t *at, size_t n, uint32_t hash)
{
    uint8_t *streams = malloc(n + 1);
    CASE("XXH32 of %zu bytes", n);
    CHECK_EQ(transpose(streams, at, n), hash);
    CHECK_EQ(xxh32(at, n), hash);
    free(streams);
}

/* Of the format's description. */
static void test_vectors(void)
{
    static const struct {
        size_t n;
        uint32_t hash;
    } vectors[] = {{7, 0x02226fe7},  {16, 0x96ac9fa6}, {17, 0x3cdfb1a2}, {23, 0x12a0921b},
                   {31, 0xdf853fbf}, {32, 0xda8072dc}, {33, 0x3c8fd07d}};
    uint8_t small[33], *large = malloc(100003);
    for (size_t i = 0; i < sizeof small; i++)
        small[i] = (uint8_t)(37 * i + 11);
    for (size_t i = 0; i < 100003; i++)
        large[i] = (uint8_t)(131 * i + 7);
    check_vector(small, 0, 0x02cc5d05);
    check_vector((const uint8_t *)"abc", 3, 0x32d153ff);
    check_vector(large, 100003, 0xf0ef88e1);
    for (size_t i = 0; i < COUNT(vectors); i++)
        check_vector(small, vectors[i].n, vectors[i].hash);
    free(large);
}

int main(void)
{
    watchdog();
    test_vectors();
    test_words("scalar", split_scalar, join_scalar);
    if (HAS_SIMD)
        test_words("simd", split_simd, join_simd);
    for (size_t n = 0; n <= 300; n++)
        check_chunk(n);
    for (size_t n = 4 * PIECE - 70; n <= 4 * PIECE + 70; n++)
        check_chunk(n);
    for (size_t n = 12 * PIECE - 3; n <= 12 * PIECE + 20; n++)
        check_chunk(n);
    check_chunk(1000003);
    return 0;
}
