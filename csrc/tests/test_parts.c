/*
 * test_parts.c - payload that is aimed at memory in several parts, and what is left alone meanwhile.
 */
#include "region.h"

static uint64_t seed = 3;

enum { MOST_PARTS = 40 };

/* Memory of n bytes in parts of any sizes, some of none; some lie side by side. */
static size_t parts_new(ds4kv_part *parts, size_t n)
{
    size_t n_parts = 0, left = n;
    while (left > 0) {
        size_t size = n_parts + 1 == MOST_PARTS ? left : draw_below(&seed, 1 + 4 * left / MOST_PARTS);
        bytes memory = bytes_new(size);
        if (size > 2 && n_parts + 2 < MOST_PARTS && draw_below(&seed, 2)) {
            parts[n_parts++] = (ds4kv_part){memory.at, size / 2};
            parts[n_parts++] = (ds4kv_part){memory.at + size / 2, size - size / 2};
        } else {
            parts[n_parts++] = (ds4kv_part){memory.at, size};
        }
        left -= size;
    }
    return n_parts;
}

static void parts_free(ds4kv_part *parts, size_t n_parts)
{
    for (size_t i = 0; i < n_parts; i++)
        if (i == 0 || parts[i].bytes != (uint8_t *)parts[i - 1].bytes + parts[i - 1].size)
            free(parts[i].bytes);
}

static void check_parts(const ds4kv_part *parts, size_t n_parts, const uint8_t *should_be)
{
    for (size_t i = 0; i < n_parts; should_be += parts[i++].size)
        CHECK(parts[i].size == 0 || memcmp(parts[i].bytes, should_be, parts[i].size) == 0);
}

/* Takes n bytes to where they are aimed, by pieces. */
static void take_parts(ds4kv_reader *reader, bytes region, size_t *fed, size_t n, size_t take_size)
{
    for (size_t done = 0; done < n;) {
        CHECK_EQ(feed(reader, region, fed, SIZE_MAX), DS4KV_OK);
        int64_t taken = ds4kv_reader_take(reader, NULL, least(take_size, n - done), 1);
        CHECK(taken > 0 && (size_t)taken <= least(take_size, n - done));
        done += (size_t)taken;
        CHECK_EQ(ds4kv_reader_aimed(reader), n - done);
    }
}

static void check_way(bytes payload, bytes region, way way)
{
    CASE("%zu bytes, %s", payload.n, way_text(&way));
    ds4kv_frame frame;
    ds4kv_fault fault;
    ds4kv_reader *reader;
    size_t fed = DS4KV_FRAME_SIZE;
    CHECK_EQ(ds4kv_frame_decode(&frame, region.at, region.n, way.chunk_size, form_of(&way), &fault), DS4KV_OK);
    CHECK_EQ(ds4kv_reader_new(&reader, &frame, region.n, 0, DS4KV_FRAME_SIZE, way.workers), DS4KV_OK);
    FILE *file = way.in_file ? file_of(region) : NULL;
    if (file)
        CHECK_EQ(ds4kv_reader_from_file(reader, fileno(file), FILE_START), DS4KV_OK);
    CHECK_EQ(ds4kv_reader_take(reader, NULL, 1, 1), DS4KV_PARAM); /* nothing is aimed */
    for (size_t at = 0; at < payload.n;) {
        ds4kv_part parts[MOST_PARTS];
        size_t n = least(1 + draw_below(&seed, payload.n), payload.n - at), n_parts = parts_new(parts, n);
        CHECK_EQ(ds4kv_reader_aim_parts(reader, parts, n_parts), DS4KV_OK);
        CHECK_EQ(ds4kv_reader_take(reader, NULL, n + 1, 1), DS4KV_PARAM);
        take_parts(reader, region, &fed, n, way.take_size);
        check_parts(parts, n_parts, payload.at + at);
        parts_free(parts, n_parts);
        at += n;
        /* Between, some bytes that nothing was aimed for. */
        size_t more = least(draw_below(&seed, 100), payload.n - at);
        bytes plain = bytes_new(more);
        for (size_t done = 0; done < more;) {
            CHECK_EQ(feed(reader, region, &fed, SIZE_MAX), DS4KV_OK);
            int64_t taken = ds4kv_reader_take(reader, plain.at + done, more - done, 1);
            CHECK(taken > 0);
            done += (size_t)taken;
        }
        CHECK(more == 0 || memcmp(plain.at, payload.at + at, more) == 0);
        free(plain.at);
        at += more;
    }
    ds4kv_reader_free(reader);
    if (file)
        fclose(file);
}

static void test_ways(void)
{
    static const uint32_t chunk_sizes[] = {1, 100, 4096, 100000, 3 << 20};
    for (size_t i = 0; i < COUNT(chunk_sizes); i++)
        for (int round = 0; round < 24; round++) {
            size_t n = 1 + draw_below(&seed, chunk_sizes[i] < 100 ? 300 : least(30 * chunk_sizes[i], 7 << 20));
            bytes payload = payload_new(MIXED, n);
            way way = {.chunk_size = chunk_sizes[i],
                       .workers = (int)draw_below(&seed, 4),
                       .put_size = SIZE_MAX,
                       .take_size = draw_below(&seed, 2) ? SIZE_MAX : 1 + n / 7,
                       .in_file = draw_below(&seed, 2),
                       .checked = draw_below(&seed, 2)};
            bytes region = write_region(payload, way);
            check_way(payload, region, way);
            free(region.at);
            free(payload.at);
        }
}

/* What is wrong is told when all before it is there, and free waits for who still writes to the parts. */
static void test_wrong_block(void)
{
    way way = {.chunk_size = 1000, .workers = 3, .put_size = SIZE_MAX, .checked = true};
    bytes payload = payload_new(TEXT, 10000), region = write_region(payload, way);
    region.at[record_offset(region, 6, DS4KV_FORM_CHECKED) + 8] ^= 1;
    CASE("a wrong chunk in parts");
    ds4kv_part parts[MOST_PARTS];
    ds4kv_frame frame;
    ds4kv_fault fault;
    ds4kv_reader *reader;
    size_t n_parts = parts_new(parts, payload.n), done = 0;
    int64_t taken;
    CHECK_EQ(ds4kv_frame_decode(&frame, region.at, region.n, 1000, DS4KV_FORM_CHECKED, &fault), DS4KV_OK);
    CHECK_EQ(ds4kv_reader_new(&reader, &frame, region.n, 0, DS4KV_FRAME_SIZE, 3), DS4KV_OK);
    CHECK_EQ(ds4kv_reader_from_memory(reader, region.at), DS4KV_OK);
    CHECK_EQ(ds4kv_reader_aim_parts(reader, parts, n_parts), DS4KV_OK);
    while ((taken = ds4kv_reader_take(reader, NULL, payload.n - done, 1)) > 0)
        done += (size_t)taken;
    CHECK_EQ(taken, DS4KV_CORRUPT);
    CHECK_EQ(done, 6000);
    ds4kv_reader_free(reader);
    parts_free(parts, n_parts);
    free(region.at);
    free(payload.at);
}

/* Who aims elsewhere before all is taken finds the rest there; but not while workers fill parts. */
static void test_aims_that_change(void)
{
    way way = {.chunk_size = 1000, .put_size = SIZE_MAX};
    bytes payload = payload_new(TEXT, 20000), region = write_region(payload, way);
    bytes first = bytes_new(20000), second = bytes_new(20000);
    for (int workers = 0; workers < 4; workers++) {
        CASE("aims that change, workers %d", workers);
        ds4kv_frame frame;
        ds4kv_fault fault;
        ds4kv_reader *reader;
        CHECK_EQ(ds4kv_frame_decode(&frame, region.at, region.n, 1000, DS4KV_FORM_PLAIN, &fault), DS4KV_OK);
        CHECK_EQ(ds4kv_reader_new(&reader, &frame, region.n, 0, DS4KV_FRAME_SIZE, workers), DS4KV_OK);
        CHECK_EQ(ds4kv_reader_from_memory(reader, region.at), DS4KV_OK);
        memset(second.at, 0, second.n);
        CHECK_EQ(ds4kv_reader_aim(reader, first.at, first.n), DS4KV_OK);
        CHECK_EQ(ds4kv_reader_take(reader, NULL, 500, 1), 500);
        CHECK_EQ(ds4kv_reader_aim(reader, second.at, 10000), DS4KV_OK);
        for (size_t done = 0; done < 10000;) {
            int64_t taken = ds4kv_reader_take(reader, NULL, 10000 - done, 1);
            CHECK(taken > 0);
            done += (size_t)taken;
        }
        CHECK(memcmp(second.at, payload.at + 500, 10000) == 0);
        ds4kv_part parts[] = {{first.at, 700}, {second.at, 8800}};
        CHECK_EQ(ds4kv_reader_aim_parts(reader, parts, 2), DS4KV_OK);
        CHECK_EQ(ds4kv_reader_take(reader, NULL, 600, 1) > 0, 1);
        CHECK_EQ(ds4kv_reader_aim(reader, first.at, 10), DS4KV_STATE);
        ds4kv_reader_free(reader);
    }
    free(first.at);
    free(second.at);
    free(region.at);
    free(payload.at);
}

/* While a chunk for every worker is aimed at, what lies behind is not asked for; for less than that it is. */
static void test_what_is_behind_is_left_alone(void)
{
    way way = {.chunk_size = 1000, .put_size = SIZE_MAX};
    bytes payload = payload_new(TEXT, 20000), region = write_region(payload, way), out = bytes_new(20000);
    for (size_t aimed = 1000; aimed <= 6000; aimed += 1000) {
        CASE("%zu bytes are aimed", aimed);
        ds4kv_frame frame;
        ds4kv_fault fault;
        ds4kv_reader *reader;
        size_t fed = DS4KV_FRAME_SIZE;
        CHECK_EQ(ds4kv_frame_decode(&frame, region.at, region.n, 1000, DS4KV_FORM_PLAIN, &fault), DS4KV_OK);
        CHECK_EQ(ds4kv_reader_new(&reader, &frame, region.n, 0, DS4KV_FRAME_SIZE, 3), DS4KV_OK);
        CHECK_EQ(ds4kv_reader_aim(reader, out.at, aimed), DS4KV_OK);
        take_parts(reader, region, &fed, aimed, SIZE_MAX);
        size_t behind = record_offset(region, (uint32_t)aimed / 1000, DS4KV_FORM_PLAIN) + DS4KV_RECORD_HEAD_SIZE;
        if (aimed >= 3000)
            CHECK_EQ(fed, behind);
        else
            CHECK(fed > behind);
        CHECK(memcmp(out.at, payload.at, aimed) == 0);
        ds4kv_reader_free(reader);
    }
    free(out.at);
    free(region.at);
    free(payload.at);
}

int main(void)
{
    watchdog();
    test_ways();
    test_wrong_block();
    test_aims_that_change();
    test_what_is_behind_is_left_alone();
    return 0;
}
