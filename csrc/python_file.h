/*
 * python_file.h - a FILE * whose bytes come from Python and go there.
 *
 * For the extension alone, in which cffi has included Python's own header by then.
 */
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/types.h>

/* cffi makes them, of functions in ds4kv/core/c_file.py: bytes moved, or an errno below 0. */
static int64_t python_write(void *stream, const char *raw, size_t n);
static int64_t python_read(void *stream, char *raw, size_t n);

/* exit() flushes every FILE that is open, and there is no Python by then. */
#define IF_PYTHON(call) (Py_IsInitialized() ? (call) : -EBADF)

static ssize_t moved_or_errno(int64_t moved)
{
    if (moved >= 0)
        return (ssize_t)moved;
    errno = (int)-moved;
    return -1;
}

#if defined(__APPLE__) || defined(__FreeBSD__) || defined(__NetBSD__) || defined(__OpenBSD__) || defined(__DragonFly__)

static int write_some(void *stream, const char *raw, int n)
{
    return (int)moved_or_errno(IF_PYTHON(python_write(stream, raw, (size_t)n)));
}

static int read_some(void *stream, char *raw, int n)
{
    return (int)moved_or_errno(IF_PYTHON(python_read(stream, raw, (size_t)n)));
}

static FILE *open_stream(void *stream, int writes)
{
    return funopen(stream, writes ? NULL : read_some, writes ? write_some : NULL, NULL, NULL);
}

#elif defined(__linux__)

static ssize_t write_some(void *stream, const char *raw, size_t n)
{
    ssize_t moved = moved_or_errno(IF_PYTHON(python_write(stream, raw, n)));
#ifdef __GLIBC__ /* counts what is written without a look at its sign */
    return moved < 0 ? 0 : moved;
#else
    return moved;
#endif
}

static ssize_t read_some(void *stream, char *raw, size_t n)
{
    return moved_or_errno(IF_PYTHON(python_read(stream, raw, n)));
}

static FILE *open_stream(void *stream, int writes)
{
    return fopencookie(stream, writes ? "w" : "r", (cookie_io_functions_t){.read = read_some, .write = write_some});
}

#else

static FILE *open_stream(void *stream, int writes)
{
    (void)stream, (void)writes;
    errno = ENOSYS;
    return NULL;
}

#endif

/* errno, or 0. The buffer is stdio's until the file is closed. */
static int python_file_open(FILE **file, void *stream, int writes, char *buffer, size_t size)
{
    *file = open_stream(stream, writes);
    if (!*file)
        return errno;
    (void)setvbuf(*file, buffer, _IOFBF, size);
    return 0;
}

static void python_file_close(FILE **file)
{
    FILE *open = *file;
    *file = NULL;
    if (open)
        (void)fclose(open);
}
