/*
 * runs.c - LZ4 blocks of runs and literals.
 *
 * Once a chunk is four byte streams, the low ones of rounded numbers are long runs of one byte. Who looks for nothing
 * else needs no table, reads every byte once, and finds most of what LZ4 would: nine times as fast.
 *
 * A run becomes its first byte, as a literal, and a match of offset 1 for the others. Any LZ4 decoder takes the block.
 * Two rules of the format end it: the last 5 bytes are literals, and no match begins in the last 12.
 */
#include "runs.h"

#include <stdbool.h>
#include <string.h>

#define STEP 16
#define MIN_MATCH 4
#define LAST_LITERALS 5
#define NO_MATCH 12

static uint64_t load(const uint8_t *at)
{
    uint64_t word;
    memcpy(&word, at, sizeof word);
    return word;
}

/* Whether the STEP bytes are all the same. A word that is itself, turned by a byte, is one byte eight times. */
static bool is_run(const uint8_t *at)
{
    uint64_t word = load(at);
    return word == load(at + 8) && word == (word << 8 | word >> 56);
}

/* Where a run of `at`'s byte ends, at `limit` at the latest. */
static const uint8_t *end_of_run(const uint8_t *at, const uint8_t *limit)
{
    uint8_t byte = *at;
    uint64_t word = byte * 0x0101010101010101u;
    while (limit - at >= 8 && load(at) == word)
        at += 8;
    while (at < limit && *at == byte)
        at++;
    return at;
}

/* What of a length goes beyond the 4 bits in the token. */
static uint8_t *put_length(uint8_t *out, size_t length)
{
    if (length < 15)
        return out;
    length -= 15;
    size_t full = length / 255;
    memset(out, 255, full);
    out[full] = (uint8_t)(length % 255);
    return out + full + 1;
}

static uint8_t nibble(size_t length)
{
    return length < 15 ? (uint8_t)length : 15;
}

/* Literals up to `end`, and the token's half for the match that may follow. */
static uint8_t *put_literals(uint8_t *out, const uint8_t *from, const uint8_t *end, uint8_t match)
{
    size_t n = (size_t)(end - from);
    *out++ = (uint8_t)(nibble(n) << 4 | match);
    out = put_length(out, n);
    memcpy(out, from, n);
    return out + n;
}

static uint8_t *put_run(uint8_t *out, const uint8_t *from, const uint8_t *start, const uint8_t *end)
{
    size_t length = (size_t)(end - start - 1) - MIN_MATCH;
    out = put_literals(out, from, start + 1, nibble(length));
    *out++ = 1;
    *out++ = 0;
    return put_length(out, length);
}

int runs_block(uint8_t *block, const uint8_t *bytes, size_t n)
{
    uint8_t *out = block;
    const uint8_t *from = bytes, *end = bytes + n; /* from: the first byte that isn't put yet */
    for (const uint8_t *at = bytes; n > NO_MATCH + STEP && at <= end - NO_MATCH - STEP;) {
        if (!is_run(at)) {
            at += STEP;
            continue;
        }
        const uint8_t *start = at, *stop = end_of_run(at, end - LAST_LITERALS);
        while (start > from && start[-1] == *at)
            start--;
        out = put_run(out, from, start, stop);
        from = at = stop;
    }
    return (int)(put_literals(out, from, end, 0) - block);
}

int literal_block(uint8_t *block, const uint8_t *bytes, size_t n)
{
    return (int)(put_literals(block, bytes, bytes + n, 0) - block);
}
