/*
 * test_packed.c - form PACKED: there and back by every way, and whatever is changed in a region is refused.
 *
 * Each refusal has its control.
 */
#include "unpack.h"

#define SEAL 0xfedcba9876543210

enum { CHUNK = 4096, N = 5 * CHUNK + 1234 };

/* ---- through the core ---- */

typedef struct {
    int level, workers;
    size_t put;
    bool lent, known;
} ways;

static bool take_one(ds4kv_writer *writer, bytes *region, size_t limit)
{
    const void *record;
    int64_t size = ds4kv_writer_take(writer, &record);
    CHECK(size >= 0 && (size_t)size <= limit - region->n);
    if (size)
        memcpy(region->at + region->n, record, (size_t)size);
    region->n += (size_t)size;
    return size > 0;
}

static bytes write_packed(bytes payload, uint32_t chunk_size, ways way)
{
    ds4kv_writer *writer;
    ds4kv_frame frame;
    uint64_t limit = ds4kv_region_bound(payload.n, chunk_size, DS4KV_FORM_PACKED);
    bytes region = bytes_new((size_t)limit);
    region.n = FRAME;
    CHECK_EQ(ds4kv_writer_new(&writer, way.known ? payload.n : DS4KV_UNKNOWN, chunk_size, DS4KV_FORM_PACKED, way.level,
                              way.workers),
             DS4KV_OK);
    CHECK_EQ(ds4kv_writer_seal(writer, SEAL), DS4KV_OK);
    for (size_t put = 0; put < payload.n;) {
        size_t part = least(way.put, payload.n - put);
        int64_t taken = ds4kv_writer_put(writer, payload.at + put, part, way.lent);
        CHECK(taken >= 0 && (size_t)taken <= part);
        put += (size_t)taken;
        if ((size_t)taken < part)
            CHECK(take_one(writer, &region, (size_t)limit));
    }
    if (payload.n)
        CHECK_EQ(ds4kv_writer_seal(writer, SEAL), DS4KV_STATE); /* too late */
    CHECK_EQ(ds4kv_writer_finish(writer), DS4KV_OK);
    while (take_one(writer, &region, (size_t)limit))
        continue;
    ds4kv_writer_frame(writer, &frame);
    CHECK(frame.seal == SEAL && frame.raw_total == payload.n && frame.form == DS4KV_FORM_PACKED);
    ds4kv_frame_encode(&frame, region.at);
    ds4kv_writer_free(writer);
    bytes exact = bytes_copy(region);
    free(region.at);
    return exact;
}

typedef enum { BY_PUT, IN_MEMORY, IN_FILE, ONE_SHOT, N_SOURCES } source_kind;

/* The first byte that comes is looked at by whoever calls: `payload` is what came before the verdict. */
static verdict read_packed(bytes region, uint32_t chunk_size, source_kind source, int workers, size_t take,
                           bool in_parts)
{
    verdict found = {0};
    ds4kv_frame frame;
    found.status = ds4kv_frame_decode(&frame, region.at, region.n, chunk_size, DS4KV_FORM_PACKED, &found.fault);
    if (found.status != DS4KV_OK)
        return found;
    bytes out = guarded_new(frame.raw_total);
    if (source == ONE_SHOT) {
        found.status = ds4kv_decode(region.at, region.n, chunk_size, DS4KV_FORM_PACKED, out.at, out.n, workers,
                                    &found.fault);
        found.payload = guarded_open(out, found.status == DS4KV_OK ? out.n : 0);
        return found;
    }
    ds4kv_reader *reader;
    size_t fed = FRAME, done = 0, middle = out.n / 3;
    CHECK_EQ(ds4kv_reader_new(&reader, &frame, region.n, 0, FRAME, workers), DS4KV_OK);
    FILE *file = source == IN_FILE ? file_of(region) : NULL;
    if (file)
        CHECK_EQ(ds4kv_reader_from_file(reader, fileno(file), FILE_START), DS4KV_OK);
    if (source == IN_MEMORY)
        CHECK_EQ(ds4kv_reader_from_memory(reader, region.at), DS4KV_OK);
    ds4kv_part parts[3] = {{out.at, middle}, {out.at + middle, 0}, {out.at + middle, out.n - middle}};
    if (in_parts)
        CHECK_EQ(ds4kv_reader_aim_parts(reader, parts, 3), DS4KV_OK);
    while (done < out.n && found.status == DS4KV_OK) {
        if (source == BY_PUT)
            found.status = feed(reader, region, &fed, 1 + take % 700);
        int64_t taken = found.status != DS4KV_OK
                            ? found.status
                            : ds4kv_reader_take(reader, in_parts ? NULL : out.at + done, least(take, out.n - done), 1);
        if (taken < 0)
            found.status = (int)taken;
        else
            done += (size_t)taken;
    }
    ds4kv_reader_fault(reader, &found.fault);
    ds4kv_reader_free(reader);
    if (file)
        fclose(file);
    found.payload = guarded_open(out, done);
    return found;
}

/* ---- there and back ---- */

static void test_there_and_back(void)
{
    static const int levels[] = {-1, 0, 1, 9}, workers[] = {0, 2};
    static const uint32_t chunk_sizes[] = {CHUNK, 1 << 11, 1 << 16};
    static const size_t sizes[] = {0, 1, 2, 3, CHUNK - 1, CHUNK, CHUNK + 1, N};
    for (int kind = 0; kind < N_CONTENTS; kind++)
        for (size_t s = 0; s < COUNT(sizes); s++) {
            bytes payload = content_new((content)kind, sizes[s]);
            for (size_t l = 0; l < COUNT(levels); l++)
                for (size_t c = 0; c < COUNT(chunk_sizes); c++) {
                    unsigned transforms[4] = {0};
                    CASE("content %d, %zu bytes, level %d, chunks of %u", kind, payload.n, levels[l], chunk_sizes[c]);
                    bytes region = write_packed(payload, chunk_sizes[c], (ways){levels[l], 0, SIZE_MAX, false, true});
                    bytes unpacked = unpack(region, chunk_sizes[c], SEAL, transforms);
                    CHECK(bytes_equal(unpacked, payload));
                    if (payload.n == N && levels[l] >= 0)
                        CHECK(kind == ALL || transforms[kind == WORDS_32   ? 2
                                                        : kind == WORDS_16 ? 1
                                                        : kind == PROSE    ? 0
                                                                           : 3]);
                    for (int i = 0; i < 8; i++) {
                        ways way = {levels[l], workers[i % 2], i & 2 ? 777 : SIZE_MAX, i & 4, i % 3};
                        bytes again = write_packed(payload, chunk_sizes[c], way);
                        CHECK(bytes_equal(again, region));
                        free(again.at);
                        verdict found = read_packed(region, chunk_sizes[c], i % N_SOURCES, workers[i / 4],
                                                    i & 1 ? 1000 : SIZE_MAX, i % 3 == 1);
                        CHECK_EQ(found.status, DS4KV_OK);
                        CHECK(bytes_equal(found.payload, payload));
                        free(found.payload.at);
                    }
                    free(unpacked.at);
                    free(region.at);
                }
            free(payload.at);
        }
}

static void test_large(void)
{
    bytes payload = content_new(WORDS_32, (3 << 20) + 4321);
    bytes first = {0};
    for (int i = 0; i < 4; i++) {
        CASE("3 MiB, way %d", i);
        bytes region = write_packed(payload, 1 << 20, (ways){0, i, i % 2 ? 100000 : SIZE_MAX, i > 1, i % 2});
        CHECK(region.n < payload.n / 2);
        CHECK(i == 0 || bytes_equal(region, first));
        verdict found = read_packed(region, 1 << 20, (source_kind)i, i, SIZE_MAX, i == 1);
        CHECK(found.status == DS4KV_OK && bytes_equal(found.payload, payload));
        free(found.payload.at);
        if (i == 0)
            first = bytes_copy(region);
        free(region.at);
    }
    unsigned transforms[4] = {0};
    bytes unpacked = unpack(first, 1 << 20, SEAL, transforms);
    CHECK(bytes_equal(unpacked, payload) && transforms[2] == 4);
    free(unpacked.at);
    free(first.at);
    free(payload.at);
}

/* ---- damage ---- */

/* It is refused, or nothing that is given out is wrong. Whether it was refused. */
static bool check_damaged(bytes bad, bytes payload, uint32_t chunk_size, int i)
{
    source_kind source = i % 11 == 0 ? (source_kind)(i / 11 % N_SOURCES) : IN_MEMORY; /* files and threads take time */
    int workers = i % 11 == 0 ? i / 44 % 3 : 0;
    verdict found = read_packed(bad, chunk_size, source, workers, i % 5 ? SIZE_MAX : 100, i % 7 == 0);
    CHECK(found.status == DS4KV_OK || found.status == DS4KV_CORRUPT || found.status == DS4KV_TRUNCATED);
    CHECK(found.payload.n <= payload.n &&
          (found.payload.n == 0 || !memcmp(found.payload.at, payload.at, found.payload.n)));
    CHECK(found.status == DS4KV_OK ? found.payload.n == payload.n : found.fault.offset <= bad.n && found.fault.why[0]);
    free(found.payload.at);
    return found.status != DS4KV_OK;
}

static void test_every_bit(void)
{
    static const size_t sizes[] = {0, 1, 200, 5000};
    for (int kind = 0; kind < N_CONTENTS; kind++)
        for (size_t s = 0; s < COUNT(sizes); s++) {
            uint32_t chunk_size = sizes[s] < 300 ? 64 : 2048;
            bytes payload = content_new((content)kind, sizes[s]);
            bytes region = write_packed(payload, chunk_size, (ways){0, 0, SIZE_MAX, false, true});
            size_t refused = 0;
            for (size_t bit = 0; bit < 8 * region.n; bit++) {
                CASE("content %d, %zu bytes, bit %zu of byte %zu", kind, payload.n, bit % 8, bit / 8);
                region.at[bit / 8] ^= 1 << bit % 8;
                refused += check_damaged(region, payload, chunk_size, (int)bit);
                region.at[bit / 8] ^= 1 << bit % 8;
            }
            CHECK(!check_damaged(region, payload, chunk_size, 0));
            CHECK(refused > 8 * region.n * 9 / 10); /* a match may be of the same bytes elsewhere */
            free(region.at);
            free(payload.at);
        }
}

/* Where record `index` begins, and its size. */
static bytes record_of(bytes region, uint32_t index)
{
    size_t at = FRAME;
    while (index-- > 0)
        at += HEAD + get_u32(region.at + at + 4);
    return (bytes){region.at + at, HEAD + get_u32(region.at + at + 4)};
}

static void test_moved_records(void)
{
    for (int kind = 0; kind < 2; kind++) {
        bytes payload = payload_new(kind ? CONSTANT : RANDOM, 6 * 64), other = payload_new(RANDOM, 6 * 64);
        memcpy(other.at, payload.at, 64);
        other.at[0] ^= 1;
        bytes region = write_packed(payload, 64, (ways){0, 0, SIZE_MAX, false, true});
        bytes foreign = write_packed(other, 64, (ways){0, 0, SIZE_MAX, false, true}); /* of the same seal */
        for (uint32_t i = 0; i < 6; i++)
            for (uint32_t j = 0; j < 6; j++) {
                CASE("record %u for %u, kind %d", i, j, kind);
                bytes bad = bytes_copy(region), to = record_of(bad, j), from = record_of(region, i);
                CHECK_EQ(to.n, from.n);
                memcpy(to.at, from.at, from.n);
                CHECK_EQ(check_damaged(bad, payload, 64, (int)(i + j)), i != j); /* and the control */
                from = record_of(region, j);
                to = record_of(bad, i);
                memcpy(to.at, from.at, from.n);
                CHECK_EQ(check_damaged(bad, payload, 64, (int)(i + j)), i != j);
                from = record_of(foreign, i);
                if (i == j && from.n == to.n) {
                    memcpy(to.at, from.at, from.n);
                    CHECK(check_damaged(bad, payload, 64, (int)i));
                }
                free(bad.at);
            }
        CASE("cut short, and too long");
        for (size_t n = 0; n < region.n; n++) {
            bytes bad = bytes_copy((bytes){region.at, n});
            CHECK(check_damaged(bad, payload, 64, (int)n));
            free(bad.at);
        }
        bytes longer = bytes_new(region.n + 1);
        memcpy(longer.at, region.at, region.n);
        longer.at[region.n] = 0;
        CHECK(check_damaged(longer, payload, 64, 0));
        free(longer.at);
        free(region.at);
        free(foreign.at);
        free(payload.at);
        free(other.at);
    }
}

/* A frame whose own sum is right. */
static int judge_frame(uint64_t raw_total, uint32_t count, uint32_t zero, uint64_t region_bytes, uint32_t chunk_size,
                       ds4kv_fault *fault)
{
    uint8_t head[FRAME] = {0};
    ds4kv_frame frame;
    set_u64(head, raw_total);
    set_u32(head + 8, count);
    set_u32(head + 12, zero);
    set_u64(head + 32, ds4kv_hash_seeded(head, 32, 0));
    return ds4kv_frame_decode(&frame, head, region_bytes, chunk_size, DS4KV_FORM_PACKED, fault);
}

static void test_frames_that_lie(void)
{
    static const struct {
        uint64_t raw_total, region_bytes;
        uint32_t count, zero, chunk_size;
        int status;
        uint64_t offset;
        const char *field;
    } cases[] = {
        {100, FRAME + 2 * HEAD + 100, 2, 0, 64, DS4KV_OK, 0, ""},
        {65, FRAME + 2 * HEAD + 2, 2, 0, 64, DS4KV_OK, 0, ""},
        {0, FRAME, 0, 0, 64, DS4KV_OK, 0, ""},
        {100, FRAME + 2 * HEAD + 100, 2, 1, 64, DS4KV_CORRUPT, 0, "frame"},
        {100, FRAME + 2 * HEAD + 100, 1, 0, 64, DS4KV_CORRUPT, 8, "chunk_count"},
        {100, FRAME + 2 * HEAD + 100, 3, 0, 64, DS4KV_CORRUPT, 8, "chunk_count"},
        {100, FRAME + 2 * HEAD + 1, 2, 0, 64, DS4KV_CORRUPT, 8, "chunk_count"},
        {0, FRAME + 1, 0, 0, 64, DS4KV_CORRUPT, FRAME, "region"},
        {UINT64_MAX, FRAME + HEAD + 100, 0, 0, 64, DS4KV_CORRUPT, 8, "chunk_count"},
        {(uint64_t)UINT32_MAX << 26, FRAME + HEAD + 100, UINT32_MAX, 0, 1 << 26, DS4KV_CORRUPT, 8, "chunk_count"},
        {1 << 26, FRAME + HEAD + 1000, 1, 0, 1 << 26, DS4KV_CORRUPT, 0, "raw_total"},
        {100, FRAME - 1, 2, 0, 64, DS4KV_CORRUPT, 0, "frame"},
        {0, 0, 0, 0, 64, DS4KV_CORRUPT, 0, "frame"},
        {100, FRAME + 2 * HEAD + 100, 2, 0, 0, DS4KV_PARAM, 0, ""},
        {100, FRAME + 2 * HEAD + 100, 2, 0, DS4KV_MAX_CHUNK_SIZE + 1, DS4KV_PARAM, 0, ""},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        ds4kv_fault fault;
        CASE("frame %zu", i);
        CHECK_EQ(judge_frame(cases[i].raw_total, cases[i].count, cases[i].zero, cases[i].region_bytes,
                             cases[i].chunk_size, &fault),
                 cases[i].status);
        if (cases[i].status == DS4KV_CORRUPT)
            CHECK(fault.offset == cases[i].offset && strcmp(fault.field, cases[i].field) == 0);
    }
    CASE("a frame and back");
    uint8_t head[FRAME];
    ds4kv_frame frame = {100, 2, 64, DS4KV_FORM_PACKED, SEAL, 77}, back;
    ds4kv_fault fault;
    ds4kv_frame_encode(&frame, head);
    CHECK_EQ(ds4kv_frame_decode(&back, head, 1000, 64, DS4KV_FORM_PACKED, &fault), DS4KV_OK);
    CHECK(back.seal == SEAL && back.first_sum == 77 && back.raw_total == 100 && back.chunk_count == 2);
    CHECK_EQ(ds4kv_frame_size(DS4KV_FORM_PACKED), FRAME);
    CHECK_EQ(ds4kv_record_head_size(DS4KV_FORM_PACKED), HEAD);
    CHECK_EQ(ds4kv_region_bound(0, 64, DS4KV_FORM_PACKED), FRAME);
    CHECK_EQ(ds4kv_region_bound(65, 64, DS4KV_FORM_PACKED), FRAME + 2 * HEAD + 65);
}

static void test_refusals(void)
{
    ds4kv_writer *writer;
    CASE("refusals");
    CHECK_EQ(ds4kv_writer_new(&writer, 5, CHUNK, DS4KV_FORM_PACKED, 13, 0), DS4KV_PARAM);
    CHECK_EQ(ds4kv_writer_new(&writer, 5, CHUNK, DS4KV_FORM_PACKED, -2, 0), DS4KV_PARAM);
    CHECK_EQ(ds4kv_writer_new(&writer, 5, CHUNK, DS4KV_FORM_PLAIN, 0, 0), DS4KV_OK);
    CHECK_EQ(ds4kv_writer_seal(writer, 1), DS4KV_PARAM);
    ds4kv_writer_free(writer);
    CHECK_EQ(ds4kv_writer_new(&writer, 5, CHUNK, DS4KV_FORM_PACKED, 0, 0), DS4KV_OK);
    CHECK_EQ(ds4kv_writer_sums(writer), DS4KV_PARAM); /* it has its own */
    CHECK_EQ(ds4kv_writer_put(writer, "12345", 5, 0), 5);
    CHECK_EQ(ds4kv_writer_seal(writer, 1), DS4KV_STATE);
    CHECK_EQ(ds4kv_writer_finish(writer), DS4KV_OK);
    ds4kv_writer_free(writer);
}

int main(void)
{
    watchdog();
    test_refusals();
    test_frames_that_lie();
    test_there_and_back();
    test_large();
    test_every_bit();
    test_moved_records();
    return 0;
}
