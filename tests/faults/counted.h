/*
 * counted.h - which calls count, and which one is hit: a part of shim.c.
 *
 * Only what lies below the armed directory counts, so Python's own files are not hit. Memory counts where ds4kv's own
 * code asks for it, told by the return address; threads count whoever asks. One fault at a time.
 */

/* The numbers are those of KINDS and MODES in shim.py. */
enum { WRITE, PWRITE, READ, PREAD, FSYNC, RENAME, OPEN, UNLINK, FTRUNCATE, FALLOCATE, FLOCK, FCNTL, MALLOC, MMAP,
       THREAD, MKDIR, UTIME, CLOSE, OPENDIR, STAT, CHMOD, KIND_COUNT };
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
    char next = strncmp(path, directory, length) == 0 ? path[length] : 'x';
    return next == '/' || next == '\0' || next == ' '; /* of one that is removed, the kernel adds " (deleted)" */
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
