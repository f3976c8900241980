/*
 * test_packed_file.c - layout packed: whole files, what is sealed in them, and what may change.
 *
 * Each refusal has its control: the file with that one thing repaired opens.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>

#include "ds4kv_file.h"
#include "unpack.h"

enum { CHUNK = 4096, N = 5 * CHUNK + 1234 };

static char folder[] = "/tmp/ds4kv_test_XXXXXX";
static char path[64];

#define PROMPT "What is the time?"
#define PROMPT_BYTES strlen(PROMPT)
#define REGION_START (DS4KV_PREFIX_SIZE + PROMPT_BYTES)
#define TRAILER "a trailer"

static const ds4kv_header HEADER = {
    .layout = DS4KV_LAYOUT_PACKED,
    .quant_bits = 4,
    .reason = DS4KV_REASON_EVICT,
    .ext_flags = 0x82,
    .codec = DS4KV_CODEC_LZ4,
    .model_id = 3,
    .tokens = 7,
    .hits = 1,
    .ctx_size = 4096,
    .chunk_size = CHUNK,
    .payload_abi = 2,
    .created_at = 1780000000,
    .last_used = 1780000001,
};

/* As if it were some time ago: nobody is writing to it now. */
static void write_file(bytes all)
{
    const struct timespec times[2] = {{.tv_sec = 1780000000}, {.tv_sec = 1780000000}};
    FILE *file = fopen(path, "wb");
    CHECK(file && fwrite(all.at, 1, all.n, file) == all.n && fclose(file) == 0);
    CHECK(utimensat(AT_FDCWD, path, times, 0) == 0);
}

static ds4kv_checkpoint *begin(bytes payload, int level, int workers)
{
    ds4kv_checkpoint *checkpoint;
    ds4kv_fault fault;
    CHECK_EQ(ds4kv_checkpoint_create_as(&checkpoint, path, &HEADER, PROMPT, PROMPT_BYTES, level, workers, &fault),
             DS4KV_OK);
    CHECK(fwrite(payload.at, 1, payload.n, checkpoint->payload) == payload.n);
    return checkpoint;
}

static void save(bytes payload, const char *trailer, bool is_flagged, int level, int workers)
{
    ds4kv_checkpoint *checkpoint = begin(payload, level, workers);
    ds4kv_fault fault;
    if (*trailer)
        CHECK(fputs(trailer, ds4kv_checkpoint_trailer(checkpoint)) >= 0);
    checkpoint->header.ext_flags |= is_flagged ? DS4KV_EXT_TOOL_MAP : 0;
    CHECK_EQ(ds4kv_checkpoint_close(checkpoint, &fault), DS4KV_OK);
}

/* Opens it, and reads all of it. `trailer` is what there should be. */
static int load(bytes payload, const char *trailer, int workers, ds4kv_fault *fault)
{
    ds4kv_checkpoint *checkpoint;
    int status = ds4kv_checkpoint_open(&checkpoint, path, workers, fault);
    if (status != DS4KV_OK)
        return status;
    CHECK(checkpoint->text_bytes == PROMPT_BYTES && memcmp(checkpoint->text, PROMPT, PROMPT_BYTES) == 0);
    ds4kv_header header = checkpoint->header;
    CHECK(header.layout == HEADER.layout && header.tokens == HEADER.tokens && header.model_id == HEADER.model_id);
    CHECK(header.ctx_size == HEADER.ctx_size && header.payload_abi == HEADER.payload_abi);
    CHECK(header.created_at == HEADER.created_at && header.quant_bits == HEADER.quant_bits);
    CHECK(header.reason == HEADER.reason && (header.ext_flags & ~1) == HEADER.ext_flags);
    bytes read = bytes_new(payload.n + 1);
    size_t n = fread(read.at, 1, read.n, checkpoint->payload);
    CHECK(n <= payload.n && (n == 0 || memcmp(read.at, payload.at, n) == 0));
    free(read.at);
    if (n < payload.n) {
        CHECK(ferror(checkpoint->payload));
        status = ds4kv_checkpoint_close(checkpoint, fault);
        CHECK(status != DS4KV_OK);
        return status;
    }
    char found[64] = {0};
    CHECK(checkpoint->trailer_bytes == strlen(trailer) || (!checkpoint->trailer_bytes && !(header.ext_flags & 1)));
    FILE *stream = ds4kv_checkpoint_trailer(checkpoint);
    CHECK(stream && fread(found, 1, checkpoint->trailer_bytes, stream) == checkpoint->trailer_bytes);
    CHECK(strcmp(found, trailer) == 0 || !*found);
    return ds4kv_checkpoint_close(checkpoint, fault);
}

static void test_files(void)
{
    static const char *const trailers[] = {"", TRAILER};
    ds4kv_fault fault;
    for (int i = 0; i < 16; i++) {
        CASE("file %d", i);
        bytes payload = content_new(ALL, i % 4 == 3 ? 0 : N);
        save(payload, trailers[i / 2 % 2], i / 2 % 2, (int[]){-1, 0, 1, 9}[i / 4], i % 3);
        CHECK_EQ(load(payload, trailers[i / 2 % 2], i % 2 * 2, &fault), DS4KV_OK);
        bytes all = bytes_of_file(path);
        CHECK(memcmp(all.at, "KVCK", 4) == 0 && all.at[7] == 3 && memcmp(all.at + 20, "\2\0\14\0", 4) == 0);
        size_t region_bytes = (size_t)get_u64(all.at + 40);
        bytes region = {all.at + REGION_START, region_bytes};
        unsigned transforms[4] = {0};
        bytes unpacked = unpack(region, CHUNK, ds4kv_seal(all.at, PROMPT, PROMPT_BYTES), transforms);
        CHECK(bytes_equal(unpacked, payload));
        size_t trailer = strlen(trailers[i / 2 % 2]);
        CHECK_EQ(all.n, REGION_START + region_bytes + (trailer ? trailer + DS4KV_TRAILER_SUM_SIZE : 0));
        free(unpacked.at);
        free(all.at);
        free(payload.at);
    }
}

/* By its definition, written out once more. */
static void test_seal(void)
{
    uint8_t head[DS4KV_PREFIX_SIZE + PROMPT_BYTES], zeroed[sizeof head];
    ds4kv_fault fault;
    CASE("the seal");
    CHECK_EQ(ds4kv_header_pack(&HEADER, head, &fault), DS4KV_OK);
    set_u32(head + 48, (uint32_t)PROMPT_BYTES);
    memcpy(head + DS4KV_PREFIX_SIZE, PROMPT, PROMPT_BYTES);
    uint64_t seal = ds4kv_seal(head, PROMPT, PROMPT_BYTES);
    for (size_t bit = 0; bit < 8 * sizeof head; bit++) {
        size_t at = bit / 8;
        bool is_free = bit == 6 * 8 || (at >= 12 && at < 16) || (at >= 32 && at < 48);
        head[at] ^= 1 << bit % 8;
        CHECK_EQ(ds4kv_seal(head, head + DS4KV_PREFIX_SIZE, PROMPT_BYTES) == seal, is_free);
        memcpy(zeroed, head, sizeof head);
        head[at] ^= 1 << bit % 8;
        zeroed[6] &= 0xfe;
        memset(zeroed + 12, 0, 4);
        memset(zeroed + 32, 0, 16);
        CHECK_EQ(ds4kv_hash(zeroed, sizeof zeroed) == seal, is_free);
    }
}

static void test_every_bit_of_a_file(bool is_flagged)
{
    bytes payload = content_new(NOISE, 150);
    ds4kv_fault fault;
    save(payload, TRAILER, is_flagged, 0, 0);
    bytes all = bytes_of_file(path);
    size_t trailer_at = all.n - strlen(TRAILER) - DS4KV_TRAILER_SUM_SIZE;
    for (size_t bit = 0; bit < 8 * all.n; bit++) {
        size_t at = bit / 8;
        bool is_free = bit == 6 * 8 || (at >= 12 && at < 16) || (at >= 32 && at < 40) ||
                       (!is_flagged && at >= trailer_at);
        CASE("%s, bit %zu of byte %zu", is_flagged ? "flagged" : "no flag", bit % 8, at);
        all.at[at] ^= 1 << bit % 8;
        write_file(all);
        int status = load(payload, TRAILER, at % 3, &fault);
        CHECK_EQ(status == DS4KV_OK, is_free);
        CHECK(is_free || status == DS4KV_CORRUPT || status == DS4KV_TRUNCATED ||
              (status == DS4KV_UNSUPPORTED && at == 3));
        if (at >= DS4KV_PREFIX_SIZE && at < REGION_START)
            CHECK(strcmp(fault.field, "seal") == 0 && fault.offset == REGION_START + 16);
        all.at[at] ^= 1 << bit % 8;
    }
    CASE("cut short");
    for (size_t n = 0; n < all.n; n++) {
        write_file((bytes){all.at, n});
        int status = load(payload, TRAILER, 0, &fault);
        CHECK_EQ(status == DS4KV_OK, !is_flagged && n >= trailer_at);
        CHECK(status == DS4KV_OK || status == DS4KV_CORRUPT || status == DS4KV_TRUNCATED);
    }
    write_file(all);
    CHECK_EQ(load(payload, TRAILER, 0, &fault), DS4KV_OK);
    free(all.at);
    free(payload.at);
}

static void test_another_version(void)
{
    bytes payload = content_new(WORDS_32, N);
    ds4kv_fault fault;
    save(payload, "", false, 0, 0);
    bytes all = bytes_of_file(path);
    for (int version = 0; version < 256; version++) {
        CASE("version %d", version);
        all.at[3] = (uint8_t)version;
        write_file(all);
        int status = load(payload, "", 0, &fault); /* model 3 would be a codec of v2 that is not known */
        CHECK_EQ(status, version == 75 ? DS4KV_OK : version == 1 ? DS4KV_CORRUPT : DS4KV_UNSUPPORTED);
        CHECK(version != 1 || (fault.offset == 3 && strcmp(fault.field, "version") == 0));
    }
    CASE("version 2, models 0 to 2");
    all.at[3] = 2;
    for (uint8_t model = 0; model < 3; model++) {
        all.at[7] = model;
        write_file(all);
        CHECK_EQ(load(payload, "", 0, &fault), DS4KV_CORRUPT);
    }
    free(all.at);
    free(payload.at);
}

/* What may be changed while it is written, and what may not. */
static void test_facts_that_change(void)
{
    bytes payload = content_new(WORDS_32, N);
    for (int i = 0; i < 12; i++) {
        CASE("fact %d", i);
        ds4kv_fault fault;
        ds4kv_checkpoint *checkpoint = begin(payload, 0, 0);
        ds4kv_header *header = &checkpoint->header;
        switch (i) {
        case 0:
            header->hits = 99;
            break;
        case 1:
            header->last_used++;
            break;
        case 2:
            break;
        case 3:
            header->tokens++;
            break;
        case 4:
            header->ctx_size++;
            break;
        case 5:
            header->created_at++;
            break;
        case 6:
            header->reason++;
            break;
        case 7:
            header->model_id++;
            break;
        case 8:
            header->payload_abi++;
            break;
        case 9:
            header->quant_bits = 2;
            break;
        case 10:
            header->ext_flags ^= 4;
            break;
        default:
            header->chunk_size *= 2;
        }
        CHECK_EQ(ds4kv_checkpoint_close(checkpoint, &fault), i < 3 ? DS4KV_OK : DS4KV_PARAM);
        CHECK_EQ(access(path, F_OK), i < 3 ? 0 : -1);
        if (i < 3)
            CHECK(load(payload, "", 0, &fault) == DS4KV_OK && unlink(path) == 0);
    }
    free(payload.at);
}

/* A tool map that is promised and not written is none. */
static void test_a_flag_alone(void)
{
    bytes payload = content_new(PROSE, 100);
    ds4kv_fault fault;
    CASE("a flag, and no trailer");
    save(payload, "", true, 0, 0);
    bytes all = bytes_of_file(path);
    CHECK_EQ(all.at[6], HEADER.ext_flags);
    CHECK_EQ(load(payload, "", 0, &fault), DS4KV_OK);
    all.at[6] |= DS4KV_EXT_TOOL_MAP;
    write_file(all);
    CHECK_EQ(load(payload, "", 0, &fault), DS4KV_TRUNCATED);
    CHECK(strcmp(fault.field, "trailer") == 0);
    free(all.at);
    free(payload.at);
}

/* Another program rewrites the trailer all the time: no opening of the file ever calls it damaged. */
static void test_rewritten_trailer(void)
{
    bytes payload = content_new(PROSE, 100);
    ds4kv_fault fault;
    CASE("a trailer that is being rewritten");
    save(payload, TRAILER, true, 0, 0);
    bytes all = bytes_of_file(path);
    uint64_t seal = ds4kv_seal(all.at, PROMPT, PROMPT_BYTES);
    off_t end = (off_t)(all.n - strlen(TRAILER) - DS4KV_TRAILER_SUM_SIZE);
    pid_t child = fork_child();
    if (child == 0) {
        int fd = open(path, O_RDWR);
        for (unsigned i = 0; fd >= 0 && i < 100000; i++) {
            uint8_t flags[2] = {all.at[6] & 0xfe, all.at[6]}, trailer[300] = {0};
            size_t n = 10 + i % 250;
            memset(trailer, (int)('a' + i % 26), n);
            set_u64(trailer + n, ds4kv_hash_seeded(trailer, n, seal));
            CHECK(pwrite(fd, flags, 1, 6) == 1 && pwrite(fd, trailer, n + 8, end) == (ssize_t)n + 8);
            CHECK(ftruncate(fd, end + (off_t)n + 8) == 0 && pwrite(fd, flags + 1, 1, 6) == 1);
            usleep(100);
        }
        _exit(0);
    }
    for (int i = 0; i < 3000; i++) {
        ds4kv_checkpoint *checkpoint;
        CHECK_EQ(ds4kv_checkpoint_open(&checkpoint, path, 0, &fault), DS4KV_OK);
        ds4kv_checkpoint_abandon(checkpoint);
    }
    check_child = 0;
    int status;
    CHECK(kill(child, SIGKILL) == 0 && wait(&status) == child);
    free(all.at);
    free(payload.at);
}

/* The stream of a trailer has the one that is there when it is asked for: whole, and without its sum. */
static void test_trailer_of_now(void)
{
    bytes payload = content_new(PROSE, 100);
    char found[64] = {0};
    ds4kv_checkpoint *checkpoint;
    ds4kv_fault fault;
    CASE("a trailer that was replaced after the opening");
    save(payload, TRAILER, true, 0, 0);
    bytes all = bytes_of_file(path), other = bytes_copy(all);
    size_t end = all.n - strlen(TRAILER) - DS4KV_TRAILER_SUM_SIZE;
    CHECK_EQ(ds4kv_checkpoint_open(&checkpoint, path, 0, &fault), DS4KV_OK);
    FILE *stream = ds4kv_checkpoint_trailer(checkpoint);
    CHECK(stream && fread(found, 1, sizeof found, stream) == strlen(TRAILER) && strcmp(found, TRAILER) == 0);

    memcpy(other.at + end, "new", 3);
    set_u64(other.at + end + 3, ds4kv_hash_seeded("new", 3, ds4kv_seal(all.at, PROMPT, PROMPT_BYTES)));
    other.n = end + 3 + DS4KV_TRAILER_SUM_SIZE;
    write_file(other);
    stream = ds4kv_checkpoint_trailer(checkpoint);
    CHECK(stream && fread(found, 1, sizeof found, stream) == 3 && memcmp(found, "new", 3) == 0);
    CHECK_EQ(checkpoint->trailer_bytes, 3);

    other.at[end] ^= 1;
    write_file(other);
    CHECK(!ds4kv_checkpoint_trailer(checkpoint) && errno == EBADMSG);
    other.n = end;
    other.at[6] &= 0xfe;
    write_file(other);
    stream = ds4kv_checkpoint_trailer(checkpoint);
    CHECK(stream && checkpoint->trailer_bytes == 0 && fread(found, 1, sizeof found, stream) == 0);
    CHECK_EQ(ds4kv_checkpoint_close(checkpoint, &fault), DS4KV_OK);
    free(all.at);
    free(other.at);
    free(payload.at);
}

/* A file is found, and its records walked, by a descriptor alone. */
static void test_walk(void)
{
    bytes payload = content_new(ALL, N);
    save(payload, TRAILER, true, 0, 0);
    bytes all = bytes_of_file(path);
    FILE *file = fopen(path, "rb");
    CHECK(file);
    ds4kv_outline outline;
    ds4kv_frame frame;
    ds4kv_fault fault;
    CASE("walk");
    CHECK_EQ(ds4kv_examine(&outline, fileno(file), all.n, &fault), DS4KV_OK);
    CHECK(outline.header.layout == DS4KV_LAYOUT_PACKED && outline.region_start == REGION_START);
    CHECK_EQ(ds4kv_header_form(&outline.header), DS4KV_FORM_PACKED);
    uint64_t size = outline.header.payload_bytes;
    CHECK_EQ(ds4kv_frame_at(&frame, fileno(file), REGION_START, size, CHUNK, DS4KV_FORM_PACKED, &fault), DS4KV_OK);
    CHECK(frame.raw_total == N && frame.seal == ds4kv_seal(all.at, PROMPT, PROMPT_BYTES));
    ds4kv_record record = {.offset = REGION_START + FRAME};
    size_t raw = 0;
    for (; ds4kv_record_at(&record, fileno(file), all.n, REGION_START, size, CHUNK, DS4KV_FORM_PACKED, &fault) == 1;
         record.offset += record.size, record.index++) {
        CHECK_EQ(ds4kv_record_size(&frame, size, record.index, record.offset - REGION_START, all.at + record.offset,
                                   &fault),
                 record.size);
        raw += record.raw_size;
    }
    CHECK(record.index == 6 && raw == N && record.offset == REGION_START + size);
    fclose(file);
    free(all.at);
    free(payload.at);
}

int main(void)
{
    watchdog();
    CHECK(mkdtemp(folder));
    snprintf(path, sizeof path, "%s/a.kv", folder);
    test_seal();
    test_files();
    test_every_bit_of_a_file(true);
    test_every_bit_of_a_file(false);
    test_another_version();
    test_facts_that_change();
    test_walk();
    test_a_flag_alone();
    test_rewritten_trailer();
    test_trailer_of_now();
    unlink(path);
    CHECK(rmdir(folder) == 0);
    return 0;
}
