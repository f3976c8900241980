/*
 * draft.c - the file that has no name yet: what is written beside its target, and takes its name when it is whole.
 *
 * It is called NAME.tmp.PID.8HEX, and its writer holds flock on it from its making to its end. The lock is what tells
 * that the writer lives: in another container its process id means nothing. A draft that nobody holds was left by a
 * process that was killed, and leftovers.c removes it.
 */
#define _GNU_SOURCE /* realpath, strndup, pwrite, clock_gettime */
#include "draft.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "cookie.h"
#include "leftovers.h"

#define ATTEMPTS 100

struct draft {
    cookie cookie; /* of its stream */
    char *target; /* absolute, without links */
    char *path;   /* NULL: there is no such file, or it has its name */
    int fd;       /* -1: none */
    int os_error; /* of the first write that failed */
    uint64_t at;  /* where the stream writes; a forked child moves its own copy */
    pid_t owner;
};

/* folder/name in memory of its own. */
static char *join(const char *folder, const char *name)
{
    size_t size = strlen(folder) + strlen(name) + 2;
    char *whole = malloc(size);
    if (whole)
        snprintf(whole, size, "%s/%s", folder, name);
    return whole;
}

/* The absolute path of what `path` leads to, through all links, even if there is no file yet where they lead. This
 * ends: of links that go in a circle realpath says ELOOP, not ENOENT. */
static char *resolve(const char *path)
{
    char *whole = realpath(path, NULL);
    if (whole || errno != ENOENT)
        return whole;

    const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
    char *parent = slash ? strndup(path, (size_t)(slash - path) + 1) : strdup(".");
    char *directory = parent ? realpath(parent, NULL) : NULL;
    free(parent);
    if (directory && *name == 0) {
        free(directory);
        errno = ENOENT;
        return NULL;
    }
    whole = directory ? join(directory, name) : NULL;

    char target[PATH_MAX];
    ssize_t n = whole ? readlink(whole, target, sizeof target - 1) : -1;
    if (n >= 0) {
        target[n] = 0;
        free(whole);
        whole = *target == '/' ? strdup(target) : join(directory, target);
        char *next = whole ? resolve(whole) : NULL;
        free(whole);
        whole = next;
    }
    free(directory);
    return whole;
}

/* Opens a file of a name that nobody has, beside the target. */
static int open_new(draft *draft)
{
    static atomic_uint count;
    char stem[LONGEST_STEM + 1];
    const char *name = strrchr(draft->target, '/') + 1;
    size_t size = (size_t)(name - draft->target) + sizeof stem + sizeof ".tmp.4294967295.01234567";
    char *path = malloc(size);
    if (!path)
        return ENOMEM;
    stem_of(name, stem);
    do {
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        uint32_t number = (uint32_t)now.tv_nsec ^ (uint32_t)now.tv_sec << 20 ^ (uint32_t)(uintptr_t)draft ^
                          atomic_fetch_add(&count, 1) * 0x9e3779b9;
        snprintf(path, size, "%.*s%s.tmp.%ld.%08" PRIx32, (int)(name - draft->target), draft->target, stem,
                 (long)draft->owner, number);
        draft->fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    } while (draft->fd < 0 && errno == EEXIST);
    if (draft->fd < 0) {
        int os_error = errno;
        free(path);
        return os_error;
    }
    draft->path = path;
    return 0;
}

static void close_file(draft *draft)
{
    if (draft->path && draft->owner == getpid())
        unlink(draft->path);
    if (draft->fd >= 0)
        close(draft->fd);
    free(draft->path);
    draft->path = NULL;
    draft->fd = -1;
}

/* Opens a new file and locks it. Between the two a sweeper may take it for a dead process's and remove it. So the name
 * is looked at once the file is locked, and if it is gone another one is made. */
static int open_held(draft *draft)
{
    for (int i = 0; i < ATTEMPTS; i++) {
        struct stat ours, there;
        int os_error = open_new(draft);
        if (os_error != 0)
            return os_error;
        os_error = lock_file(draft->fd);
        if (os_error != 0 && os_error != EWOULDBLOCK && !is_without_locks(os_error))
            return os_error;
        if (os_error != EWOULDBLOCK && fstat(draft->fd, &ours) == 0 && lstat(draft->path, &there) == 0 &&
            ours.st_ino == there.st_ino && ours.st_dev == there.st_dev)
            return 0;
        close_file(draft);
    }
    return EAGAIN;
}

/* Gives it the mode of the file that it replaces, and the owner and group where that is allowed. */
static int look_like(int fd, const struct stat *replaced)
{
    struct stat ours;
    mode_t mode = replaced->st_mode & 0777;
    if (fstat(fd, &ours) != 0)
        return errno;
    if (ours.st_uid != replaced->st_uid || ours.st_gid != replaced->st_gid) {
        /* Only root gives files away; a group that one is in can be had. */
        if (fchown(fd, replaced->st_uid, replaced->st_gid) != 0 && fchown(fd, (uid_t)-1, replaced->st_gid) != 0 &&
            errno != EPERM)
            return errno;
        if (fstat(fd, &ours) != 0)
            return errno;
        if (ours.st_gid != replaced->st_gid)
            mode = (mode & 0707) | (mode & 0007) << 3; /* the group is another one: it gets what all others have */
    }
    return (ours.st_mode & 07777) == mode || fchmod(fd, mode) == 0 ? 0 : errno;
}

int draft_new(draft **out, const char *path)
{
    struct stat replaced;
    draft *draft = calloc(1, sizeof *draft);
    if (!draft)
        return ENOMEM;
    draft->fd = -1;
    draft->owner = getpid();
    draft->target = resolve(path);
    int os_error = draft->target ? 0 : errno;
    bool replaces = os_error == 0 && stat(draft->target, &replaced) == 0;
    if (os_error == 0 && !replaces && errno != ENOENT)
        os_error = errno;
    if (replaces && !S_ISREG(replaced.st_mode))
        os_error = S_ISDIR(replaced.st_mode) ? EISDIR : EEXIST;
    if (os_error == 0) {
        sweep_now_and_then(draft->target);
        os_error = open_held(draft);
    }
    if (os_error == 0 && replaces)
        os_error = look_like(draft->fd, &replaced);
    if (os_error == 0)
        *out = draft;
    else
        draft_free(draft);
    return os_error;
}

const char *draft_target(const draft *draft)
{
    return draft->target;
}

const char *draft_path(const draft *draft)
{
    return draft->path;
}

int draft_fd(const draft *draft)
{
    return draft->fd;
}

int draft_error(const draft *draft)
{
    return draft->os_error;
}

int draft_publish(draft *draft)
{
    /* Some file systems tell only in close that they could not write, so the file is closed before it takes its name.
     * But it must stay locked until after that, or a sweeper could come between: a second descriptor keeps the lock. */
    int held = fcntl(draft->fd, F_DUPFD_CLOEXEC, 0);
    int os_error = held < 0 || close(draft->fd) != 0 ? errno : 0;
    if (held >= 0)
        draft->fd = held;
    if (os_error == 0 && rename(draft->path, draft->target) != 0)
        os_error = errno;
    if (os_error != 0)
        return os_error;
    free(draft->path);
    draft->path = NULL;
    return 0;
}

int draft_sync_name(const draft *draft)
{
    const char *slash = strrchr(draft->target, '/');
    char *directory = strndup(draft->target, (size_t)(slash - draft->target) + 1);
    int fd = directory ? open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
    int os_error = fd < 0 || fsync(fd) != 0 ? errno : 0;
    if (fd >= 0)
        close(fd);
    free(directory);
    return os_error;
}

void draft_free(draft *draft)
{
    if (!draft)
        return;
    close_file(draft);
    free(draft->target);
    free(draft);
}

/* ---- its stream: stdio's own would keep that a write failed, but not why ---- */

/* All n bytes, or an error. */
static int64_t put(cookie *cookie, const char *bytes, size_t n)
{
    draft *draft = (void *)cookie;
    size_t done = 0;
    if (draft->owner != getpid())
        return (int64_t)n; /* what a forked child flushes as it ends is the parent's to write */
    while (done < n && draft->os_error == 0) {
        ssize_t some = pwrite(draft->fd, bytes + done, n - done, (off_t)draft->at);
        if (some < 0 && errno == EINTR)
            continue;
        if (some <= 0) {
            draft->os_error = some < 0 ? errno : EIO;
        } else {
            done += (size_t)some;
            draft->at += (uint64_t)some;
        }
    }
    return done == n ? (int64_t)n : -draft->os_error;
}

static int64_t seek(cookie *cookie, int64_t offset, int whence)
{
    draft *draft = (void *)cookie;
    struct stat facts;
    if (whence == SEEK_CUR)
        offset += (int64_t)draft->at;
    if (whence == SEEK_END) {
        if (fstat(draft->fd, &facts) != 0)
            return -errno;
        offset += facts.st_size;
    }
    if (offset < 0)
        return -EINVAL;
    draft->at = (uint64_t)offset;
    return offset;
}

FILE *draft_stream(draft *draft)
{
    draft->cookie = (cookie){.write = put, .seek = seek};
    return cookie_open(&draft->cookie);
}
