/*
 * file.c - parts of a file that someone else opened, read from it and sent to its disk.
 *
 * Nothing is asked for ahead of time: each worker reads a block of megabytes at once, which the kernel reads ahead by
 * itself, and posix_fadvise made cold loads no faster.
 */
#define _GNU_SOURCE /* pread, sync_file_range, statx */
#include "file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <sys/stat.h>
#include <unistd.h>

#include "copy.h"
#include "ds4kv.h"

#define TRIES 3
#define PIECE ((size_t)1 << 20) /* a tenth of a second from a disk of 10 MB/s */

/* Some processors copy slowly, by the instruction that the kernel copies with, to where the last 12 bits of the address
 * are 1 to 31 above those of the source: at 2 GB/s, not 7 to 10, on an AMD EPYC. A file's page has its own offset in it.
 * One text in 130 is of a length that makes all of a payload lie so. It is then read to other memory, and copied. */
#define PAGE 4096
#define SLOW_DISTANCE 32
#define DETOUR ((size_t)32 << 10) /* stays in the nearest caches, and on any thread's stack */

static bool lies_badly(const uint8_t *to, uint64_t offset)
{
    return ((uintptr_t)to - offset - 1) % PAGE < SLOW_DISTANCE - 1;
}

static ssize_t read_some(int fd, uint8_t *to, size_t n, uint64_t offset)
{
    if (n < PAGE || !lies_badly(to, offset))
        return pread(fd, to, n, (off_t)offset);
    uint8_t memory[DETOUR + SLOW_DISTANCE];
    uint8_t *by = lies_badly(memory, offset) ? memory + SLOW_DISTANCE : memory;
    ssize_t got = pread(fd, by, n < DETOUR ? n : DETOUR, (off_t)offset);
    if (got > 0)
        copy_far(to, by, (size_t)got);
    return got;
}

int file_read(int fd, void *bytes, size_t *n, uint64_t offset, int *os_error)
{
    size_t wanted = *n;
    int tries = 0;
    *n = 0;
    while (*n < wanted) {
        ssize_t got = read_some(fd, (uint8_t *)bytes + *n, wanted - *n, offset + *n);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0) {
            *os_error = errno;
            return DS4KV_IO;
        }
        if (got == 0) {
            /* No bytes, though the file is longer: it may have grown just now, or the file system is wrong. */
            struct stat status;
            if (fstat(fd, &status) != 0 || (uint64_t)status.st_size <= offset + *n)
                return DS4KV_TRUNCATED;
            if (tries++ == TRIES) {
                *os_error = EIO;
                return DS4KV_IO;
            }
        }
        *n += (size_t)got;
    }
    return DS4KV_OK;
}

int file_read_until(int fd, void *bytes, size_t *n, uint64_t offset, const atomic_bool *stop, int *os_error)
{
    size_t wanted = *n;
    int status = DS4KV_OK;
    for (*n = 0; *n < wanted && status == DS4KV_OK;) {
        size_t piece = wanted - *n < PIECE ? wanted - *n : PIECE;
        if (atomic_load(stop))
            return DS4KV_STATE;
        status = file_read(fd, (uint8_t *)bytes + *n, &piece, offset + *n, os_error);
        *n += piece;
    }
    return status;
}

void ds4kv_file_write_out(int fd, uint64_t offset, uint64_t n)
{
#ifdef SYNC_FILE_RANGE_WRITE
    (void)sync_file_range(fd, (off_t)offset, (off_t)n, SYNC_FILE_RANGE_WRITE); /* what fails now fails in the fsync */
#else
    (void)fd, (void)offset, (void)n;
#endif
}

uint64_t ds4kv_file_birth(int fd)
{
#if defined(STATX_BTIME)
    struct statx facts;
    if (statx(fd, "", AT_EMPTY_PATH, STATX_BTIME, &facts) != 0 || !(facts.stx_mask & STATX_BTIME))
        return 0;
    return (uint64_t)facts.stx_btime.tv_sec * 1000000000 + facts.stx_btime.tv_nsec;
#elif defined(__APPLE__)
    struct stat facts;
    if (fstat(fd, &facts) != 0)
        return 0;
    return (uint64_t)facts.st_birthtimespec.tv_sec * 1000000000 + (uint64_t)facts.st_birthtimespec.tv_nsec;
#else
    (void)fd;
    return 0;
#endif
}
