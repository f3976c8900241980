/*
 * hash.h - the XXH3-64 of what is read from a file, made while it is still in the CPU's cache.
 *
 * hash.c has ds4kv_hash and ds4kv_hasher as well; they are declared in ds4kv.h.
 */
#ifndef DS4KV_HASH_H
#define DS4KV_HASH_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

/* file_read_until, and the XXH3-64 of what was read. */
int file_read_hashed(int fd, void *bytes, size_t *n, uint64_t offset, const atomic_bool *stop, uint64_t *hash,
                     int *os_error);

#endif
