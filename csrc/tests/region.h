/*
 * region.h - payloads and regions for the tests: made, written, read, and unpacked a second way.
 *
 * The loops over put and take are those of any owner of a file, and check on their way what ds4kv.h promises about
 * progress. What they must not depend on is a `way`. unpack_region knows the format by itself and shares nothing with
 * the core. Memory has its exact size, so that AddressSanitizer sees a byte too far.
 */
#ifndef REGION_H
#define REGION_H

#include "check.h"
#include "ds4kv.h"

typedef struct {
    uint8_t *at;
    size_t n;
} bytes;

static inline bytes bytes_new(size_t n)
{
    bytes new = {malloc(n), n};
    CHECK(new.at || n == 0);
    return new;
}

static inline bytes bytes_copy(bytes of)
{
    bytes copy = bytes_new(of.n);
    if (of.n)
        memcpy(copy.at, of.at, of.n);
    return copy;
}

static inline bool bytes_equal(bytes a, bytes b)
{
    return a.n == b.n && (a.n == 0 || memcmp(a.at, b.at, a.n) == 0);
}

static inline bytes bytes_of_file(const char *path)
{
    FILE *file = fopen(path, "rb");
    CHECK(file && fseek(file, 0, SEEK_END) == 0);
    bytes all = bytes_new((size_t)ftell(file));
    rewind(file);
    CHECK(fread(all.at, 1, all.n, file) == all.n);
    fclose(file);
    return all;
}

static inline size_t least(size_t a, size_t b)
{
    return a < b ? a : b;
}

static inline uint32_t get_u32(const uint8_t *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static inline void set_u32(uint8_t *p, uint32_t v)
{
    for (int i = 0; i < 4; i++)
        p[i] = (uint8_t)(v >> 8 * i);
}

/* ---- payloads ---- */

typedef enum { CONSTANT, TEXT, RANDOM, MIXED, N_KINDS } payload_kind;

static inline bytes payload_new(payload_kind kind, size_t n)
{
    static const char *words[] = {"ring ", "slot ", "chunk ", "block ", "record ", "frame ", "region ", "\n"};
    uint64_t seed = 1 + (uint64_t)kind;
    bytes payload = bytes_new(n);
    for (size_t i = 0; i < n;) {
        bool random = kind == RANDOM || (kind == MIXED && i / 1000 % 2);
        if (kind == CONSTANT) {
            payload.at[i++] = 'x';
        } else if (random) {
            payload.at[i++] = (uint8_t)draw(&seed);
        } else {
            const char *word = words[draw_below(&seed, COUNT(words))];
            size_t part = least(strlen(word), n - i);
            memcpy(payload.at + i, word, part);
            i += part;
        }
    }
    return payload;
}

/* ---- through the core ---- */

/* What may differ from run to run: of these, only chunk_size and level may change a byte. */
typedef struct {
    uint32_t chunk_size;
    int level;
    int workers;
    size_t put_size;  /* bytes put at once, at most */
    size_t take_size; /* payload bytes taken at once, at most */
    size_t aim_size;  /* payload bytes aimed at a time; 0: none */
    bool lent;
    bool known;   /* raw_total is given to the writer */
    bool in_file; /* the reader gets its region from a file */
    bool checked; /* form CHECKED; else PLAIN */
} way;

static inline uint32_t form_of(const way *way)
{
    return way->checked ? DS4KV_FORM_CHECKED : DS4KV_FORM_PLAIN;
}

static inline const char *way_text(const way *way)
{
    static _Thread_local char text[128];
    snprintf(text, sizeof text, "chunk_size %u level %d workers %d put %zd take %zd aim %zd%s%s%s%s", way->chunk_size,
             way->level, way->workers, (ssize_t)way->put_size, (ssize_t)way->take_size, (ssize_t)way->aim_size,
             way->lent ? " lent" : "", way->known ? " known" : "", way->in_file ? " in_file" : "",
             way->checked ? " checked" : "");
    return text;
}

/* Appends the record that is ready to be taken; false: there is none. */
static inline bool take_record(ds4kv_writer *writer, bytes *region, size_t limit)
{
    const void *record = NULL;
    int64_t size = ds4kv_writer_take(writer, &record);
    CHECK(size >= 0);
    CHECK(size == 0 || (size > DS4KV_RECORD_HEAD_SIZE && (size_t)size <= limit - region->n));
    if (size)
        memcpy(region->at + region->n, record, (size_t)size);
    region->n += (size_t)size;
    return size > 0;
}

static inline bytes write_region(bytes payload, way way)
{
    ds4kv_frame frame;
    CHECK_EQ(ds4kv_frame_init(&frame, payload.n, way.chunk_size, form_of(&way)), DS4KV_OK);
    size_t record_extra = ds4kv_record_head_size(form_of(&way)) + ds4kv_block_bound(1);
    size_t limit = DS4KV_FRAME_SIZE + payload.n + payload.n / 255 + frame.chunk_count * record_extra;
    bytes region = bytes_new(limit);
    region.n = DS4KV_FRAME_SIZE;

    ds4kv_writer *writer;
    uint64_t raw_total = way.known ? payload.n : DS4KV_UNKNOWN;
    CHECK_EQ(ds4kv_writer_new(&writer, raw_total, way.chunk_size, form_of(&way), way.level, way.workers), DS4KV_OK);
    for (size_t put = 0; put < payload.n;) {
        size_t part = least(way.put_size, payload.n - put);
        int64_t accepted = ds4kv_writer_put(writer, payload.at + put, part, way.lent);
        CHECK(accepted >= 0 && (size_t)accepted <= part);
        put += (size_t)accepted;
        if ((size_t)accepted < part)
            CHECK(take_record(writer, &region, limit)); /* a short put means that there is one */
    }
    CHECK_EQ(ds4kv_writer_finish(writer), DS4KV_OK);
    while (take_record(writer, &region, limit))
        continue;
    CHECK_EQ(ds4kv_writer_lent(writer), 0);

    ds4kv_frame written;
    ds4kv_writer_frame(writer, &written);
    CHECK(written.raw_total == frame.raw_total && written.chunk_count == frame.chunk_count &&
          written.chunk_size == frame.chunk_size && written.form == frame.form);
    ds4kv_frame_encode(&written, region.at);
    ds4kv_writer_free(writer);

    bytes exact = bytes_copy(region);
    free(region.at);
    return exact;
}

/* What came of reading a region. */
typedef struct {
    int status;
    ds4kv_fault fault;
    bytes payload; /* as far as it came */
} verdict;

#define GUARD 64

/* Memory for a payload between guards. */
static inline bytes guarded_new(uint64_t n)
{
    bytes all = bytes_new((size_t)n + 2 * GUARD);
    memset(all.at, 0xa5, all.n);
    return (bytes){all.at + GUARD, (size_t)n};
}

/* Checks the guards and takes them off; of the payload, `n` bytes remain. */
static inline bytes guarded_open(bytes guarded, size_t n)
{
    uint8_t *all = guarded.at - GUARD;
    for (size_t i = 0; i < GUARD; i++)
        CHECK(all[i] == 0xa5 && guarded.at[guarded.n + i] == 0xa5);
    bytes payload = bytes_copy((bytes){guarded.at, n});
    free(all);
    return payload;
}

/* Fills the reader's ring, as far as it goes. Its status; `*fed` grows. */
static inline int feed(ds4kv_reader *reader, bytes region, size_t *fed, size_t put_size)
{
    for (;;) {
        void *room;
        int64_t size = ds4kv_reader_room(reader, &room);
        if (size <= 0)
            return (int)size;
        size_t part = least(least((size_t)size, put_size), region.n - *fed);
        if (part == 0)
            return ds4kv_reader_finish(reader);
        memcpy(room, region.at + *fed, part);
        *fed += part;
        int status = ds4kv_reader_put(reader, part);
        if (status != DS4KV_OK)
            return status;
    }
}

#define FILE_START 17 /* of a region in a file: anywhere but at 0 */

static inline FILE *file_of(bytes region)
{
    FILE *file = tmpfile();
    CHECK(file && fseek(file, FILE_START, SEEK_SET) == 0);
    CHECK(fwrite(region.at, 1, region.n, file) == region.n && fflush(file) == 0);
    return file;
}

/* Reads from record first_chunk on, at first_offset. region_bytes may claim more than is there. */
static inline verdict read_from(bytes region, uint64_t region_bytes, uint32_t first_chunk, uint64_t first_offset,
                                way way)
{
    verdict verdict = {0};
    ds4kv_frame frame;
    verdict.status = ds4kv_frame_decode(&frame, region.at, region_bytes, way.chunk_size, form_of(&way), &verdict.fault);
    if (verdict.status != DS4KV_OK)
        return verdict;

    bytes out = guarded_new(frame.raw_total - (uint64_t)first_chunk * frame.chunk_size);
    size_t fed = (size_t)first_offset, done = 0, aim_end = 0;
    ds4kv_reader *reader;
    CHECK_EQ(ds4kv_reader_new(&reader, &frame, region_bytes, first_chunk, first_offset, way.workers), DS4KV_OK);
    FILE *file = way.in_file ? file_of(region) : NULL;
    if (file)
        CHECK_EQ(ds4kv_reader_from_file(reader, fileno(file), FILE_START), DS4KV_OK);
    while (done < out.n) {
        if (done == aim_end) {
            aim_end += least(way.aim_size ? way.aim_size : out.n, out.n - aim_end);
            if (way.aim_size)
                CHECK_EQ(ds4kv_reader_aim(reader, out.at + done, aim_end - done), DS4KV_OK);
        }
        verdict.status = feed(reader, region, &fed, way.put_size);
        if (verdict.status != DS4KV_OK)
            break;
        int64_t taken = ds4kv_reader_take(reader, out.at + done, least(way.take_size, aim_end - done), 1);
        if (taken < 0) {
            verdict.status = (int)taken;
            break;
        }
        CHECK(taken > 0 && (size_t)taken <= least(way.take_size, aim_end - done)); /* no room: there is a chunk */
        done += (size_t)taken;
    }
    void *room;
    CHECK_EQ(ds4kv_reader_room(reader, &room), verdict.status);
    CHECK_EQ(ds4kv_reader_finish(reader), verdict.status);
    CHECK_EQ(ds4kv_reader_take(reader, out.at, 1, 1), verdict.status);
    if (verdict.status == DS4KV_OK && !file)
        CHECK_EQ(fed, region.n);
    ds4kv_reader_fault(reader, &verdict.fault);
    ds4kv_reader_free(reader);
    if (file)
        fclose(file);
    verdict.payload = guarded_open(out, done);
    return verdict;
}

static inline verdict read_region(bytes region, way way)
{
    return read_from(region, region.n, 0, DS4KV_FRAME_SIZE, way);
}

/* The same by ds4kv_decode. */
static inline verdict decode_region(bytes region, uint32_t chunk_size, uint32_t form, int workers)
{
    verdict verdict = {0};
    uint64_t raw_total = 0;
    if (region.n >= DS4KV_FRAME_SIZE)
        raw_total = (uint64_t)get_u32(region.at + 4) << 32 | get_u32(region.at);
    if (raw_total > 255 * region.n)
        raw_total = 0; /* to be refused before anything else is looked at */
    bytes out = guarded_new(raw_total);
    verdict.status = ds4kv_decode(region.at, region.n, chunk_size, form, out.at, raw_total, workers, &verdict.fault);
    verdict.payload = guarded_open(out, verdict.status == DS4KV_OK ? out.n : 0);
    return verdict;
}

/* ---- by hand ---- */

/* One LZ4 block, by the book. */
static inline void unpack_block(bytes block, bytes raw)
{
    size_t in = 0, out = 0;
    for (;;) {
        CHECK(in < block.n);
        unsigned token = block.at[in++];
        size_t literals = token >> 4, match = (token & 15) + 4;
        if (literals == 15)
            do
                literals += block.at[in];
            while (block.at[in++] == 255);
        CHECK(literals <= block.n - in && literals <= raw.n - out);
        memcpy(raw.at + out, block.at + in, literals);
        in += literals;
        out += literals;
        if (in == block.n)
            break;
        size_t distance = block.at[in] | (size_t)block.at[in + 1] << 8;
        in += 2;
        if (match == 15 + 4)
            do
                match += block.at[in];
            while (block.at[in++] == 255);
        CHECK(distance > 0 && distance <= out && match <= raw.n - out);
        for (; match > 0; match--, out++)
            raw.at[out] = raw.at[out - distance];
    }
    CHECK_EQ(out, raw.n);
}

static inline uint32_t rotate(uint32_t v, int by)
{
    return v << by | v >> (32 - by);
}

/* XXH32 with seed 0, by its description. */
static inline uint32_t xxh32(const uint8_t *at, size_t n)
{
    static const uint32_t prime[] = {0, 2654435761, 2246822519, 3266489917, 668265263, 374761393};
    uint32_t lane[4] = {prime[1] + prime[2], prime[2], 0, 0 - prime[1]}, hash = prime[5];
    size_t i = 0;
    for (; n - i >= 16; i += 16)
        for (size_t k = 0; k < 4; k++)
            lane[k] = rotate(lane[k] + get_u32(at + i + 4 * k) * prime[2], 13) * prime[1];
    if (n >= 16)
        hash = rotate(lane[0], 1) + rotate(lane[1], 7) + rotate(lane[2], 12) + rotate(lane[3], 18);
    hash += (uint32_t)n;
    for (; n - i >= 4; i += 4)
        hash = rotate(hash + get_u32(at + i) * prime[3], 17) * prime[4];
    for (; i < n; i++)
        hash = rotate(hash + at[i] * prime[5], 11) * prime[1];
    hash = (hash ^ hash >> 15) * prime[2];
    hash = (hash ^ hash >> 13) * prime[3];
    return hash ^ hash >> 16;
}

/* Byte i of a chunk among its byte streams. */
static inline size_t transposed(size_t i, size_t n)
{
    return i < n / 4 * 4 ? i % 4 * (n / 4) + i / 4 : i;
}

static inline void unpack_checked(const uint8_t *record, bytes block, bytes raw)
{
    bytes streams = bytes_new(raw.n);
    unpack_block(block, streams);
    for (size_t i = 0; i < raw.n; i++)
        raw.at[i] = streams.at[transposed(i, raw.n)];
    CHECK_EQ(get_u32(record + 8), xxh32(raw.at, raw.n));
    free(streams.at);
}

static inline bytes unpack_region(bytes region, uint32_t chunk_size, uint32_t form)
{
    bytes payload = bytes_new(get_u32(region.at));
    CHECK_EQ(get_u32(region.at + 4), 0);
    CHECK_EQ(get_u32(region.at + 8), (payload.n + chunk_size - 1) / chunk_size);
    size_t at = DS4KV_FRAME_SIZE;
    for (size_t done = 0; done < payload.n; done += chunk_size) {
        const uint8_t *record = region.at + at;
        size_t raw_size = get_u32(record), block_size = get_u32(record + 4);
        bytes raw = {payload.at + done, raw_size};
        CHECK_EQ(raw_size, least(chunk_size, payload.n - done));
        at += ds4kv_record_head_size(form);
        CHECK(block_size <= region.n - at);
        if (form == DS4KV_FORM_CHECKED)
            unpack_checked(record, (bytes){region.at + at, block_size}, raw);
        else
            unpack_block((bytes){region.at + at, block_size}, raw);
        at += block_size;
    }
    CHECK_EQ(at, region.n);
    return payload;
}

/* Where record `index` begins. */
static inline size_t record_offset(bytes region, uint32_t index, uint32_t form)
{
    size_t at = DS4KV_FRAME_SIZE;
    while (index-- > 0)
        at += ds4kv_record_head_size(form) + get_u32(region.at + at + 4);
    return at;
}

#endif
