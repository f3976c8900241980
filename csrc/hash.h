/*
 * hash.h - the XXH3-64 of what is read from a file, made while it is still in the CPU's cache.
 *
 * hash.c has ds4kv_hash, ds4kv_hash_seeded and ds4kv_hasher as well; they are declared in ds4kv.h.
 */
#ifndef DS4KV_HASH_H
#define DS4KV_HASH_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#define HASH_STATE_SIZE 640 /* of xxHash's XXH3_state_t, or more */

/* An XXH3-64 of bytes that come by pieces, in the caller's own memory. */
typedef struct {
    _Alignas(64) uint8_t state[HASH_STATE_SIZE];
} running_hash;

void running_hash_begin(running_hash *hash, uint64_t seed);
void running_hash_put(running_hash *hash, const uint8_t *bytes, size_t n);
uint64_t running_hash_end(const running_hash *hash);

/* file_read_until, and the XXH3-64 of what was read. */
int file_read_hashed(int fd, void *bytes, size_t *n, uint64_t offset, const atomic_bool *stop, uint64_t *hash,
                     int *os_error);

#endif
