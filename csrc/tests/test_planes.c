/*
 * test_planes.c - the bit planes of a chunk against their definition, bit by bit, and back.
 *
 * planes.c is included and not linked: its ways are its own, and each is to be tested, whichever this machine takes.
 */
#include "../planes.c"

#include "by_bits.h"
#include "region.h"

#define GROWN 5000 /* all lengths up to here */
#define AROUND 70
#define MOST (2 * PLANES_BLOCK + AROUND)

typedef struct {
    const char *name;
    splitter *split;
    joiner *join;
} tiles;

/* The planes of `raw`, by definition. Only its last block has others if it grows. */
typedef struct {
    unsigned word;
    size_t n;
    const uint8_t *raw;
    uint8_t *planes;
} defined;

static void define(defined *of, size_t n)
{
    for (size_t at = 0; at < n;) {
        size_t k = least(n - at, PLANES_BLOCK) / 2048 * 2048;
        bool is_known = at + k <= of->n && (k == PLANES_BLOCK || of->n / 2048 == n / 2048);
        if (k && !is_known)
            by_bits(of->planes + at, of->raw + at, k, of->word);
        at += k;
        if (k < PLANES_BLOCK) {
            memcpy(of->planes + at, of->raw + at, n - at);
            break;
        }
    }
    of->n = n;
}

static void check_way(tiles by, defined *of, size_t n, size_t shift)
{
    CASE("%s: %zu bytes in words of %u bits, %zu beside a word", by.name, n, of->word, shift);
    bytes in = bytes_new(n + shift), out = guarded_new(n + shift);
    if (n)
        memcpy(in.at + shift, of->raw, n);
    split(by.split, out.at + shift, in.at + shift, n, of->word);
    CHECK(n == 0 || memcmp(out.at + shift, of->planes, n) == 0);
    for (size_t i = 0; i < shift; i++)
        CHECK_EQ(out.at[i], 0xa5);
    free(guarded_open(out, 0).at);
    if (n)
        memcpy(in.at + shift, of->planes, n);
    out = guarded_new(n + shift);
    join(by.join, out.at + shift, in.at + shift, n, of->word);
    CHECK(n == 0 || memcmp(out.at + shift, of->raw, n) == 0);
    for (size_t i = 0; i < shift; i++)
        CHECK_EQ(out.at[i], 0xa5);
    free(guarded_open(out, 0).at);
    free(in.at);
}

/* By bits is slow, so that does a few lengths. */
static void check_length(defined *of, size_t n)
{
    define(of, n);
    size_t shift = n * 7 % 16;
    if (n % 97 == 0 || n % PLANES_GRAIN < 2)
        check_way((tiles){"scalar", split_scalar, join_scalar}, of, n, shift);
    if (HAS_VECTORS)
        check_way((tiles){"16 bytes", split_tile_16, join_tile_16}, of, n, shift);
    if (HAS_WIDE)
        check_way((tiles){"32 bytes", split_tile_32, join_tile_32}, of, n, shift);
}

/* `step` divides AROUND, so that n is one of them. */
static void check_around(defined *of, size_t n, size_t step)
{
    for (size_t i = n - AROUND; i <= n + AROUND; i += step)
        check_length(of, i);
    check_length(of, n - 1);
    check_length(of, n + 1);
}

/* Piece by piece is the same, if all but the last piece are whole blocks. */
static void check_pieces(defined *of, size_t n, size_t piece)
{
    CASE("%zu bytes in words of %u bits, %zu at a time", n, of->word, piece);
    bytes planes = guarded_new(n), raw = guarded_new(n);
    define(of, n);
    for (size_t at = 0; at < n; at += piece)
        planes_split(planes.at + at, of->raw + at, least(piece, n - at), of->word);
    CHECK(memcmp(planes.at, of->planes, n) == 0);
    for (size_t at = 0; at < n; at += piece)
        planes_join(raw.at + at, planes.at + at, least(piece, n - at), of->word);
    CHECK(memcmp(raw.at, of->raw, n) == 0);
    free(guarded_open(planes, 0).at);
    free(guarded_open(raw, 0).at);
}

static void test_word(unsigned word)
{
    bytes raw = payload_new(RANDOM, MOST), planes = bytes_new(MOST);
    defined of = {.word = word, .raw = raw.at, .planes = planes.at};
    for (size_t n = 0; n <= GROWN; n++)
        check_length(&of, n);
    for (size_t grains = 3; grains <= 9; grains++)
        check_around(&of, PLANES_GRAIN * grains, 1);
    check_around(&of, PLANES_BLOCK, 7);
    check_around(&of, 2 * PLANES_BLOCK, 14);
    for (size_t pieces = 1; pieces <= 3; pieces++) {
        check_pieces(&of, MOST, pieces * PLANES_BLOCK);
        check_pieces(&of, 2 * PLANES_BLOCK, pieces * PLANES_BLOCK);
        check_pieces(&of, PLANES_BLOCK + 5000, pieces * PLANES_BLOCK);
    }
    free(raw.at);
    free(planes.at);
}

/* Worked out by hand: word 0 is 1.0, word 9 is -0.5, all others are 0. */
static void test_floats(void)
{
    CASE("two floats");
    uint8_t raw[2048] = {0}, planes[2048], should_be[2048] = {0};
    raw[2] = 0x80, raw[3] = 0x3f;          /* an exponent of 0111.1111, whose Gray code is 0100.0000 */
    raw[9 * 4 + 3] = 0xbf;                 /* 0111.1110: 0100.0001 */
    should_be[29 * 64] = 1;                /* word 0 */
    should_be[29 * 64 + 1] = 2;            /* word 9 */
    should_be[23 * 64 + 1] = 2;
    should_be[31 * 64 + 1] = 2;            /* its sign */
    planes_split(planes, raw, sizeof raw, 32);
    for (size_t i = 0; i < sizeof raw; i++)
        CHECK_EQ(planes[i], should_be[i]);
}

int main(void)
{
    watchdog();
    test_floats();
    test_word(16);
    test_word(32);
    return 0;
}
