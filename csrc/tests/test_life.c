/*
 * test_life.c - objects that end early, that are copied by fork, that are many, that move between threads.
 *
 * What the core was lent is freed right after the object is: AddressSanitizer and valgrind see a worker that is not
 * through with it.
 */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>

#include "region.h"

static const int workers[] = {0, 1, 4};

/* Level 9 on chunks of this size takes long enough for work to be under way whenever an object ends. Lent ones are of level
 * 0, which takes as long for more: above it chunks are copied. */
enum { CHUNK = 20000, LENT_CHUNK = 400000 };

/* ---- the end at every moment ---- */

static void end_writer_after(int steps, int n_workers, bool lent)
{
    CASE("writer freed after %d steps, workers %d%s", steps, n_workers, lent ? ", lent" : "");
    uint32_t chunk_size = lent ? LENT_CHUNK : CHUNK;
    bytes payload = payload_new(MIXED, 6 * chunk_size + chunk_size / 2);
    const void *record;
    size_t put = 0;
    bool finished = false;
    ds4kv_writer *writer;
    CHECK_EQ(ds4kv_writer_new(&writer, lent ? payload.n : DS4KV_UNKNOWN, chunk_size, DS4KV_FORM_PLAIN, lent ? 0 : 9,
                              n_workers),
             DS4KV_OK);
    while (steps-- > 0)
        if (put < payload.n) {
            size_t part = least(chunk_size + chunk_size / 2, payload.n - put);
            int64_t accepted = ds4kv_writer_put(writer, payload.at + put, part, lent);
            CHECK(accepted >= 0);
            put += (size_t)accepted;
            if ((size_t)accepted < part)
                CHECK(ds4kv_writer_take(writer, &record) > 0);
        } else if (!finished) {
            CHECK_EQ(ds4kv_writer_finish(writer), DS4KV_OK);
            finished = true;
        } else {
            CHECK(ds4kv_writer_take(writer, &record) >= 0);
        }
    ds4kv_writer_free(writer);
    free(payload.at);
}

static void end_reader_after(int steps, int n_workers, bool aimed, bytes region, size_t raw_total)
{
    CASE("reader freed after %d steps, workers %d%s", steps, n_workers, aimed ? ", aimed" : "");
    uint8_t *out = malloc(raw_total);
    size_t fed = DS4KV_FRAME_SIZE, done = 0;
    ds4kv_frame frame;
    ds4kv_fault fault;
    ds4kv_reader *reader;
    CHECK(out);
    CHECK_EQ(ds4kv_frame_decode(&frame, region.at, region.n, CHUNK, DS4KV_FORM_PLAIN, &fault), DS4KV_OK);
    CHECK_EQ(ds4kv_reader_new(&reader, &frame, region.n, 0, DS4KV_FRAME_SIZE, n_workers), DS4KV_OK);
    if (aimed)
        CHECK_EQ(ds4kv_reader_aim(reader, out, raw_total), DS4KV_OK);
    while (steps-- > 0) {
        void *room;
        int64_t size = ds4kv_reader_room(reader, &room);
        CHECK(size >= 0);
        if (size == 0) {
            int64_t taken = ds4kv_reader_take(reader, out + done, least(9000, raw_total - done), 1);
            CHECK(taken >= 0);
            done += (size_t)taken;
        } else {
            memcpy(room, region.at + fed, (size_t)size);
            fed += (size_t)size;
            CHECK_EQ(ds4kv_reader_put(reader, (size_t)size), DS4KV_OK);
        }
    }
    ds4kv_reader_free(reader);
    free(out);
}

static void test_end_at_every_moment(void)
{
    CASE("NULL");
    ds4kv_writer_free(NULL);
    ds4kv_reader_free(NULL);

    bytes payload = payload_new(MIXED, 6 * CHUNK);
    bytes region = write_region(payload, (way){.chunk_size = CHUNK, .put_size = SIZE_MAX});
    for (size_t i = 0; i < COUNT(workers); i++)
        for (int flag = 0; flag < 2; flag++) {
            for (int steps = 0; steps < 20; steps++)
                end_writer_after(steps, workers[i], flag);
            for (int steps = 0; steps < 26; steps++)
                end_reader_after(steps, workers[i], flag, region, payload.n);
        }
    free(region.at);
    free(payload.at);
}

/* ---- fork ---- */

/* Ends in a forked child: what is left there is not its own. */
static void end_child(ds4kv_writer *writer, ds4kv_reader *reader)
{
    uint8_t some[100] = {0};
    const void *record;
    void *room;
    for (int i = 0; i < 2; i++) {
        CHECK_EQ(ds4kv_writer_put(writer, some, sizeof some, 0), DS4KV_STATE);
        CHECK_EQ(ds4kv_writer_lent(writer), DS4KV_STATE);
        CHECK_EQ(ds4kv_writer_take(writer, &record), DS4KV_STATE);
        CHECK_EQ(ds4kv_writer_finish(writer), DS4KV_STATE);
        CHECK_EQ(ds4kv_reader_room(reader, &room), DS4KV_STATE);
        CHECK_EQ(ds4kv_reader_put(reader, 8), DS4KV_STATE);
        CHECK_EQ(ds4kv_reader_aim(reader, some, sizeof some), DS4KV_STATE);
        CHECK_EQ(ds4kv_reader_take(reader, some, sizeof some, 1), DS4KV_STATE);
        CHECK_EQ(ds4kv_reader_finish(reader), DS4KV_STATE);
    }
    ds4kv_writer_free(writer);
    ds4kv_reader_free(reader);

    /* Objects of its own work; without threads, which ThreadSanitizer refuses after a fork. */
    bytes payload = payload_new(TEXT, 1000);
    way way = {.chunk_size = 100, .put_size = SIZE_MAX, .take_size = SIZE_MAX};
    bytes region = write_region(payload, way);
    verdict verdict = read_region(region, way);
    CHECK(verdict.status == DS4KV_OK && bytes_equal(verdict.payload, payload));
    free(verdict.payload.at);
    free(region.at);
    free(payload.at);
    _exit(0);
}

static void test_fork(int n_workers)
{
    CASE("fork, workers %d", n_workers);
    bytes payload = payload_new(MIXED, 6 * CHUNK);
    way way = {.chunk_size = CHUNK, .level = 9, .put_size = SIZE_MAX};
    bytes expected = write_region(payload, way), region = bytes_new(expected.n), out = bytes_new(payload.n);
    size_t put = 0, fed = DS4KV_FRAME_SIZE, done = 0;
    ds4kv_frame frame;
    ds4kv_fault fault;
    ds4kv_writer *writer;
    ds4kv_reader *reader;
    CHECK_EQ(ds4kv_writer_new(&writer, DS4KV_UNKNOWN, CHUNK, DS4KV_FORM_PLAIN, 9, n_workers), DS4KV_OK);
    CHECK_EQ(ds4kv_frame_decode(&frame, expected.at, expected.n, CHUNK, DS4KV_FORM_PLAIN, &fault), DS4KV_OK);
    CHECK_EQ(ds4kv_reader_new(&reader, &frame, expected.n, 0, DS4KV_FRAME_SIZE, n_workers), DS4KV_OK);
    region.n = DS4KV_FRAME_SIZE;

    /* A child at every turn, in the midst of whatever is under way; the parent goes on as if there were none. */
    bool finished = false;
    while (!finished || done < out.n) {
        pid_t child = fork_child();
        if (child == 0)
            end_child(writer, reader);

        int64_t accepted = put < payload.n ? ds4kv_writer_put(writer, payload.at + put, payload.n - put, 1) : 0;
        CHECK(accepted >= 0);
        put += (size_t)accepted;
        if (put < payload.n) {
            CHECK(take_record(writer, &region, expected.n));
        } else if (!finished) {
            CHECK_EQ(ds4kv_writer_finish(writer), DS4KV_OK);
            while (take_record(writer, &region, expected.n))
                continue;
            finished = true;
        }
        CHECK_EQ(feed(reader, expected, &fed, SIZE_MAX), DS4KV_OK);
        int64_t taken = ds4kv_reader_take(reader, out.at + done, least(CHUNK, out.n - done), 1);
        CHECK(taken >= 0);
        done += (size_t)taken;
        wait_for_child(child);
    }
    ds4kv_writer_frame(writer, &frame);
    ds4kv_frame_encode(&frame, region.at);
    CHECK(bytes_equal(region, expected));
    CHECK(bytes_equal(out, payload));
    ds4kv_writer_free(writer);
    ds4kv_reader_free(reader);
    free(out.at);
    free(region.at);
    free(expected.at);
    free(payload.at);
}

/* ---- several ---- */

static void *round_trips(void *arg)
{
    size_t number = *(size_t *)arg;
    for (int i = 0; i < 8; i++) {
        bytes payload = payload_new(MIXED, 30000 + 1000 * number);
        way way = {.chunk_size = 2000, .workers = i % 4, .put_size = 5000, .take_size = 7000, .lent = i % 2};
        CASE("thread %zu, %s", number, way_text(&way));
        bytes region = write_region(payload, way);
        verdict read = read_region(region, way);
        verdict decoded = decode_region(region, way.chunk_size, DS4KV_FORM_PLAIN, way.workers);
        CHECK_EQ(read.status, DS4KV_OK);
        CHECK_EQ(decoded.status, DS4KV_OK);
        CHECK(bytes_equal(read.payload, payload));
        CHECK(bytes_equal(decoded.payload, payload));
        free(read.payload.at);
        free(decoded.payload.at);
        free(region.at);
        free(payload.at);
    }
    return NULL;
}

static void test_many_at_once(void)
{
    pthread_t threads[4];
    size_t numbers[COUNT(threads)];
    for (size_t i = 0; i < COUNT(threads); i++) {
        numbers[i] = i;
        CHECK_EQ(pthread_create(&threads[i], NULL, round_trips, &numbers[i]), 0);
    }
    for (size_t i = 0; i < COUNT(threads); i++)
        pthread_join(threads[i], NULL);
}

/* One thread at a time need not be the same thread. */
typedef struct {
    ds4kv_writer *writer;
    bytes payload, region;
    size_t put, limit;
} relay;

static void *one_step(void *arg)
{
    relay *relay = arg;
    size_t part = least(3000, relay->payload.n - relay->put);
    int64_t accepted = ds4kv_writer_put(relay->writer, relay->payload.at + relay->put, part, 0);
    CHECK(accepted >= 0);
    relay->put += (size_t)accepted;
    if ((size_t)accepted < part)
        CHECK(take_record(relay->writer, &relay->region, relay->limit));
    return NULL;
}

static void test_from_thread_to_thread(int n_workers)
{
    CASE("each step in another thread, workers %d", n_workers);
    bytes payload = payload_new(TEXT, 30000);
    bytes expected = write_region(payload, (way){.chunk_size = 2000, .put_size = SIZE_MAX});
    relay relay = {.payload = payload, .region = bytes_new(expected.n), .limit = expected.n};
    relay.region.n = DS4KV_FRAME_SIZE;
    CHECK_EQ(ds4kv_writer_new(&relay.writer, DS4KV_UNKNOWN, 2000, DS4KV_FORM_PLAIN, 0, n_workers), DS4KV_OK);
    while (relay.put < payload.n) {
        pthread_t thread;
        CHECK_EQ(pthread_create(&thread, NULL, one_step, &relay), 0);
        pthread_join(thread, NULL);
    }
    CHECK_EQ(ds4kv_writer_finish(relay.writer), DS4KV_OK);
    while (take_record(relay.writer, &relay.region, relay.limit))
        continue;
    ds4kv_writer_free(relay.writer);
    memcpy(relay.region.at, expected.at, DS4KV_FRAME_SIZE);
    CHECK(bytes_equal(relay.region, expected));
    free(relay.region.at);
    free(expected.at);
    free(payload.at);
}

/* ---- signals ---- */

static volatile sig_atomic_t signals;

static void count_signal(int number)
{
    (void)number;
    signals++;
}

/* A signal that the host's threads block stays pending: no worker is there to take it. */
static void test_workers_block_signals(void)
{
    CASE("signals");
    ds4kv_writer *writer;
    sigset_t usr1, mask;
    bytes payload = payload_new(TEXT, 10 * CHUNK);
    struct sigaction count = {.sa_handler = count_signal};
    sigaction(SIGUSR1, &count, NULL);
    CHECK_EQ(ds4kv_writer_new(&writer, DS4KV_UNKNOWN, CHUNK, DS4KV_FORM_PLAIN, 0, 4), DS4KV_OK);
    CHECK(ds4kv_writer_put(writer, payload.at, payload.n, 0) >= CHUNK); /* a record that is ready ends it */
    pthread_sigmask(SIG_SETMASK, NULL, &mask);
    CHECK(!sigismember(&mask, SIGUSR1)); /* the caller's mask is what it was */

    sigemptyset(&usr1);
    sigaddset(&usr1, SIGUSR1);
    pthread_sigmask(SIG_BLOCK, &usr1, NULL);
    kill(getpid(), SIGUSR1);
    poll(NULL, 0, 20);
    sigpending(&mask);
    CHECK(sigismember(&mask, SIGUSR1));
    CHECK_EQ(signals, 0);
    pthread_sigmask(SIG_UNBLOCK, &usr1, NULL);
    poll(NULL, 0, 1);
    CHECK_EQ(signals, 1);
    ds4kv_writer_free(writer);
    free(payload.at);
}

int main(void)
{
    watchdog();
    test_end_at_every_moment();
    for (size_t i = 0; i < COUNT(workers); i++) {
        test_fork(workers[i]);
        test_from_thread_to_thread(workers[i]);
    }
    test_many_at_once();
    test_workers_block_signals();
    return 0;
}
