/*
 * test_stdio.c - payloads through FILE *: whole, by pieces, onto full disks, from bad regions, in forked children.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/resource.h>

#include "ds4kv_stdio.h"
#include "region.h"

#define TRAILER "trailer"

enum { CHUNK = 20000 };

static const int workers[] = {0, 1, 4};

/* A call that must fail, and why. */
#define CHECK_FAILS(call, error)                                                                                       \
    do {                                                                                                               \
        errno = 0;                                                                                                     \
        CHECK(call);                                                                                                   \
        CHECK_EQ(errno, error);                                                                                        \
    } while (0)

static bytes region_of(bytes payload, uint32_t chunk_size)
{
    return write_region(payload, (way){.chunk_size = chunk_size, .put_size = SIZE_MAX});
}

/* A region in a file, with a trailer behind it. */
static FILE *file_with(bytes region)
{
    FILE *file = file_of(region);
    CHECK(fputs(TRAILER, file) >= 0 && fseek(file, FILE_START, SEEK_SET) == 0);
    return file;
}

static void check_trailer(FILE *in)
{
    char text[sizeof TRAILER] = "";
    CHECK_EQ(fread(text, 1, sizeof text, in), strlen(TRAILER));
    CHECK(strcmp(text, TRAILER) == 0);
}

/* ---- round trips ---- */

/* Pieces of a size; 0: drawn, from tiny to larger than a buffer of stdio's. */
static size_t next_piece(size_t piece, uint64_t *seed, size_t left)
{
    static const size_t limits[] = {8, 300, 5000, 200000};
    return least(piece ? piece : 1 + draw_below(seed, limits[draw_below(seed, COUNT(limits))]), left);
}

static void check_save(bytes payload, bytes region, uint32_t chunk_size, int n_workers, size_t piece)
{
    uint64_t seed = piece;
    FILE *out = tmpfile();
    CHECK(out && fputs("this is 17 bytes.", out) >= 0);
    FILE *stream = ds4kv_fopen_writer(out, chunk_size, n_workers);
    CHECK(stream);
    for (size_t done = 0, part; done < payload.n; done += part) {
        part = next_piece(piece, &seed, payload.n - done);
        CHECK_EQ(fwrite(payload.at + done, 1, part, stream), part);
    }
    CHECK(!ferror(stream));
    CHECK_EQ(fclose(stream), 0);
    CHECK_EQ(ftell(out), FILE_START + (long)region.n);
    CHECK(fputs(TRAILER, out) >= 0 && fseek(out, FILE_START, SEEK_SET) == 0);

    bytes written = bytes_new(region.n);
    CHECK_EQ(fread(written.at, 1, written.n, out), region.n);
    CHECK(bytes_equal(written, region));
    check_trailer(out);
    rewind(out);
    char text[FILE_START + 1] = "";
    CHECK(fread(text, 1, FILE_START, out) == FILE_START && strcmp(text, "this is 17 bytes.") == 0);
    fclose(out);
    free(written.at);
}

static void check_load(FILE *in, bytes payload, bytes region, uint32_t chunk_size, int n_workers, size_t piece)
{
    uint64_t seed = piece, raw_total = 1;
    FILE *stream = ds4kv_fopen_reader(in, region.n, chunk_size, n_workers, &raw_total);
    CHECK(stream);
    CHECK_EQ(raw_total, payload.n);
    bytes read = guarded_new(payload.n);
    for (size_t done = 0, part; done < payload.n; done += part) {
        part = next_piece(piece, &seed, payload.n - done);
        CHECK_EQ(fread(read.at + done, 1, part, stream), part);
    }
    CHECK(!feof(stream) && !ferror(stream));
    CHECK_EQ(fgetc(stream), EOF);
    CHECK(feof(stream) && !ferror(stream));
    CHECK_EQ(fclose(stream), 0);
    check_trailer(in);
    bytes exact = guarded_open(read, payload.n);
    CHECK(bytes_equal(exact, payload));
    free(exact.at);
}

typedef struct {
    bytes region;
    int fd;
} feeder;

static void *feed_pipe(void *arg)
{
    feeder *feeder = arg;
    FILE *to = fdopen(feeder->fd, "w");
    CHECK(to && fwrite(feeder->region.at, 1, feeder->region.n, to) == feeder->region.n);
    CHECK(fputs(TRAILER, to) >= 0 && fclose(to) == 0);
    return NULL;
}

static void check_load_from_pipe(bytes payload, bytes region, uint32_t chunk_size, int n_workers, size_t piece)
{
    int ends[2];
    pthread_t thread;
    CHECK_EQ(pipe(ends), 0);
    feeder feeder = {region, ends[1]};
    CHECK_EQ(pthread_create(&thread, NULL, feed_pipe, &feeder), 0);
    FILE *in = fdopen(ends[0], "r");
    CHECK(in);
    check_load(in, payload, region, chunk_size, n_workers, piece);
    pthread_join(thread, NULL);
    fclose(in);
}

static void check_payload(size_t n, uint32_t chunk_size)
{
    bytes payload = payload_new(MIXED, n), region = region_of(payload, chunk_size);
    size_t pieces[] = {1, 4, 4099, 65536, n, 0};
    for (size_t i = 0; i < COUNT(workers); i++)
        for (size_t k = 0; k < COUNT(pieces); k++) {
            CASE("%zu bytes, chunk_size %u, workers %d, pieces of %zu", n, chunk_size, workers[i], pieces[k]);
            if (pieces[k] == 1 && n > 50000)
                continue;
            check_save(payload, region, chunk_size, workers[i], pieces[k]);
            FILE *file = file_with(region);
            check_load(file, payload, region, chunk_size, workers[i], pieces[k]);
            fclose(file);
            check_load_from_pipe(payload, region, chunk_size, workers[i], pieces[k]);
        }
    free(region.at);
    free(payload.at);
}

/* A payload that is there as it is, read to its end and no further. */
static void test_raw(void)
{
    static const size_t sizes[] = {0, 1, 70000, 300001}, pieces[] = {1, 4099, 65536, 300001};
    for (size_t i = 0; i < COUNT(sizes); i++)
        for (size_t k = 0; k < COUNT(pieces); k++) {
            CASE("raw, %zu bytes in pieces of %zu", sizes[i], pieces[k]);
            bytes payload = payload_new(MIXED, sizes[i]);
            FILE *file = file_with(payload);
            check_load(file, payload, payload, 0, 0, pieces[k]);
            fclose(file);
            check_load_from_pipe(payload, payload, 0, 0, pieces[k]);
            free(payload.at);
        }
}

static void test_round_trips(void)
{
    static const size_t sizes[] = {0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 7 * CHUNK + 5};
    for (size_t i = 0; i < COUNT(sizes); i++)
        check_payload(sizes[i], CHUNK);
    check_payload(700, 7);
    check_payload(900000, 200000);

    CASE("raw_total NULL, and a region written through in itself");
    bytes payload = payload_new(TEXT, 1000), region = region_of(payload, CHUNK);
    FILE *file = tmpfile();
    CHECK(file && fwrite(region.at, 1, region.n, file) == region.n && fseek(file, -1, SEEK_CUR) == 0);
    CHECK(fputc(region.at[region.n - 1], file) != EOF && fseek(file, 0, SEEK_SET) == 0);
    FILE *stream = ds4kv_fopen_reader(file, region.n, CHUNK, 2, NULL);
    CHECK(stream);
    bytes read = bytes_new(payload.n);
    CHECK_EQ(fread(read.at, 1, read.n, stream), payload.n);
    CHECK(bytes_equal(read, payload));
    CHECK_EQ(fclose(stream), 0);
    fclose(file);
    free(read.at);

    CASE("in memory, which has no descriptor");
    FILE *memory = fmemopen(region.at, region.n, "r");
    stream = ds4kv_fopen_reader(memory, region.n, CHUNK, 2, NULL);
    CHECK(stream && fgetc(stream) == payload.at[0]);
    CHECK_EQ(fclose(stream), 0);
    fclose(memory);
    free(region.at);
    free(payload.at);
}

/* ---- arguments ---- */

static void test_refusals(void)
{
    CASE("arguments");
    FILE *file = tmpfile();
    bytes region = region_of((bytes){NULL, 0}, CHUNK);
    CHECK(file);
    CHECK_FAILS(!ds4kv_fopen_writer(file, 0, 1), EINVAL);
    CHECK_FAILS(!ds4kv_fopen_writer(file, DS4KV_MAX_CHUNK_SIZE + 1, 1), EINVAL);
    CHECK_FAILS(!ds4kv_fopen_writer(file, CHUNK, -1), EINVAL);
    CHECK_FAILS(!ds4kv_fopen_writer(file, CHUNK, DS4KV_MAX_WORKERS + 1), EINVAL);
    CHECK_EQ(ftell(file), 0);
    CHECK(fwrite(region.at, 1, region.n, file) == region.n);
    static const struct {
        uint32_t chunk_size;
        int workers, error;
    } cases[] = {{DS4KV_MAX_CHUNK_SIZE + 1, 1, EINVAL}, {CHUNK, -1, EINVAL}, {CHUNK, 65, EINVAL}, {CHUNK, 64, 0}};
    for (size_t i = 0; i < COUNT(cases); i++) {
        rewind(file);
        errno = 0;
        FILE *stream = ds4kv_fopen_reader(file, region.n, cases[i].chunk_size, cases[i].workers, NULL);
        CHECK_EQ(!stream, cases[i].error != 0);
        if (stream)
            fclose(stream);
        else
            CHECK_EQ(errno, cases[i].error);
    }
    fclose(file);
    free(region.at);

    CASE("out that can't go back");
    int ends[2];
    CHECK_EQ(pipe(ends), 0);
    FILE *to = fdopen(ends[1], "w");
    CHECK_FAILS(!ds4kv_fopen_writer(to, CHUNK, 1), ESPIPE);
    CHECK_EQ(fcntl(ends[0], F_SETFL, O_NONBLOCK), 0);
    char byte;
    CHECK_FAILS(read(ends[0], &byte, 1) < 0, EAGAIN); /* nothing was written */
    fclose(to);
    close(ends[0]);
    char path[] = "/tmp/ds4kv-stdio-XXXXXX";
    close(mkstemp(path));
    FILE *append = fopen(path, "a");
    CHECK(append);
    CHECK_FAILS(!ds4kv_fopen_writer(append, CHUNK, 1), ESPIPE);
    fclose(append);

    CASE("the wrong mode, for which musl gives no reason");
    FILE *readable = fopen(path, "r"), *writable = fopen(path, "w");
    CHECK(!ds4kv_fopen_writer(readable, CHUNK, 1) && (errno == EBADF || errno == EIO));
    CHECK(!ds4kv_fopen_reader(writable, 100, CHUNK, 1, NULL) && (errno == EBADF || errno == EIO));
    fclose(readable);
    fclose(writable);
    unlink(path);
}

#ifdef __linux__
static int threads_now(void)
{
    char line[256];
    int threads = 0;
    FILE *status = fopen("/proc/self/status", "r");
    while (status && fgets(line, sizeof line, status))
        sscanf(line, "Threads: %d", &threads);
    CHECK(threads > 0);
    fclose(status);
    return threads;
}

static void test_workers_are_cut(void)
{
    CASE("8 workers on one CPU");
    cpu_set_t all, one;
    CHECK_EQ(sched_getaffinity(0, sizeof all, &all), 0);
    CPU_ZERO(&one);
    int cpu = 0;
    while (!CPU_ISSET(cpu, &all))
        cpu++;
    CPU_SET(cpu, &one);
    CHECK_EQ(sched_setaffinity(0, sizeof one, &one), 0);
    bytes payload = payload_new(RANDOM, 9 * CHUNK);
    FILE *out = tmpfile(), *stream = ds4kv_fopen_writer(out, CHUNK, 8);
    int before = threads_now();
    CHECK(stream && fwrite(payload.at, 1, payload.n, stream) == payload.n && fflush(stream) == 0);
    CHECK_EQ(threads_now() - before, 1);
    CHECK_EQ(fclose(stream), 0);
    CHECK_EQ(sched_setaffinity(0, sizeof all, &all), 0);
    fclose(out);
    free(payload.at);
}
#endif

/* ---- disks that are full ---- */

/* Writes until it fails and closes after; errno is told by both. Whether it failed before it was closed. */
static bool check_save_onto(FILE *out, bytes payload, int n_workers, size_t piece, int error)
{
    bool failed = false;
    errno = 0;
    FILE *stream = ds4kv_fopen_writer(out, CHUNK, n_workers);
    if (!stream) {
        CHECK_EQ(errno, error);
        return true;
    }
    for (size_t done = 0, part; done < payload.n && !failed; done += part) {
        part = least(piece, payload.n - done);
        failed = fwrite(payload.at + done, 1, part, stream) < part;
    }
    if (failed) {
        CHECK_EQ(errno, error);
        CHECK(ferror(stream));
        CHECK_FAILS(fwrite(payload.at, 1, payload.n, stream) < payload.n, error); /* for good */
    }
    errno = 0;
    CHECK_EQ(fclose(stream), error ? EOF : 0);
    CHECK_EQ(error ? errno : 0, error);
    return failed;
}

static void test_full_disk(void)
{
    struct rlimit unlimited, limit;
    bytes payload = payload_new(RANDOM, 20 * CHUNK);
    bytes region = region_of(payload, CHUNK);
    CHECK(signal(SIGXFSZ, SIG_IGN) != SIG_ERR);
    CHECK_EQ(getrlimit(RLIMIT_FSIZE, &unlimited), 0);
    size_t limits[] = {5, DS4KV_FRAME_SIZE, 100, 5 * CHUNK, region.n - 1, region.n};
    size_t pieces[] = {4, CHUNK, SIZE_MAX};
    for (size_t i = 0; i < COUNT(workers); i++)
        for (size_t k = 0; k < COUNT(limits) * COUNT(pieces); k++) {
            size_t most = limits[k % COUNT(limits)], piece = pieces[k / COUNT(limits)];
            CASE("workers %d, room for %zu of %zu bytes, pieces of %zd", workers[i], most, region.n, (ssize_t)piece);
            FILE *out = tmpfile();
            limit = (struct rlimit){most, unlimited.rlim_max};
            CHECK(out && setrlimit(RLIMIT_FSIZE, &limit) == 0);
            bool failed = check_save_onto(out, payload, workers[i], piece, most < region.n ? EFBIG : 0);
            CHECK(failed || most > 5 * CHUNK); /* more than the ring and buffers hold */
            CHECK_EQ(setrlimit(RLIMIT_FSIZE, &unlimited), 0);
            fclose(out);
        }

    FILE *full = fopen("/dev/full", "w");
    CASE("/dev/full");
    if (full) {
        check_save_onto(full, payload, 2, CHUNK, ENOSPC);
        fclose(full);
    }
    free(region.at);
    free(payload.at);
}

/* ---- bad regions ---- */

static void check_bad(FILE *in, uint64_t region_bytes, uint32_t chunk_size, int n_workers, int error, bytes payload,
                      size_t good)
{
    errno = 0;
    FILE *stream = ds4kv_fopen_reader(in, region_bytes, chunk_size, n_workers, NULL);
    if (!stream) {
        CHECK_EQ(good, 0);
        CHECK_EQ(errno, error);
        return;
    }
    bytes read = bytes_new(payload.n);
    size_t n = fread(read.at, 1, read.n, stream);
    CHECK_EQ(errno, error);
    CHECK(ferror(stream) && !feof(stream));
    CHECK(n >= good && n < payload.n && memcmp(read.at, payload.at, n) == 0);
    free(read.at); /* no worker is left that writes to it */
    CHECK_FAILS(fgetc(stream) == EOF, error);
    CHECK_FAILS(fclose(stream) == EOF, error);
}

static void check_bad_everywhere(bytes region, uint64_t region_bytes, int error, bytes payload, size_t good)
{
    for (size_t i = 0; i < COUNT(workers); i++) {
        FILE *file = file_of(region), *memory = fmemopen(region.at, region.n, "r");
        CHECK(memory && fseek(file, FILE_START, SEEK_SET) == 0);
        check_bad(file, region_bytes, CHUNK, workers[i], error, payload, good);
        /* There, a wrong head is told as soon as it is read. */
        check_bad(memory, region_bytes, CHUNK, workers[i], error, payload, 0);
        fclose(file);
        fclose(memory);
    }
}

static void test_bad_regions(void)
{
    bytes payload = payload_new(MIXED, 6 * CHUNK + 3);
    bytes region = region_of(payload, CHUNK);

    for (uint32_t chunk = 0; chunk < 7; chunk++) {
        size_t at = record_offset(region, chunk, DS4KV_FORM_PLAIN);
        bytes bad = bytes_copy(region);
        CASE("the head of record %u is wrong", chunk);
        set_u32(bad.at + at, CHUNK + 1);
        check_bad_everywhere(bad, bad.n, EBADMSG, payload, chunk * CHUNK);

        CASE("block %u is wrong", chunk);
        memcpy(bad.at, region.at, region.n);
        bad.at[at + DS4KV_RECORD_HEAD_SIZE] = 0xff; /* more literals than there are */
        memset(bad.at + at + DS4KV_RECORD_HEAD_SIZE + 1, 0xff, 2);
        check_bad_everywhere(bad, bad.n, EBADMSG, payload, chunk * CHUNK);
        free(bad.at);

        CASE("truncated in record %u", chunk);
        check_bad_everywhere((bytes){region.at, at + 9}, region.n, ENODATA, payload, chunk * CHUNK);
    }
    CASE("truncated in the frame");
    check_bad_everywhere((bytes){region.at, 11}, region.n, ENODATA, payload, 0);
    CASE("a region too small for its frame");
    check_bad_everywhere(region, 11, EBADMSG, payload, 0);
    CASE("a region too large for its records");
    check_bad_everywhere(region, region.n + 1, EBADMSG, payload, 6 * CHUNK);
    check_bad_everywhere(region, UINT64_MAX, EBADMSG, payload, 6 * CHUNK);
    CASE("a raw one that is truncated");
    FILE *file = file_of((bytes){payload.at, payload.n - 1});
    CHECK(fseek(file, FILE_START, SEEK_SET) == 0);
    check_bad(file, payload.n, 0, 0, ENODATA, payload, payload.n - 1);
    fclose(file);
    CASE("an unfinished region");
    memset(region.at, 0, DS4KV_FRAME_SIZE);
    check_bad_everywhere(region, region.n, EBADMSG, payload, 0);
    free(region.at);
    free(payload.at);
}

/* ---- the end at every moment, and fork ---- */

static void test_early_close(void)
{
    bytes payload = payload_new(MIXED, 6 * CHUNK);
    bytes region = region_of(payload, CHUNK), some = bytes_new(CHUNK / 2 + 1);
    for (size_t i = 0; i < COUNT(workers); i++)
        for (int reads = 0; reads < 12; reads++)
            for (int memory = 0; memory < 2; memory++) {
                CASE("closed after %d reads, workers %d%s", reads, workers[i], memory ? ", in memory" : "");
                FILE *in = memory ? fmemopen(region.at, region.n, "r") : file_with(region);
                FILE *stream = ds4kv_fopen_reader(in, region.n, CHUNK, workers[i], NULL);
                CHECK(stream);
                for (int k = 0; k < reads && k < 11; k++)
                    CHECK_EQ(fread(some.at, 1, some.n, stream), some.n);
                CHECK_EQ(fclose(stream), 0);
                fclose(in);
            }
    free(some.at);
    free(region.at);
    free(payload.at);
}

static void test_abandon(void)
{
    bytes payload = payload_new(MIXED, 6 * CHUNK + 100);
    bytes region = region_of(payload, CHUNK);
    for (size_t i = 0; i < COUNT(workers); i++)
        for (size_t n = 0; n <= payload.n; n += CHUNK / 2) {
            CASE("abandoned after %zu bytes, workers %d", n, workers[i]);
            FILE *out = tmpfile(), *in = file_with(region);
            FILE *save = ds4kv_fopen_writer(out, CHUNK, workers[i]);
            FILE *load = ds4kv_fopen_reader(in, region.n, CHUNK, workers[i], NULL);
            CHECK(save && fwrite(payload.at, 1, n, save) == n);
            CHECK(load && (n == 0 || fgetc(load) == payload.at[0]));
            long before = ftell(out);
            ds4kv_fabandon(save);
            ds4kv_fabandon(load);
            CHECK_EQ(ftell(out), before);
            CHECK(fseek(out, 0, SEEK_END) == 0);
            CHECK_EQ(ftell(out), before);
            rewind(out);
            if (before > DS4KV_FRAME_SIZE) /* of no records, it is the region of no payload */
                CHECK_FAILS(!ds4kv_fopen_reader(out, (uint64_t)before, CHUNK, 0, NULL), EBADMSG);
            rewind(out);
            save = ds4kv_fopen_writer(out, CHUNK, workers[i]); /* control: one that is closed after that is whole */
            CHECK(save && fwrite(payload.at, 1, n, save) == n && fclose(save) == 0);
            fclose(out);
            fclose(in);
        }
    free(region.at);
    free(payload.at);
}

/* Children come at every moment, and close the streams or flush all there are, as exit does. */
static void test_fork(int n_workers, bool closes)
{
    CASE("fork, workers %d%s", n_workers, closes ? ", closed" : ", flushed");
    bytes payload = payload_new(MIXED, 6 * CHUNK + 100);
    bytes region = region_of(payload, CHUNK), written = bytes_new(region.n), read = bytes_new(payload.n);
    FILE *in = file_with(region), *out = tmpfile();
    FILE *load = ds4kv_fopen_reader(in, region.n, CHUNK, n_workers, NULL);
    FILE *save = ds4kv_fopen_writer(out, CHUNK, n_workers);
    CHECK(load && save);
    fflush(NULL);
    for (size_t done = 0, part; done < payload.n; done += part) {
        part = least(CHUNK / 2 + 1, payload.n - done);
        CHECK_EQ(fwrite(payload.at + done, 1, part, save), part);
        CHECK_EQ(fread(read.at + done, 1, part, load), part);
        pid_t child = fork_child();
        if (child == 0) {
            if (!closes) {
                (void)fflush(NULL);
                _exit(0);
            }
            while (fgetc(load) != EOF) /* what is in its buffer */
                continue;
            CHECK(feof(load) || errno == EBADF);
            (void)fclose(load);
            CHECK_FAILS(fclose(save) == EOF, EBADF);
            CHECK_EQ(fclose(out), 0);
            _exit(0);
        }
        wait_for_child(child);
    }
    CHECK_EQ(fclose(save), 0);
    CHECK_EQ(fclose(load), 0);
    CHECK(bytes_equal(read, payload));
    check_trailer(in);
    CHECK_EQ(ftell(out), region.n);
    rewind(out);
    CHECK_EQ(fread(written.at, 1, written.n, out), region.n);
    CHECK(bytes_equal(written, region));
    CHECK_EQ(fgetc(out), EOF);
    fclose(in);
    fclose(out);
    free(read.at);
    free(written.at);
    free(region.at);
    free(payload.at);
}

static void test_fork_raw(void)
{
    CASE("fork, raw");
    bytes payload = payload_new(MIXED, 300000), read = bytes_new(payload.n);
    FILE *in = file_with(payload), *load = ds4kv_fopen_reader(in, payload.n, 0, 0, NULL);
    CHECK(load && fread(read.at, 1, 100, load) == 100);
    pid_t child = fork_child();
    if (child == 0) {
        CHECK(fread(read.at, 1, read.n, load) < read.n - 100 && ferror(load)); /* what is in its buffer */
        CHECK_EQ(errno, EBADF);
        CHECK_FAILS(fclose(load) == EOF, EBADF);
        _exit(0);
    }
    wait_for_child(child);
    CHECK(fread(read.at + 100, 1, read.n - 100, load) == read.n - 100 && bytes_equal(read, payload));
    CHECK_EQ(fclose(load), 0);
    check_trailer(in);
    fclose(in);
    free(read.at);
    free(payload.at);
}

int main(void)
{
    watchdog();
    test_round_trips();
    test_raw();
    test_refusals();
#ifdef __linux__
    test_workers_are_cut();
#endif
    test_full_disk();
    test_bad_regions();
    test_early_close();
    test_abandon();
    for (size_t i = 0; i < COUNT(workers); i++)
        for (int closes = 0; closes < 2; closes++)
            test_fork(workers[i], closes);
    test_fork_raw();
    return 0;
}
