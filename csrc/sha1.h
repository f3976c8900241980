/*
 * sha1.h - SHA-1, which names of files are made of.
 */
#ifndef DS4KV_SHA1_H
#define DS4KV_SHA1_H

#include <stddef.h>

/* The SHA-1 of n bytes as 40 hex digits, lower case, and a NUL. */
void sha1_hex(const void *bytes, size_t n, char hex[41]);

#endif
