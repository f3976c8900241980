/*
 * leftovers.c - the drafts that processes left when they were killed, and their removal.
 *
 * A draft is removed when its writer is dead:
 *
 *     somebody holds its lock                                          the writer lives
 *     nobody does, and its process id is no process's                  dead
 *     nobody does, and nobody has written to it for a minute           dead: the id is another process's by now
 *     there are no locks, the id is no process's, and an hour passed   dead
 *
 * The minute is for writers of older versions, which held only some of their drafts. The hour is for writers in another
 * container or on another machine, whose process ids mean nothing here.
 */
#define _GNU_SOURCE
#include "leftovers.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "ds4kv.h"
#include "sha1.h"

#define QUIET_SECONDS 60
#define UNKNOWN_SECONDS 3600
#define SWEEP_SHARE 100 /* time that passes between two sweeps of a directory, by what the first one took */

void stem_of(const char *name, char stem[LONGEST_STEM + 1])
{
    size_t n = strlen(name);
    if (n <= LONGEST_STEM) {
        memcpy(stem, name, n + 1);
        return;
    }
    size_t end = LONGEST_STEM - 9;
    while (((unsigned char)name[end] & 0xC0) == 0x80) /* within a character of UTF-8 */
        end--;
    char hex[41];
    sha1_hex(name, n, hex);
    snprintf(stem, LONGEST_STEM + 1, "%.*s~%.8s", (int)end, name, hex);
}

bool is_without_locks(int os_error)
{
    return os_error == ENOLCK || os_error == ENOSYS || os_error == EOPNOTSUPP;
}

int lock_file(int fd)
{
    int failed;
    do
        failed = flock(fd, LOCK_EX | LOCK_NB);
    while (failed && errno == EINTR);
    return failed ? errno : 0;
}

static bool is_alive(long pid)
{
    return kill((pid_t)pid, 0) == 0 || errno != ESRCH;
}

/* Whether an open draft, last written so many seconds ago, has no writer any more. Holds it then. */
static bool is_left(int fd, long pid, double seconds)
{
    bool alive = is_alive(pid);
    if (alive && seconds < QUIET_SECONDS)
        return false;
    int os_error = lock_file(fd);
    return os_error == 0 || (is_without_locks(os_error) && !alive && seconds >= UNKNOWN_SECONDS);
}

static void sweep_one(int directory, const char *name, long pid)
{
    struct stat facts;
    int fd = openat(directory, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (fd < 0)
        return; /* finished meanwhile, or somebody else's */
    if (fstat(fd, &facts) == 0 && S_ISREG(facts.st_mode) && is_left(fd, pid, difftime(time(NULL), facts.st_mtime)))
        (void)unlinkat(directory, name, 0); /* before the lock goes: its writer, if it just began, looks at the name */
    close(fd);
}

/* The process id in what follows a draft's stem: .tmp.PID.8HEX; -1: that is no draft's name. */
static long pid_of(const char *end)
{
    char *dot;
    if (strncmp(end, ".tmp.", 5) != 0 || end[5] < '0' || end[5] > '9')
        return -1;
    errno = 0;
    long pid = strtol(end + 5, &dot, 10);
    if (errno != 0 || pid > INT32_MAX || *dot != '.' || strlen(dot) != 9 || strspn(dot + 1, "0123456789abcdef") != 8)
        return -1;
    return pid;
}

static void sweep(const char *folder, const char *name)
{
    char stem[LONGEST_STEM + 1];
    stem_of(name, stem);
    size_t n = strlen(stem);
    DIR *directory = opendir(folder);
    if (!directory)
        return; /* whether it can be written to, the writing tells */
    for (struct dirent *found; (found = readdir(directory));) {
        long pid = strncmp(found->d_name, stem, n) == 0 ? pid_of(found->d_name + n) : -1;
        if (pid >= 0)
            sweep_one(dirfd(directory), found->d_name, pid);
    }
    closedir(directory);
}

static double monotonic(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

void sweep_now_and_then(const char *target)
{
    static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
    static struct {
        uint64_t folder; /* its hash */
        double ended, seconds;
    } last[16];

    const char *name = strrchr(target, '/') + 1;
    char *folder = strndup(target, (size_t)(name - target));
    if (!folder)
        return;
    uint64_t hash = ds4kv_hash(folder, strlen(folder));
    /* Who doesn't get it at once lets it be: another thread sweeps, or did when this process was forked from it. */
    if (pthread_mutex_trylock(&mutex) == 0) {
        double started = monotonic();
        bool is_same = last[hash % 16].folder == hash;
        if (!is_same || started - last[hash % 16].ended >= SWEEP_SHARE * last[hash % 16].seconds) {
            sweep(folder, name);
            last[hash % 16].folder = hash;
            last[hash % 16].ended = monotonic();
            last[hash % 16].seconds = last[hash % 16].ended - started;
        }
        pthread_mutex_unlock(&mutex);
    }
    free(folder);
}
