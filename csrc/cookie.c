/*
 * cookie.c - a FILE * whose bytes go through functions of ours.
 */
#define _GNU_SOURCE /* fopencookie */
#include "cookie.h"

#include <errno.h>
#include <sys/types.h>

#if defined(__APPLE__) || defined(__FreeBSD__) || defined(__NetBSD__) || defined(__OpenBSD__) || defined(__DragonFly__)
#define HAS_FUNOPEN
#elif defined(__linux__)
#define HAS_FOPENCOOKIE
#endif

#if defined(HAS_FUNOPEN) || defined(HAS_FOPENCOOKIE)

static int64_t or_errno(int64_t moved)
{
    if (moved >= 0)
        return moved;
    errno = (int)-moved;
    return -1;
}

static int close_it(void *thing)
{
    int os_error = ((cookie *)thing)->close(thing);
    return os_error == 0 ? 0 : (int)or_errno(-os_error);
}

#endif

#ifdef HAS_FUNOPEN

static int read_some(void *thing, char *bytes, int n)
{
    return (int)or_errno(((cookie *)thing)->read(thing, bytes, (size_t)n));
}

static int write_some(void *thing, const char *bytes, int n)
{
    return (int)or_errno(((cookie *)thing)->write(thing, bytes, (size_t)n));
}

static fpos_t seek_to(void *thing, fpos_t offset, int whence)
{
    return (fpos_t)or_errno(((cookie *)thing)->seek(thing, (int64_t)offset, whence));
}

FILE *cookie_open(cookie *cookie)
{
    return funopen(cookie, cookie->read ? read_some : NULL, cookie->write ? write_some : NULL,
                   cookie->seek ? seek_to : NULL, cookie->close ? close_it : NULL);
}

#elif defined(HAS_FOPENCOOKIE)

static ssize_t read_some(void *thing, char *bytes, size_t n)
{
    return (ssize_t)or_errno(((cookie *)thing)->read(thing, bytes, n));
}

static ssize_t write_some(void *thing, const char *bytes, size_t n)
{
    ssize_t moved = (ssize_t)or_errno(((cookie *)thing)->write(thing, bytes, n));
#ifdef __GLIBC__ /* takes -1 for a number of bytes; what it takes for an error is fewer than n */
    return moved < 0 ? 0 : moved;
#else
    return moved;
#endif
}

#ifdef __GLIBC__
static int seek_to(void *thing, off64_t *offset, int whence)
#else
static int seek_to(void *thing, off_t *offset, int whence)
#endif
{
    *offset = or_errno(((cookie *)thing)->seek(thing, *offset, whence));
    return *offset < 0 ? -1 : 0;
}

FILE *cookie_open(cookie *cookie)
{
    cookie_io_functions_t functions = {
        .read = cookie->read ? read_some : NULL,
        .write = cookie->write ? write_some : NULL,
        .seek = cookie->seek ? seek_to : NULL,
        .close = cookie->close ? close_it : NULL,
    };
    return fopencookie(cookie, cookie->read ? "r" : "w", functions);
}

#else

FILE *cookie_open(cookie *cookie)
{
    (void)cookie;
    errno = ENOSYS;
    return NULL;
}

#endif
