/*
 * test_draft.c - the file that has no name yet: who may take it away, what it looks like, and what comes of a failure.
 *
 * pwrite, flock and rename are this program's own, and fail where a test has them fail.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>

#include "ds4kv_file.h"
#include "region.h"

static char folder[] = "/tmp/ds4kv_test_XXXXXX";

static struct {
    long room;        /* bytes that pwrite takes yet; -1: any number */
    int flock_error;  /* of the first `flock_times` calls */
    int flock_times;
    int rename_error; /* 0: none */
} system_ = {.room = -1};

ssize_t pwrite(int fd, const void *bytes, size_t n, off_t offset)
{
    if (system_.room == 0 && n > 0) {
        errno = ENOSPC;
        return -1;
    }
    if (system_.room > 0 && n > (size_t)system_.room)
        n = (size_t)system_.room;
    ssize_t done = syscall(SYS_pwrite64, fd, bytes, n, offset);
    if (system_.room > 0 && done > 0)
        system_.room -= done;
    return done;
}

int flock(int fd, int how)
{
    if (system_.flock_times > 0) {
        system_.flock_times--;
        errno = system_.flock_error;
        return -1;
    }
    return (int)syscall(SYS_flock, fd, how);
}

int rename(const char *old, const char *new)
{
    if (system_.rename_error) {
        errno = system_.rename_error;
        return -1;
    }
    return (int)syscall(SYS_renameat2, AT_FDCWD, old, AT_FDCWD, new, 0);
}

static ds4kv_header header_of(int layout, int codec)
{
    return (ds4kv_header){.layout = (uint8_t)layout,
                          .quant_bits = 2,
                          .codec = (uint8_t)codec,
                          .tokens = 7,
                          .ctx_size = 4096,
                          .chunk_size = codec ? 1024 : 0};
}

static const char *in_folder(const char *name)
{
    static _Thread_local char path[64 + 300];
    snprintf(path, sizeof path, "%.63s/%.299s", folder, name);
    return path;
}

static void touch(const char *name, int seconds)
{
    int fd = open(in_folder(name), O_WRONLY | O_CREAT, 0600);
    struct timespec times[2] = {{.tv_sec = time(NULL) - seconds}, {.tv_sec = time(NULL) - seconds}};
    CHECK(fd >= 0 && futimens(fd, times) == 0 && close(fd) == 0);
}

static bool is_there(const char *name)
{
    return access(in_folder(name), F_OK) == 0;
}

static int count(const char *path)
{
    int n = 0;
    DIR *directory = opendir(path);
    CHECK(directory);
    for (struct dirent *found; (found = readdir(directory));)
        n += found->d_name[0] != '.';
    closedir(directory);
    return n;
}

static int descriptors(void)
{
    return count("/proc/self/fd");
}

static pid_t dead_pid(void)
{
    pid_t child = fork_child();
    if (child == 0)
        _exit(0);
    wait_for_child(child);
    return child;
}

static ds4kv_checkpoint *create(const char *name, int layout, int codec)
{
    ds4kv_header header = header_of(layout, codec);
    ds4kv_checkpoint *checkpoint;
    ds4kv_fault fault;
    int status = ds4kv_checkpoint_create(&checkpoint, in_folder(name), &header, "text", 4, 0, &fault);
    CHECK_EQ(fault.os_error * (status != DS4KV_OK), 0);
    CHECK_EQ(status, DS4KV_OK);
    return checkpoint;
}

static void save(const char *name)
{
    ds4kv_fault fault;
    ds4kv_checkpoint *checkpoint = create(name, DS4KV_LAYOUT_V2, DS4KV_CODEC_LZ4);
    CHECK(fputs("payload", checkpoint->payload) >= 0);
    CHECK_EQ(ds4kv_checkpoint_close(checkpoint, &fault), DS4KV_OK);
}

/* Saves until a sweep has taken this file: a sweep that was slow is not repeated soon. */
static void save_until_gone(const char *name)
{
    for (int i = 0; i < 1000 && is_there(name); i++) {
        save("a.kv");
        nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
    }
    CHECK(!is_there(name));
}

/* ---- a disk that is full ---- */

static const struct {
    int layout, codec;
} kinds[] = {{DS4KV_LAYOUT_V1, DS4KV_CODEC_NONE},
             {DS4KV_LAYOUT_V2, DS4KV_CODEC_NONE},
             {DS4KV_LAYOUT_V2, DS4KV_CODEC_LZ4},
             {DS4KV_LAYOUT_V2_CHECKED, DS4KV_CODEC_LZ4}};

/* Where the room ends within it, a save fails by ENOSPC, whether the engine looks at its calls or not. */
static void test_full_disk(void)
{
    bytes payload = payload_new(RANDOM, 40000);
    char trailer[3000] = "trailer";
    save("a.kv");
    int before = descriptors();
    for (size_t i = 0; i < COUNT(kinds); i++)
        for (int piece = 100; piece <= 40000; piece *= 20)
            for (long room = 0;; room += room < 60 ? 1 : 997) {
                CASE("layout %d, codec %d, pieces of %d, room for %ld", kinds[i].layout, kinds[i].codec, piece, room);
                ds4kv_header header = header_of(kinds[i].layout, kinds[i].codec);
                ds4kv_checkpoint *checkpoint;
                ds4kv_fault fault;
                system_.room = room;
                int status = ds4kv_checkpoint_create(&checkpoint, in_folder("a.kv"), &header, "text", 4, 0, &fault);
                if (status == DS4KV_OK) {
                    for (size_t at = 0; at < payload.n; at += (size_t)piece)
                        (void)!fwrite(payload.at + at, 1,
                                      at + (size_t)piece < payload.n ? (size_t)piece : payload.n - at,
                                      checkpoint->payload);
                    FILE *stream = room % 2 ? ds4kv_checkpoint_trailer(checkpoint) : NULL;
                    if (stream)
                        (void)!fwrite(trailer, 1, sizeof trailer, stream);
                    status = ds4kv_checkpoint_close(checkpoint, &fault);
                }
                bool fitted = system_.room > 0;
                system_.room = -1;
                CHECK_EQ(status, fitted ? DS4KV_OK : DS4KV_IO);
                CHECK(fitted || fault.os_error == ENOSPC);
                CHECK_EQ(count(folder), 1);
                CHECK_EQ(descriptors(), before);
                if (fitted)
                    break;
            }
    CHECK(unlink(in_folder("a.kv")) == 0);
    free(payload.at);
}

/* ---- leftovers ---- */

static void test_leftovers(void)
{
    CASE("what the dead left of a name");
    char names[9][64 + 300];
    pid_t dead = dead_pid();
    snprintf(names[0], sizeof names[0], "a.kv.tmp.%d.01234567", dead);
    snprintf(names[1], sizeof names[1], "a.kv.tmp.%d.01234567", getpid());
    snprintf(names[2], sizeof names[2], "a.kv.tmp.%d.01234568", getpid());
    snprintf(names[3], sizeof names[3], "a.kv.tmp.%d.01234569", dead);
    snprintf(names[4], sizeof names[4], "b.kv.tmp.%d.01234567", dead);
    snprintf(names[5], sizeof names[5], "a.kv.tmp.%d.0123456", dead);
    snprintf(names[6], sizeof names[6], "a.kv.tmp.%d.0123456X", dead);
    snprintf(names[7], sizeof names[7], "a.kv.tmp.+%d.01234567", dead);
    snprintf(names[8], sizeof names[8], "a.kv.tmp.%d", dead);
    for (int i = 0; i < 9; i++)
        touch(names[i], i == 0 || i == 2 ? 0 : 7200);
    int held = open(in_folder(names[3]), O_RDONLY);
    CHECK(held >= 0 && flock(held, LOCK_EX) == 0);
    save_until_gone(names[0]);
    for (int i = 0; i < 9; i++)
        CHECK_EQ(is_there(names[i]), i >= 2);
    close(held);
    save_until_gone(names[3]);

    CASE("without locks");
    touch(names[0], 7200);
    touch(names[1], 7200);
    touch(names[3], 3000);
    system_.flock_error = ENOLCK;
    system_.flock_times = 100000;
    save_until_gone(names[0]);
    system_.flock_times = 0;
    CHECK(is_there(names[1]) && is_there(names[3]));

    CASE("a link and a folder of such a name");
    CHECK(unlink(in_folder(names[1])) == 0 && unlink(in_folder(names[3])) == 0);
    CHECK(symlink("b.kv", in_folder(names[1])) == 0 && mkdir(in_folder(names[3]), 0700) == 0);
    touch(names[0], 0);
    save_until_gone(names[0]);
    CHECK(unlink(in_folder(names[1])) == 0 && rmdir(in_folder(names[3])) == 0);
    for (int i = 2; i < 9; i++)
        CHECK(i == 3 || unlink(in_folder(names[i])) == 0);
    CHECK(unlink(in_folder("a.kv")) == 0);
    CHECK_EQ(count(folder), 0);
}

/* The one file in the folder. */
static void find_only(char name[300])
{
    DIR *directory = opendir(folder);
    CHECK(directory && count(folder) == 1);
    for (struct dirent *found; (found = readdir(directory));)
        if (found->d_name[0] != '.')
            snprintf(name, 300, "%.255s", found->d_name);
    closedir(directory);
}

static void test_held(void)
{
    char name[300];
    ds4kv_fault fault;
    CASE("held while it is written");
    ds4kv_checkpoint *checkpoint = create("a.kv", DS4KV_LAYOUT_V1, DS4KV_CODEC_NONE);
    find_only(name);
    int fd = open(in_folder(name), O_RDONLY);
    CHECK(fd >= 0 && flock(fd, LOCK_SH | LOCK_NB) != 0 && errno == EWOULDBLOCK);
    CHECK_EQ(ds4kv_checkpoint_close(checkpoint, &fault), DS4KV_OK);
    CHECK(flock(fd, LOCK_SH | LOCK_NB) == 0);
    close(fd);

    CASE("a sweeper that is faster than the lock");
    system_.flock_error = EWOULDBLOCK;
    system_.flock_times = 3;
    save("a.kv");
    CHECK_EQ(system_.flock_times, 0);
    CHECK_EQ(count(folder), 1);

    CASE("a lock that fails otherwise, or never comes");
    ds4kv_header header = header_of(DS4KV_LAYOUT_V1, DS4KV_CODEC_NONE);
    int before = descriptors();
    for (int i = 0; i < 2; i++) {
        system_.flock_error = i ? EWOULDBLOCK : EIO;
        system_.flock_times = 1000;
        CHECK_EQ(ds4kv_checkpoint_create(&checkpoint, in_folder("a.kv"), &header, NULL, 0, 0, &fault), DS4KV_IO);
        CHECK_EQ(fault.os_error, i ? EAGAIN : EIO);
        system_.flock_times = 0;
        CHECK_EQ(count(folder), 1);
        CHECK_EQ(descriptors(), before);
    }

    CASE("a name that can't be taken");
    system_.rename_error = EACCES;
    checkpoint = create("a.kv", DS4KV_LAYOUT_V1, DS4KV_CODEC_NONE);
    CHECK_EQ(ds4kv_checkpoint_close(checkpoint, &fault), DS4KV_IO);
    CHECK_EQ(fault.os_error, EACCES);
    system_.rename_error = 0;
    CHECK_EQ(count(folder), 1);
    CHECK_EQ(descriptors(), before);
    CHECK(unlink(in_folder("a.kv")) == 0);
}

/* A child that ends by exit flushes what stdio has gathered; what it has of the parent's draft goes nowhere. */
static void test_fork(void)
{
    CASE("a forked child that exits");
    ds4kv_fault fault;
    ds4kv_checkpoint *checkpoint = create("a.kv", DS4KV_LAYOUT_V1, DS4KV_CODEC_NONE);
    CHECK(fputs("one ", checkpoint->payload) >= 0);
    pid_t child = fork_child();
    if (child == 0) {
        CHECK(fputs("the child's", checkpoint->payload) >= 0);
        fflush(NULL);
        _exit(0);
    }
    wait_for_child(child);
    CHECK(fputs("two", checkpoint->payload) >= 0);
    CHECK_EQ(ds4kv_checkpoint_close(checkpoint, &fault), DS4KV_OK);
    char read[20] = "";
    CHECK_EQ(ds4kv_checkpoint_open(&checkpoint, in_folder("a.kv"), 0, &fault), DS4KV_OK);
    CHECK_EQ(fread(read, 1, sizeof read - 1, checkpoint->payload), 7);
    CHECK(strcmp(read, "one two") == 0);
    CHECK_EQ(ds4kv_checkpoint_close(checkpoint, &fault), DS4KV_OK);
    CHECK(unlink(in_folder("a.kv")) == 0);
}

/* ---- what it looks like ---- */

static void test_modes(void)
{
    static const int modes[] = {0600, 0664, 0640, 0400, 0666};
    struct stat facts;
    char name[300];
    mode_t mask = umask(077);
    for (size_t i = 0; i < COUNT(modes); i++) {
        CASE("mode %o", modes[i]);
        save("a.kv");
        CHECK(stat(in_folder("a.kv"), &facts) == 0);
        CHECK_EQ(facts.st_mode & 07777, 0600);
        CHECK(chmod(in_folder("a.kv"), (mode_t)modes[i]) == 0);
        save("a.kv");
        CHECK(stat(in_folder("a.kv"), &facts) == 0);
        CHECK_EQ(facts.st_mode & 07777, modes[i]);
        CHECK(unlink(in_folder("a.kv")) == 0);
    }
    umask(mask);
    if (geteuid() == 0) {
        CASE("somebody else's");
        save("a.kv");
        CHECK(chmod(in_folder("a.kv"), 0660) == 0 && chown(in_folder("a.kv"), 1234, 5678) == 0);
        save("a.kv");
        CHECK(stat(in_folder("a.kv"), &facts) == 0);
        CHECK(facts.st_uid == 1234 && facts.st_gid == 5678 && (facts.st_mode & 07777) == 0660);
        CHECK(unlink(in_folder("a.kv")) == 0);
    }

    for (int n = 230; n <= 256; n++) {
        CASE("a name of %d bytes", n);
        memset(name, 'a', sizeof name);
        memcpy(name + n - 3, ".kv", 4);
        ds4kv_header header = header_of(DS4KV_LAYOUT_V1, DS4KV_CODEC_NONE);
        ds4kv_checkpoint *checkpoint;
        ds4kv_fault fault;
        if (n == 256) {
            CHECK_EQ(ds4kv_checkpoint_create(&checkpoint, in_folder(name), &header, NULL, 0, 0, &fault), DS4KV_IO);
            CHECK_EQ(fault.os_error, ENAMETOOLONG);
            break;
        }
        save(name);
        CHECK(is_there(name) && unlink(in_folder(name)) == 0);
    }
    CHECK_EQ(count(folder), 0);
}

int main(void)
{
    watchdog();
    CHECK(mkdtemp(folder));
    test_full_disk();
    test_leftovers();
    test_held();
    test_fork();
    test_modes();
    CHECK(rmdir(folder) == 0);
    return 0;
}
