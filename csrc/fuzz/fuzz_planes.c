/*
 * fuzz_planes.c - any bytes as bit planes: as they are by definition, and back again.
 *
 * A fuzzer's inputs are small and blocks are large, so an input says how often it is repeated. Every way is tried,
 * whichever this machine takes.
 */
#include "../planes.c"

#include <stdlib.h>

#include "../tests/by_bits.h"

#define HEAD 2
#define GUARD 16
#define MOST (PLANES_BLOCK + 9000)

static void check(bool is_right)
{
    if (!is_right)
        abort();
}

/* Memory that may be written from GUARD on, and nowhere before. */
static uint8_t *guarded_new(size_t n)
{
    uint8_t *memory = malloc(GUARD + n);
    check(memory);
    memset(memory, 0xa5, GUARD + n);
    return memory;
}

static void guarded_free(uint8_t *memory)
{
    for (size_t i = 0; i < GUARD; i++)
        check(memory[i] == 0xa5);
    free(memory);
}

static void check_way(splitter *to_planes, joiner *to_raw, const uint8_t *raw, const uint8_t *planes, size_t n,
                      unsigned word)
{
    uint8_t *out = guarded_new(n), *back = guarded_new(n);
    split(to_planes, out + GUARD, raw, n, word);
    check(memcmp(out + GUARD, planes, n) == 0);
    join(to_raw, back + GUARD, out + GUARD, n, word);
    check(memcmp(back + GUARD, raw, n) == 0);
    guarded_free(out);
    guarded_free(back);
}

static void define(uint8_t *planes, const uint8_t *raw, size_t n, unsigned word)
{
    memcpy(planes, raw, n);
    for (size_t at = 0; n - at >= PLANES_GRAIN;) {
        size_t k = (n - at < PLANES_BLOCK ? n - at : PLANES_BLOCK) / PLANES_GRAIN * PLANES_GRAIN;
        by_bits(planes + at, raw + at, k, word);
        at += k;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t size)
{
    if (size <= HEAD)
        return 0;
    unsigned word = input[0] & 1 ? 32 : 16, shift = input[0] >> 1 & 15;
    size_t times = input[1] < 0xc0 ? input[1] + 1u : 64 * (input[1] - 0xbfu), n = (size - HEAD) * times;
    if (n > MOST)
        n = MOST;
    uint8_t *memory = malloc(shift + n), *planes = malloc(n), *raw = memory + shift;
    check(memory && planes);
    for (size_t i = 0; i < n; i++)
        raw[i] = input[HEAD + i % (size - HEAD)];
    define(planes, raw, n, word);
    check_way(split_scalar, join_scalar, raw, planes, n, word);
    if (HAS_VECTORS)
        check_way(split_tile_16, join_tile_16, raw, planes, n, word);
    if (HAS_WIDE)
        check_way(split_tile_32, join_tile_32, raw, planes, n, word);
    free(memory);
    free(planes);
    return 0;
}
