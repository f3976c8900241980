/*
 * block.c - LZ4 blocks: bytes to a block at a level, and back.
 *
 * Level -1 is runs.c's.
 *
 * Level 0 gives the bytes of LZ4_compress_default, which is LZ4_compress_fast_extState at acceleration 1; the state is
 * given so that a worker sets it up in memory that it owns and not on a stack whose size the host chose.
 */
#include "block.h"

#include <string.h>

#include "frame.h"
#include "lz4.h"
#include "lz4hc.h"
#include "runs.h"

#define SLOW_SIZE ((size_t)64 << 10)
#define SURELY_BETTER 32 /* by 1 part of so many */

_Static_assert(BLOCK_BOUND(DS4KV_MAX_CHUNK_SIZE) == LZ4_COMPRESSBOUND(DS4KV_MAX_CHUNK_SIZE),
               "frame.h knows how large a block of LZ4 may be");

const char *ds4kv_lz4_version(void)
{
    return LZ4_versionString();
}

size_t block_state_size(int level)
{
    return (size_t)(level < 0 ? 0 : level == 0 ? LZ4_sizeofState() : LZ4_sizeofStateHC());
}

bool block_allocates(int level)
{
    return level >= LZ4HC_CLEVEL_OPT_MIN;
}

/* Above level 0: at the last level 64 KiB take 25 ms and 16 MiB 6 s. Level 0 takes 10 ms for 16 MiB, level 1 0.1 s. */
bool block_is_slow(int level, size_t n)
{
    return level > 0 && n > SLOW_SIZE;
}

/* LZ4HC's levels 1 and 2 go in leaps of 1/512 of what they have found no match for, and then miss the beginning of what
 * has matches: 16 MiB of 32-bit floats may be larger than at level 0. */
bool block_leaps(int level)
{
    return level == 1 || level == 2;
}

int block_make(int level, void *state, const uint8_t *bytes, size_t n, uint8_t *block, size_t room)
{
    if (level < 0) {
        int made = runs_block(block, bytes, n);
        return (size_t)made <= room ? made : 0;
    }
    if (level == 0)
        return LZ4_compress_fast_extState(state, (const char *)bytes, (char *)block, (int)n, (int)room, 1);
    return LZ4_compress_HC_extStateHC(state, (const char *)bytes, (char *)block, (int)n, (int)room, level);
}

int block_make_smaller(int level, void *state, const uint8_t *bytes, size_t n, uint8_t *block, size_t room,
                       uint8_t *other, size_t likely)
{
    int made = block_make(level, state, bytes, n, block, room);
    if (made <= 1 || (size_t)made <= likely - likely / SURELY_BETTER)
        return made;
    int of_level_0 = block_make(0, state, bytes, n, other, (size_t)made - 1);
    if (of_level_0 <= 0) /* it is no smaller */
        return made;
    memcpy(block, other, (size_t)of_level_0);
    return of_level_0;
}

bool block_read(const uint8_t *block, size_t size, uint8_t *bytes, size_t n)
{
    int made = LZ4_decompress_safe((const char *)block, (char *)bytes, (int)size, (int)n);
    return made >= 0 && (size_t)made == n;
}
