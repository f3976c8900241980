/*
 * test_levels.c - level -1 looks for runs alone, and levels 1 and 2 never make a chunk larger than level 0 does.
 *
 * What was made is unpacked by hand, which also holds it against the rules for the end of a block.
 */
#include "region.h"

static uint64_t seed = 5;

/* Runs of any length between bytes of any kind. */
static bytes runs_new(size_t n, uint64_t longest)
{
    bytes payload = bytes_new(n);
    for (size_t i = 0; i < n;) {
        size_t length = least(1 + draw_below(&seed, longest), n - i);
        if (draw_below(&seed, 2))
            memset(payload.at + i, (int)draw_below(&seed, 4), length);
        else
            for (size_t k = 0; k < length; k++)
                payload.at[i + k] = (uint8_t)draw(&seed);
        i += length;
    }
    return payload;
}

/* The last 5 bytes of a block are literals, and no match begins in the last 12. */
static void check_end(bytes block, size_t raw_size)
{
    size_t in = 0, out = 0, last_match = 0, literals;
    for (;;) {
        unsigned token = block.at[in++];
        literals = token >> 4;
        if (literals == 15)
            do
                literals += block.at[in];
            while (block.at[in++] == 255);
        in += literals;
        out += literals;
        if (in == block.n)
            break;
        size_t match = (token & 15) + 4;
        last_match = out;
        CHECK(block.at[in] == 1 && block.at[in + 1] == 0); /* of level -1: nothing but runs */
        in += 2;
        if (match == 15 + 4)
            do
                match += block.at[in];
            while (block.at[in++] == 255);
        out += match;
    }
    CHECK_EQ(out, raw_size);
    CHECK(last_match == 0 || (literals >= 5 && raw_size - last_match >= 12));
}

static size_t check_level(bytes payload, uint32_t chunk_size, int level)
{
    way way = {.chunk_size = chunk_size, .level = level, .put_size = SIZE_MAX, .take_size = SIZE_MAX, .checked = true};
    CASE("%zu bytes, %s", payload.n, way_text(&way));
    bytes region = write_region(payload, way), unpacked = unpack_region(region, chunk_size, DS4KV_FORM_CHECKED);
    CHECK(bytes_equal(unpacked, payload));
    if (level < 0) {
        size_t at = DS4KV_FRAME_SIZE;
        for (size_t done = 0; done < payload.n; done += chunk_size) {
            bytes block = {region.at + at + DS4KV_CHECKED_HEAD_SIZE, get_u32(region.at + at + 4)};
            check_end(block, least(chunk_size, payload.n - done));
            at += DS4KV_CHECKED_HEAD_SIZE + block.n;
        }
    }
    verdict verdict = read_region(region, way);
    CHECK_EQ(verdict.status, DS4KV_OK);
    CHECK(bytes_equal(verdict.payload, payload));
    free(verdict.payload.at);
    free(unpacked.at);
    size_t size = region.n;
    free(region.at);
    return size;
}

static void test_every_length(void)
{
    for (size_t n = 1; n < 700; n++) {
        bytes payload = runs_new(n, n % 3 ? 40 : 400);
        check_level(payload, 1 << 20, -1);
        check_level(payload, 97, -1);
        free(payload.at);
        payload = payload_new(n % 2 ? CONSTANT : RANDOM, n);
        check_level(payload, 1 << 20, -1);
        free(payload.at);
    }
}

static void test_many_lengths(void)
{
    for (int i = 0; i < 300; i++) {
        bytes payload = runs_new(1 + draw_below(&seed, 100000), 1 + draw_below(&seed, 3000));
        check_level(payload, 1 + (uint32_t)draw_below(&seed, 50000), -1);
        free(payload.at);
    }
}

/* 32-bit floats of random sign and mantissa in a few binades: nearly all that can be saved is in one byte stream. */
static bytes floats_new(size_t n)
{
    bytes payload = bytes_new(n);
    for (size_t i = 0; i + 4 <= n; i += 4) {
        uint32_t word = (uint32_t)draw(&seed) & 0x807fffff;
        set_u32(payload.at + i, word | (uint32_t)(122 + __builtin_ctzll(draw(&seed) | 64)) << 23);
    }
    return payload;
}

static void test_never_worse_than_level_0(void)
{
    size_t n = 16 << 20; /* byte streams of 4 MiB, in which LZ4HC's leaps become long */
    bytes payload = floats_new(n);
    size_t fast = check_level(payload, 16 << 20, 0);
    CHECK(fast < n - n / 64);
    CHECK(check_level(payload, 16 << 20, 1) <= fast);
    fast = check_level(payload, 1 << 20, 0);
    CHECK(check_level(payload, 1 << 20, 1) <= fast);
    free(payload.at);

    /* Where LZ4HC is worth its time, it is taken. */
    payload = payload_new(TEXT, 2 << 20);
    fast = check_level(payload, 1 << 20, 0);
    CHECK(check_level(payload, 1 << 20, 1) < fast - fast / 20);
    free(payload.at);
    for (size_t small = 1; small < 100000; small = 3 * small + 1) {
        payload = runs_new(small, 60);
        CHECK(check_level(payload, 1 << 20, 1) <= check_level(payload, 1 << 20, 0));
        free(payload.at);
    }
}

static void test_hopeless_is_of_its_level(void)
{
    CASE("hopeless by level");
    bytes words = payload_new(TEXT, 2 << 20), zeros = bytes_new(2 << 20);
    memset(zeros.at, 0, zeros.n);
    CHECK_EQ(ds4kv_is_hopeless(words.at, words.n, 1 << 20, 0), 0);
    CHECK_EQ(ds4kv_is_hopeless(words.at, words.n, 1 << 20, 9), 0);
    CHECK_EQ(ds4kv_is_hopeless(words.at, words.n, 1 << 20, -1), 1); /* it has no runs */
    CHECK_EQ(ds4kv_is_hopeless(zeros.at, zeros.n, 1 << 20, -1), 0);
    free(words.at);
    free(zeros.at);
}

static void test_refusals(void)
{
    CASE("refusals");
    ds4kv_writer *writer;
    CHECK_EQ(ds4kv_writer_new(&writer, DS4KV_UNKNOWN, 1 << 20, DS4KV_FORM_PLAIN, -1, 0), DS4KV_PARAM);
    CHECK_EQ(ds4kv_writer_new(&writer, DS4KV_UNKNOWN, 1 << 20, DS4KV_FORM_CHECKED, -2, 0), DS4KV_PARAM);
    CHECK_EQ(ds4kv_writer_new(&writer, DS4KV_UNKNOWN, 1 << 20, DS4KV_FORM_CHECKED, -1, 0), DS4KV_OK);
    ds4kv_writer_free(writer);
}

int main(void)
{
    watchdog();
    test_refusals();
    test_every_length();
    test_many_lengths();
    test_hopeless_is_of_its_level();
    test_never_worse_than_level_0();
    return 0;
}
