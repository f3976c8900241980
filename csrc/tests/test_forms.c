/*
 * test_forms.c - what forms and sums add: checksums that are held to, sums that are, regions without a frame.
 */
#include "region.h"

#define CHUNK 4096
#define N (5 * CHUNK + 1234)

static const int workers[] = {0, 1, 3};

/* ---- the ways of a reader to its region ---- */

typedef enum { BY_PUT, IN_MEMORY, IN_FILE, N_SOURCES } source;

/* Reads all of it in one take after the other. sums may be NULL. */
static verdict read_summed(bytes region, uint32_t form, const uint64_t *sums, source source, int n_workers, bool aimed)
{
    verdict verdict = {0};
    ds4kv_frame frame;
    verdict.status = ds4kv_frame_decode(&frame, region.at, region.n, CHUNK, form, &verdict.fault);
    if (verdict.status != DS4KV_OK)
        return verdict;
    ds4kv_reader *reader;
    bytes out = guarded_new(frame.raw_total);
    size_t start = form == DS4KV_FORM_RAW ? 0 : DS4KV_FRAME_SIZE, fed = start, done = 0;
    CHECK_EQ(ds4kv_reader_new(&reader, &frame, region.n, 0, start, n_workers), DS4KV_OK);
    if (sums)
        CHECK_EQ(ds4kv_reader_sums(reader, sums), DS4KV_OK);
    FILE *file = source == IN_FILE ? file_of(region) : NULL;
    if (source == IN_MEMORY)
        CHECK_EQ(ds4kv_reader_from_memory(reader, region.at), DS4KV_OK);
    if (file)
        CHECK_EQ(ds4kv_reader_from_file(reader, fileno(file), FILE_START), DS4KV_OK);
    if (aimed)
        CHECK_EQ(ds4kv_reader_aim(reader, out.at, out.n), DS4KV_OK);
    while (verdict.status == DS4KV_OK && done < out.n) {
        if (source == BY_PUT)
            verdict.status = feed(reader, region, &fed, SIZE_MAX);
        int64_t taken = verdict.status ? verdict.status : ds4kv_reader_take(reader, out.at + done, out.n - done, 1);
        if (taken < 0)
            verdict.status = (int)taken;
        else
            done += (size_t)taken;
    }
    ds4kv_reader_fault(reader, &verdict.fault);
    ds4kv_reader_free(reader);
    if (file)
        fclose(file);
    verdict.payload = guarded_open(out, done);
    return verdict;
}

/* The sums of a region's records, by its heads. */
static uint64_t *sums_of(bytes region, uint32_t form, uint32_t chunk_count)
{
    uint64_t *sums = malloc(chunk_count * sizeof *sums);
    for (uint32_t i = 0; i < chunk_count; i++) {
        size_t start = (size_t)i * CHUNK, end = least(start + CHUNK, region.n);
        if (form != DS4KV_FORM_RAW) {
            start = record_offset(region, i, form);
            end = record_offset(region, i + 1, form);
        }
        sums[i] = ds4kv_hash(region.at + start, end - start);
    }
    return sums;
}

static bytes region_of(bytes payload, uint32_t form)
{
    if (form == DS4KV_FORM_RAW)
        return bytes_copy(payload);
    return write_region(payload,
                        (way){.chunk_size = CHUNK, .put_size = SIZE_MAX, .checked = form == DS4KV_FORM_CHECKED});
}

static const uint32_t forms[] = {DS4KV_FORM_RAW, DS4KV_FORM_PLAIN, DS4KV_FORM_CHECKED};

/* Every byte of every record is under a sum: none can change unseen, and no wrong payload comes before it is. */
static void test_sums(void)
{
    uint64_t seed = 5;
    bytes payload = payload_new(MIXED, N);
    for (size_t f = 0; f < COUNT(forms); f++) {
        uint32_t form = forms[f];
        bytes region = region_of(payload, form);
        uint64_t *sums = sums_of(region, form, 6);
        size_t first = form == DS4KV_FORM_RAW ? 0 : DS4KV_FRAME_SIZE;
        for (int round = 0; round < 600; round++) {
            source source = form == DS4KV_FORM_RAW ? 1 + draw_below(&seed, 2) : draw_below(&seed, N_SOURCES);
            int n_workers = workers[draw_below(&seed, COUNT(workers))];
            bool aimed = draw_below(&seed, 2);
            CASE("form %u, source %d, %d workers, %saimed", form, source, n_workers, aimed ? "" : "not ");
            verdict good = read_summed(region, form, sums, source, n_workers, aimed);
            CHECK_EQ(good.status, DS4KV_OK);
            CHECK(bytes_equal(good.payload, payload));
            free(good.payload.at);

            bytes bad = bytes_copy(region);
            size_t at = first + (size_t)draw_below(&seed, region.n - first);
            bad.at[at] ^= 1 << draw_below(&seed, 8);
            CASE("form %u, source %d, %d workers, %saimed, byte %zu", form, source, n_workers, aimed ? "" : "not ", at);
            verdict verdict = read_summed(bad, form, sums, source, n_workers, aimed);
            CHECK(verdict.status == DS4KV_CORRUPT);
            CHECK(verdict.fault.offset <= at);
            CHECK(verdict.payload.n <= at / CHUNK * CHUNK || form != DS4KV_FORM_RAW);
            CHECK(memcmp(verdict.payload.at, payload.at, verdict.payload.n) == 0);
            free(verdict.payload.at);
            free(bad.at);
        }
        free(sums);
        free(region.at);
    }
    free(payload.at);
}

/* The writer's sums are those of its records, with any number of workers. */
static void test_writer_sums(void)
{
    bytes payload = payload_new(MIXED, N);
    for (size_t i = 0; i < 2 * COUNT(workers); i++) {
        uint32_t form = i % 2 ? DS4KV_FORM_CHECKED : DS4KV_FORM_PLAIN;
        ds4kv_writer *writer;
        CASE("form %u, %d workers", form, workers[i / 2]);
        CHECK_EQ(ds4kv_writer_new(&writer, DS4KV_UNKNOWN, CHUNK, form, 0, workers[i / 2]), DS4KV_OK);
        CHECK_EQ(ds4kv_writer_sums(writer), DS4KV_OK);
        size_t put = 0, records = 0;
        bool finished = false;
        for (;;) {
            if (put < payload.n)
                put += (size_t)ds4kv_writer_put(writer, payload.at + put, payload.n - put, 0);
            if (put == payload.n && !finished)
                finished = ds4kv_writer_finish(writer) == DS4KV_OK;
            const void *record;
            int64_t size = ds4kv_writer_take(writer, &record);
            CHECK(size >= 0);
            if (size == 0)
                break;
            CHECK(ds4kv_writer_sum(writer) == ds4kv_hash(record, (size_t)size));
            records++;
        }
        CHECK_EQ(records, 6);
        CHECK_EQ(ds4kv_writer_sums(writer), DS4KV_STATE); /* too late */
        ds4kv_writer_free(writer);
    }
    free(payload.at);
}

/* Without sums, form CHECKED alone sees to the payload. */
static void test_checksums(void)
{
    uint64_t seed = 7;
    bytes payload = payload_new(MIXED, N), region = region_of(payload, DS4KV_FORM_CHECKED);
    for (int round = 0; round < 3000; round++) {
        bytes bad = bytes_copy(region);
        int flips = 1 + (int)draw_below(&seed, 3);
        for (int i = 0; i < flips; i++)
            bad.at[draw_below(&seed, region.n)] ^= 1 << draw_below(&seed, 8);
        bool aimed = draw_below(&seed, 2);
        verdict verdict = read_summed(bad, DS4KV_FORM_CHECKED, NULL, draw_below(&seed, N_SOURCES), 2, aimed);
        CASE("round %d", round);
        if (verdict.status == DS4KV_OK) /* flipped back, or a literal of a match that nothing is made of */
            CHECK(bytes_equal(verdict.payload, payload));
        else
            CHECK(verdict.status == DS4KV_CORRUPT || verdict.status == DS4KV_TRUNCATED);
        if (verdict.payload.at)
            CHECK(memcmp(verdict.payload.at, payload.at, verdict.payload.n) == 0);
        free(verdict.payload.at);
        free(bad.at);
    }

    CASE("a checksum changed, and the control");
    bytes bad = bytes_copy(region);
    size_t at = record_offset(region, 2, DS4KV_FORM_CHECKED) + 8;
    bad.at[at] ^= 1;
    verdict verdict = read_summed(bad, DS4KV_FORM_CHECKED, NULL, IN_MEMORY, 0, false);
    CHECK_EQ(verdict.status, DS4KV_CORRUPT);
    CHECK_EQ(verdict.fault.offset, at);
    CHECK(strcmp(verdict.fault.field, "checksum") == 0);
    CHECK_EQ(verdict.payload.n, 2 * CHUNK);
    free(verdict.payload.at);
    bad.at[at] ^= 1;
    verdict = read_summed(bad, DS4KV_FORM_CHECKED, NULL, IN_MEMORY, 0, false);
    CHECK_EQ(verdict.status, DS4KV_OK);
    free(verdict.payload.at);
    free(bad.at);
    free(region.at);
    free(payload.at);
}

/* The same blocks under heads without a checksum are a region of form TRANSPOSED. */
static void test_transposed(void)
{
    bytes payload = payload_new(MIXED, N), region = region_of(payload, DS4KV_FORM_CHECKED);
    bytes without = bytes_copy(region);
    memcpy(without.at, region.at, DS4KV_FRAME_SIZE);
    size_t to = DS4KV_FRAME_SIZE;
    for (uint32_t i = 0; i < 6; i++) {
        size_t from = record_offset(region, i, DS4KV_FORM_CHECKED), block_size = get_u32(region.at + from + 4);
        memcpy(without.at + to, region.at + from, DS4KV_RECORD_HEAD_SIZE);
        memcpy(without.at + to + DS4KV_RECORD_HEAD_SIZE, region.at + from + DS4KV_CHECKED_HEAD_SIZE, block_size);
        to += DS4KV_RECORD_HEAD_SIZE + block_size;
    }
    without.n = to;
    for (source source = 0; source < N_SOURCES; source++) {
        CASE("transposed, source %d", source);
        verdict verdict = read_summed(without, DS4KV_FORM_TRANSPOSED, NULL, source, 2, source == IN_FILE);
        CHECK_EQ(verdict.status, DS4KV_OK);
        CHECK(bytes_equal(verdict.payload, payload));
        free(verdict.payload.at);
    }
    free(without.at);
    free(region.at);
    free(payload.at);
}

/* Chunks that don't compress are put into blocks as they are, at any level, and come back. */
static void test_hopeless(void)
{
    size_t n = (3 << 20) + 5;
    bytes noise = payload_new(RANDOM, n), words = payload_new(TEXT, n);
    CASE("hopeless");
    CHECK_EQ(ds4kv_is_hopeless(noise.at, noise.n, 1 << 20, 0), 1);
    CHECK_EQ(ds4kv_is_hopeless(words.at, words.n, 1 << 20, 0), 0);
    CHECK_EQ(ds4kv_is_hopeless(noise.at, 1000, 1 << 20, 0), 0); /* too little to tell */
    CHECK_EQ(ds4kv_is_hopeless(noise.at, 0, 1 << 20, 0), 0);
    memcpy(noise.at + (1 << 20), words.at, 1 << 20);
    CHECK_EQ(ds4kv_is_hopeless(noise.at, noise.n, 1 << 20, 0), 0); /* one chunk is worth it */
    for (int level = 1; level < 3; level++) {
        way way = {.chunk_size = 1 << 20, .level = level, .put_size = SIZE_MAX, .take_size = SIZE_MAX, .checked = true};
        bytes region = write_region(noise, way), unpacked = unpack_region(region, 1 << 20, DS4KV_FORM_CHECKED);
        CHECK(bytes_equal(unpacked, noise));
        CHECK_EQ(get_u32(region.at + DS4KV_FRAME_SIZE + 4), (1 << 20) + 1 + ((1 << 20) - 15) / 255 + 1);
        size_t second = record_offset(region, 1, DS4KV_FORM_CHECKED);
        CHECK(get_u32(region.at + second + 4) < (1 << 20) - (1 << 14));
        free(unpacked.at);
        free(region.at);
    }
    free(noise.at);
    free(words.at);
}

static void test_hasher(void)
{
    bytes payload = payload_new(RANDOM, 5000);
    ds4kv_hasher *hasher;
    CASE("hasher");
    CHECK_EQ(ds4kv_hasher_new(&hasher), DS4KV_OK);
    for (size_t piece = 1; piece < 700; piece = 3 * piece + 1) {
        for (size_t at = 0; at < payload.n; at += piece)
            ds4kv_hasher_put(hasher, payload.at + at, least(piece, payload.n - at));
        CHECK(ds4kv_hasher_take(hasher) == ds4kv_hash(payload.at, payload.n));
    }
    CHECK(ds4kv_hasher_take(hasher) == ds4kv_hash(NULL, 0));
    ds4kv_hasher_free(hasher);
    free(payload.at);
}

static void test_refusals(void)
{
    ds4kv_writer *writer;
    ds4kv_frame frame;
    ds4kv_fault fault;
    uint8_t empty[DS4KV_FRAME_SIZE] = {0};
    CASE("refusals");
    CHECK_EQ(ds4kv_writer_new(&writer, DS4KV_UNKNOWN, CHUNK, DS4KV_FORM_RAW, 0, 0), DS4KV_PARAM);
    CHECK_EQ(ds4kv_writer_new(&writer, DS4KV_UNKNOWN, CHUNK, DS4KV_FORM_TRANSPOSED, 0, 0), DS4KV_PARAM);
    CHECK_EQ(ds4kv_writer_new(&writer, 0, CHUNK, DS4KV_FORM_CHECKED, 0, 0), DS4KV_PARAM);
    CHECK_EQ(ds4kv_writer_new(&writer, DS4KV_UNKNOWN, CHUNK, DS4KV_FORM_CHECKED, 0, 0), DS4KV_OK);
    CHECK_EQ(ds4kv_writer_finish(writer), DS4KV_PARAM);
    ds4kv_writer_free(writer);
    CHECK_EQ(ds4kv_frame_init(&frame, 1, CHUNK, DS4KV_FORM_PACKED + 1), DS4KV_PARAM);
    CHECK_EQ(ds4kv_frame_decode(&frame, empty, sizeof empty, CHUNK, DS4KV_FORM_PACKED + 1, &fault), DS4KV_PARAM);
    CHECK_EQ(ds4kv_frame_decode(&frame, empty, sizeof empty, CHUNK, DS4KV_FORM_PLAIN, &fault), DS4KV_OK);
    CHECK_EQ(ds4kv_frame_decode(&frame, empty, sizeof empty, CHUNK, DS4KV_FORM_CHECKED, &fault), DS4KV_CORRUPT);
    CHECK_EQ(fault.offset, 8);

    ds4kv_reader *reader;
    void *room;
    CHECK_EQ(ds4kv_frame_decode(&frame, NULL, 100, CHUNK, DS4KV_FORM_RAW, &fault), DS4KV_OK);
    CHECK_EQ(frame.raw_total, 100);
    CHECK_EQ(frame.chunk_count, 1);
    CHECK_EQ(ds4kv_reader_new(&reader, &frame, 100, 0, 0, 0), DS4KV_OK);
    CHECK_EQ(ds4kv_reader_room(reader, &room), DS4KV_STATE); /* a region without records is not put */
    ds4kv_reader_free(reader);
    CHECK_EQ(ds4kv_reader_sums(NULL, NULL), DS4KV_STATE);
}

int main(void)
{
    watchdog();
    test_refusals();
    test_hasher();
    test_writer_sums();
    test_sums();
    test_checksums();
    test_transposed();
    test_hopeless();
    return 0;
}
