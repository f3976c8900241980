/*
 * shim.c - calls of the C library that fail, come short, or kill the process, at the n-th of a kind; and a record.
 *
 * Loaded by LD_PRELOAD. Does nothing until shim_arm or shim_record is called, so imports are not hit. glibc only: the
 * real names of malloc are its own.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <link.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "counted.h"
#include "recorded.h"

#define REAL(result, name, ...) \
    static result (*real)(__VA_ARGS__); \
    if (!real) \
        real = (result(*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name)
#define FAILS(verdict_) ((verdict_) == FAIL)

static size_t half(size_t size)
{
    return size > 1 ? size / 2 : size;
}

static void die_if(int verdict_)
{
    if (verdict_ == KILL_SHORT)
        syscall(SYS_kill, getpid(), SIGKILL);
}

static ssize_t do_write(int fd, const void *data, size_t size, off_t offset, int is_at)
{
    int verdict_ = on_fd(is_at ? PWRITE : WRITE, fd);
    if (FAILS(verdict_))
        return -1;
    if (verdict_ == SHORT || verdict_ == KILL_SHORT)
        size = half(size);
    int recorded = begin(fd, 0, NULL);
    ssize_t n = is_at ? syscall(SYS_pwrite64, fd, data, size, offset) : syscall(SYS_write, fd, data, size);
    int error = errno;
    if (recorded && n > 0) {
        off_t start = is_at ? offset : lseek(fd, 0, SEEK_CUR) - n;
        note((struct event){.type = WRITTEN, .offset = start, .data_bytes = (uint64_t)n}, fd, NULL, NULL, data);
    }
    if (recorded)
        end();
    die_if(verdict_);
    errno = error;
    return n;
}

ssize_t write(int fd, const void *data, size_t size) { return do_write(fd, data, size, 0, 0); }
ssize_t pwrite(int fd, const void *data, size_t size, off_t offset) { return do_write(fd, data, size, offset, 1); }
ssize_t pwrite64(int fd, const void *data, size_t size, off_t offset) { return do_write(fd, data, size, offset, 1); }

/* Vectors are one plain call after the other: a short one is allowed to be. */
static ssize_t each(int fd, const struct iovec *pieces, int count, off_t offset, int is_at,
                    ssize_t (*one)(int, void *, size_t, off_t, int))
{
    ssize_t sum = 0;
    for (int i = 0; i < count; i++) {
        ssize_t n = one(fd, pieces[i].iov_base, pieces[i].iov_len, offset + sum, is_at);
        if (n < 0)
            return sum > 0 ? sum : n;
        sum += n;
        if ((size_t)n < pieces[i].iov_len)
            break;
    }
    return sum;
}

static ssize_t one_write(int fd, void *data, size_t size, off_t offset, int is_at)
{
    return do_write(fd, data, size, offset, is_at);
}

ssize_t writev(int fd, const struct iovec *pieces, int count) { return each(fd, pieces, count, 0, 0, one_write); }
ssize_t pwritev(int fd, const struct iovec *pieces, int count, off_t offset)
{
    return each(fd, pieces, count, offset, 1, one_write);
}
ssize_t pwritev64(int fd, const struct iovec *pieces, int count, off_t offset)
{
    return each(fd, pieces, count, offset, 1, one_write);
}
ssize_t pwritev2(int fd, const struct iovec *pieces, int count, off_t offset, int flags)
{
    (void)flags;
    return each(fd, pieces, count, offset, offset != -1, one_write);
}
ssize_t pwritev64v2(int fd, const struct iovec *pieces, int count, off_t offset, int flags)
{
    return pwritev2(fd, pieces, count, offset, flags);
}

static ssize_t do_read(int fd, void *data, size_t size, off_t offset, int is_at)
{
    int verdict_ = on_fd(is_at ? PREAD : READ, fd);
    if (FAILS(verdict_))
        return -1;
    if (verdict_ == END)
        return 0;
    if (verdict_ == SHORT)
        size = half(size);
    return is_at ? syscall(SYS_pread64, fd, data, size, offset) : syscall(SYS_read, fd, data, size);
}

ssize_t read(int fd, void *data, size_t size) { return do_read(fd, data, size, 0, 0); }
ssize_t pread(int fd, void *data, size_t size, off_t offset) { return do_read(fd, data, size, offset, 1); }
ssize_t pread64(int fd, void *data, size_t size, off_t offset) { return do_read(fd, data, size, offset, 1); }
ssize_t __read_chk(int fd, void *data, size_t size, size_t room) { (void)room; return do_read(fd, data, size, 0, 0); }
ssize_t __pread_chk(int fd, void *data, size_t size, off_t offset, size_t room)
{
    (void)room;
    return do_read(fd, data, size, offset, 1);
}
ssize_t __pread64_chk(int fd, void *data, size_t size, off_t offset, size_t room)
{
    (void)room;
    return do_read(fd, data, size, offset, 1);
}
ssize_t readv(int fd, const struct iovec *pieces, int count) { return each(fd, pieces, count, 0, 0, do_read); }
ssize_t preadv(int fd, const struct iovec *pieces, int count, off_t offset)
{
    return each(fd, pieces, count, offset, 1, do_read);
}
ssize_t preadv64(int fd, const struct iovec *pieces, int count, off_t offset)
{
    return each(fd, pieces, count, offset, 1, do_read);
}
ssize_t preadv2(int fd, const struct iovec *pieces, int count, off_t offset, int flags)
{
    (void)flags;
    return each(fd, pieces, count, offset, offset != -1, do_read);
}
ssize_t preadv64v2(int fd, const struct iovec *pieces, int count, off_t offset, int flags)
{
    return preadv2(fd, pieces, count, offset, flags);
}

static int do_sync(int fd, long number)
{
    if (FAILS(on_fd(FSYNC, fd)))
        return -1;
    int recorded = begin(fd, 0, NULL);
    int result = (int)syscall(number, fd);
    if (recorded) {
        if (result == 0)
            note((struct event){.type = SYNCED}, fd, NULL, NULL, NULL);
        end();
    }
    return result;
}

int fsync(int fd) { return do_sync(fd, SYS_fsync); }
int fdatasync(int fd) { return do_sync(fd, SYS_fdatasync); }

static int do_rename(int from_at, const char *from, int to_at, const char *to, unsigned flags)
{
    if (FAILS(on_path(RENAME, to_at, to)))
        return -1;
    int recorded = begin(-1, to_at, to);
    int result = (int)syscall(SYS_renameat2, from_at, from, to_at, to, flags);
    int error = errno;
    if (recorded) {
        char memory[8192], target[8192];
        if (result == 0)
            note((struct event){.type = RENAMED}, -1, full(from_at, from, memory, sizeof memory),
                 full(to_at, to, target, sizeof target), NULL);
        end();
    }
    errno = error;
    return result;
}

int rename(const char *from, const char *to) { return do_rename(AT_FDCWD, from, AT_FDCWD, to, 0); }
int renameat(int from_at, const char *from, int to_at, const char *to)
{
    return do_rename(from_at, from, to_at, to, 0);
}
int renameat2(int from_at, const char *from, int to_at, const char *to, unsigned flags)
{
    return do_rename(from_at, from, to_at, to, flags);
}

static int do_unlink(int at, const char *path, int flags)
{
    if (FAILS(on_path(UNLINK, at, path)))
        return -1;
    int recorded = begin(-1, at, path);
    int result = (int)syscall(SYS_unlinkat, at, path, flags);
    int error = errno;
    if (recorded) {
        char memory[8192];
        if (result == 0)
            note((struct event){.type = UNLINKED}, -1, full(at, path, memory, sizeof memory), NULL, NULL);
        end();
    }
    errno = error;
    return result;
}

int unlink(const char *path) { return do_unlink(AT_FDCWD, path, 0); }
int unlinkat(int at, const char *path, int flags) { return do_unlink(at, path, flags); }

static int do_open(int at, const char *path, int flags, mode_t mode)
{
    if (FAILS(on_path(OPEN, at, path)))
        return -1;
    int recorded = flags & (O_CREAT | O_TRUNC) ? begin(-1, at, path) : 0;
    int fd = (int)syscall(SYS_openat, at, lied_path(path), flags, mode);
    int error = errno;
    if (recorded) {
        char memory[8192];
        if (fd >= 0)
            note((struct event){.type = CREATED, .flags = (flags & O_TRUNC) != 0}, fd,
                 full(at, path, memory, sizeof memory), NULL, NULL);
        end();
    }
    errno = error;
    return fd;
}

#define WITH_MODE(flags) \
    mode_t mode = 0; \
    if ((flags) & O_CREAT || ((flags) & O_TMPFILE) == O_TMPFILE) { \
        va_list rest; \
        va_start(rest, flags); \
        mode = va_arg(rest, mode_t); \
        va_end(rest); \
    }

int open(const char *path, int flags, ...) { WITH_MODE(flags) return do_open(AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) { WITH_MODE(flags) return do_open(AT_FDCWD, path, flags, mode); }
int openat(int at, const char *path, int flags, ...) { WITH_MODE(flags) return do_open(at, path, flags, mode); }
int openat64(int at, const char *path, int flags, ...) { WITH_MODE(flags) return do_open(at, path, flags, mode); }
int __open_2(const char *path, int flags) { return do_open(AT_FDCWD, path, flags, 0); }
int __open64_2(const char *path, int flags) { return do_open(AT_FDCWD, path, flags, 0); }
int __openat_2(int at, const char *path, int flags) { return do_open(at, path, flags, 0); }
int __openat64_2(int at, const char *path, int flags) { return do_open(at, path, flags, 0); }

int close(int fd)
{
    int verdict_ = on_fd(CLOSE, fd), error = errno;
    int result = (int)syscall(SYS_close, fd); /* closed all the same, as Linux does it */
    if (!FAILS(verdict_))
        return result;
    errno = error;
    return -1;
}

static int do_ftruncate(int fd, off_t size)
{
    if (FAILS(on_fd(FTRUNCATE, fd)))
        return -1;
    int recorded = begin(fd, 0, NULL);
    int result = (int)syscall(SYS_ftruncate, fd, size);
    if (recorded) {
        if (result == 0)
            note((struct event){.type = TRUNCATED, .size = size}, fd, NULL, NULL, NULL);
        end();
    }
    return result;
}

int ftruncate(int fd, off_t size) { return do_ftruncate(fd, size); }
int ftruncate64(int fd, off_t size) { return do_ftruncate(fd, size); }

static int do_fallocate(int fd, off_t offset, off_t size)
{
    if (FAILS(on_fd(FALLOCATE, fd)))
        return armed.error;
    int recorded = begin(fd, 0, NULL);
    int result = (int)syscall(SYS_fallocate, fd, 0, offset, size);
    int error = errno;
    if (recorded) {
        if (result == 0)
            note((struct event){.type = RESERVED, .offset = offset, .size = size}, fd, NULL, NULL, NULL);
        end();
    }
    return result == 0 ? 0 : error;
}

int posix_fallocate(int fd, off_t offset, off_t size) { return do_fallocate(fd, offset, size); }
int posix_fallocate64(int fd, off_t offset, off_t size) { return do_fallocate(fd, offset, size); }

int flock(int fd, int operation)
{
    return FAILS(on_fd(FLOCK, fd)) ? -1 : (int)syscall(SYS_flock, fd, operation);
}

static int do_fcntl(int fd, int command, void *argument)
{
    int is_lock = command == F_SETLK || command == F_SETLKW || command == F_OFD_SETLK || command == F_OFD_SETLKW;
    return is_lock && FAILS(on_fd(FCNTL, fd)) ? -1 : (int)syscall(SYS_fcntl, fd, command, argument);
}

int fcntl(int fd, int command, ...)
{
    va_list rest;
    va_start(rest, command);
    void *argument = va_arg(rest, void *);
    va_end(rest);
    return do_fcntl(fd, command, argument);
}

int fcntl64(int fd, int command, ...)
{
    va_list rest;
    va_start(rest, command);
    void *argument = va_arg(rest, void *);
    va_end(rest);
    return do_fcntl(fd, command, argument);
}

int mkdir(const char *path, mode_t mode)
{
    if (FAILS(on_path(MKDIR, AT_FDCWD, path)))
        return -1;
    int recorded = begin(-1, AT_FDCWD, path);
    int result = (int)syscall(SYS_mkdirat, AT_FDCWD, path, mode);
    int error = errno;
    if (recorded) {
        if (result == 0)
            note((struct event){.type = MADE}, -1, path, NULL, NULL);
        end();
    }
    errno = error;
    return result;
}

int futimens(int fd, const struct timespec times[2])
{
    if (FAILS(on_fd(UTIME, fd)))
        return -1;
    int recorded = begin(fd, 0, NULL);
    int result = (int)syscall(SYS_utimensat, fd, NULL, times, 0);
    if (recorded) {
        if (result == 0)
            note((struct event){.type = TIMED}, fd, NULL, NULL, NULL);
        end();
    }
    return result;
}

int utimensat(int at, const char *path, const struct timespec times[2], int flags)
{
    if (!path)
        return futimens(at, times);
    if (FAILS(on_path(UTIME, at, path)))
        return -1;
    int result = (int)syscall(SYS_utimensat, at, path, times, flags);
    if (result == 0 && begin(-1, at, path)) {
        char memory[8192];
        int fd = (int)syscall(SYS_openat, at, path, O_PATH | O_CLOEXEC);
        note((struct event){.type = TIMED}, fd, full(at, path, memory, sizeof memory), NULL, NULL);
        syscall(SYS_close, fd);
        end();
    }
    return result;
}

int fchmod(int fd, mode_t mode) { return FAILS(on_fd(CHMOD, fd)) ? -1 : (int)syscall(SYS_fchmod, fd, mode); }
int fchown(int fd, uid_t user, gid_t group)
{
    return FAILS(on_fd(CHMOD, fd)) ? -1 : (int)syscall(SYS_fchown, fd, user, group);
}
int chmod(const char *path, mode_t mode)
{
    return FAILS(on_path(CHMOD, AT_FDCWD, path)) ? -1 : (int)syscall(SYS_chmod, path, mode);
}

DIR *opendir(const char *path)
{
    if (FAILS(on_path(OPENDIR, AT_FDCWD, path)))
        return NULL;
    REAL(DIR *, opendir, const char *);
    return real(path);
}

DIR *fdopendir(int fd)
{
    if (FAILS(on_fd(OPENDIR, fd)))
        return NULL;
    REAL(DIR *, fdopendir, int);
    return real(fd);
}

struct dirent64 *readdir64(DIR *folder)
{
    REAL(struct dirent64 *, readdir64, DIR *);
    struct dirent64 *found = real(folder);
    int i = found && alias_count > 0 ? alias_of(found->d_ino) : -1;
    if (i >= 0)
        found->d_ino = aliases[i].shown;
    return found;
}

struct dirent *readdir(DIR *folder) { return (struct dirent *)readdir64(folder); }

static int do_stat(int at, const char *path, struct stat *status, int flags)
{
    if (FAILS(path[0] ? on_path(STAT, at, path) : on_fd(STAT, at)))
        return -1;
    return show(status, (int)syscall(SYS_newfstatat, at, path, status, flags));
}

int stat(const char *path, struct stat *status) { return do_stat(AT_FDCWD, path, status, 0); }
int stat64(const char *path, struct stat64 *status) { return do_stat(AT_FDCWD, path, (struct stat *)status, 0); }
int lstat(const char *path, struct stat *status) { return do_stat(AT_FDCWD, path, status, AT_SYMLINK_NOFOLLOW); }
int lstat64(const char *path, struct stat64 *status)
{
    return do_stat(AT_FDCWD, path, (struct stat *)status, AT_SYMLINK_NOFOLLOW);
}
int fstat(int fd, struct stat *status) { return do_stat(fd, "", status, AT_EMPTY_PATH); }
int fstat64(int fd, struct stat64 *status) { return do_stat(fd, "", (struct stat *)status, AT_EMPTY_PATH); }
int fstatat(int at, const char *path, struct stat *status, int flags) { return do_stat(at, path, status, flags); }
int fstatat64(int at, const char *path, struct stat64 *status, int flags)
{
    return do_stat(at, path, (struct stat *)status, flags);
}

int statx(int at, const char *path, int flags, unsigned mask, struct statx *status)
{
    if (FAILS(path && path[0] ? on_path(STAT, at, path) : on_fd(STAT, at)))
        return -1;
    int result = (int)syscall(SYS_statx, at, path, flags, mask, status);
    int i = result == 0 && alias_count > 0 ? alias_of(status->stx_ino) : -1;
    if (i >= 0) {
        status->stx_ino = aliases[i].shown;
        status->stx_btime.tv_sec = aliases[i].birth_ns / 1000000000;
        status->stx_btime.tv_nsec = (uint32_t)(aliases[i].birth_ns % 1000000000);
    }
    return result;
}

#include "memory.h"
