/*
 * python_file.h - a FILE * whose bytes come from Python and go there: the C half of ds4kv/core/c_file.py.
 *
 * For the extension alone, in which cffi has included Python's own header by then.
 */
#include <errno.h>
#include <stdlib.h>

#include "cookie.h"

#define PYTHON_BUFFER_SIZE (1 << 20) /* to fill or empty it takes the GIL, which a busy thread may hold for 5 ms */

typedef struct {
    cookie cookie;
    void *stream; /* what ffi.new_handle made */
    char buffer[PYTHON_BUFFER_SIZE];
} python_file;

/* cffi makes them, of functions in c_file.py: bytes moved, or an errno below 0. */
static int64_t python_write(void *stream, const char *raw, size_t n);
static int64_t python_read(void *stream, char *raw, size_t n);

/* exit() flushes every FILE that is open, and there is no Python by then. */
static int64_t write_to_python(cookie *cookie, const char *raw, size_t n)
{
    python_file *file = (void *)cookie;
    return Py_IsInitialized() ? python_write(file->stream, raw, n) : -EBADF;
}

static int64_t read_from_python(cookie *cookie, char *raw, size_t n)
{
    python_file *file = (void *)cookie;
    return Py_IsInitialized() ? python_read(file->stream, raw, n) : -EBADF;
}

static int free_python_file(cookie *cookie)
{
    free(cookie);
    return 0;
}

/* errno, or 0. */
static int python_file_open(FILE **out, void *stream, int writes)
{
    python_file *file = malloc(sizeof *file);
    if (!file)
        return ENOMEM;
    file->stream = stream;
    file->cookie = writes ? (cookie){.write = write_to_python, .close = free_python_file}
                          : (cookie){.read = read_from_python, .close = free_python_file};
    *out = cookie_open(&file->cookie);
    if (!*out) {
        int os_error = errno;
        free(file);
        return os_error;
    }
    (void)setvbuf(*out, file->buffer, _IOFBF, sizeof file->buffer);
    return 0;
}

static void python_file_close(FILE **file)
{
    FILE *open = *file;
    *file = NULL;
    if (open)
        (void)fclose(open);
}
