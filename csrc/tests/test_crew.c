/*
 * test_crew.c - threads and memory are kept for the next object, and given back: after a second, by ds4kv_trim, in a
 * forked child, and before others would run short of them.
 */
#define _GNU_SOURCE /* sched_setaffinity */
#include <dirent.h>
#include <pthread.h>
#include <sched.h>
#include <time.h>
#include <unistd.h>

#include "region.h"

enum { MiB = 1 << 20, WORKERS = 3 };

/* Numbers of this process's threads but the calling one's, as the system has them: in `tids`, if that is not NULL. */
static int others(int *tids)
{
    int n = 0;
    DIR *dir = opendir("/proc/self/task");
    CHECK(dir != NULL);
    for (struct dirent *entry; (entry = readdir(dir));) {
        int tid = atoi(entry->d_name);
        if (tid == 0 || tid == getpid())
            continue;
        if (tids)
            tids[n] = tid;
        n++;
    }
    closedir(dir);
    return n;
}

/* Sanitizers have threads of their own, from the first one on that a program starts. */
static int before_all;

static void *nothing(void *arg)
{
    return arg;
}

static int crew(void)
{
    return others(NULL) - before_all;
}

static void nap(int ms)
{
    struct timespec time = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000L};
    nanosleep(&time, NULL);
}

/* A thread that has left its ring may need a moment until it is idle, and one that ended until it is gone. */
static void check_crew_is(int n)
{
    nap(50);
    for (int tries = 0; crew() != n && tries < 2000; tries++)
        nap(1);
    CHECK_EQ(crew(), n);
}

/* How many there are once all are idle: fewer than workers, where they keep up. */
static int some_crew(void)
{
    nap(50);
    int n = crew();
    CHECK(n > 0 && n <= WORKERS);
    return n;
}

static bytes payload;

static bytes save(int nice)
{
    ds4kv_writer *writer;
    const void *record;
    bytes region = bytes_new(2 * payload.n);
    region.n = DS4KV_FRAME_SIZE;
    CHECK_EQ(ds4kv_writer_new(&writer, payload.n, 4 * MiB, DS4KV_FORM_PLAIN, 0, WORKERS), DS4KV_OK);
    CHECK_EQ(ds4kv_writer_nice(writer, nice), DS4KV_OK);
    for (size_t put = 0; put < payload.n;) {
        int64_t n = ds4kv_writer_put(writer, payload.at + put, payload.n - put, 1);
        CHECK(n >= 0);
        put += (size_t)n;
        if (put == payload.n)
            CHECK_EQ(ds4kv_writer_finish(writer), DS4KV_OK);
        int64_t size = ds4kv_writer_take(writer, &record);
        CHECK(size > 0);
        memcpy(region.at + region.n, record, (size_t)size);
        region.n += (size_t)size;
    }
    for (int64_t size; (size = ds4kv_writer_take(writer, &record)) > 0; region.n += (size_t)size)
        memcpy(region.at + region.n, record, (size_t)size);
    ds4kv_frame frame;
    ds4kv_writer_frame(writer, &frame);
    ds4kv_frame_encode(&frame, region.at);
    ds4kv_writer_free(writer);
    return region;
}

static void check_load(bytes region)
{
    ds4kv_fault fault;
    bytes out = bytes_new(payload.n);
    CHECK_EQ(ds4kv_decode(region.at, region.n, 4 * MiB, DS4KV_FORM_PLAIN, out.at, out.n, WORKERS, &fault), DS4KV_OK);
    CHECK(bytes_equal(out, payload));
    free(out.at);
}

static void test_threads_are_handed_on(void)
{
    CASE("threads are handed on");
    int first[64], second[64];
    bytes region = save(0);
    some_crew();
    int n_first = others(first), known = 0;
    check_load(region);
    some_crew();
    int n_second = others(second);
    for (int i = 0; i < n_second; i++)
        for (int k = 0; k < n_first; k++)
            known += first[k] == second[i];
    CHECK(known > before_all);
    CASE("they end after a second");
    check_crew_is(0);
    CASE("or by a trim");
    check_load(region);
    some_crew();
    ds4kv_trim();
    check_crew_is(0);
    ds4kv_trim();
    free(region.at);
}

static void test_nice_threads_are_not_kept(void)
{
    CASE("nice threads");
    bytes region = save(5);
    check_crew_is(0);
    free(region.at);
}

/* Who has moved to other CPUs, or became nicer, gets threads of that kind. */
static void test_threads_are_like_their_starter(void)
{
    CASE("threads like their starter");
    cpu_set_t all, one;
    bytes region = save(0);
    some_crew();
    CHECK_EQ(sched_getaffinity(0, sizeof all, &all), 0);
    if (CPU_COUNT(&all) > 1) {
        CPU_ZERO(&one);
        for (int cpu = 0; CPU_COUNT(&one) == 0; cpu++)
            if (CPU_ISSET(cpu, &all))
                CPU_SET(cpu, &one);
        CHECK_EQ(sched_setaffinity(0, sizeof one, &one), 0);
        check_load(region);
        CHECK_EQ(sched_setaffinity(0, sizeof all, &all), 0);
        nap(50);
        int tids[64], n = others(tids), moved = 0;
        for (int i = 0; i < n; i++) {
            cpu_set_t its;
            CHECK_EQ(sched_getaffinity(tids[i], sizeof its, &its), 0);
            moved += CPU_EQUAL(&its, &one);
        }
        CHECK(moved > 0 && moved <= WORKERS);
    }
    ds4kv_trim();
    check_crew_is(0);
    free(region.at);
}

/* What a child gets is a copy of threads that it doesn't have, and of memory that it gives back. */
static void test_children_begin_anew(void)
{
    CASE("a forked child");
    bytes region = save(0);
    some_crew();
    pid_t child = fork_child();
    if (child == 0) {
        before_all = others(NULL); /* of a sanitizer */
#ifndef __SANITIZE_THREAD__ /* which can't follow threads of such a child */
        check_load(region);
        some_crew();
#endif
        ds4kv_trim();
        check_crew_is(0);
        _exit(0);
    }
    wait_for_child(child);
    check_load(region);
    ds4kv_trim();
    free(region.at);
}

#ifdef __GLIBC__
#include <malloc.h>

static size_t in_use(void)
{
    struct mallinfo2 info = mallinfo2();
    return info.uordblks + info.hblkhd;
}

static void test_memory_is_given_back(void)
{
    CASE("memory");
    free(save(0).at);
    ds4kv_trim();
    size_t before = in_use();
    free(save(0).at);
    size_t kept = in_use();
    ds4kv_trim();
    if (before > 0) { /* sanitizers say 0 */
        CHECK(kept > before + 4 * MiB);
        CHECK(in_use() < before + 4096);
    }
    free(save(0).at);
    nap(1500);
    CHECK(in_use() < before + 4096);
}

/* Threads that wait in a ring see to nothing: while there are no others, what is given back is freed at once. */
static void test_memory_beside_a_ring_that_waits(void)
{
    CASE("memory beside a ring that waits");
    ds4kv_trim();
    ds4kv_writer *waiting, *alone;
    const void *record;
    CHECK_EQ(ds4kv_writer_new(&waiting, DS4KV_UNKNOWN, 1000, DS4KV_FORM_PLAIN, 0, WORKERS), DS4KV_OK);
    CHECK(ds4kv_writer_put(waiting, payload.at, 100000, 0) < 100000); /* its ring is full */
    nap(50);
    CHECK(crew() > 0);
    size_t before = in_use();
    CHECK_EQ(ds4kv_writer_new(&alone, 8 * MiB, 4 * MiB, DS4KV_FORM_PLAIN, 0, 0), DS4KV_OK);
    CHECK_EQ(ds4kv_writer_put(alone, payload.at, 4 * MiB, 0), 4 * MiB);
    CHECK(ds4kv_writer_take(alone, &record) > 0);
    CHECK(before == 0 || in_use() > before + 4 * MiB);
    ds4kv_writer_free(alone);
    CHECK(before == 0 || in_use() < before + 4096);
    ds4kv_writer_free(waiting);
    ds4kv_trim();
}
#endif

/* Rings of many threads at once, and trims between them. */
static void *come_and_go(void *arg)
{
    bytes *region = arg;
    for (int i = 0; i < 8; i++) {
        check_load(*region);
        if (i % 3 == 0)
            ds4kv_trim();
    }
    return NULL;
}

static void test_many_at_once(void)
{
    CASE("many at once");
    bytes region = save(0);
    pthread_t threads[4];
    for (size_t i = 0; i < COUNT(threads); i++)
        CHECK_EQ(pthread_create(&threads[i], NULL, come_and_go, &region), 0);
    for (size_t i = 0; i < COUNT(threads); i++)
        CHECK_EQ(pthread_join(threads[i], NULL), 0);
    ds4kv_trim();
    check_crew_is(0);
    free(region.at);
}

int main(void)
{
    watchdog();
    pthread_t thread;
    CHECK_EQ(pthread_create(&thread, NULL, nothing, NULL), 0);
    CHECK_EQ(pthread_join(thread, NULL), 0);
    nap(50);
    before_all = others(NULL);
    payload = payload_new(MIXED, 30 * MiB + 1);
    test_threads_are_handed_on();
    test_nice_threads_are_not_kept();
    test_threads_are_like_their_starter();
    test_children_begin_anew();
#ifdef __GLIBC__
    test_memory_is_given_back();
    test_memory_beside_a_ring_that_waits();
#endif
    test_many_at_once();
    free(payload.at);
    return 0;
}
