/*
 * recorded.h - every change below a directory, with its bytes, in the order in which they came: a part of shim.c. And
 * three lies, for who looks at a disk that was built from such a record, or is a copy of one: a file's inode and birth,
 * its device, and the boot's id.
 */

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
