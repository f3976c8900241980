/*
 * test_checkpoint.c - whole files: what is written is read again, what is wrong is refused, nothing half-done is left.
 *
 * Each refusal has its control: the file with that one thing repaired opens.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "ds4kv_file.h"
#include "region.h"

static char folder[] = "/tmp/ds4kv_test_XXXXXX";

static const char PROMPT[] = "What is\0the time?"; /* with a NUL inside */
#define PROMPT_BYTES (sizeof PROMPT - 1)
#define REGION_START (DS4KV_HEADER_SIZE + 4 + PROMPT_BYTES)

static ds4kv_header header_of(int version, int codec)
{
    return (ds4kv_header){.layout = (uint8_t)version,
                          .quant_bits = 4,
                          .reason = DS4KV_REASON_EVICT,
                          .ext_flags = 0x82,
                          .codec = (uint8_t)codec,
                          .tokens = 7,
                          .hits = 1,
                          .ctx_size = 4096,
                          .chunk_size = codec ? 1000 : 0,
                          .created_at = 1780000000,
                          .last_used = 1780000001};
}

static int files_in_folder(void)
{
    int n = 0;
    DIR *directory = opendir(folder);
    CHECK(directory);
    for (struct dirent *found; (found = readdir(directory));)
        n += found->d_name[0] != '.';
    closedir(directory);
    return n;
}

static void write_file(const char *path, bytes all)
{
    FILE *file = fopen(path, "wb");
    CHECK(file && fwrite(all.at, 1, all.n, file) == all.n && fclose(file) == 0);
}

static void save(const char *path, ds4kv_header header, bytes payload, bytes trailer, int workers)
{
    ds4kv_checkpoint *checkpoint;
    ds4kv_fault fault;
    CHECK_EQ(ds4kv_checkpoint_create(&checkpoint, path, &header, PROMPT, PROMPT_BYTES, workers, &fault), DS4KV_OK);
    size_t half = payload.n / 2;
    CHECK(half == 0 || fwrite(payload.at, 1, half, checkpoint->payload) == half);
    for (size_t i = half; i < payload.n; i++)
        CHECK(putc(payload.at[i], checkpoint->payload) == payload.at[i]);
    if (trailer.n) {
        FILE *stream = ds4kv_checkpoint_trailer(checkpoint);
        CHECK(stream && !checkpoint->payload && fwrite(trailer.at, 1, trailer.n, stream) == trailer.n);
        checkpoint->header.ext_flags |= DS4KV_EXT_TOOL_MAP;
    }
    CHECK_EQ(ds4kv_checkpoint_close(checkpoint, &fault), DS4KV_OK);
}

static void test_round_trip(int version, int codec, size_t n, size_t trailer_bytes, int workers)
{
    CASE("version %d codec %d, %zu bytes, trailer %zu, workers %d", version, codec, n, trailer_bytes, workers);
    char path[64];
    snprintf(path, sizeof path, "%s/a.kv", folder);
    bytes payload = payload_new(MIXED, n), trailer = payload_new(TEXT, trailer_bytes);
    ds4kv_header header = header_of(version, codec);
    save(path, header, payload, trailer, workers);

    struct stat found;
    CHECK(stat(path, &found) == 0);
    CHECK_EQ(found.st_mode & 07777, 0600);
    CHECK_EQ(files_in_folder(), 1);

    ds4kv_checkpoint *checkpoint;
    ds4kv_fault fault;
    CHECK_EQ(ds4kv_checkpoint_open(&checkpoint, path, workers, &fault), DS4KV_OK);
    header.payload_bytes = (uint64_t)found.st_size - REGION_START - trailer_bytes;
    header.ext_flags |= trailer_bytes ? DS4KV_EXT_TOOL_MAP : 0;
    uint8_t expected[DS4KV_HEADER_SIZE], head[DS4KV_HEADER_SIZE];
    CHECK_EQ(ds4kv_header_pack(&header, expected, &fault), DS4KV_OK);
    CHECK_EQ(ds4kv_header_pack(&checkpoint->header, head, &fault), DS4KV_OK);
    CHECK(memcmp(head, expected, sizeof head) == 0);
    CHECK_EQ(checkpoint->text_bytes, PROMPT_BYTES);
    CHECK(memcmp(checkpoint->text, PROMPT, PROMPT_BYTES + 1) == 0);
    CHECK_EQ(checkpoint->raw_total, n);
    CHECK_EQ(checkpoint->trailer_bytes, trailer_bytes);

    bytes read = bytes_new(n), tail = bytes_new(trailer_bytes);
    CHECK(fread(read.at, 1, n, checkpoint->payload) == n && bytes_equal(read, payload));
    CHECK(getc(checkpoint->payload) == EOF && feof(checkpoint->payload) && !ferror(checkpoint->payload));
    FILE *stream = ds4kv_checkpoint_trailer(checkpoint);
    CHECK(stream && fread(tail.at, 1, tail.n, stream) == tail.n && bytes_equal(tail, trailer));
    CHECK(getc(stream) == EOF);
    CHECK_EQ(ds4kv_checkpoint_close(checkpoint, &fault), DS4KV_OK);

    /* The trailer is found without the payload; a stream half-read may be left. */
    CHECK_EQ(ds4kv_checkpoint_open(&checkpoint, path, workers, &fault), DS4KV_OK);
    CHECK(n == 0 || getc(checkpoint->payload) == payload.at[0]);
    stream = ds4kv_checkpoint_trailer(checkpoint);
    CHECK(stream && fread(tail.at, 1, tail.n, stream) == tail.n && bytes_equal(tail, trailer));
    CHECK_EQ(ds4kv_checkpoint_close(checkpoint, &fault), DS4KV_OK);
    CHECK_EQ(ds4kv_checkpoint_open(&checkpoint, path, workers, &fault), DS4KV_OK);
    ds4kv_checkpoint_abandon(checkpoint);
    CHECK_EQ(files_in_folder(), 1);
    unlink(path);
    free(payload.at);
    free(trailer.at);
    free(read.at);
    free(tail.at);
}

/* ---- header ---- */

static void test_header(void)
{
    uint64_t seed = 1;
    uint8_t head[DS4KV_HEADER_SIZE], again[DS4KV_HEADER_SIZE];
    ds4kv_header header;
    ds4kv_fault fault;
    for (int i = 0; i < 1000; i++) {
        CASE("header %d", i);
        for (size_t k = 0; k < sizeof head; k++)
            head[k] = (uint8_t)draw(&seed);
        memcpy(head, "KVC", 3);
        head[3] = (uint8_t)(1 + i % 2);
        head[4] = (uint8_t)(2 + i % 3 / 2 * 2);
        head[7] = i % 2 ? head[7] % 3 : head[7];
        head[8] |= 1;
        if (i % 2)
            set_u32(head + 20, 1 + (uint32_t)draw_below(&seed, DS4KV_MAX_CHUNK_SIZE));
        CHECK_EQ(ds4kv_header_unpack(&header, head, DS4KV_LAYOUT_V2, &fault), DS4KV_OK);
        CHECK_EQ(ds4kv_header_pack(&header, again, &fault), DS4KV_OK);
        CHECK(memcmp(head, again, sizeof head) == 0);
    }

    for (int i = 0; i < 1000; i++) {
        CASE("header %d, with its codec in byte 21", i);
        int layout = i % 2 ? DS4KV_LAYOUT_V2_CHECKED : DS4KV_LAYOUT_V2_MID;
        for (size_t k = 4; k < sizeof head; k++)
            head[k] = (uint8_t)draw(&seed);
        head[3] = head[4] = 2;
        head[8] |= 1;
        head[21] = i % 2 ? 2 : 1;
        head[22] = (uint8_t)(i % 27);
        head[23] = 0;
        CHECK_EQ(ds4kv_header_unpack(&header, head, layout, &fault), DS4KV_OK);
        CHECK(header.layout == layout && header.codec == DS4KV_CODEC_LZ4);
        CHECK_EQ(header.chunk_size, (uint32_t)1 << i % 27);
        CHECK(header.model_id == head[7] && header.payload_abi == head[20]);
        CHECK_EQ(ds4kv_header_pack(&header, again, &fault), DS4KV_OK);
        CHECK(memcmp(head, again, sizeof head) == 0);
        static const uint8_t wrong[][2] = {{21, 0}, {21, 3}, {22, 27}, {22, 255}, {23, 1}};
        const uint8_t *damage = wrong[i % 5];
        head[damage[0]] = damage[1];
        CHECK_EQ(ds4kv_header_unpack(&header, head, layout, &fault), DS4KV_CORRUPT);
        CHECK_EQ(fault.offset, damage[0]);
    }
    CASE("a layout that there is not");
    CHECK_EQ(ds4kv_header_unpack(&header, head, 6, &fault), DS4KV_PARAM);

    static const struct {
        ptrdiff_t at;
        uint32_t value;
        int unpack; /* the file's status, where it is one */
        const char *field;
    } wrong[] = {
        {3, 0, DS4KV_UNSUPPORTED, "version"}, {3, 3, DS4KV_UNSUPPORTED, "version"}, {4, 3, DS4KV_CORRUPT, "quant_bits"},
        {4, 0, DS4KV_CORRUPT, "quant_bits"},  {7, 3, DS4KV_UNSUPPORTED, "codec"},
    };
    ds4kv_header good = header_of(2, DS4KV_CODEC_LZ4);
    for (size_t i = 0; i < COUNT(wrong); i++) {
        CASE("%s %u", wrong[i].field, wrong[i].value);
        CHECK_EQ(ds4kv_header_pack(&good, head, &fault), DS4KV_OK);
        CHECK_EQ(ds4kv_header_unpack(&header, head, DS4KV_LAYOUT_V2, &fault), DS4KV_OK); /* control */
        head[wrong[i].at] = (uint8_t)wrong[i].value;
        CHECK_EQ(ds4kv_header_unpack(&header, head, DS4KV_LAYOUT_V2, &fault), wrong[i].unpack);
        CHECK_EQ(fault.offset, wrong[i].at);
        CHECK(strcmp(fault.field, wrong[i].field) == 0 && fault.why[0]);
    }
    static const uint32_t chunk_sizes[] = {0, DS4KV_MAX_CHUNK_SIZE + 1};
    for (size_t i = 0; i < COUNT(chunk_sizes); i++) {
        CASE("chunk_size %u", chunk_sizes[i]);
        CHECK_EQ(ds4kv_header_pack(&good, head, &fault), DS4KV_OK);
        set_u32(head + 20, chunk_sizes[i]);
        CHECK_EQ(ds4kv_header_unpack(&header, head, DS4KV_LAYOUT_V2, &fault), DS4KV_CORRUPT);
        CHECK_EQ(fault.offset, 20);
        head[7] = DS4KV_CODEC_NONE; /* control */
        CHECK_EQ(ds4kv_header_unpack(&header, head, DS4KV_LAYOUT_V2, &fault), DS4KV_OK);
    }

#define REFUSED(change, name)                                                                                          \
    do {                                                                                                               \
        CASE("%s", #change);                                                                                           \
        ds4kv_header bad = good;                                                                                       \
        change;                                                                                                        \
        CHECK_EQ(ds4kv_header_pack(&bad, head, &fault), DS4KV_PARAM);                                                  \
        CHECK(strcmp(fault.field, name) == 0 && fault.why[0]);                                                         \
    } while (0)
    CHECK_EQ(ds4kv_header_pack(&good, head, &fault), DS4KV_OK);
    REFUSED(bad.layout = 6, "layout");
    REFUSED(bad.quant_bits = 1, "quant_bits");
    REFUSED(bad.tokens = 0, "tokens");
    REFUSED(bad.codec = 3, "codec");
    REFUSED(bad.chunk_size = 0, "chunk_size");
    REFUSED(bad.layout = DS4KV_LAYOUT_V1, "codec");
    REFUSED(bad.layout = DS4KV_LAYOUT_V2_CHECKED, "chunk_size"); /* no power of two */
    good.chunk_size = 1024;
    good.layout = DS4KV_LAYOUT_V2_CHECKED;
    good.model_id = good.payload_abi = 255;
    CHECK_EQ(ds4kv_header_pack(&good, head, &fault), DS4KV_OK);
    REFUSED(bad.payload_abi = 256, "payload_abi");
    REFUSED(bad.codec = DS4KV_CODEC_LZ4HC, "codec");
    REFUSED(bad.codec = DS4KV_CODEC_NONE, "codec");
    good = header_of(2, DS4KV_CODEC_LZ4);
    REFUSED(bad.model_id = 1, "model_id");
    REFUSED(bad.payload_abi = 1, "model_id");
}

static void test_names(void)
{
    CASE("names");
    char name[44];
    ds4kv_checkpoint_name(NULL, 0, name);
    CHECK(strcmp(name, "da39a3ee5e6b4b0d3255bfef95601890afd80709.kv") == 0);
    ds4kv_checkpoint_name("abc", 3, name);
    CHECK(strcmp(name, "a9993e364706816aba3e25717850c26c9cd0d89d.kv") == 0);
    ds4kv_checkpoint_name("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq", 56, name);
    CHECK(strcmp(name, "84983e441c3bd26ebaae4aa1f95129e5e54670f1.kv") == 0);
    bytes million = bytes_new(1000000);
    memset(million.at, 'a', million.n);
    ds4kv_checkpoint_name(million.at, million.n, name);
    CHECK(strcmp(name, "34aa973cd4c4daa4f61eeb2bdbad27316534016f.kv") == 0);
    free(million.at);
}

/* ---- what is refused ---- */

typedef struct {
    const char *name;
    size_t at;
    uint8_t value;
    int status;
    uint64_t offset;
} damage;

static void expect(const char *path, int expected, uint64_t offset)
{
    ds4kv_checkpoint *checkpoint;
    ds4kv_fault fault;
    CHECK_EQ(ds4kv_checkpoint_open(&checkpoint, path, 2, &fault), expected);
    if (expected == DS4KV_OK) {
        ds4kv_checkpoint_abandon(checkpoint);
        return;
    }
    CHECK(!checkpoint && fault.why[0]);
    CHECK_EQ(fault.offset, offset);
}

static void test_refusals(void)
{
    static const damage cases[] = {
        {"magic", 2, 'B', DS4KV_CORRUPT, 0},
        {"version", 3, 9, DS4KV_UNSUPPORTED, 3},
        {"quant_bits", 4, 5, DS4KV_CORRUPT, 4},
        {"tokens", 8, 0, DS4KV_CORRUPT, 8},
        {"codec", 7, 4, DS4KV_UNSUPPORTED, 7},
        {"chunk_size", 23, 0xff, DS4KV_CORRUPT, 20},
        {"text_bytes", 50, 1, DS4KV_TRUNCATED, 48},
        {"text_bytes by one", 48, PROMPT_BYTES + 1, DS4KV_TRUNCATED, 40},
        {"payload_bytes", 47, 0xff, DS4KV_TRUNCATED, 40},
        {"chunk_count", REGION_START + 8, 9, DS4KV_CORRUPT, REGION_START + 8},
        {"raw_total", REGION_START + 7, 1, DS4KV_CORRUPT, REGION_START + 8},
    };
    char path[64];
    snprintf(path, sizeof path, "%s/a.kv", folder);
    bytes payload = payload_new(TEXT, 2500);
    save(path, header_of(2, DS4KV_CODEC_LZ4), payload, (bytes){0}, 2);
    bytes good = bytes_of_file(path);
    for (size_t i = 0; i < COUNT(cases); i++) {
        CASE("%s", cases[i].name);
        bytes bad = bytes_copy(good);
        bad.at[cases[i].at] = cases[i].value;
        write_file(path, bad);
        expect(path, cases[i].status, cases[i].offset);
        free(bad.at);
        write_file(path, good);
        expect(path, DS4KV_OK, 0);
    }
    for (size_t n = 0; n < good.n; n += n < REGION_START ? 1 : 100) {
        CASE("the first %zu bytes", n);
        write_file(path, (bytes){good.at, n});
        size_t at = n < DS4KV_HEADER_SIZE + 4 ? n : n < REGION_START ? 48 : 40;
        expect(path, DS4KV_TRUNCATED, at);
    }

    CASE("a block that lz4 refuses");
    bytes bad = bytes_copy(good);
    size_t record = REGION_START +
                    record_offset((bytes){good.at + REGION_START, good.n - REGION_START}, 1, DS4KV_FORM_PLAIN);
    bad.at[record + DS4KV_RECORD_HEAD_SIZE] = 0x02;
    write_file(path, bad);
    ds4kv_checkpoint *checkpoint;
    ds4kv_fault fault;
    uint8_t raw[2500];
    CHECK_EQ(ds4kv_checkpoint_open(&checkpoint, path, 2, &fault), DS4KV_OK);
    CHECK(fread(raw, 1, sizeof raw, checkpoint->payload) < sizeof raw && ferror(checkpoint->payload));
    CHECK(errno == EBADMSG);
    CHECK_EQ(ds4kv_checkpoint_close(checkpoint, &fault), DS4KV_CORRUPT);
    CHECK_EQ(fault.offset, record + DS4KV_RECORD_HEAD_SIZE);
    free(bad.at);

    CASE("the wrong name");
    char name[44], named[64 + 44];
    ds4kv_checkpoint_name(PROMPT, PROMPT_BYTES, name);
    write_file(path, good);
    snprintf(named, sizeof named, "%s/%s", folder, name);
    CHECK(rename(path, named) == 0);
    expect(named, DS4KV_OK, 0);
    char *digit = named + strlen(folder) + 1, other[64 + 44];
    memcpy(other, named, sizeof other);
    *digit = *digit == '0' ? '1' : '0';
    CHECK(rename(other, named) == 0);
    expect(named, DS4KV_CORRUPT, DS4KV_HEADER_SIZE + 4);
    unlink(named);

    CASE("what is no regular file");
    CHECK_EQ(ds4kv_checkpoint_open(&checkpoint, path, 2, &fault), DS4KV_IO);
    CHECK_EQ(fault.os_error, ENOENT);
    CHECK_EQ(ds4kv_checkpoint_open(&checkpoint, folder, 2, &fault), DS4KV_IO);
    CHECK_EQ(fault.os_error, EISDIR);
    CHECK(mkfifo(path, 0600) == 0);
    CHECK_EQ(ds4kv_checkpoint_open(&checkpoint, path, 2, &fault), DS4KV_IO);
    CHECK_EQ(fault.os_error, EINVAL);
    ds4kv_header header = header_of(2, DS4KV_CODEC_LZ4);
    CHECK_EQ(ds4kv_checkpoint_create(&checkpoint, path, &header, NULL, 0, 0, &fault), DS4KV_IO);
    CHECK_EQ(fault.os_error, EEXIST);
    CHECK_EQ(ds4kv_checkpoint_create(&checkpoint, folder, &header, NULL, 0, 0, &fault), DS4KV_IO);
    CHECK_EQ(fault.os_error, EISDIR);
    unlink(path);
    CHECK_EQ(files_in_folder(), 0);
    free(good.at);
    free(payload.at);
}

static void test_arguments(void)
{
    CASE("arguments");
    char path[64], other[64 + 44];
    snprintf(path, sizeof path, "%s/a.kv", folder);
    snprintf(other, sizeof other, "%s/%040d.kv", folder, 0);
    ds4kv_header good = header_of(2, DS4KV_CODEC_LZ4), bad = good, hc = good;
    ds4kv_checkpoint *checkpoint;
    ds4kv_fault fault;
    bad.tokens = 0;
    hc.codec = DS4KV_CODEC_LZ4HC;
    CHECK_EQ(ds4kv_checkpoint_create(&checkpoint, path, &bad, PROMPT, PROMPT_BYTES, 2, &fault), DS4KV_PARAM);
    CHECK_EQ(ds4kv_checkpoint_create(&checkpoint, path, &hc, PROMPT, PROMPT_BYTES, 2, &fault), DS4KV_PARAM);
    CHECK_EQ(ds4kv_checkpoint_create(&checkpoint, path, &good, PROMPT, PROMPT_BYTES, 65, &fault), DS4KV_PARAM);
    CHECK_EQ(ds4kv_checkpoint_create(&checkpoint, path, &good, PROMPT, PROMPT_BYTES, -1, &fault), DS4KV_PARAM);
    CHECK_EQ(ds4kv_checkpoint_create(&checkpoint, other, &good, PROMPT, PROMPT_BYTES, 2, &fault), DS4KV_PARAM);
    CHECK_EQ(ds4kv_checkpoint_open(&checkpoint, path, 65, &fault), DS4KV_PARAM);
    CHECK(!checkpoint);
    CHECK_EQ(files_in_folder(), 0);
    /* control */
    CHECK_EQ(ds4kv_checkpoint_create(&checkpoint, path, &good, PROMPT, PROMPT_BYTES, 2, &fault), DS4KV_OK);
    CHECK_EQ(files_in_folder(), 1);
    ds4kv_checkpoint_abandon(checkpoint);
    ds4kv_checkpoint_abandon(NULL);
    CHECK_EQ(files_in_folder(), 0);

    CASE("a header that became wrong before it is written");
    CHECK_EQ(ds4kv_checkpoint_create(&checkpoint, path, &good, PROMPT, PROMPT_BYTES, 2, &fault), DS4KV_OK);
    checkpoint->header.tokens = 0;
    CHECK_EQ(ds4kv_checkpoint_close(checkpoint, &fault), DS4KV_PARAM);
    CHECK_EQ(files_in_folder(), 0);
}

static void test_cut_while_read(void)
{
    char path[64];
    snprintf(path, sizeof path, "%s/a.kv", folder);
    bytes payload = payload_new(RANDOM, 300000), read = bytes_new(payload.n), trailer = payload_new(TEXT, 50);
    for (int cut = 0; cut < 2; cut++) {
        CASE("codec none, %s", cut ? "cut short while it is read" : "whole");
        save(path, header_of(2, DS4KV_CODEC_NONE), payload, trailer, 2);
        ds4kv_checkpoint *checkpoint;
        ds4kv_fault fault;
        CHECK_EQ(ds4kv_checkpoint_open(&checkpoint, path, 2, &fault), DS4KV_OK);
        if (cut)
            CHECK(truncate(path, REGION_START + 200000) == 0);
        errno = 0;
        CHECK_EQ(fread(read.at, 1, read.n, checkpoint->payload), cut ? 200000 : read.n);
        CHECK(memcmp(read.at, payload.at, 200000) == 0);
        CHECK(!cut == !ferror(checkpoint->payload) && (!cut || errno == ENODATA));
        CHECK_EQ(ds4kv_checkpoint_close(checkpoint, &fault), cut ? DS4KV_TRUNCATED : DS4KV_OK);
        CHECK(!cut || (fault.offset == REGION_START + 200000 && strcmp(fault.field, "payload") == 0));
    }
    unlink(path);
    free(trailer.at);
    free(read.at);
    free(payload.at);
}

/* ---- what stays ---- */

/* The one file in the folder with ".tmp." in its name. */
static void find_temporary(char path[64 + 256])
{
    int n = 0;
    DIR *directory = opendir(folder);
    CHECK(directory);
    for (struct dirent *found; (found = readdir(directory));)
        if (strstr(found->d_name, ".tmp.") && ++n)
            snprintf(path, 64 + 256, "%.63s/%.255s", folder, found->d_name);
    closedir(directory);
    CHECK_EQ(n, 1);
}

static void test_abandon(int codec)
{
    CASE("abandon, codec %d", codec);
    char path[64];
    snprintf(path, sizeof path, "%s/a.kv", folder);
    bytes old = payload_new(RANDOM, 100), payload = payload_new(MIXED, 100000);
    write_file(path, old);
    ds4kv_header header = header_of(2, codec);
    ds4kv_checkpoint *checkpoint;
    ds4kv_fault fault;
    CHECK_EQ(ds4kv_checkpoint_create(&checkpoint, path, &header, PROMPT, PROMPT_BYTES, 2, &fault), DS4KV_OK);
    CHECK(fwrite(payload.at, 1, payload.n - 1, checkpoint->payload) == payload.n - 1);
    CHECK(putc(payload.at[payload.n - 1], checkpoint->payload) != EOF); /* stays in a buffer */

    char temporary[64 + 256], other[64];
    find_temporary(temporary);
    snprintf(other, sizeof other, "%s/other", folder);
    CHECK(link(temporary, other) == 0);
    bytes before = bytes_of_file(other);
    CHECK(before.n < REGION_START + payload.n); /* there is more to come */
    ds4kv_checkpoint_abandon(checkpoint);
    bytes found = bytes_of_file(path), after = bytes_of_file(other);
    CHECK(bytes_equal(after, before)); /* and it did not */
    CHECK(unlink(other) == 0 && bytes_equal(found, old) && files_in_folder() == 1);
    unlink(path);
    free(before.at);
    free(after.at);
    free(found.at);
    free(old.at);
    free(payload.at);
}

static void test_full_disk(int codec)
{
    CASE("no room for the file, codec %d", codec);
    char path[64];
    snprintf(path, sizeof path, "%s/a.kv", folder);
    bytes old = payload_new(RANDOM, 100), payload = payload_new(RANDOM, 300000);
    write_file(path, old);
    struct rlimit before, limit;
    CHECK(getrlimit(RLIMIT_FSIZE, &before) == 0);
    limit = (struct rlimit){100000, before.rlim_max};
    signal(SIGXFSZ, SIG_IGN);
    CHECK(setrlimit(RLIMIT_FSIZE, &limit) == 0);
    ds4kv_header header = header_of(2, codec);
    ds4kv_checkpoint *checkpoint;
    ds4kv_fault fault;
    for (int asks = 0; asks < 2; asks++) { /* an engine that looks, and one that doesn't */
        CHECK_EQ(ds4kv_checkpoint_create(&checkpoint, path, &header, PROMPT, PROMPT_BYTES, 2, &fault), DS4KV_OK);
        size_t n = fwrite(payload.at, 1, payload.n, checkpoint->payload);
        if (asks)
            CHECK(n < payload.n || fflush(checkpoint->payload) != 0 || !ds4kv_checkpoint_trailer(checkpoint));
        CHECK_EQ(ds4kv_checkpoint_close(checkpoint, &fault), DS4KV_IO);
        CHECK_EQ(fault.os_error, EFBIG);
    }
    CHECK(setrlimit(RLIMIT_FSIZE, &before) == 0);
    bytes found = bytes_of_file(path);
    CHECK(bytes_equal(found, old) && files_in_folder() == 1);

    save(path, header, payload, (bytes){0}, 2); /* control */
    unlink(path);
    free(found.at);
    free(old.at);
    free(payload.at);
}

static void test_fork(int codec)
{
    CASE("fork, codec %d", codec);
    char path[64];
    snprintf(path, sizeof path, "%s/a.kv", folder);
    bytes payload = payload_new(MIXED, 5000);
    ds4kv_header header = header_of(2, codec);
    save(path, header, payload, (bytes){0}, 2);
    bytes expected = bytes_of_file(path);
    ds4kv_checkpoint *checkpoint, *reading;
    ds4kv_fault fault;
    CHECK_EQ(ds4kv_checkpoint_open(&reading, path, 2, &fault), DS4KV_OK);
    CHECK_EQ(ds4kv_checkpoint_create(&checkpoint, path, &header, PROMPT, PROMPT_BYTES, 2, &fault), DS4KV_OK);
    CHECK(fwrite(payload.at, 1, 2500, checkpoint->payload) == 2500);
    pid_t child = fork_child();
    if (child == 0) {
        CHECK(!ds4kv_checkpoint_trailer(checkpoint));
        CHECK_EQ(ds4kv_checkpoint_close(checkpoint, &fault), DS4KV_STATE);
        ds4kv_checkpoint_abandon(reading);
        fflush(NULL); /* as exit does */
        _exit(0);
    }
    wait_for_child(child);
    CHECK(fwrite(payload.at + 2500, 1, 2500, checkpoint->payload) == 2500);
    CHECK_EQ(ds4kv_checkpoint_close(checkpoint, &fault), DS4KV_OK);
    bytes found = bytes_of_file(path), read = bytes_new(payload.n);
    CHECK(bytes_equal(found, expected));
    CHECK(fread(read.at, 1, read.n, reading->payload) == read.n && bytes_equal(read, payload));
    CHECK_EQ(ds4kv_checkpoint_close(reading, &fault), DS4KV_OK);
    unlink(path);
    free(found.at);
    free(read.at);
    free(expected.at);
    free(payload.at);
}

static void test_paths(void)
{
    CASE("a link, and another working directory");
    char before[4096];
    CHECK(getcwd(before, sizeof before) && chdir(folder) == 0);
    bytes payload = payload_new(MIXED, 100);
    write_file("real.kv", payload);
    CHECK(symlink("real.kv", "link.kv") == 0);
    save("link.kv", header_of(2, DS4KV_CODEC_LZ4), payload, (bytes){0}, 0);
    struct stat found;
    CHECK(lstat("link.kv", &found) == 0 && S_ISLNK(found.st_mode));
    expect("real.kv", DS4KV_OK, 0);

    ds4kv_header header = header_of(2, DS4KV_CODEC_LZ4);
    ds4kv_checkpoint *checkpoint;
    ds4kv_fault fault;
    CHECK_EQ(ds4kv_checkpoint_create(&checkpoint, "new.kv", &header, NULL, 0, 0, &fault), DS4KV_OK);
    CHECK(chdir("/") == 0);
    CHECK_EQ(ds4kv_checkpoint_close(checkpoint, &fault), DS4KV_OK);
    CHECK(chdir(folder) == 0);
    expect("new.kv", DS4KV_OK, 0);
    CHECK_EQ(ds4kv_checkpoint_create(&checkpoint, "no/new.kv", &header, NULL, 0, 0, &fault), DS4KV_IO);
    CHECK_EQ(fault.os_error, ENOENT);
    CHECK_EQ(ds4kv_checkpoint_create(&checkpoint, "no/", &header, NULL, 0, 0, &fault), DS4KV_IO);
    CHECK_EQ(files_in_folder(), 3);
    CHECK(unlink("link.kv") == 0 && unlink("real.kv") == 0 && unlink("new.kv") == 0);

    CASE("links that lead to nothing yet");
    char whole[64];
    snprintf(whole, sizeof whole, "%s/below/c.kv", folder);
    CHECK(mkdir("below", 0700) == 0 && symlink("below/b.kv", "a.kv") == 0 && symlink(whole, "below/b.kv") == 0);
    save("a.kv", header_of(2, DS4KV_CODEC_LZ4), payload, (bytes){0}, 0);
    CHECK(lstat("a.kv", &found) == 0 && S_ISLNK(found.st_mode));
    CHECK(lstat("below/b.kv", &found) == 0 && S_ISLNK(found.st_mode));
    CHECK(lstat("below/c.kv", &found) == 0 && S_ISREG(found.st_mode));
    expect("a.kv", DS4KV_OK, 0);
    CHECK(unlink("below/c.kv") == 0 && unlink("below/b.kv") == 0 && rmdir("below") == 0);
    CHECK_EQ(ds4kv_checkpoint_create(&checkpoint, "a.kv", &header, NULL, 0, 0, &fault), DS4KV_IO);
    CHECK_EQ(fault.os_error, ENOENT); /* not even a folder */
    CHECK(unlink("a.kv") == 0 && symlink("a.kv", "a.kv") == 0);
    CHECK_EQ(ds4kv_checkpoint_create(&checkpoint, "a.kv", &header, NULL, 0, 0, &fault), DS4KV_IO);
    CHECK_EQ(fault.os_error, ELOOP);
    CHECK_EQ(files_in_folder(), 1);
    CHECK(unlink("a.kv") == 0 && chdir(before) == 0);
    free(payload.at);
}

/* ---- on the disk ---- */

static struct {
    int files, folders, fail_at; /* fail_at: the call that fails; 0: none */
    bool named_before, named_after;
} synced;

/* Instead of the C library's. */
int fsync(int fd)
{
    struct stat found;
    char path[64];
    snprintf(path, sizeof path, "%s/a.kv", folder);
    CHECK(fstat(fd, &found) == 0);
    bool is_folder = S_ISDIR(found.st_mode);
    *(is_folder ? &synced.named_after : &synced.named_before) = access(path, F_OK) == 0;
    synced.files += !is_folder;
    synced.folders += is_folder;
    errno = EIO;
    return synced.files + synced.folders == synced.fail_at ? -1 : 0;
}

static void test_fsync(int codec)
{
    char path[64];
    snprintf(path, sizeof path, "%s/a.kv", folder);
    ds4kv_header header = header_of(2, codec);
    for (int fail_at = -1; fail_at <= 2; fail_at++) {
        CASE("codec %d, fsync %s, call %d fails", codec, fail_at < 0 ? "off" : "on", fail_at);
        memset(&synced, 0, sizeof synced);
        synced.fail_at = fail_at;
        ds4kv_checkpoint *checkpoint;
        ds4kv_fault fault;
        CHECK_EQ(ds4kv_checkpoint_create(&checkpoint, path, &header, PROMPT, PROMPT_BYTES, 0, &fault), DS4KV_OK);
        checkpoint->fsync = fail_at >= 0;
        CHECK_EQ(ds4kv_checkpoint_close(checkpoint, &fault), fail_at > 0 ? DS4KV_IO : DS4KV_OK);
        CHECK(fail_at <= 0 || fault.os_error == EIO);
        CHECK_EQ(synced.files, fail_at >= 0);
        CHECK_EQ(synced.folders, fail_at == 0 || fail_at == 2);
        CHECK(!synced.named_before && synced.named_after == (fail_at == 0 || fail_at == 2));
        CHECK_EQ(files_in_folder(), fail_at != 1);
        unlink(path);
    }
}

int main(void)
{
    watchdog();
    CHECK(mkdtemp(folder));
    test_header();
    test_names();
    static const size_t sizes[] = {0, 1, 999, 1000, 1001, 123456};
    for (size_t i = 0; i < COUNT(sizes); i++)
        for (int workers = 0; workers <= 3; workers += 3)
            for (size_t trailer = 0; trailer <= 50; trailer += 50) {
                test_round_trip(1, DS4KV_CODEC_NONE, sizes[i], trailer, workers);
                test_round_trip(2, DS4KV_CODEC_NONE, sizes[i], trailer, workers);
                test_round_trip(2, DS4KV_CODEC_LZ4, sizes[i], trailer, workers);
            }
    test_refusals();
    test_cut_while_read();
    test_arguments();
    for (int codec = DS4KV_CODEC_NONE; codec <= DS4KV_CODEC_LZ4; codec++) {
        test_abandon(codec);
        test_full_disk(codec);
        test_fork(codec);
        test_fsync(codec);
    }
    test_paths();
    CHECK(rmdir(folder) == 0);
    return 0;
}
