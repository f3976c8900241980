/*
 * test_corrupt.c - wrong bytes are called wrong, at the right place.
 *
 * Every rule of the frame and of the records is broken alone, in a region that loads when that one thing is as it was.
 * Reader and ds4kv_decode must agree on status, offset and field; and a reader stays with what it said.
 */
#define _GNU_SOURCE /* mkstemp, pwrite */
#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include "region.h"

static const int workers[] = {0, 1, 8};

/* ---- frame ---- */

static int frame_decode(uint64_t raw_total, uint32_t chunk_count, uint32_t chunk_size, uint64_t region_bytes,
                        ds4kv_fault *fault)
{
    uint8_t head[DS4KV_FRAME_SIZE];
    ds4kv_frame frame, claim = {.raw_total = raw_total, .chunk_count = chunk_count, .form = DS4KV_FORM_PLAIN};
    ds4kv_frame_encode(&claim, head);
    int status = ds4kv_frame_decode(&frame, head, region_bytes, chunk_size, DS4KV_FORM_PLAIN, fault);
    if (status == DS4KV_OK)
        CHECK(frame.raw_total == raw_total && frame.chunk_count == chunk_count && frame.chunk_size == chunk_size);
    return status;
}

static void test_frame(void)
{
    /* A record is 8 + 2 bytes at least; a byte of a block gives 255 of payload at most. */
    static const struct {
        uint64_t raw_total;
        uint32_t chunk_count, chunk_size;
        uint64_t region_bytes;
        const char *field; /* NULL: it could be */
        uint64_t offset;
    } cases[] = {
        {0, 0, 1, 12, NULL, 0},
        {0, 0, 1, 11, "frame", 0},
        {0, 0, 1, 0, "frame", 0},
        {0, 0, 1, 13, "region", 12},
        {0, 1, 1, 22, "chunk_count", 8},
        {1, 0, 1, 12, "chunk_count", 8},
        {250, 3, 100, 1000, NULL, 0},
        {250, 2, 100, 1000, "chunk_count", 8},
        {250, 4, 100, 1000, "chunk_count", 8},
        {UINT64_MAX, UINT32_MAX, 1, UINT64_MAX, "chunk_count", 8},
        {UINT64_MAX, 0, DS4KV_MAX_CHUNK_SIZE, UINT64_MAX, "chunk_count", 8}, /* 2^38 chunks: 0 in the low 32 bits */
        {UINT32_MAX, UINT32_MAX, 1, 12 + 10ull * UINT32_MAX, NULL, 0},
        {UINT32_MAX, UINT32_MAX, 1, 11 + 10ull * UINT32_MAX, "chunk_count", 8},
        {3, 3, 1, 12 + 30, NULL, 0},
        {3, 3, 1, 12 + 29, "chunk_count", 8},
        {1, 1, 1, 12 + 9, "chunk_count", 8},
        {2 * 255 + 254, 1, 1000, 12 + 10, NULL, 0},
        {3 * 255, 1, 1000, 12 + 10, "raw_total", 0},
        {1000 * 255 + 254, 1, DS4KV_MAX_CHUNK_SIZE, 12 + 8 + 1000, NULL, 0},
        {1001 * 255, 1, DS4KV_MAX_CHUNK_SIZE, 12 + 8 + 1000, "raw_total", 0},
        {1ull << 54, 1u << 30, 1u << 24, 1 << 20, "chunk_count", 8},
        {1ull << 40, 1u << 16, 1u << 24, 1 << 20, "raw_total", 0},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        CASE("frame %zu", i);
        ds4kv_fault fault = {0};
        int status = frame_decode(cases[i].raw_total, cases[i].chunk_count, cases[i].chunk_size, cases[i].region_bytes,
                                  &fault);
        CHECK_EQ(status, cases[i].field ? DS4KV_CORRUPT : DS4KV_OK);
        if (!cases[i].field)
            continue;
        CHECK(strcmp(fault.field, cases[i].field) == 0);
        CHECK_EQ(fault.offset, cases[i].offset);
        CHECK(strlen(fault.why) > 10);
    }
    CASE("frame with a chunk size that is none");
    ds4kv_fault fault;
    CHECK_EQ(frame_decode(0, 0, 0, 12, &fault), DS4KV_PARAM);
    CHECK_EQ(frame_decode(0, 0, DS4KV_MAX_CHUNK_SIZE + 1, 12, &fault), DS4KV_PARAM);
}

/* ---- records ---- */

/* A region by hand: chunks of 1000 bytes as blocks of literals alone. Record heads are at 12, 1025 and 2038. */
enum { CHUNK = 1000, BLOCK = 1 + 4 + CHUNK, FIRST = 12, SECOND = FIRST + 8 + BLOCK, THIRD = SECOND + 8 + BLOCK };
enum { LAST = 500, LAST_BLOCK = 1 + 2 + LAST, END = THIRD + 8 + LAST_BLOCK };

/* A block of n literals, 270 <= n. */
static uint8_t *put_block(uint8_t *at, uint32_t n)
{
    uint32_t rest = n - 15;
    *at++ = 0xf0;
    for (; rest >= 255; rest -= 255)
        *at++ = 255;
    *at++ = (uint8_t)rest;
    for (uint32_t i = 0; i < n; i++)
        *at++ = (uint8_t)i;
    return at;
}

static uint8_t *put_record(uint8_t *at, uint32_t raw_size)
{
    uint8_t *end = put_block(at + 8, raw_size);
    set_u32(at, raw_size);
    set_u32(at + 4, (uint32_t)(end - at - 8));
    return end;
}

static bytes good_region(void)
{
    bytes region = bytes_new(END);
    ds4kv_frame frame = {.raw_total = 2 * CHUNK + LAST,
                         .chunk_count = 3,
                         .chunk_size = CHUNK,
                         .form = DS4KV_FORM_PLAIN};
    ds4kv_frame_encode(&frame, region.at);
    uint8_t *at = put_record(region.at + FIRST, CHUNK);
    at = put_record(at, CHUNK);
    at = put_record(at, LAST);
    CHECK_EQ(at - region.at, END);
    return region;
}

static void check_fault(verdict verdict, const char *field, uint64_t offset)
{
    CHECK_EQ(verdict.status, DS4KV_CORRUPT);
    CHECK_EQ(verdict.fault.offset, offset);
    if (strcmp(verdict.fault.field, field) != 0)
        FAIL("the field is %s, not %s", verdict.fault.field, field);
    CHECK(strlen(verdict.fault.why) > 10);
    free(verdict.payload.at);
}

/* By both ways in; field NULL: it loads. */
static void check_region(bytes region, const char *field, uint64_t offset)
{
    for (size_t i = 0; i < COUNT(workers); i++)
        for (size_t put_size = 1; put_size < 10000; put_size = 50 * put_size + 3) {
            way way = {.chunk_size = CHUNK,
                       .workers = workers[i],
                       .put_size = put_size,
                       .take_size = 777,
                       .aim_size = i % 2 ? SIZE_MAX : 0,
                       .in_file = put_size == 1};
            verdict read = read_region(region, way);
            verdict decoded = decode_region(region, CHUNK, DS4KV_FORM_PLAIN, workers[i]);
            if (field) {
                check_fault(read, field, offset);
                check_fault(decoded, field, offset);
                continue;
            }
            CHECK_EQ(read.status, DS4KV_OK);
            CHECK_EQ(decoded.status, DS4KV_OK);
            CHECK(bytes_equal(read.payload, decoded.payload));
            free(read.payload.at);
            free(decoded.payload.at);
        }
}

static void test_record_heads(void)
{
    static const struct {
        size_t at;
        uint32_t value;
        const char *field;
        uint64_t offset;
    } cases[] = {
        {FIRST, CHUNK, NULL, 0}, /* the control */
        {FIRST, CHUNK - 1, "raw_size", FIRST},
        {FIRST, CHUNK + 1, "raw_size", FIRST},
        {FIRST, 0, "raw_size", FIRST},
        {SECOND, LAST, "raw_size", SECOND},
        {SECOND, UINT32_MAX, "raw_size", SECOND},
        {THIRD, CHUNK, "raw_size", THIRD},
        {THIRD, LAST - 1, "raw_size", THIRD},
        {FIRST + 4, 0, "block_size", FIRST + 4},
        {FIRST + 4, 1, "block_size", FIRST + 4},
        {FIRST + 4, 2, "block_size", FIRST + 4},                         /* 2 * 255 < 1000 */
        {SECOND + 4, CHUNK + CHUNK / 255 + 17, "block_size", SECOND + 4}, /* bound + 1 */
        {SECOND + 4, UINT32_MAX, "block_size", SECOND + 4},
        {THIRD + 4, LAST_BLOCK + 1, "block_size", THIRD + 4},          /* behind the end */
        {THIRD + 4, LAST_BLOCK - 1, "region", END - 1},                /* a byte left over */
        {THIRD + 4, LAST_BLOCK - 100, "region", END - 100},
        {SECOND + 4, BLOCK, NULL, 0},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        CASE("u32 at %zu is %u", cases[i].at, cases[i].value);
        bytes region = good_region();
        set_u32(region.at + cases[i].at, cases[i].value);
        check_region(region, cases[i].field, cases[i].offset);
        free(region.at);
    }
}

/* The block of the second record may be as large as leaves 8 + 2 bytes for the third, and no larger. */
static void test_block_that_leaves_too_little(void)
{
    bytes region = good_region();
    region.n = SECOND + 8 + BLOCK + 10;
    CASE("a block that leaves just enough");
    check_region(region, "block_size", THIRD + 4);
    CASE("a block that leaves too little");
    region.n--;
    check_region(region, "block_size", SECOND + 4);
    free(region.at);
}

static void test_blocks(void)
{
    static const struct {
        size_t at;
        uint8_t value;
        const char *field;
    } cases[] = {
        {SECOND + 8 + 3, 255, NULL},     /* a length byte as it is */
        {SECOND + 8 + 3, 254, "block"},  /* payload a byte short, block a byte long */
        {SECOND + 8 + 4, 0, "block"},
        {SECOND + 8, 0xf1, NULL},        /* the match length of a last sequence means nothing */
        {SECOND + 8, 0xe0, "block"},
        {SECOND + 8, 0x00, "block"},     /* a match before any byte */
        {SECOND + 8 + 100, 77, NULL},    /* a literal: another payload, a good block */
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        CASE("byte %zu is %u", cases[i].at, cases[i].value);
        bytes region = good_region();
        region.at[cases[i].at] = cases[i].value;
        check_region(region, cases[i].field, SECOND + 8);
        free(region.at);
    }
}

static void test_block_of_wrong_size(void)
{
    /* Good blocks, of 999 and of 1001 bytes, where the head says 1000. */
    for (uint32_t n = CHUNK - 1; n <= CHUNK + 1; n++) {
        CASE("a block of %u bytes in a record of 1000", n);
        bytes region = bytes_new(FIRST + 8 + 1 + 4 + n);
        ds4kv_frame frame = {.raw_total = CHUNK, .chunk_count = 1, .chunk_size = CHUNK, .form = DS4KV_FORM_PLAIN};
        ds4kv_frame_encode(&frame, region.at);
        put_record(region.at + FIRST, n);
        set_u32(region.at + FIRST, CHUNK);
        check_region(region, n == CHUNK ? NULL : "block", FIRST + 8);
        free(region.at);
    }
}

static void test_bytes_left_over(void)
{
    CASE("a byte behind the last record");
    bytes good = good_region(), region = bytes_new(END + 1);
    memcpy(region.at, good.at, END);
    region.at[END] = 0;
    check_region(region, "region", END);
    free(region.at);
    free(good.at);
}

/* A start too near the end: no head there may get memory for a block that the region has no room for. */
static void test_wrong_start(void)
{
    ds4kv_frame frame = {.raw_total = 3 * (uint64_t)CHUNK,
                         .chunk_count = 3,
                         .chunk_size = CHUNK,
                         .form = DS4KV_FORM_PLAIN};
    enum { REGION = 50 };
    for (uint64_t offset = 0; offset <= REGION; offset++)
        for (uint32_t chunk = 0; chunk < 3; chunk++) {
            CASE("chunk %u is said to start at %d of %d", chunk, (int)offset, REGION);
            ds4kv_reader *reader;
            ds4kv_fault fault;
            void *room;
            CHECK_EQ(ds4kv_reader_new(&reader, &frame, REGION, chunk, offset, 0), DS4KV_OK);
            CHECK_EQ(ds4kv_reader_room(reader, &room), DS4KV_RECORD_HEAD_SIZE);
            set_u32(room, CHUNK);
            set_u32((uint8_t *)room + 4, BLOCK);
            CHECK_EQ(ds4kv_reader_put(reader, DS4KV_RECORD_HEAD_SIZE), DS4KV_CORRUPT);
            ds4kv_reader_fault(reader, &fault);
            CHECK(strcmp(fault.field, "block_size") == 0);
            CHECK_EQ(fault.offset, offset + 4);
            ds4kv_reader_free(reader);
        }
}

static void test_fault_after_a_seek(void)
{
    bytes region = good_region();
    region.at[THIRD + 8] = 0;
    for (size_t i = 0; i < COUNT(workers); i++) {
        way way = {
            .chunk_size = CHUNK, .workers = workers[i], .put_size = SIZE_MAX, .take_size = SIZE_MAX, .in_file = i > 0};
        CASE("from the second chunk on, %s", way_text(&way));
        verdict verdict = read_from(region, region.n, 1, SECOND, way);
        CHECK(strstr(verdict.fault.why, "chunk 2"));
        CHECK_EQ(verdict.payload.n, CHUNK);
        check_fault(verdict, "block", THIRD + 8);
    }
    free(region.at);
}

/* ---- the end of the input, and what stays ---- */

static void test_truncated(void)
{
    bytes region = good_region();
    static const size_t ends[] = {FIRST,      FIRST + 1,  FIRST + 8, FIRST + 9, SECOND - 1, SECOND,
                                  SECOND + 1, SECOND + 8, THIRD,     THIRD + 7, THIRD + 8,  END - 1};
    for (size_t i = 0; i < COUNT(ends); i++)
        for (size_t k = 0; k < COUNT(workers); k++)
            for (size_t put_size = 1; put_size < 10000; put_size *= 999) {
                way way = {.chunk_size = CHUNK,
                           .workers = workers[k],
                           .put_size = put_size,
                           .take_size = 100,
                           .in_file = put_size == 1};
                CASE("truncated at %zu, %s", ends[i], way_text(&way));
                verdict verdict = read_from((bytes){region.at, ends[i]}, END, 0, FIRST, way);
                CHECK_EQ(verdict.status, DS4KV_TRUNCATED);
                CHECK_EQ(verdict.fault.offset, ends[i]);
                CHECK(strcmp(verdict.fault.field, "region") == 0);
                CHECK(strlen(verdict.fault.why) > 10);
                free(verdict.payload.at);
            }
    free(region.at);
}

static void check_stuck(ds4kv_reader *reader, int status)
{
    void *room;
    uint8_t out[10];
    for (int i = 0; i < 2; i++) {
        CHECK_EQ(ds4kv_reader_room(reader, &room), status);
        CHECK_EQ(ds4kv_reader_put(reader, 0), status);
        CHECK_EQ(ds4kv_reader_put(reader, 8), status);
        CHECK_EQ(ds4kv_reader_aim(reader, out, sizeof out), status);
        CHECK_EQ(ds4kv_reader_take(reader, out, sizeof out, 1), status);
        CHECK_EQ(ds4kv_reader_take(reader, out, 0, 0), status);
        CHECK_EQ(ds4kv_reader_finish(reader), status);
    }
    ds4kv_reader_free(reader);
}

static void test_errors_stick(void)
{
    bytes region = good_region();
    ds4kv_frame frame;
    ds4kv_fault fault;
    ds4kv_reader *reader;
    uint8_t out[2 * CHUNK + LAST];
    CHECK_EQ(ds4kv_frame_decode(&frame, region.at, region.n, CHUNK, DS4KV_FORM_PLAIN, &fault), DS4KV_OK);
    for (size_t i = 0; i < COUNT(workers); i++) {
        CASE("a wrong head sticks, workers %d", workers[i]);
        size_t fed = FIRST;
        set_u32(region.at + FIRST, 1);
        CHECK_EQ(ds4kv_reader_new(&reader, &frame, region.n, 0, FIRST, workers[i]), DS4KV_OK);
        CHECK_EQ(feed(reader, region, &fed, SIZE_MAX), DS4KV_CORRUPT);
        CHECK_EQ(fed, FIRST + 8); /* said as soon as the head was there */
        check_stuck(reader, DS4KV_CORRUPT);
        set_u32(region.at + FIRST, CHUNK);

        CASE("a wrong block sticks, workers %d", workers[i]);
        fed = FIRST;
        region.at[FIRST + 8] = 0;
        CHECK_EQ(ds4kv_reader_new(&reader, &frame, region.n, 0, FIRST, workers[i]), DS4KV_OK);
        CHECK_EQ(feed(reader, region, &fed, SIZE_MAX), DS4KV_OK);
        CHECK_EQ(ds4kv_reader_take(reader, out, 1, 1), DS4KV_CORRUPT);
        check_stuck(reader, DS4KV_CORRUPT);
        region.at[FIRST + 8] = 0xf0;

        CASE("the end sticks, workers %d", workers[i]);
        CHECK_EQ(ds4kv_reader_new(&reader, &frame, region.n, 0, FIRST, workers[i]), DS4KV_OK);
        CHECK_EQ(ds4kv_reader_finish(reader), DS4KV_TRUNCATED);
        check_stuck(reader, DS4KV_TRUNCATED);
    }
    free(region.at);
}

/* What stands before a wrong block is handed out, however much is asked for at once. */
static void test_good_bytes_come_first(void)
{
    bytes region = good_region();
    region.at[THIRD + 8] = 0;
    for (size_t i = 0; i < COUNT(workers); i++) {
        way way = {
            .chunk_size = CHUNK, .workers = workers[i], .put_size = SIZE_MAX, .take_size = SIZE_MAX, .in_file = i > 0};
        CASE("good bytes before a wrong block, %s", way_text(&way));
        verdict verdict = read_region(region, way);
        CHECK_EQ(verdict.payload.n, 2 * CHUNK);
        check_fault(verdict, "block", THIRD + 8);
    }
    free(region.at);
}

/* What the system refuses is no fault of the file's. */
static void test_unreadable_file(void)
{
    bytes region = good_region(), out = bytes_new(2 * CHUNK + LAST);
    ds4kv_frame frame;
    ds4kv_fault fault;
    ds4kv_reader *reader;
    char path[] = "/tmp/ds4kv-test-XXXXXX";
    int fd = mkstemp(path), write_only = open(path, O_WRONLY);
    CHECK(fd >= 0 && write_only >= 0 && unlink(path) == 0);
    CHECK_EQ(pwrite(fd, region.at, region.n, 0), (ssize_t)region.n);
    CHECK_EQ(ds4kv_frame_decode(&frame, region.at, region.n, CHUNK, DS4KV_FORM_PLAIN, &fault), DS4KV_OK);
    for (size_t i = 0; i < COUNT(workers); i++) {
        CASE("a file that can be read, workers %d", workers[i]);
        CHECK_EQ(ds4kv_reader_new(&reader, &frame, region.n, 0, FIRST, workers[i]), DS4KV_OK);
        CHECK_EQ(ds4kv_reader_from_file(reader, fd, 0), DS4KV_OK);
        CHECK(ds4kv_reader_take(reader, out.at, out.n, 1) > 0);
        ds4kv_reader_free(reader);

        CASE("the same, opened for writing, workers %d", workers[i]);
        CHECK_EQ(ds4kv_reader_new(&reader, &frame, region.n, 0, FIRST, workers[i]), DS4KV_OK);
        CHECK_EQ(ds4kv_reader_from_file(reader, write_only, 0), DS4KV_OK);
        CHECK_EQ(ds4kv_reader_take(reader, out.at, out.n, 1), DS4KV_IO);
        ds4kv_reader_fault(reader, &fault);
        CHECK_EQ(fault.os_error, EBADF);
        CHECK_EQ(fault.offset, FIRST);
        check_stuck(reader, DS4KV_IO);
    }
    close(fd);
    close(write_only);
    free(region.at);
    free(out.at);
}

int main(void)
{
    watchdog();
    test_frame();
    test_record_heads();
    test_block_that_leaves_too_little();
    test_blocks();
    test_block_of_wrong_size();
    test_bytes_left_over();
    test_wrong_start();
    test_fault_after_a_seek();
    test_truncated();
    test_errors_stick();
    test_good_bytes_come_first();
    test_unreadable_file();
    return 0;
}
