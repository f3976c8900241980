/*
 * test_mapped.c - ds4kv_decode on a mapping of a file, which may shrink while it is mapped.
 *
 * Without `mapped` the shrunk file would be a SIGBUS, and the end of this test.
 */
#define _GNU_SOURCE /* madvise, under -std=c11 */
#include <errno.h>
#include <sys/mman.h>

#include "region.h"

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#endif

enum { CHUNK = 10000 };

static const int workers[] = {0, 1, 8};

/* As in a checkpoint: the region begins somewhere in its file. */
static const size_t start = 48 + 1234;

typedef struct {
    FILE *file;
    uint8_t *at;
    size_t n;
} mapping;

static mapping map_region(bytes region)
{
    mapping mapping = {tmpfile(), NULL, start + region.n};
    CHECK(mapping.file);
    for (size_t i = 0; i < start; i++)
        putc('t', mapping.file);
    CHECK_EQ(fwrite(region.at, 1, region.n, mapping.file), region.n);
    CHECK_EQ(fflush(mapping.file), 0);
    mapping.at = mmap(NULL, mapping.n, PROT_READ, MAP_PRIVATE, fileno(mapping.file), 0);
    CHECK(mapping.at != MAP_FAILED);
    return mapping;
}

static verdict decode_mapping(mapping mapping, int n_workers)
{
    return decode_region((bytes){mapping.at + start, mapping.n - start}, CHUNK, n_workers, true);
}

static void unmap(mapping mapping)
{
    munmap(mapping.at, mapping.n);
    fclose(mapping.file);
}

static void test_whole(bytes region, bytes payload, int n_workers)
{
    CASE("whole file, workers %d", n_workers);
    mapping mapping = map_region(region);
    verdict verdict = decode_mapping(mapping, n_workers);
    CHECK_EQ(verdict.status, DS4KV_OK);
    CHECK(bytes_equal(verdict.payload, payload));
    free(verdict.payload.at);
    unmap(mapping);

    CASE("a wrong block in a file, workers %d", n_workers);
    bytes wrong = bytes_copy(region);
    wrong.at[record_offset(region, 3) + 8] ^= 0xf0;
    mapping = map_region(wrong);
    verdict = decode_mapping(mapping, n_workers);
    CHECK_EQ(verdict.status, DS4KV_CORRUPT);
    CHECK_EQ(verdict.fault.offset, record_offset(region, 3) + 8);
    free(verdict.payload.at);
    unmap(mapping);
    free(wrong.at);
}

/* Whole pages are gone. raw_total is known to the caller from before, so ds4kv_decode is called directly. */
static void test_shrunk(bytes region, bytes payload, size_t left, int n_workers)
{
    CASE("shrunk to %zu bytes, workers %d", left, n_workers);
    mapping mapping = map_region(region);
    bytes out = guarded_new(payload.n);
    ds4kv_fault fault;
    CHECK_EQ(ftruncate(fileno(mapping.file), (off_t)left), 0);
    CHECK_EQ(ds4kv_decode(mapping.at + start, region.n, CHUNK, out.at, out.n, n_workers, 1, &fault), DS4KV_IO);
    free(guarded_open(out, 0).at);
    unmap(mapping);
}

int main(void)
{
    watchdog();
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    bytes payload = payload_new(RANDOM, 20 * CHUNK);
    bytes region = write_region(payload, (way){.chunk_size = CHUNK, .put_size = SIZE_MAX});

    mapping probe = map_region(region);
    if (madvise(probe.at, page, MADV_POPULATE_READ) != 0 && errno == EINVAL) {
        CASE("a kernel that can't");
        CHECK_EQ(decode_mapping(probe, 0).status, DS4KV_PARAM);
        return 0;
    }
    unmap(probe);

    for (size_t i = 0; i < COUNT(workers); i++) {
        test_whole(region, payload, workers[i]);
        test_shrunk(region, payload, 0, workers[i]);
        test_shrunk(region, payload, page, workers[i]);
        test_shrunk(region, payload, (start + region.n) / 2 / page * page, workers[i]);
        test_shrunk(region, payload, (start + region.n) / page * page, workers[i]);
    }
    free(region.at);
    free(payload.at);
    return 0;
}
