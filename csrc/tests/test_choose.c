/*
 * test_choose.c - which words the writer takes a chunk for, and what it stores as it is: by the heads of its records.
 */
#include "region.h"

typedef enum { BYTES, WORDS_16, WORDS_32, STORED } choice;

static const char *const choice_names[] = {"bytes", "words of 16 bits", "words of 32 bits", "stored"};

/* Of a payload of one chunk, lent, so that its memory is what is sampled. */
static choice choice_of(bytes payload, int level, bytes *block)
{
    ds4kv_writer *writer;
    const void *record = NULL;
    uint32_t chunk_size = 2;
    while (chunk_size < payload.n)
        chunk_size *= 2;
    CHECK_EQ(ds4kv_writer_new(&writer, payload.n, chunk_size, DS4KV_FORM_PACKED, level, 1), DS4KV_OK);
    CHECK_EQ(ds4kv_writer_put(writer, payload.at, payload.n, 1), payload.n);
    CHECK_EQ(ds4kv_writer_finish(writer), DS4KV_OK);
    int64_t size = ds4kv_writer_take(writer, &record);
    CHECK(size > DS4KV_PACKED_HEAD_SIZE);
    const uint8_t *head = record;
    CHECK_EQ(get_u32(head), payload.n);
    uint32_t block_size = get_u32(head + 4), transform = get_u32(head + 8);
    CHECK(transform <= 2 && (block_size < payload.n || transform == 0));
    if (block)
        *block = bytes_copy((bytes){(uint8_t *)head, (size_t)size});
    ds4kv_writer_free(writer);
    return block_size == payload.n ? STORED : (choice)transform;
}

static void check_choice(const char *what, bytes payload, choice should_be)
{
    CASE("%zu bytes of %s", payload.n, what);
    bytes block, again;
    choice is = choice_of(payload, 0, &block);
    if (is != should_be)
        FAIL("%s, not %s", choice_names[is], choice_names[should_be]);
    CHECK_EQ(choice_of(payload, 0, &again), is);
    CHECK(bytes_equal(block, again));
    free(block.at);
    free(again.at);
}

static float bell(uint64_t *seed)
{
    double sum = -6;
    for (int i = 0; i < 12; i++)
        sum += (double)draw_below(seed, 1 << 20) / (1 << 20);
    return (float)sum;
}

static uint32_t bits_of(float f)
{
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    return bits;
}

/* As a half, near enough: of numbers that have one, and are no less than 2^-14. */
static uint16_t half_of(float f)
{
    uint32_t bits = bits_of(f);
    return (uint16_t)((bits >> 16 & 0x8000) | (((bits & 0x7fffffff) >> 13) - (112u << 10)));
}

typedef enum { F32, F32_ROUNDED, BF16, BF16_AS_F32, F16, INT8, IDS } numbers;

static size_t put_number(uint8_t *to, numbers kind, uint64_t *seed)
{
    float f = bell(seed);
    uint32_t bits = bits_of(f);
    if (kind == F32_ROUNDED)
        bits &= 0xfff00000; /* to 3 bits, as FP8 is */
    if (kind == BF16_AS_F32)
        bits &= 0xffff0000;
    if (kind == BF16)
        bits >>= 16;
    if (kind == F16)
        bits = half_of(f);
    if (kind == INT8)
        bits = (uint32_t)(int32_t)(f * 40);
    if (kind == IDS)
        bits = (uint32_t)draw_below(seed, 129280);
    size_t size = kind == INT8 ? 1 : kind == BF16 || kind == F16 ? 2 : 4;
    for (size_t i = 0; i < size; i++)
        to[i] = (uint8_t)(bits >> 8 * i);
    return size;
}

static bytes numbers_new(numbers kind, size_t n)
{
    uint64_t seed = n + kind;
    uint8_t number[4];
    bytes new = bytes_new(n);
    for (size_t at = 0; at < n;) {
        size_t size = put_number(number, kind, &seed), part = least(size, n - at);
        memcpy(new.at + at, number, part);
        at += part;
    }
    return new;
}

static void test_choices(size_t n)
{
    static const struct {
        const char *what;
        numbers kind;
        choice choice;
    } all[] = {
        {"rounded f32", F32_ROUNDED, WORDS_32},
        {"bf16 as f32", BF16_AS_F32, WORDS_32},
        {"token ids", IDS, WORDS_32},
        {"bf16", BF16, WORDS_16},
        {"f16", F16, STORED},
        {"int8", INT8, STORED},
    };
    for (size_t i = 0; i < COUNT(all); i++) {
        bytes payload = numbers_new(all[i].kind, n);
        check_choice(all[i].what, payload, all[i].choice);
        free(payload.at);
    }
    bytes noise = payload_new(RANDOM, n), text = payload_new(TEXT, n), zeros = payload_new(CONSTANT, n);
    check_choice("noise", noise, STORED);
    check_choice("text", text, BYTES);
    check_choice("one byte", zeros, BYTES);
    free(noise.at);
    free(text.at);
    free(zeros.at);
}

/* Floats of any mantissa, 1 byte of 8: where the border is, so only large chunks tell. */
static void test_border(void)
{
    bytes payload = numbers_new(F32, 4 << 20);
    check_choice("f32", payload, WORDS_32);
    free(payload.at);
}

/* Half of a chunk is noise, by turns of `turn` bytes. */
static void test_mixed(size_t turn)
{
    bytes payload = numbers_new(F32_ROUNDED, 1 << 20), noise = payload_new(RANDOM, 1 << 20);
    char what[64];
    snprintf(what, sizeof what, "numbers and noise, %zu at a time", turn);
    for (size_t at = 0; at < payload.n; at += 2 * turn)
        memcpy(payload.at + at, noise.at + at, turn);
    check_choice(what, payload, WORDS_32);
    free(payload.at);
    free(noise.at);
}

/* Nothing beside the chunk is read: AddressSanitizer would see it. */
static void test_lengths(void)
{
    for (size_t n = 1; n < 40000; n += n < 100 ? 1 : 97) {
        bytes payload = numbers_new(F32_ROUNDED, n);
        CASE("%zu bytes", n);
        choice is = choice_of(payload, 0, NULL);
        CHECK(n < 2048 || is == WORDS_32);
        free(payload.at);
    }
}

/* What LZ4 finds again as bytes, level -1 doesn't: it is judged by runs. */
static void test_runs_alone(void)
{
    CASE("numbers that repeat");
    bytes numbers = numbers_new(BF16_AS_F32, 1000), payload = bytes_new(1 << 20);
    for (size_t at = 0; at < payload.n; at++)
        payload.at[at] = numbers.at[at % numbers.n];
    CHECK_EQ(choice_of(payload, 0, NULL), BYTES);
    CHECK_EQ(choice_of(payload, 9, NULL), BYTES);
    CHECK_EQ(choice_of(payload, -1, NULL), WORDS_32);
    free(numbers.at);
    free(payload.at);
}

/* The region of a payload; what is stored is left where it lies, or copied to the records. */
static bytes region_of(bytes payload, bool leaves, bool lent, bool known, int workers)
{
    const uint32_t chunk_size = 1 << 16;
    ds4kv_writer *writer;
    ds4kv_frame frame;
    const void *piece;
    bytes region = bytes_new(ds4kv_region_bound(payload.n, chunk_size, DS4KV_FORM_PACKED));
    region.n = DS4KV_PACKED_FRAME_SIZE;
    uint64_t raw_total = known ? payload.n : DS4KV_UNKNOWN;
    CHECK_EQ(ds4kv_writer_new(&writer, raw_total, chunk_size, DS4KV_FORM_PACKED, 0, workers), DS4KV_OK);
    if (leaves)
        CHECK_EQ(ds4kv_writer_leave_stored(writer), DS4KV_OK);
    for (size_t put = 0, is_finished = 0;;) {
        if (put < payload.n)
            put += (size_t)ds4kv_writer_put(writer, payload.at + put, payload.n - put, lent);
        else if (!is_finished)
            is_finished = ds4kv_writer_finish(writer) == DS4KV_OK;
        int64_t size = ds4kv_writer_take(writer, &piece);
        CHECK(size >= 0);
        if (size == 0 && is_finished)
            break;
        if (size)
            memcpy(region.at + region.n, piece, (size_t)size);
        region.n += (size_t)size;
        size = ds4kv_writer_stored(writer, &piece);
        CHECK(size == 0 || leaves);
        if (size)
            memcpy(region.at + region.n, piece, (size_t)size);
        region.n += (size_t)size;
    }
    CHECK_EQ(ds4kv_writer_lent(writer), 0);
    CHECK_EQ(ds4kv_writer_leave_stored(writer), DS4KV_STATE); /* too late */
    ds4kv_writer_frame(writer, &frame);
    ds4kv_frame_encode(&frame, region.at);
    ds4kv_writer_free(writer);
    return region;
}

/* What is stored and left where it lies is the same region. */
static void test_left_where_it_lies(void)
{
    bytes payload = numbers_new(F16, (1 << 20) + 12345), words = numbers_new(BF16_AS_F32, 1 << 17);
    memcpy(payload.at + (3 << 16), words.at, words.n); /* these chunks are not */
    bytes copied = region_of(payload, false, false, false, 0);
    for (int i = 0; i < 32; i++) {
        CASE("%s, %s, %s, %d workers", i & 1 ? "left" : "copied", i & 2 ? "lent" : "own", i & 4 ? "known" : "unknown",
             i >> 3);
        bytes region = region_of(payload, i & 1, i & 2, i & 4, i >> 3);
        CHECK(bytes_equal(region, copied));
        free(region.at);
    }
    ds4kv_writer *writer;
    CHECK_EQ(ds4kv_writer_new(&writer, DS4KV_UNKNOWN, 1 << 16, DS4KV_FORM_CHECKED, 0, 0), DS4KV_OK);
    CHECK_EQ(ds4kv_writer_leave_stored(writer), DS4KV_PARAM);
    ds4kv_writer_free(writer);
    free(copied.at);
    free(words.at);
    free(payload.at);
}

int main(void)
{
    watchdog();
    const size_t sizes[] = {8 << 10, 64 << 10, (256 << 10) - 3, 1 << 20, (1 << 20) - 1, (4 << 20) - 21};
    for (size_t i = 0; i < COUNT(sizes); i++)
        test_choices(sizes[i]);
    test_border();
    test_runs_alone();
    test_left_where_it_lies();
    for (size_t turn = 1024; turn <= 512 << 10; turn *= 2)
        test_mixed(turn);
    test_lengths();
    return 0;
}
