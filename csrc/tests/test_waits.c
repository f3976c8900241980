/*
 * test_waits.c - nobody waits longer than he wants to: for a chunk, and for the end of one that nobody wants any more.
 *
 * pread is this program's own: where the core calls it, it counts, and takes its time when told to.
 */
#define _GNU_SOURCE /* RTLD_NEXT */
#include <dlfcn.h>
#include <poll.h>
#include <stdatomic.h>
#include <time.h>

#include "region.h"

/* ---- a slow disk ---- */

static atomic_int preads, ms_of_a_pread;

ssize_t pread(int fd, void *bytes, size_t n, off_t offset)
{
    atomic_fetch_add(&preads, 1);
    if (n > DS4KV_CHECKED_HEAD_SIZE && atomic_load(&ms_of_a_pread) > 0) /* heads are read by the owner */
        poll(NULL, 0, atomic_load(&ms_of_a_pread));
    return ((__typeof__(&pread))dlsym(RTLD_NEXT, "pread"))(fd, bytes, n, offset);
}

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

/* Levels 12 and 9 take a tenth of a second for such a chunk of this, letters drawn from four; a sanitizer, more. */
enum { CHUNK = 1 << 18 };

static bytes slow_payload(size_t n)
{
    uint64_t seed = 7;
    bytes payload = bytes_new(n);
    for (size_t i = 0; i < n; i++)
        payload.at[i] = (uint8_t)("acgt"[draw(&seed) % 4]);
    return payload;
}

static void wait_for_stragglers(void)
{
    while (ds4kv_stragglers() > 0)
        poll(NULL, 0, 5);
}

/* ---- a chunk is waited for as long as its owner wants ---- */

static void test_a_writer_is_waited_for_by_slices(void)
{
    const void *record;
    bytes payload = slow_payload(CHUNK);
    ds4kv_writer *writer;
    for (int workers = 0; workers <= 2; workers++) {
        CASE("wait for a writer, workers %d", workers);
        CHECK_EQ(ds4kv_writer_new(&writer, payload.n, CHUNK, DS4KV_FORM_PLAIN, 12, workers), DS4KV_OK);
        CHECK_EQ(ds4kv_writer_wait(writer, 1000), 1); /* nothing is there to be taken */
        CHECK_EQ(ds4kv_writer_put(writer, payload.at, payload.n, 1), payload.n);
        CHECK_EQ(ds4kv_writer_finish(writer), DS4KV_OK);
        double start = now();
        int said = ds4kv_writer_wait(writer, 10);
        CHECK_EQ(said, workers == 0); /* without threads the take would do it */
        if (!said)
            CHECK(now() - start >= 0.0099);
        while (workers > 0 && !ds4kv_writer_wait(writer, 10))
            continue;
        if (workers > 0)
            CHECK(ds4kv_writer_take(writer, &record) > 0);
        CHECK_EQ(ds4kv_writer_wait(writer, 1000), 1);
        ds4kv_writer_free(writer);
    }
    CASE("wait for NULL");
    CHECK_EQ(ds4kv_writer_wait(NULL, 1000), 1);
    free(payload.at);
}

static void test_a_reader_is_waited_for_by_slices(void)
{
    enum { SMALL = 1000, COUNT_OF_CHUNKS = 5 };
    bytes payload = payload_new(TEXT, COUNT_OF_CHUNKS * SMALL), out = bytes_new(payload.n);
    bytes region = write_region(payload, (way){.chunk_size = SMALL, .put_size = SIZE_MAX});
    FILE *file = tmpfile();
    ds4kv_frame frame;
    ds4kv_fault fault;
    ds4kv_reader *reader;
    CHECK(file && fwrite(region.at, 1, region.n, file) == region.n && fflush(file) == 0);
    CHECK_EQ(ds4kv_frame_decode(&frame, region.at, region.n, SMALL, DS4KV_FORM_PLAIN, &fault), DS4KV_OK);
    for (int workers = 0; workers <= 2; workers++) {
        CASE("wait for a reader, workers %d", workers);
        CHECK_EQ(ds4kv_reader_new(&reader, &frame, region.n, 0, DS4KV_FRAME_SIZE, workers), DS4KV_OK);
        CHECK_EQ(ds4kv_reader_wait(reader, 1000), 1); /* room first */
        CHECK_EQ(ds4kv_reader_from_file(reader, fileno(file), 0), DS4KV_OK);
        atomic_store(&ms_of_a_pread, 60);
        CHECK_EQ(ds4kv_reader_wait(reader, 5), workers == 0);
        atomic_store(&ms_of_a_pread, 0);
        for (size_t done = 0; done < out.n;) {
            while (!ds4kv_reader_wait(reader, 5))
                continue;
            int64_t took = ds4kv_reader_take(reader, out.at + done, out.n - done, 1);
            CHECK(took > 0);
            done += (size_t)took;
        }
        CHECK(bytes_equal(out, payload));
        CHECK_EQ(ds4kv_reader_wait(reader, 1000), 1);
        ds4kv_reader_free(reader);
    }
    CASE("an error is not waited for");
    CHECK_EQ(ds4kv_reader_new(&reader, &frame, region.n, 0, DS4KV_FRAME_SIZE, 2), DS4KV_OK);
    CHECK_EQ(ds4kv_reader_finish(reader), DS4KV_TRUNCATED);
    CHECK_EQ(ds4kv_reader_wait(reader, 1000), 1);
    CHECK_EQ(ds4kv_reader_aimed(reader), DS4KV_TRUNCATED);
    ds4kv_reader_free(reader);
    CHECK_EQ(ds4kv_reader_wait(NULL, 1000), 1);
    CHECK_EQ(ds4kv_reader_aimed(NULL), DS4KV_STATE);
    fclose(file);
    free(region.at);
    free(out.at);
    free(payload.at);
}

static void test_aimed_counts_what_is_to_come(void)
{
    CASE("aimed");
    bytes payload = payload_new(TEXT, 3000), out = bytes_new(payload.n);
    bytes region = write_region(payload, (way){.chunk_size = 1000, .put_size = SIZE_MAX});
    ds4kv_frame frame;
    ds4kv_fault fault;
    ds4kv_reader *reader;
    CHECK_EQ(ds4kv_frame_decode(&frame, region.at, region.n, 1000, DS4KV_FORM_PLAIN, &fault), DS4KV_OK);
    CHECK_EQ(ds4kv_reader_new(&reader, &frame, region.n, 0, DS4KV_FRAME_SIZE, 0), DS4KV_OK);
    CHECK_EQ(ds4kv_reader_from_memory(reader, region.at), DS4KV_OK);
    CHECK_EQ(ds4kv_reader_aimed(reader), 0);
    CHECK_EQ(ds4kv_reader_aim(reader, out.at, 2500), DS4KV_OK);
    CHECK_EQ(ds4kv_reader_aimed(reader), 2500);
    CHECK_EQ(ds4kv_reader_take(reader, out.at, 900, 1), 900);
    CHECK_EQ(ds4kv_reader_aimed(reader), 1600);
    for (size_t done = 900; done < out.n;)
        done += (size_t)ds4kv_reader_take(reader, out.at + done, out.n - done, 1);
    CHECK_EQ(ds4kv_reader_aimed(reader), 0);
    CHECK(bytes_equal(out, payload));
    ds4kv_reader_free(reader);
    free(region.at);
    free(out.at);
    free(payload.at);
}

/* ---- a chunk that nobody wants any more ---- */

/* Puts what the ring takes of n chunks, and frees writer and payload at once. The seconds that it took. */
static double put_and_free(int level, int workers, int chunks, uint32_t form)
{
    bytes payload = slow_payload((size_t)chunks * CHUNK);
    ds4kv_writer *writer;
    CHECK_EQ(ds4kv_writer_new(&writer, payload.n, CHUNK, form, level, workers), DS4KV_OK);
    CHECK(ds4kv_writer_put(writer, payload.at, payload.n, 1) > 0);
    if (chunks == 1)
        CHECK_EQ(ds4kv_writer_finish(writer), DS4KV_OK);
    if (level > 0)
        CHECK_EQ(ds4kv_writer_wait(writer, 10), 0);
    double start = now();
    ds4kv_writer_free(writer);
    free(payload.at);
    return now() - start;
}

static void test_free_does_not_wait_for_lz4hc(void)
{
    static const struct {
        int level, workers, chunks;
        uint32_t form;
    } cases[] = {
        {12, 1, 1, DS4KV_FORM_PLAIN},
        {12, 2, 4, DS4KV_FORM_PLAIN},
        {12, 8, 3, DS4KV_FORM_CHECKED},
        {9, 1, 1, DS4KV_FORM_CHECKED},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        CASE("free at level %d, workers %d, chunks %d", cases[i].level, cases[i].workers, cases[i].chunks);
        double seconds = put_and_free(cases[i].level, cases[i].workers, cases[i].chunks, cases[i].form);
        CHECK_EQ(ds4kv_stragglers(), 1);
        CHECK(seconds < 0.5);

        pid_t child = fork_child();
        if (child == 0)
            _exit(ds4kv_stragglers()); /* its parent's threads are not its own */
        wait_for_child(child);
        wait_for_stragglers();
    }
}

static void test_free_waits_for_what_reads_the_callers_memory(void)
{
    for (int workers = 0; workers <= 2; workers++) {
        CASE("free at level 0, workers %d", workers);
        (void)put_and_free(0, workers, 4, DS4KV_FORM_PLAIN);
        CHECK_EQ(ds4kv_stragglers(), 0);
    }
}

static void test_several_are_left_at_once(void)
{
    CASE("several writers are left");
    for (int i = 0; i < 3; i++)
        (void)put_and_free(9, 2, 3, DS4KV_FORM_PLAIN);
    CHECK(ds4kv_stragglers() >= 1);
    wait_for_stragglers();
}

static void test_free_does_not_wait_for_a_slow_disk(bool with_sums)
{
    CASE("a reader is freed while its workers read from a slow disk%s", with_sums ? ", with sums" : "");
    enum { LARGE = 32 << 20, BLOCKS = 2 };
    static const uint64_t sums[BLOCKS];
    FILE *file = tmpfile();
    ds4kv_frame frame;
    ds4kv_fault fault;
    ds4kv_reader *reader;
    CHECK(file && ftruncate(fileno(file), BLOCKS * LARGE) == 0);
    CHECK_EQ(ds4kv_frame_decode(&frame, NULL, BLOCKS * LARGE, LARGE, DS4KV_FORM_RAW, &fault), DS4KV_OK);
    CHECK_EQ(ds4kv_reader_new(&reader, &frame, BLOCKS * LARGE, 0, 0, 1), DS4KV_OK);
    if (with_sums)
        CHECK_EQ(ds4kv_reader_sums(reader, sums), DS4KV_OK);
    CHECK_EQ(ds4kv_reader_from_file(reader, fileno(file), 0), DS4KV_OK);
    atomic_store(&preads, 0);
    atomic_store(&ms_of_a_pread, 20);
    CHECK_EQ(ds4kv_reader_wait(reader, 50), 0);
    ds4kv_reader_free(reader);
    atomic_store(&ms_of_a_pread, 0);
    CHECK(atomic_load(&preads) >= 1);
    CHECK(atomic_load(&preads) <= 20); /* of 64 at least */
    fclose(file);
}

int main(void)
{
    watchdog();
    test_a_writer_is_waited_for_by_slices();
    test_a_reader_is_waited_for_by_slices();
    test_aimed_counts_what_is_to_come();
    test_free_does_not_wait_for_lz4hc();
    test_free_waits_for_what_reads_the_callers_memory();
    test_several_are_left_at_once();
    test_free_does_not_wait_for_a_slow_disk(false);
    test_free_does_not_wait_for_a_slow_disk(true);
    return 0;
}
