/*
 * shim.c - calls of the C library that fail, come short, or kill the process, at the n-th of a kind.
 *
 * Loaded by LD_PRELOAD; does nothing until shim_arm is called, so imports are not hit. Only what lies below the armed
 * directory counts, so Python's own files are not hit either. Memory counts where ds4kv's own code asks for it, told by
 * the return address; threads and directories count whoever asks. One fault at a time.
 *
 * It can also record: every change below a directory, with its bytes, in the order in which they came. And it can lie
 * about three things, for what such a record says of a disk: a file's inode and birth, its device, and the boot's id.
 *
 * glibc only: malloc's real names are its own.
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

/* The numbers are those of KINDS and MODES in shim.py. */
enum { WRITE, PWRITE, READ, PREAD, FSYNC, RENAME, OPEN, UNLINK, FTRUNCATE, FALLOCATE, FLOCK, FCNTL, MALLOC, MMAP, THREAD,
       MKDIR, UTIME, CLOSE, OPENDIR, STAT, CHMOD, KIND_COUNT };
enum { PASS, FAIL, SHORT, END, KILL, KILL_SHORT };

static struct {
    int on, kind, mode, error, sticky;
    long n;
    char directory[4096];
    size_t length;
} armed;
static atomic_long counts[KIND_COUNT];
static atomic_long fired;

/* ---- which calls count ---- */

static struct { uintptr_t start, end; } own[8];
static int own_count;

static int add_own(struct dl_phdr_info *info, size_t size, void *unused)
{
    (void)size, (void)unused;
    const char *name = info->dlpi_name;
    if (!strstr(name, "/_native.") && !strstr(name, "/libds4kv") && !strstr(name, "/mmap."))
        return 0;
    for (int i = 0; i < info->dlpi_phnum && own_count < 8; i++)
        if (info->dlpi_phdr[i].p_type == PT_LOAD && info->dlpi_phdr[i].p_flags & PF_X) {
            own[own_count].start = info->dlpi_addr + info->dlpi_phdr[i].p_vaddr;
            own[own_count].end = own[own_count].start + info->dlpi_phdr[i].p_memsz;
            own_count++;
        }
    return 0;
}

static int is_own(void *caller)
{
    for (int i = 0; i < own_count; i++)
        if ((uintptr_t)caller >= own[i].start && (uintptr_t)caller < own[i].end)
            return 1;
    return 0;
}

static int below(const char *path, const char *directory, size_t length)
{
    return strncmp(path, directory, length) == 0 && (path[length] == '/' || path[length] == '\0' || path[length] == ' ');
}

static int path_of(int fd, char *path, size_t size)
{
    char link[40];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    long n = syscall(SYS_readlinkat, AT_FDCWD, link, path, size - 1);
    path[n < 0 ? 0 : n] = '\0';
    return n >= 0;
}

static const char *full(int at, const char *path, char *memory, size_t size)
{
    if (path[0] == '/')
        return path;
    char folder[4096];
    if (at == AT_FDCWD) {
        if (syscall(SYS_getcwd, folder, sizeof folder) < 0)
            return path;
    } else if (!path_of(at, folder, sizeof folder)) {
        return path;
    }
    snprintf(memory, size, "%s/%s", folder, path);
    return memory;
}

/* PASS, or what is to be done in place of the call; errno is set. */
static int verdict(int kind)
{
    long count = atomic_fetch_add(&counts[kind], 1) + 1;
    if (armed.mode == PASS || kind != armed.kind || (armed.sticky ? count < armed.n : count != armed.n))
        return PASS;
    atomic_fetch_add(&fired, 1);
    if (armed.mode == KILL)
        syscall(SYS_kill, getpid(), SIGKILL);
    errno = armed.error;
    return armed.mode;
}

static int on_fd(int kind, int fd)
{
    if (!armed.on)
        return PASS;
    int before = errno;
    char path[4096];
    int counts_here = path_of(fd, path, sizeof path) && below(path, armed.directory, armed.length);
    errno = before;
    return counts_here ? verdict(kind) : PASS;
}

static int on_path(int kind, int at, const char *path)
{
    char memory[8192];
    if (!armed.on || !path || !below(full(at, path, memory, sizeof memory), armed.directory, armed.length))
        return PASS;
    return verdict(kind);
}

static int on_caller(int kind, void *caller)
{
    return armed.on && is_own(caller) ? verdict(kind) : PASS;
}

/* ---- what Python calls ---- */

void shim_arm(const char *directory, int kind, long n, int mode, int error, int sticky)
{
    own_count = 0;
    dl_iterate_phdr(add_own, NULL);
    for (int i = 0; i < KIND_COUNT; i++)
        counts[i] = 0;
    fired = 0;
    armed.kind = kind, armed.n = n, armed.mode = mode, armed.error = error, armed.sticky = sticky;
    snprintf(armed.directory, sizeof armed.directory, "%s", directory);
    armed.length = strlen(armed.directory);
    armed.on = 1;
}

void shim_disarm(void)
{
    armed.on = 0;
}

long shim_count(int kind)
{
    return counts[kind];
}

long shim_fired(void)
{
    return fired;
}

/* ---- the record ---- */

enum { CREATED = 1, WRITTEN, TRUNCATED, RENAMED, UNLINKED, SYNCED, TIMED, MADE, RESERVED };

static struct {
    int fd;
    char directory[4096];
    size_t length;
} record = {.fd = -1};
static pthread_mutex_t recording = PTHREAD_MUTEX_INITIALIZER;

struct event {
    uint32_t type, path_bytes, target_bytes, flags;
    uint64_t inode;
    int64_t offset, size, mtime_ns, birth_ns;
    uint64_t data_bytes;
};

void shim_record(const char *directory, int fd)
{
    snprintf(record.directory, sizeof record.directory, "%s", directory);
    record.length = strlen(record.directory);
    record.fd = fd;
}

static void put(const void *data, size_t size)
{
    for (const char *at = data; size > 0;) {
        long n = syscall(SYS_write, record.fd, at, size);
        if (n < 0)
            abort();
        at += n, size -= (size_t)n;
    }
}

static void note(struct event event, int fd, const char *path, const char *target, const void *data)
{
    struct statx status = {0};
    if (fd >= 0 && syscall(SYS_statx, fd, "", AT_EMPTY_PATH, STATX_BASIC_STATS | STATX_BTIME, &status) == 0) {
        event.inode = status.stx_ino;
        event.mtime_ns = status.stx_mtime.tv_sec * 1000000000LL + status.stx_mtime.tv_nsec;
        event.birth_ns = status.stx_btime.tv_sec * 1000000000LL + status.stx_btime.tv_nsec;
    }
    event.path_bytes = path ? (uint32_t)strlen(path) : 0;
    event.target_bytes = target ? (uint32_t)strlen(target) : 0;
    put(&event, sizeof event);
    put(path, event.path_bytes);
    put(target, event.target_bytes);
    put(data, event.data_bytes);
}

/* Around a call that changes something: its place in the record is its place in the order. */
static int begin(int fd, int at, const char *path)
{
    char memory[8192];
    if (record.fd < 0)
        return 0;
    int before = errno;
    const char *where = path ? full(at, path, memory, sizeof memory) : path_of(fd, memory, sizeof memory) ? memory : "";
    errno = before;
    if (!below(where, record.directory, record.length))
        return 0;
    pthread_mutex_lock(&recording);
    return 1;
}

static void end(void)
{
    pthread_mutex_unlock(&recording);
}

/* ---- the lies ---- */

static struct { uint64_t inode, shown; int64_t birth_ns; } aliases[4096];
static int alias_count;
static dev_t device, device_shown;
static char boot_id_path[4096];

void shim_alias(uint64_t inode, uint64_t shown, int64_t birth_ns)
{
    if (alias_count < 4096) {
        aliases[alias_count].inode = inode;
        aliases[alias_count].shown = shown;
        aliases[alias_count++].birth_ns = birth_ns;
    }
}

void shim_device(uint64_t is, uint64_t shown)
{
    device = is;
    device_shown = shown;
}

void shim_boot_id(const char *path)
{
    snprintf(boot_id_path, sizeof boot_id_path, "%s", path);
}

static const char *lied_path(const char *path)
{
    return boot_id_path[0] && strcmp(path, "/proc/sys/kernel/random/boot_id") == 0 ? boot_id_path : path;
}

static int alias_of(uint64_t inode)
{
    for (int i = 0; i < alias_count; i++)
        if (aliases[i].inode == inode)
            return i;
    return -1;
}

static int show(struct stat *status, int result)
{
    int i = result == 0 && alias_count > 0 ? alias_of(status->st_ino) : -1;
    if (i >= 0)
        status->st_ino = aliases[i].shown;
    if (result == 0 && device != 0 && status->st_dev == device)
        status->st_dev = device_shown;
    return result;
}

/* ---- the calls ---- */

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
int renameat(int from_at, const char *from, int to_at, const char *to) { return do_rename(from_at, from, to_at, to, 0); }
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
            note((struct event){.type = CREATED, .flags = (flags & O_TRUNC) != 0}, fd, full(at, path, memory, sizeof memory),
                 NULL, NULL);
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

/* ---- memory and threads ---- */

extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t),
    *__libc_memalign(size_t, size_t);

#define CALLER __builtin_return_address(0)

void *malloc(size_t size) { return FAILS(on_caller(MALLOC, CALLER)) ? NULL : __libc_malloc(size); }
void *calloc(size_t count, size_t size)
{
    return FAILS(on_caller(MALLOC, CALLER)) ? NULL : __libc_calloc(count, size);
}
void *realloc(void *memory, size_t size)
{
    return FAILS(on_caller(MALLOC, CALLER)) ? NULL : __libc_realloc(memory, size);
}
void *aligned_alloc(size_t alignment, size_t size)
{
    return FAILS(on_caller(MALLOC, CALLER)) ? NULL : __libc_memalign(alignment, size);
}
int posix_memalign(void **memory, size_t alignment, size_t size)
{
    void *found = FAILS(on_caller(MALLOC, CALLER)) ? NULL : __libc_memalign(alignment, size);
    if (!found)
        return ENOMEM;
    *memory = found;
    return 0;
}

static void *do_mmap(void *where, size_t size, int protection, int flags, int fd, off_t offset, void *caller)
{
    if (FAILS(on_caller(MMAP, caller)))
        return MAP_FAILED;
    return (void *)syscall(SYS_mmap, where, size, protection, flags, fd, offset);
}

void *mmap(void *where, size_t size, int protection, int flags, int fd, off_t offset)
{
    return do_mmap(where, size, protection, flags, fd, offset, CALLER);
}
void *mmap64(void *where, size_t size, int protection, int flags, int fd, off_t offset)
{
    return do_mmap(where, size, protection, flags, fd, offset, CALLER);
}

int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*run)(void *), void *argument)
{
    if (armed.on && FAILS(verdict(THREAD)))
        return EAGAIN;
    REAL(int, pthread_create, pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
    return real(thread, attributes, run, argument);
}
