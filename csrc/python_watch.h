/*
 * python_watch.h - which names of a directory change, as the kernel tells it.
 *
 * The danger: a kernel tells only what it has done itself. On a file system that other machines write to, or a process
 * behind FUSE, changes would go unseen. So only file systems are watched that are known to be this machine's alone.
 *
 * For the extension alone. Elsewhere than on Linux nothing is watched.
 */

#if defined(__linux__)

#include <sys/inotify.h>
#include <sys/vfs.h>
#include <unistd.h>

/* The numbers that statfs has for ext2 to ext4, XFS, Btrfs, F2FS, bcachefs, ZFS, tmpfs, ramfs and overlayfs. */
static const unsigned long WATCHED[] = {
    0xEF53, 0x58465342, 0x9123683E, 0xF2F52010, 0xCA451A4E, 0x2FC12FC1, 0x01021994, 0x858458F6, 0x794C7630,
};

static int watch_open(const char *directory)
{
    const uint32_t events = IN_ATTRIB | IN_CREATE | IN_DELETE | IN_MODIFY | IN_MOVED_FROM | IN_MOVED_TO |
                            IN_DELETE_SELF | IN_MOVE_SELF | IN_ONLYDIR;
    struct statfs status;
    if (statfs(directory, &status) != 0)
        return -1;
    size_t i = 0;
    while (i < sizeof WATCHED / sizeof *WATCHED && WATCHED[i] != (unsigned long)status.f_type)
        i++;
    if (i == sizeof WATCHED / sizeof *WATCHED)
        return -1;
    int fd = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
    if (fd >= 0 && inotify_add_watch(fd, directory, events) < 0) {
        close(fd);
        return -1;
    }
    return fd;
}

#else

static int watch_open(const char *directory)
{
    (void)directory;
    return -1;
}

#endif
