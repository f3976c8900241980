/*
 * stdio.c - what does a FILE * of a payload cost: seconds, and memory beyond the engine's own?
 *
 *     make -C csrc && cc -O2 -Icsrc -o /tmp/stdio bench/stdio.c csrc/build/libds4kv.a -pthread
 *     /tmp/stdio PATH MIB WORKERS PIECE
 *
 * Saves MIB MiB to PATH by fwrites of PIECE bytes and loads them by freads of as many, with chunks of 16 MiB. Memory is
 * the process's peak over what it had with its payload ready.
 */
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <time.h>

#include "ds4kv_stdio.h"

#define CHUNK_SIZE (16 << 20)

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

static double peak_mib(void)
{
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
#ifdef __APPLE__
    return (double)usage.ru_maxrss / (1 << 20);
#else
    return (double)usage.ru_maxrss / 1024;
#endif
}

static void must(int holds, const char *what)
{
    if (!holds) {
        perror(what);
        exit(1);
    }
}

int main(int argc, char **argv)
{
    must(argc == 5, "usage: stdio PATH MIB WORKERS PIECE");
    size_t pieces = ((size_t)atoi(argv[2]) << 20) / strtoul(argv[4], NULL, 10), piece = strtoul(argv[4], NULL, 10);
    int workers = atoi(argv[3]);

    /* Half noise, half not, as KV is; in a cycle that no window of LZ4's spans. */
    size_t n = piece > 8 << 20 ? piece : 8 << 20;
    unsigned char *payload = malloc(n);
    must(payload != NULL, "malloc");
    unsigned noise = 1;
    for (size_t i = 0; i < n; i++) {
        noise = noise * 1664525 + 1013904223;
        payload[i] = i / 32 % 2 ? (unsigned char)(noise >> 24) : (unsigned char)(i / 64 % 7);
    }

    double before = peak_mib(), start = now();
    FILE *file = fopen(argv[1], "w+b");
    must(file != NULL, argv[1]);
    FILE *stream = ds4kv_fopen_writer(file, CHUNK_SIZE, workers);
    must(stream != NULL, "ds4kv_fopen_writer");
    for (size_t i = 0; i < pieces; i++)
        must(fwrite(payload + i * piece % (n - piece + 1), 1, piece, stream) == piece, "fwrite");
    must(fclose(stream) == 0, "fclose");
    double saved = now(), save_peak = peak_mib();
    uint64_t region_bytes = (uint64_t)ftell(file);

    rewind(file);
    stream = ds4kv_fopen_reader(file, region_bytes, CHUNK_SIZE, workers, NULL);
    must(stream != NULL, "ds4kv_fopen_reader");
    for (size_t i = 0; i < pieces; i++)
        must(fread(payload, 1, piece, stream) == piece, "fread");
    must(fclose(stream) == 0, "fclose");
    printf("save %.3f s, load %.3f s, region %.1f MiB, extra memory %.1f MiB saving, %.1f MiB in all\n", saved - start,
           now() - saved, (double)region_bytes / (1 << 20), save_peak - before, peak_mib() - before);
    fclose(file);
    free(payload);
    return 0;
}
