/*
 * test_memory.c - how much memory is asked for, how many threads, and what happens when there are none.
 *
 * malloc, calloc, aligned_alloc and pthread_create are this program's own: where the core calls them, they count, fail
 * when told to, and pass on.
 */
#define _GNU_SOURCE /* RTLD_NEXT */
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>

#include "region.h"

/* ---- the counting allocator ---- */

static atomic_size_t asked;               /* bytes, all in all */
static atomic_long allocations_left = -1; /* until they fail; negative: they don't */
static atomic_bool fails_once;            /* only the next one does */
static atomic_uint failures;
static atomic_uint threads_started;
static atomic_uint threads_left = 1000; /* that may be started */

static bool may_allocate(size_t size)
{
    atomic_fetch_add(&asked, size);
    if (atomic_load(&allocations_left) < 0 || atomic_fetch_sub(&allocations_left, 1) > 0)
        return true;
    if (!atomic_load(&fails_once))
        atomic_store(&allocations_left, 0);
    atomic_fetch_add(&failures, 1);
    errno = ENOMEM;
    return false;
}

/* What the C library, or a sanitizer before it, has by this name. */
#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

/* The linker's: where this program's code, and so the core's, begins and ends. The C library's own calls pass. */
extern const char __executable_start[], etext[];
#define CALLER_IS_OURS                                                                                                 \
    ((uintptr_t)__builtin_return_address(0) - (uintptr_t)__executable_start <                                          \
     (uintptr_t)etext - (uintptr_t)__executable_start)

/* ThreadSanitizer allocates before it can follow anything. */
#define EARLY __attribute__((no_sanitize("thread")))

EARLY void *malloc(size_t size)
{
    return CALLER_IS_OURS && !may_allocate(size) ? NULL : NEXT(malloc)(size);
}

EARLY void *calloc(size_t n, size_t size)
{
    return CALLER_IS_OURS && !may_allocate(n * size) ? NULL : NEXT(calloc)(n, size);
}

EARLY void *aligned_alloc(size_t alignment, size_t size)
{
    return CALLER_IS_OURS && !may_allocate(size) ? NULL : NEXT(aligned_alloc)(alignment, size);
}

EARLY int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*run)(void *), void *arg)
{
    if (CALLER_IS_OURS && atomic_fetch_add(&threads_started, 1) >= atomic_load(&threads_left)) {
        atomic_fetch_sub(&threads_started, 1);
        return EAGAIN;
    }
    return NEXT(pthread_create)(thread, attributes, run, arg);
}

/* All works again, nothing is kept, and counting begins. */
static void reset(void)
{
    ds4kv_trim();
    atomic_store(&allocations_left, -1);
    atomic_store(&threads_left, 1000);
    atomic_store(&failures, 0);
    atomic_store(&threads_started, 0);
    atomic_store(&asked, 0);
}

/* ---- how much ---- */

enum { MiB = 1 << 20, SMALL = 64 << 10, HUGE_PAGE = 2 << 20 };

static void test_claims_cost_nothing(void)
{
    CASE("a frame's claims");
    static const uint64_t raw_totals[] = {90 * 255, 1u << 31, 1ull << 54, UINT64_MAX};
    uint8_t region[100] = {0}, out[1];
    for (size_t i = 0; i < COUNT(raw_totals); i++) {
        ds4kv_fault fault;
        ds4kv_frame claim = {.raw_total = raw_totals[i], .chunk_count = UINT32_MAX, .form = DS4KV_FORM_PLAIN};
        /* Where it can: with the right count. */
        ds4kv_frame_init(&claim, raw_totals[i], DS4KV_MAX_CHUNK_SIZE, DS4KV_FORM_PLAIN);
        ds4kv_frame_encode(&claim, region);
        reset();
        CHECK_EQ(ds4kv_decode(region, sizeof region, DS4KV_MAX_CHUNK_SIZE, DS4KV_FORM_PLAIN, out, raw_totals[i], 64,
                              &fault),
                 DS4KV_CORRUPT);
        CHECK_EQ(atomic_load(&asked), 0);
    }
}

/* The largest chunk size and the most workers, for a region of 60 bytes that may hold one chunk of 40 x 255. */
static void test_small_regions_cost_little(void)
{
    CASE("a small region with large chunks");
    ds4kv_frame frame;
    ds4kv_fault fault;
    ds4kv_reader *reader;
    void *room;
    uint8_t region[60] = {0}, out[1];
    set_u32(region, 40 * 255);
    set_u32(region + 8, 1);
    set_u32(region + 12, 40 * 255);
    set_u32(region + 16, 40);
    reset();
    CHECK_EQ(ds4kv_frame_decode(&frame, region, sizeof region, DS4KV_MAX_CHUNK_SIZE, DS4KV_FORM_PLAIN, &fault),
             DS4KV_OK);
    CHECK_EQ(ds4kv_reader_new(&reader, &frame, sizeof region, 0, DS4KV_FRAME_SIZE, DS4KV_MAX_WORKERS), DS4KV_OK);
    for (size_t fed = DS4KV_FRAME_SIZE; fed < sizeof region;) {
        int64_t size = ds4kv_reader_room(reader, &room);
        CHECK(size > 0);
        memcpy(room, region + fed, (size_t)size);
        fed += (size_t)size;
        CHECK_EQ(ds4kv_reader_put(reader, (size_t)size), DS4KV_OK);
    }
    CHECK_EQ(ds4kv_reader_take(reader, out, 1, 1), DS4KV_CORRUPT);
    CHECK(atomic_load(&asked) < SMALL);
    ds4kv_reader_free(reader);

    CASE("a small payload with large chunks");
    ds4kv_writer *writer;
    const void *record;
    reset();
    CHECK_EQ(ds4kv_writer_new(&writer, 1000, DS4KV_MAX_CHUNK_SIZE, DS4KV_FORM_PLAIN, 0, DS4KV_MAX_WORKERS), DS4KV_OK);
    CHECK_EQ(ds4kv_writer_put(writer, region, 60, 0), 60);
    CHECK_EQ(ds4kv_writer_take(writer, &record), 0);
    CHECK(atomic_load(&asked) < SMALL);
    ds4kv_writer_free(writer);
}

/* 2 x workers + 1 chunks and a little, however long the payload. */
static void test_rings_are_bounded(void)
{
    bytes payload = payload_new(RANDOM, 24 * MiB);
    for (int workers = 0; workers <= 3; workers++)
        for (uint32_t chunk_size = MiB; chunk_size <= 2 * MiB; chunk_size *= 2) {
            way way = {.chunk_size = chunk_size, .workers = workers, .put_size = SIZE_MAX, .take_size = SIZE_MAX};
            size_t chunks = 2 * (size_t)workers + (workers ? 1 : 2);
            size_t limit = chunks * (ds4kv_block_bound(chunk_size) + HUGE_PAGE) + (size_t)(workers + 1) * SMALL;
            CASE("%s", way_text(&way));
            reset();
            bytes region = write_region(payload, way);
            size_t by_us = DS4KV_FRAME_SIZE + payload.n + payload.n / 255 + 1000 + region.n;
            CHECK(atomic_load(&asked) < limit + by_us);

            reset();
            verdict verdict = read_region(region, way);
            CHECK(atomic_load(&asked) < limit + 2 * payload.n + 1000);
            free(verdict.payload.at);

            reset();
            verdict = decode_region(region, chunk_size, DS4KV_FORM_PLAIN, workers);
            CHECK_EQ(verdict.status, DS4KV_OK);
            CHECK(atomic_load(&asked) < SMALL + 2 * payload.n + 1000);
            free(verdict.payload.at);
            free(region.at);
        }
    free(payload.at);
}

/* ---- threads ---- */

static unsigned threads_for(bytes payload, uint32_t chunk_size, int workers, bool lent)
{
    way way = {.chunk_size = chunk_size, .workers = workers, .put_size = SIZE_MAX, .take_size = SIZE_MAX, .lent = lent};
    CASE("threads: %s", way_text(&way));
    unsigned most = 0;
    reset();
    bytes region = write_region(payload, way);
    most = atomic_load(&threads_started);
    reset();
    verdict read = read_region(region, way);
    CHECK_EQ(read.status, DS4KV_OK);
    CHECK_EQ(atomic_load(&threads_started) > 0, most > 0);
    CHECK(atomic_load(&threads_started) <= (unsigned)workers);
    reset();
    verdict decoded = decode_region(region, chunk_size, DS4KV_FORM_PLAIN, workers);
    CHECK_EQ(decoded.status, DS4KV_OK);
    CHECK_EQ(atomic_load(&threads_started) > 0, most > 0);
    CHECK(atomic_load(&threads_started) <= (unsigned)workers);
    free(decoded.payload.at);
    free(read.payload.at);
    free(region.at);
    return most;
}

static void test_threads_start_when_needed(void)
{
    bytes payload = payload_new(TEXT, 5000);
    for (int lent = 0; lent < 2; lent++) {
        CHECK_EQ(threads_for(payload, 1000, 0, lent), 0);
        CHECK_EQ(threads_for(payload, 5000, 8, lent), 0); /* one chunk */
        CHECK(threads_for(payload, 4999, 8, lent) > 0);
        CHECK(threads_for(payload, 4999, 8, lent) <= 2);
        CHECK(threads_for(payload, 1000, 2, lent) <= 2);
        CHECK(threads_for(payload, 1000, 64, lent) <= 5);
    }
    free(payload.at);
}

static void test_without_threads(void)
{
    bytes payload = payload_new(MIXED, 50000);
    way way = {.chunk_size = 1000, .put_size = SIZE_MAX, .take_size = SIZE_MAX};
    bytes expected = write_region(payload, way);
    way.workers = 8;
    for (unsigned left = 0; left < 4; left++) {
        CASE("the system gives %u threads", left);
        reset();
        atomic_store(&threads_left, left);
        bytes region = write_region(payload, way);
        CHECK(bytes_equal(region, expected));
        CHECK(atomic_load(&threads_started) <= left);
        reset();
        atomic_store(&threads_left, left);
        verdict read = read_region(region, way);
        CHECK_EQ(read.status, DS4KV_OK);
        CHECK(bytes_equal(read.payload, payload));
        reset();
        atomic_store(&threads_left, left);
        verdict decoded = decode_region(region, way.chunk_size, DS4KV_FORM_PLAIN, way.workers);
        CHECK_EQ(decoded.status, DS4KV_OK);
        CHECK(bytes_equal(decoded.payload, payload));
        free(decoded.payload.at);
        free(read.payload.at);
        free(region.at);
    }
    free(expected.at);
    free(payload.at);
}

/* ---- no memory ---- */

/* Memory of the test itself, there before anything fails. */
static uint8_t raw[40000], region[45000], out[sizeof raw];
static size_t region_bytes;
enum { CHUNK = 4000 };

static int try_write(int level, int workers, bool lent)
{
    ds4kv_writer *writer;
    int64_t size;
    const void *record = NULL;
    size_t at = DS4KV_FRAME_SIZE, put = 0;
    bool finished = false;
    int status = ds4kv_writer_new(&writer, sizeof raw, CHUNK, DS4KV_FORM_PLAIN, level, workers);
    if (status != DS4KV_OK) {
        CHECK(writer == NULL);
        return status;
    }
    do {
        size = 0;
        if (put < sizeof raw)
            size = ds4kv_writer_put(writer, raw + put, sizeof raw - put, lent);
        else if (!finished)
            size = ds4kv_writer_finish(writer), finished = true;
        if (size < 0)
            break;
        put += (size_t)size;
        size = ds4kv_writer_take(writer, &record);
        if (size > 0) {
            CHECK((size_t)size <= sizeof region - at);
            memcpy(region + at, record, (size_t)size);
            at += (size_t)size;
        }
    } while (size > 0 || (size == 0 && !finished));
    if (size < 0) {
        CHECK_EQ(ds4kv_writer_take(writer, &record), size);
        CHECK_EQ(ds4kv_writer_put(writer, raw, 0, 0), size);
        CHECK_EQ(ds4kv_writer_finish(writer), size);
        CHECK_EQ(ds4kv_writer_lent(writer), size);
    } else {
        ds4kv_frame frame;
        ds4kv_writer_frame(writer, &frame);
        ds4kv_frame_encode(&frame, region);
        region_bytes = at;
    }
    ds4kv_writer_free(writer);
    while (ds4kv_stragglers() > 0) /* which allocate, too */
        sched_yield();
    return (int)size;
}

static int try_read(int workers, bool aimed)
{
    ds4kv_frame frame;
    ds4kv_fault fault;
    ds4kv_reader *reader;
    size_t fed = DS4KV_FRAME_SIZE, done = 0;
    CHECK_EQ(ds4kv_frame_decode(&frame, region, region_bytes, CHUNK, DS4KV_FORM_PLAIN, &fault), DS4KV_OK);
    int status = ds4kv_reader_new(&reader, &frame, region_bytes, 0, DS4KV_FRAME_SIZE, workers);
    if (status != DS4KV_OK) {
        CHECK(reader == NULL);
        return status;
    }
    memset(out, 0, sizeof out);
    if (aimed)
        CHECK_EQ(ds4kv_reader_aim(reader, out, sizeof out), DS4KV_OK);
    while (status == DS4KV_OK && done < sizeof out) {
        status = feed(reader, (bytes){region, region_bytes}, &fed, SIZE_MAX);
        if (status != DS4KV_OK)
            break;
        int64_t taken = ds4kv_reader_take(reader, out + done, sizeof out - done, 1);
        CHECK(taken != 0);
        if (taken < 0)
            status = (int)taken;
        else
            done += (size_t)taken;
    }
    CHECK_EQ(ds4kv_reader_finish(reader), status);
    ds4kv_reader_free(reader);
    return status;
}

static int try_decode(int workers)
{
    ds4kv_fault fault;
    memset(out, 0, sizeof out);
    return ds4kv_decode(region, region_bytes, CHUNK, DS4KV_FORM_PLAIN, out, sizeof out, workers, &fault);
}

/* What is tried: each with its own number of allocations. */
static int try_this(int what, int workers)
{
    switch (what) {
    case 0:
        return try_write(0, workers, false);
    case 1:
        return try_write(9, workers, true);
    case 2:
        return try_write(DS4KV_MAX_LEVEL, workers, true);
    case 3:
        return try_read(workers, false);
    case 4:
        return try_read(workers, true);
    default:
        return try_decode(workers);
    }
}

/* Lets the first, the second, the third allocation fail, and so on until none is left to fail. */
static void test_no_memory(int what, int workers, bool once)
{
    for (long n = 0;; n++) {
        CASE("try %d, workers %d: allocation %ld fails%s", what, workers, n, once ? " once" : "");
        reset();
        atomic_store(&fails_once, once);
        atomic_store(&allocations_left, n);
        int status = try_this(what, workers);
        unsigned failed = atomic_load(&failures);
        reset();
        bool was_thread = failed && workers && status == DS4KV_OK; /* one that was done without */
        CHECK_EQ(status, failed && !was_thread ? DS4KV_NOMEM : DS4KV_OK);
        if (status == DS4KV_OK && what > 2)
            CHECK(memcmp(out, raw, sizeof raw) == 0);
        if (failed == 0)
            return;
    }
}

int main(void)
{
    watchdog();
    bytes payload = payload_new(MIXED, sizeof raw);
    memcpy(raw, payload.at, sizeof raw);
    free(payload.at);

    test_claims_cost_nothing();
    test_small_regions_cost_little();
    test_rings_are_bounded();
    test_threads_start_when_needed();
    test_without_threads();
    for (int what = 0; what < 6; what++)
        for (int workers = 0; workers < 4; workers += 3) {
            test_no_memory(what, workers, false);
            test_no_memory(what, workers, true);
        }
    return 0;
}
