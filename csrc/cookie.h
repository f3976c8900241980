/*
 * cookie.h - a FILE * whose bytes go through functions of ours, on any C library that can have one.
 *
 * C libraries have funopen or fopencookie for it, and differ in sizes, signs and places. Here there is one way:
 *
 *     typedef struct {
 *         cookie cookie;                         first: what the functions get is a pointer to it
 *         ...
 *     } thing;
 *     thing->cookie = (cookie){.write = thing_write, .close = thing_close};
 *     FILE *file = cookie_open(&thing->cookie);
 *
 * Laws:
 *   - read and write return the bytes moved, seek the new position; or an errno below 0. close returns an errno, or 0.
 *   - A write that moves fewer bytes than it was given has failed. A read of 0 bytes is the end.
 *   - close is called once, by fclose, and is the last to be called. So it may free the thing.
 */
#ifndef DS4KV_COOKIE_H
#define DS4KV_COOKIE_H

#include <stdint.h>
#include <stdio.h>

typedef struct cookie cookie;

struct cookie {
    int64_t (*read)(cookie *cookie, char *bytes, size_t n);        /* NULL: the stream is for writing */
    int64_t (*write)(cookie *cookie, const char *bytes, size_t n); /* NULL: it is for reading */
    int64_t (*seek)(cookie *cookie, int64_t offset, int whence);   /* NULL: it doesn't seek */
    int (*close)(cookie *cookie);                                  /* NULL: nothing is to be done */
};

/* NULL, with errno: ENOMEM, or ENOSYS where the C library has no such streams. close is not called then. */
FILE *cookie_open(cookie *cookie);

#endif
