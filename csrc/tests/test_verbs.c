/*
 * test_verbs.c - what each verb takes, what it refuses, and when.
 *
 * A call that is refused for its arguments or its moment changes nothing: the object goes on as if it had not been made.
 */
#include <sched.h>

#include "region.h"

static const void *record;
static uint8_t payload[1000];

/* ---- numbers ---- */

static void test_constants(void)
{
    CASE("constants");
    CHECK(strcmp(ds4kv_lz4_version(), "1.10.0") == 0);
    CHECK_EQ(ds4kv_block_bound(0), 16);
    CHECK_EQ(ds4kv_block_bound(1), 17);
    CHECK_EQ(ds4kv_block_bound(255), 255 + 1 + 16);
    CHECK_EQ(ds4kv_block_bound(DS4KV_MAX_CHUNK_SIZE), DS4KV_MAX_CHUNK_SIZE + DS4KV_MAX_CHUNK_SIZE / 255 + 16);
}

static void test_frame_init(void)
{
    static const struct {
        uint64_t raw_total;
        uint32_t chunk_size;
        int status;
        uint32_t chunk_count;
    } cases[] = {
        {0, 1, DS4KV_OK, 0},
        {1, DS4KV_MAX_CHUNK_SIZE, DS4KV_OK, 1},
        {7, 7, DS4KV_OK, 1},
        {8, 7, DS4KV_OK, 2},
        {UINT32_MAX, 1, DS4KV_OK, UINT32_MAX},
        {UINT32_MAX * 7ull, 7, DS4KV_OK, UINT32_MAX},
        {UINT32_MAX * 7ull + 1, 7, DS4KV_PARAM, 0},
        {UINT64_MAX, DS4KV_MAX_CHUNK_SIZE, DS4KV_PARAM, 0},
        {1, 0, DS4KV_PARAM, 0},
        {1, DS4KV_MAX_CHUNK_SIZE + 1, DS4KV_PARAM, 0},
        {1, UINT32_MAX, DS4KV_PARAM, 0},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        CASE("frame_init %zu", i);
        ds4kv_frame frame;
        CHECK_EQ(ds4kv_frame_init(&frame, cases[i].raw_total, cases[i].chunk_size, DS4KV_FORM_PLAIN), cases[i].status);
        if (cases[i].status != DS4KV_OK)
            continue;
        CHECK(frame.raw_total == cases[i].raw_total && frame.chunk_size == cases[i].chunk_size);
        CHECK_EQ(frame.chunk_count, cases[i].chunk_count);
    }
}

static void test_frame_encode(void)
{
    CASE("frame_encode");
    ds4kv_frame frame = {.raw_total = 0x0102030405060708, .chunk_count = 0x090a0b0c, .form = DS4KV_FORM_PLAIN};
    uint8_t head[DS4KV_FRAME_SIZE];
    ds4kv_frame_encode(&frame, head);
    CHECK(memcmp(head, "\x08\x07\x06\x05\x04\x03\x02\x01\x0c\x0b\x0a\x09", sizeof head) == 0);
}

/* ---- writer ---- */

static void test_writer_new(void)
{
    static const struct {
        uint64_t raw_total;
        uint32_t chunk_size;
        int level, workers, status;
    } cases[] = {
        {DS4KV_UNKNOWN, 1, 0, 0, DS4KV_OK},
        {0, DS4KV_MAX_CHUNK_SIZE, DS4KV_MAX_LEVEL, DS4KV_MAX_WORKERS, DS4KV_OK},
        {0, 0, 0, 0, DS4KV_PARAM},
        {0, DS4KV_MAX_CHUNK_SIZE + 1, 0, 0, DS4KV_PARAM},
        {0, 1, -1, 0, DS4KV_PARAM},
        {0, 1, DS4KV_MAX_LEVEL + 1, 0, DS4KV_PARAM},
        {0, 1, 0, -1, DS4KV_PARAM},
        {0, 1, 0, DS4KV_MAX_WORKERS + 1, DS4KV_PARAM},
        {UINT32_MAX + 1ull, 1, 0, 0, DS4KV_PARAM},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        CASE("writer_new %zu", i);
        ds4kv_writer *writer = (ds4kv_writer *)payload;
        CHECK_EQ(ds4kv_writer_new(&writer, cases[i].raw_total, cases[i].chunk_size, DS4KV_FORM_PLAIN, cases[i].level,
                                  cases[i].workers),
                 cases[i].status);
        CHECK((writer != NULL) == (cases[i].status == DS4KV_OK));
        ds4kv_writer_free(writer);
    }
}

static ds4kv_writer *writer_new(uint64_t raw_total, int workers)
{
    ds4kv_writer *writer;
    CHECK_EQ(ds4kv_writer_new(&writer, raw_total, 100, DS4KV_FORM_PLAIN, 0, workers), DS4KV_OK);
    return writer;
}

static void test_writer_moments(int workers)
{
    CASE("writer with too little, too much, and after finish, workers %d", workers);
    ds4kv_writer *writer = writer_new(150, workers);
    CHECK_EQ(ds4kv_writer_put(writer, payload, 151, 0), DS4KV_PARAM);
    CHECK_EQ(ds4kv_writer_put(writer, payload, SIZE_MAX, 0), DS4KV_PARAM);
    CHECK_EQ(ds4kv_writer_put(writer, payload, 60, 0), 60);
    CHECK_EQ(ds4kv_writer_finish(writer), DS4KV_STATE);
    CHECK_EQ(ds4kv_writer_put(writer, payload, 91, 0), DS4KV_PARAM);
    int64_t put = ds4kv_writer_put(writer, payload + 60, 90, 0);
    if (put < 90) { /* without workers the first chunk must leave first */
        CHECK_EQ(put, 40);
        CHECK(ds4kv_writer_take(writer, &record) > 0);
        CHECK_EQ(ds4kv_writer_put(writer, payload + 100, 50, 0), 50);
    }
    CHECK_EQ(ds4kv_writer_put(writer, payload, 1, 0), DS4KV_PARAM);
    CHECK_EQ(ds4kv_writer_put(writer, NULL, 0, 0), 0);
    CHECK_EQ(ds4kv_writer_finish(writer), DS4KV_OK);
    CHECK_EQ(ds4kv_writer_finish(writer), DS4KV_STATE);
    CHECK_EQ(ds4kv_writer_put(writer, payload, 1, 0), DS4KV_STATE);
    CHECK_EQ(ds4kv_writer_put(writer, NULL, 0, 0), DS4KV_STATE);

    if (put == 90)
        CHECK(ds4kv_writer_take(writer, &record) > 0);
    CHECK(ds4kv_writer_take(writer, &record) > 0);
    CHECK_EQ(get_u32(record), 50);
    CHECK_EQ(ds4kv_writer_take(writer, &record), 0);
    CHECK_EQ(ds4kv_writer_take(writer, &record), 0);
    ds4kv_frame frame;
    ds4kv_writer_frame(writer, &frame);
    CHECK(frame.raw_total == 150 && frame.chunk_count == 2 && frame.chunk_size == 100);
    ds4kv_writer_free(writer);
}

static void test_whole_chunks_leave(int workers)
{
    CASE("a chunk that was put whole can be taken, workers %d", workers);
    ds4kv_writer *writer = writer_new(DS4KV_UNKNOWN, workers);
    for (int i = 1; i <= 3; i++) {
        CHECK_EQ(ds4kv_writer_put(writer, payload, 100, 1), 100);
        CHECK(ds4kv_writer_take(writer, &record) > 0);
        CHECK_EQ(get_u32(record), 100);
        CHECK_EQ(ds4kv_writer_take(writer, &record), 0);
        CHECK_EQ(ds4kv_writer_lent(writer), 0);
    }
    CHECK_EQ(ds4kv_writer_put(writer, payload, 99, 1), 99); /* no whole chunk: copied */
    CHECK_EQ(ds4kv_writer_lent(writer), 0);
    CHECK_EQ(ds4kv_writer_take(writer, &record), 0);
    CHECK_EQ(ds4kv_writer_finish(writer), DS4KV_OK);
    CHECK(ds4kv_writer_take(writer, &record) > 0);
    CHECK_EQ(get_u32(record), 99);
    ds4kv_writer_free(writer);
}

static void test_last_chunk_is_lent(void)
{
    CASE("the rest of a known payload is lent though it is no whole chunk");
    ds4kv_writer *writer = writer_new(30, 0);
    CHECK_EQ(ds4kv_writer_put(writer, payload, 30, 1), 30);
    CHECK_EQ(ds4kv_writer_lent(writer), 1);
    CHECK_EQ(ds4kv_writer_finish(writer), DS4KV_OK);
    CHECK_EQ(ds4kv_writer_lent(writer), 1);
    CHECK(ds4kv_writer_take(writer, &record) > 0);
    CHECK_EQ(ds4kv_writer_lent(writer), 0);
    ds4kv_writer_free(writer);
}

static void test_lent_counts_what_is_unread(void)
{
    CASE("lent memory is free as soon as it is read, its records taken or not");
    ds4kv_writer *writer = writer_new(DS4KV_UNKNOWN, 2);
    CHECK(ds4kv_writer_put(writer, payload, 201, 1) >= 100); /* it is short where a record is ready already */
    while (ds4kv_writer_lent(writer) > 0)
        sched_yield();
    CHECK(ds4kv_writer_take(writer, &record) > 0);
    ds4kv_writer_free(writer);
}

/* Once `lent` says 0, what was lent can be overwritten. */
static void test_lent_comes_back(int workers)
{
    CASE("lent memory is not read once it is given back, workers %d", workers);
    way way = {.chunk_size = 100, .workers = workers, .put_size = SIZE_MAX};
    bytes text = payload_new(TEXT, 10 * 330);
    bytes expected = write_region(text, way), region = bytes_new(expected.n);
    region.n = DS4KV_FRAME_SIZE;
    ds4kv_writer *writer = writer_new(DS4KV_UNKNOWN, workers);
    uint8_t lent[330];
    for (size_t put = 0; put < text.n; put += sizeof lent) {
        memcpy(lent, text.at + put, sizeof lent);
        for (size_t part = 0; part < sizeof lent;) {
            int64_t accepted = ds4kv_writer_put(writer, lent + part, sizeof lent - part, 1);
            CHECK(accepted >= 0);
            part += (size_t)accepted;
            if (part < sizeof lent)
                CHECK(take_record(writer, &region, expected.n));
        }
        while (ds4kv_writer_lent(writer) > 0)
            CHECK(take_record(writer, &region, expected.n));
        memset(lent, 0xee, sizeof lent);
    }
    CHECK_EQ(ds4kv_writer_finish(writer), DS4KV_OK);
    while (take_record(writer, &region, expected.n))
        continue;
    ds4kv_frame frame;
    ds4kv_writer_frame(writer, &frame);
    ds4kv_frame_encode(&frame, region.at);
    CHECK(bytes_equal(region, expected));
    ds4kv_writer_free(writer);
    free(region.at);
    free(expected.at);
    free(text.at);
}

/* ---- reader ---- */

/* Three chunks: 100, 100 and 50 bytes. */
static bytes three_chunks(ds4kv_frame *frame)
{
    bytes raw = payload_new(RANDOM, 250);
    bytes region = write_region(raw, (way){.chunk_size = 100, .put_size = SIZE_MAX});
    ds4kv_fault fault;
    CHECK_EQ(ds4kv_frame_decode(frame, region.at, region.n, 100, DS4KV_FORM_PLAIN, &fault), DS4KV_OK);
    free(raw.at);
    return region;
}

static void test_reader_new(void)
{
    ds4kv_frame frame;
    bytes region = three_chunks(&frame);
    const struct {
        uint32_t first_chunk;
        uint64_t first_offset;
        int workers, status;
    } cases[] = {
        {0, DS4KV_FRAME_SIZE, 0, DS4KV_OK},
        {0, DS4KV_FRAME_SIZE, DS4KV_MAX_WORKERS, DS4KV_OK},
        {0, DS4KV_FRAME_SIZE, -1, DS4KV_PARAM},
        {0, DS4KV_FRAME_SIZE, DS4KV_MAX_WORKERS + 1, DS4KV_PARAM},
        {3, region.n, 0, DS4KV_OK}, /* behind the last one: complete from the start */
        {4, region.n, 0, DS4KV_PARAM},
        {3, region.n + 1, 0, DS4KV_PARAM},
        {3, UINT64_MAX, 0, DS4KV_PARAM},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        CASE("reader_new %zu", i);
        ds4kv_reader *reader = (ds4kv_reader *)payload;
        CHECK_EQ(ds4kv_reader_new(&reader, &frame, region.n, cases[i].first_chunk, cases[i].first_offset,
                                  cases[i].workers),
                 cases[i].status);
        CHECK((reader != NULL) == (cases[i].status == DS4KV_OK));
        ds4kv_reader_free(reader);
    }

    CASE("a reader that starts at the end");
    ds4kv_reader *reader;
    void *room;
    CHECK_EQ(ds4kv_reader_new(&reader, &frame, region.n, 3, region.n, 0), DS4KV_OK);
    CHECK_EQ(ds4kv_reader_room(reader, &room), 0);
    CHECK_EQ(ds4kv_reader_put(reader, 0), DS4KV_OK);
    CHECK_EQ(ds4kv_reader_put(reader, 1), DS4KV_PARAM);
    CHECK_EQ(ds4kv_reader_take(reader, payload, 1, 1), 0);
    CHECK_EQ(ds4kv_reader_finish(reader), DS4KV_OK);
    ds4kv_reader_free(reader);
    free(region.at);
}

static void test_reader_moments(int workers)
{
    CASE("reader, workers %d", workers);
    ds4kv_frame frame;
    bytes region = three_chunks(&frame);
    uint8_t out[250];
    void *room, *again;
    ds4kv_reader *reader;
    CHECK_EQ(ds4kv_reader_new(&reader, &frame, region.n, 0, DS4KV_FRAME_SIZE, workers), DS4KV_OK);
    CHECK_EQ(ds4kv_reader_take(reader, out, sizeof out, 1), 0); /* nothing there: no wait */

    CHECK_EQ(ds4kv_reader_room(reader, &room), DS4KV_RECORD_HEAD_SIZE);
    CHECK_EQ(ds4kv_reader_put(reader, DS4KV_RECORD_HEAD_SIZE + 1), DS4KV_PARAM);
    CHECK_EQ(ds4kv_reader_put(reader, SIZE_MAX), DS4KV_PARAM);
    CHECK_EQ(ds4kv_reader_put(reader, 0), DS4KV_OK);
    CHECK_EQ(ds4kv_reader_room(reader, &again), DS4KV_RECORD_HEAD_SIZE);
    CHECK(again == room);

    size_t fed = DS4KV_FRAME_SIZE, done = 0;
    while (done < sizeof out) {
        CHECK_EQ(feed(reader, region, &fed, SIZE_MAX), DS4KV_OK);
        if (fed < region.n) /* the ring is full: bytes for which there was no room are refused */
            CHECK_EQ(ds4kv_reader_put(reader, 1), DS4KV_PARAM);
        CHECK_EQ(ds4kv_reader_take(reader, out, 0, 1), 0);
        int64_t taken = ds4kv_reader_take(reader, out + done, sizeof out - done, 1);
        CHECK(taken > 0);
        done += (size_t)taken;
    }
    CHECK_EQ(ds4kv_reader_room(reader, &room), 0);
    CHECK_EQ(ds4kv_reader_put(reader, 1), DS4KV_PARAM);
    CHECK_EQ(ds4kv_reader_take(reader, out, sizeof out, 1), 0);
    CHECK_EQ(ds4kv_reader_finish(reader), DS4KV_OK);
    CHECK_EQ(ds4kv_reader_finish(reader), DS4KV_OK);
    ds4kv_reader_free(reader);
    free(region.at);
}

static void test_no_wait(void)
{
    CASE("take without wait leaves to others what they have to do");
    ds4kv_frame frame;
    bytes region = three_chunks(&frame);
    uint8_t out[250];
    size_t fed = DS4KV_FRAME_SIZE;
    ds4kv_reader *reader;
    CHECK_EQ(ds4kv_reader_new(&reader, &frame, region.n, 0, DS4KV_FRAME_SIZE, 0), DS4KV_OK);
    CHECK_EQ(feed(reader, region, &fed, SIZE_MAX), DS4KV_OK);
    CHECK_EQ(ds4kv_reader_take(reader, out, sizeof out, 0), 0); /* workers = 0: nobody has decoded it */
    CHECK_EQ(ds4kv_reader_take(reader, out, 60, 1), 60);
    CHECK_EQ(ds4kv_reader_take(reader, out, 60, 0), 40);
    ds4kv_reader_free(reader);

    fed = DS4KV_FRAME_SIZE;
    CHECK_EQ(ds4kv_reader_new(&reader, &frame, region.n, 0, DS4KV_FRAME_SIZE, 1), DS4KV_OK);
    CHECK_EQ(feed(reader, region, &fed, SIZE_MAX), DS4KV_OK);
    int64_t taken;
    while ((taken = ds4kv_reader_take(reader, out, 60, 0)) == 0)
        sched_yield(); /* the worker gets there without being waited for */
    CHECK_EQ(taken, 60);
    ds4kv_reader_free(reader);
    free(region.at);
}

static void test_waits_for_one_chunk(void)
{
    CASE("take waits for one chunk and not for a second");
    const uint32_t chunk_size = 1 << 20;
    bytes raw = payload_new(TEXT, 2 * chunk_size), out = bytes_new(raw.n);
    bytes region = write_region(raw, (way){.chunk_size = chunk_size, .put_size = SIZE_MAX});
    ds4kv_frame frame;
    ds4kv_fault fault;
    CHECK_EQ(ds4kv_frame_decode(&frame, region.at, region.n, chunk_size, DS4KV_FORM_PLAIN, &fault), DS4KV_OK);
    int64_t taken = 0;
    /* One worker has memory for one chunk: it begins the second when the first is taken. That it is through with it
     * when take looks again, some nanoseconds later, takes an odd schedule; not every time. */
    for (int i = 0; i < 20 && taken != chunk_size; i++) {
        size_t fed = DS4KV_FRAME_SIZE;
        ds4kv_reader *reader;
        CHECK_EQ(ds4kv_reader_new(&reader, &frame, region.n, 0, DS4KV_FRAME_SIZE, 1), DS4KV_OK);
        CHECK_EQ(feed(reader, region, &fed, SIZE_MAX), DS4KV_OK);
        CHECK_EQ(fed, region.n);
        taken = ds4kv_reader_take(reader, out.at, out.n, 1);
        ds4kv_reader_free(reader);
    }
    CHECK_EQ(taken, chunk_size);
    free(region.at);
    free(out.at);
    free(raw.at);
}

/* A chunk that does not fit whole into what was aimed at is not decoded there. */
static void test_aim_is_not_exceeded(int workers)
{
    ds4kv_frame frame;
    bytes region = three_chunks(&frame);
    bytes raw = unpack_region(region, 100, DS4KV_FORM_PLAIN);
    for (size_t n = 1; n <= raw.n; n++) {
        CASE("aim at %zu bytes, workers %d", n, workers);
        bytes aimed = guarded_new(n);
        size_t fed = DS4KV_FRAME_SIZE, done = 0;
        ds4kv_reader *reader;
        CHECK_EQ(ds4kv_reader_new(&reader, &frame, region.n, 0, DS4KV_FRAME_SIZE, workers), DS4KV_OK);
        CHECK_EQ(ds4kv_reader_aim(reader, aimed.at, n), DS4KV_OK);
        while (done < n) {
            CHECK_EQ(feed(reader, region, &fed, SIZE_MAX), DS4KV_OK);
            int64_t taken = ds4kv_reader_take(reader, aimed.at + done, n - done, 1);
            CHECK(taken > 0);
            done += (size_t)taken;
        }
        ds4kv_reader_free(reader);
        bytes out = guarded_open(aimed, n);
        CHECK(memcmp(out.at, raw.at, n) == 0);
        free(out.at);
    }
    free(raw.at);
    free(region.at);
}

/* Aimed at one place and taken to another, in parts, and aimed anew while chunks are under way. */
static void test_aim_elsewhere(int workers)
{
    CASE("aim, and take to another place, workers %d", workers);
    ds4kv_frame frame;
    bytes region = three_chunks(&frame);
    bytes raw = unpack_region(region, 100, DS4KV_FORM_PLAIN);
    uint8_t aimed[2][250], out[250];
    size_t fed = DS4KV_FRAME_SIZE, done = 0;
    ds4kv_reader *reader;
    CHECK_EQ(ds4kv_reader_new(&reader, &frame, region.n, 0, DS4KV_FRAME_SIZE, workers), DS4KV_OK);
    for (int i = 0; done < sizeof out; i++) {
        CHECK_EQ(ds4kv_reader_aim(reader, aimed[i % 2], i % 3 ? sizeof out - done : 0), DS4KV_OK);
        CHECK_EQ(feed(reader, region, &fed, SIZE_MAX), DS4KV_OK);
        int64_t taken = ds4kv_reader_take(reader, out + done, least(70, sizeof out - done), 1);
        CHECK(taken > 0);
        done += (size_t)taken;
    }
    CHECK(memcmp(out, raw.at, sizeof out) == 0);
    ds4kv_reader_free(reader);
    free(raw.at);
    free(region.at);
}

static void test_decode_arguments(void)
{
    CASE("decode's arguments");
    ds4kv_frame frame;
    bytes region = three_chunks(&frame);
    uint8_t out[251];
    ds4kv_fault fault;
    CHECK_EQ(ds4kv_decode(region.at, region.n, 100, DS4KV_FORM_PLAIN, out, 250, 0, &fault), DS4KV_OK);
    CHECK_EQ(ds4kv_decode(region.at, region.n, 100, DS4KV_FORM_PLAIN, out, 249, 0, &fault), DS4KV_PARAM);
    CHECK_EQ(ds4kv_decode(region.at, region.n, 100, DS4KV_FORM_PLAIN, out, 251, 0, &fault), DS4KV_PARAM);
    CHECK_EQ(ds4kv_decode(region.at, region.n, 100, DS4KV_FORM_PLAIN, out, 250, -1, &fault), DS4KV_PARAM);
    CHECK_EQ(ds4kv_decode(region.at, region.n, 100, DS4KV_FORM_PLAIN, out, 250, DS4KV_MAX_WORKERS + 1, &fault),
             DS4KV_PARAM);
    CHECK_EQ(ds4kv_decode(region.at, region.n, 0, DS4KV_FORM_PLAIN, out, 250, 0, &fault), DS4KV_PARAM);
    CHECK_EQ(ds4kv_decode(region.at, region.n, DS4KV_MAX_CHUNK_SIZE + 1, DS4KV_FORM_PLAIN, out, 250, 0, &fault),
             DS4KV_PARAM);

    uint8_t empty[DS4KV_FRAME_SIZE] = {0};
    CHECK_EQ(ds4kv_decode(empty, sizeof empty, 100, DS4KV_FORM_PLAIN, NULL, 0, 2, &fault), DS4KV_OK);
    free(region.at);
}

static void test_nice(void)
{
    static const struct {
        int nice, status;
    } cases[] = {{0, DS4KV_OK}, {19, DS4KV_OK}, {-1, DS4KV_PARAM}, {20, DS4KV_PARAM}};
    ds4kv_writer *writer;
    CHECK_EQ(ds4kv_writer_new(&writer, DS4KV_UNKNOWN, 1000, DS4KV_FORM_PLAIN, 0, 1), DS4KV_OK);
    for (size_t i = 0; i < COUNT(cases); i++) {
        CASE("nice %d", cases[i].nice);
        CHECK_EQ(ds4kv_writer_nice(writer, cases[i].nice), cases[i].status);
    }
    ds4kv_writer_free(writer);
    CHECK_EQ(ds4kv_writer_nice(NULL, 0), DS4KV_STATE);
}

/* Where the region lies is said once, and before anything else is. */
static void test_sources_come_first(void)
{
    bytes payload = payload_new(0, 5000);
    bytes region = write_region(payload, (way){.chunk_size = 1000, .put_size = SIZE_MAX});
    ds4kv_frame frame;
    ds4kv_fault fault;
    ds4kv_reader *reader;
    void *room;
    CHECK_EQ(ds4kv_frame_decode(&frame, region.at, region.n, 1000, DS4KV_FORM_PLAIN, &fault), DS4KV_OK);
    CHECK_EQ(ds4kv_reader_new(&reader, &frame, region.n, 0, DS4KV_FRAME_SIZE, 0), DS4KV_OK);
    CHECK_EQ(ds4kv_reader_from_memory(reader, region.at), DS4KV_OK);
    CHECK_EQ(ds4kv_reader_from_memory(reader, region.at), DS4KV_STATE);
    CHECK_EQ(ds4kv_reader_from_file(reader, 0, 0), DS4KV_STATE);
    CHECK_EQ(ds4kv_reader_room(reader, &room), 0);
    ds4kv_reader_free(reader);
    CHECK_EQ(ds4kv_reader_new(&reader, &frame, region.n, 0, DS4KV_FRAME_SIZE, 0), DS4KV_OK);
    CHECK(ds4kv_reader_room(reader, &room) > 0);
    CHECK_EQ(ds4kv_reader_from_memory(reader, region.at), DS4KV_STATE);
    ds4kv_reader_free(reader);
    CHECK_EQ(ds4kv_reader_from_memory(NULL, region.at), DS4KV_STATE);
    free(region.at);
    free(payload.at);
}

int main(void)
{
    watchdog();
    test_nice();
    test_sources_come_first();
    test_constants();
    test_frame_init();
    test_frame_encode();
    test_writer_new();
    test_last_chunk_is_lent();
    test_lent_counts_what_is_unread();
    test_reader_new();
    test_no_wait();
    test_waits_for_one_chunk();
    test_decode_arguments();
    for (int workers = 0; workers <= 8; workers += 2) {
        test_writer_moments(workers);
        test_whole_chunks_leave(workers);
        test_lent_comes_back(workers);
        test_reader_moments(workers);
        test_aim_elsewhere(workers);
        test_aim_is_not_exceeded(workers);
    }
    return 0;
}
