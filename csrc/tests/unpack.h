/*
 * unpack.h - form PACKED for the tests: payloads, and regions that are unpacked a second way.
 *
 * It knows the format by itself, and has of the core its hash alone.
 */
#ifndef UNPACK_H
#define UNPACK_H

#include "by_bits.h"
#include "region.h"

enum { FRAME = DS4KV_PACKED_FRAME_SIZE, HEAD = DS4KV_PACKED_HEAD_SIZE };

static inline uint64_t get_u64(const uint8_t *p)
{
    return (uint64_t)get_u32(p + 4) << 32 | get_u32(p);
}

static inline void set_u64(uint8_t *p, uint64_t v)
{
    set_u32(p, (uint32_t)v);
    set_u32(p + 4, (uint32_t)(v >> 32));
}

/* ---- payloads ---- */

typedef enum { WORDS_32, WORDS_16, PROSE, NOISE, ALL, N_CONTENTS } content;

/* Words whose exponents go up and down, as each transform likes them, or what has none. */
static inline bytes content_new(content content, size_t n)
{
    if (content == PROSE || content == NOISE)
        return payload_new(content == PROSE ? TEXT : RANDOM, n);
    bytes payload = bytes_new(n);
    uint64_t seed = 7;
    for (size_t i = 0; i < n; i++) {
        size_t word = content == WORDS_16 ? i / 2 : i / 4, byte = content == WORDS_16 ? i % 2 + 2 : i % 4;
        uint32_t bits = (uint32_t)(120 + word / 3 % 9) << 23 | (uint32_t)(word * 2654435761u >> 28) << 19;
        payload.at[i] = (uint8_t)(bits >> 8 * byte);
        if (content == ALL && i / 3000 % 2)
            payload.at[i] = i / 6000 % 2 ? (uint8_t)draw(&seed) : (uint8_t)"prose, "[i % 7];
    }
    return payload;
}

/* ---- by hand ---- */

static inline void undo_planes(uint8_t *raw, const uint8_t *streams, size_t n, unsigned word)
{
    size_t at = 0;
    for (size_t k; (k = least(n - at, 256 << 10) / 2048 * 2048) > 0; at += k)
        for (size_t i = 0; i < 8 * k / word; i++) {
            uint32_t bits = 0;
            for (unsigned bit = word; bit-- > 0;) {
                uint32_t is_set = bit_of(streams + at, plane_place(i, bit, k, word));
                if (word == 32 ? bit >= 23 && bit < 30 : bit >= 7 && bit < 14)
                    is_set ^= bits >> (bit + 1) & 1;
                bits |= is_set << bit;
            }
            for (unsigned byte = 0; byte < word / 8; byte++)
                raw[at + i * word / 8 + byte] = (uint8_t)(bits >> 8 * byte);
        }
    memcpy(raw + at, streams + at, n - at);
}

/* Checks all of a region, and gives its payload. `transforms` counts them; [3] those that are stored. */
static inline bytes unpack(bytes region, uint32_t chunk_size, uint64_t seal, unsigned transforms[4])
{
    CHECK(region.n >= FRAME);
    CHECK(get_u64(region.at + 32) == ds4kv_hash_seeded(region.at, 32, 0));
    CHECK(get_u64(region.at + 16) == seal && get_u32(region.at + 12) == 0);
    bytes payload = bytes_new((size_t)get_u64(region.at));
    uint64_t seed = seal + get_u64(region.at + 24);
    size_t at = FRAME;
    uint32_t index = 0;
    for (size_t done = 0; done < payload.n; done += chunk_size, index++) {
        const uint8_t *record = region.at + at;
        bytes raw = {payload.at + done, least(chunk_size, payload.n - done)};
        bytes block = {region.at + at + HEAD, get_u32(record + 4)};
        uint32_t transform = get_u32(record + 8);
        CHECK_EQ(get_u32(record), raw.n);
        CHECK(block.n <= raw.n && transform <= 2 && block.n <= region.n - at - HEAD);
        transforms[block.n == raw.n ? 3 : transform]++;
        if (block.n == raw.n) {
            CHECK_EQ(transform, 0);
            memcpy(raw.at, block.at, raw.n);
        } else if (transform == 0) {
            unpack_block(block, raw);
        } else {
            bytes streams = bytes_new(raw.n);
            unpack_block(block, streams);
            undo_planes(raw.at, streams.at, raw.n, 16 * transform);
            free(streams.at);
        }
        CHECK(get_u64(record + 12) == ds4kv_hash_seeded(raw.at, raw.n, seed + index));
        at += HEAD + block.n;
    }
    CHECK_EQ(at, region.n);
    CHECK_EQ(get_u32(region.at + 8), index);
    CHECK(get_u64(region.at + 24) == (payload.n ? ds4kv_hash(payload.at, least(chunk_size, payload.n)) : 0));
    return payload;
}

#endif
