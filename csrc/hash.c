/*
 * hash.c - XXH3-64: the sum of a record as it is stored, of a text, of a trailer.
 *
 * A store keeps sums beside its files. They are of what is stored and not of the payload: that is fewer bytes to hash,
 * and damage is found before anything is decoded.
 */
#include "hash.h"

#include <stdlib.h>

#define XXH_INLINE_ALL
#include "ds4kv.h"
#include "file.h"
#include "xxhash.h"

#define PIECE ((size_t)128 << 10) /* hashed while it is in the cache that it was read to */

struct ds4kv_hasher {
    running_hash hash;
};

uint64_t ds4kv_hash(const void *bytes, size_t n)
{
    return ds4kv_hash_seeded(bytes, n, 0);
}

uint64_t ds4kv_hash_seeded(const void *bytes, size_t n, uint64_t seed)
{
    return XXH3_64bits_withSeed(bytes, n, seed);
}

_Static_assert(sizeof(XXH3_state_t) <= HASH_STATE_SIZE, "hash.h knows how much memory xxHash needs");

void running_hash_begin(running_hash *hash, uint64_t seed)
{
    XXH3_state_t *state = (void *)hash->state;
    XXH3_INITSTATE(state);
    XXH3_64bits_reset_withSeed(state, seed);
}

void running_hash_put(running_hash *hash, const uint8_t *bytes, size_t n)
{
    XXH3_64bits_update((void *)hash->state, bytes, n);
}

uint64_t running_hash_end(const running_hash *hash)
{
    return XXH3_64bits_digest((const void *)hash->state);
}

int ds4kv_hasher_new(ds4kv_hasher **out)
{
    *out = aligned_alloc(_Alignof(ds4kv_hasher), sizeof **out);
    if (!*out)
        return DS4KV_NOMEM;
    running_hash_begin(&(*out)->hash, 0);
    return DS4KV_OK;
}

void ds4kv_hasher_put(ds4kv_hasher *hasher, const void *bytes, size_t n)
{
    running_hash_put(&hasher->hash, bytes, n);
}

uint64_t ds4kv_hasher_take(ds4kv_hasher *hasher)
{
    uint64_t hash = running_hash_end(&hasher->hash);
    running_hash_begin(&hasher->hash, 0);
    return hash;
}

void ds4kv_hasher_free(ds4kv_hasher *hasher)
{
    free(hasher);
}

int file_read_hashed(int fd, void *bytes, size_t *n, uint64_t offset, const atomic_bool *stop, uint64_t *hash,
                     int *os_error)
{
    running_hash running;
    size_t wanted = *n;
    int status = DS4KV_OK;
    running_hash_begin(&running, 0);
    for (*n = 0; *n < wanted && status == DS4KV_OK;) {
        size_t piece = wanted - *n < PIECE ? wanted - *n : PIECE;
        status = file_read_until(fd, (uint8_t *)bytes + *n, &piece, offset + *n, stop, os_error);
        running_hash_put(&running, (uint8_t *)bytes + *n, piece);
        *n += piece;
    }
    *hash = running_hash_end(&running);
    return status;
}
