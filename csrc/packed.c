/*
 * packed.c - a chunk of form PACKED to its record, and back.
 *
 * choose.c says which words a chunk is of, or that compressing it isn't worth the time. Then it is stored as it is. The
 * sum is of the raw chunk, and is made piece by piece with the planes, while each piece is in the CPU's cache.
 */
#include "packed.h"

#include <string.h>

#include "block.h"
#include "bytes.h"
#include "choose.h"
#include "file.h"
#include "frame.h"
#include "hash.h"
#include "planes.h"

#define HEAD_SIZE DS4KV_PACKED_HEAD_SIZE

static size_t larger(size_t a, size_t b)
{
    return a > b ? a : b;
}

/* ---- encoding ---- */

static uint32_t transform_of(unsigned word)
{
    return word == 32 ? TRANSFORM_PLANES_32 : word == 16 ? TRANSFORM_PLANES_16 : TRANSFORM_NONE;
}

/* The chunk's planes or, with word 0, a copy of it; and its sum. `to` NULL: the sum alone. */
static uint64_t sum_and_split(uint8_t *to, const uint8_t *raw, size_t n, unsigned word, uint64_t seed)
{
    running_hash hash;
    running_hash_begin(&hash, seed);
    for (size_t at = 0, piece; at < n; at += piece) {
        piece = min_u64(PLANES_BLOCK, n - at);
        running_hash_put(&hash, raw + at, piece);
        if (to && word)
            planes_split(to + at, raw + at, piece, word);
        else if (to)
            memcpy(to + at, raw + at, piece);
    }
    return running_hash_end(&hash);
}

/* The block of a chunk that is worth it, unless it isn't smaller after all: then the chunk as it is. */
static int compress(const codec *codec, void *scratch, slot *slot, unsigned word, record_head *head)
{
    size_t n = slot->src_size, room = slot->dst_size - HEAD_SIZE;
    uint8_t *block = slot->dst + HEAD_SIZE, *streams = (uint8_t *)scratch + codec->streams_at;
    bool is_copied = word != 0 || codec->is_slow;
    const uint8_t *from = is_copied ? streams : slot->src;
    head->checksum = sum_and_split(is_copied ? streams : NULL, slot->src, n, word, slot->seed);
    if (is_copied)
        atomic_store(&slot->is_read, true); /* from here on src may be something else */

    uint8_t *other = (uint8_t *)scratch + codec->other_at;
    int made = codec->other_at ? block_make_smaller(codec->level, scratch, from, n, block, room, other, 0)
                               : block_make(codec->level, scratch, from, n, block, room);
    if (made <= 0)
        return block_allocates(codec->level) ? DS4KV_NOMEM : DS4KV_CODEC;
    if ((size_t)made < n) {
        head->block_size = (uint32_t)made;
        head->transform = transform_of(word);
    } else if (word) {
        planes_join(block, streams, n, word);
    } else {
        memcpy(block, from, n);
    }
    return DS4KV_OK;
}

static int encode(const codec *codec, void *scratch, slot *slot, const atomic_bool *stop)
{
    (void)stop; /* LZ4 can't be asked to end */
    size_t n = slot->src_size;
    unsigned word = choose_word(slot->src, n, codec->level, scratch, (uint8_t *)scratch + codec->streams_at);
    record_head head = {.raw_size = (uint32_t)n, .block_size = (uint32_t)n};
    bool is_left = word == CHOOSE_STORE && codec->leaves_stored;
    int status = DS4KV_OK;
    if (word == CHOOSE_STORE)
        head.checksum = sum_and_split(is_left ? NULL : slot->dst + HEAD_SIZE, slot->src, n, 0, slot->seed);
    else
        status = compress(codec, scratch, slot, word, &head);
    if (status != DS4KV_OK)
        return status;
    record_head_encode(&head, DS4KV_FORM_PACKED, slot->dst);
    slot->dst_size = HEAD_SIZE + (is_left ? 0 : (size_t)head.block_size);
    slot->stored = is_left ? slot->src : NULL;
    return DS4KV_OK;
}

codec packed_encoder(int level, size_t raw_bound)
{
    size_t state_size = larger(block_state_size(level), block_state_size(0)); /* choose.c's, which is of level 0 */
    size_t streams_size = larger(raw_bound, CHOOSE_SCRATCH);
    bool leaps = block_leaps(level);
    return (codec){
        .run = encode,
        .scratch_size = state_size + streams_size + (leaps ? BLOCK_BOUND(raw_bound) : 0),
        .streams_at = state_size,
        .other_at = leaps ? state_size + streams_size : 0,
        .form = DS4KV_FORM_PACKED,
        .level = level,
        .is_slow = block_is_slow(level, raw_bound),
        .reads_first = true,
    };
}

/* ---- decoding ---- */

/* Reads the slot's block from the file. src_size becomes how much of the record was there. */
static int read_block(const codec *codec, uint8_t *to, slot *slot, const atomic_bool *stop)
{
    size_t n = slot->src_size - HEAD_SIZE;
    int status = file_read_until(codec->fd, to, &n, codec->start + slot->offset + HEAD_SIZE, stop, &slot->os_error);
    slot->src_size = HEAD_SIZE + n;
    return status;
}

/* The chunk by its planes or, with word 0, as it is; `from` may be where it belongs. Whether its sum is right. */
static int join_and_judge(slot *slot, const uint8_t *from, unsigned word)
{
    running_hash hash;
    size_t n = slot->dst_size;
    running_hash_begin(&hash, slot->seed);
    for (size_t at = 0, piece; at < n; at += piece) {
        piece = min_u64(PLANES_BLOCK, n - at);
        if (word)
            planes_join(slot->dst + at, from + at, piece, word);
        else if (from != slot->dst)
            memcpy(slot->dst + at, from + at, piece);
        running_hash_put(&hash, slot->dst + at, piece);
    }
    return running_hash_end(&hash) == slot->checksum ? DS4KV_OK : slot_is_wrong(slot, WRONG_CHECKSUM);
}

static int decode_to_dst(const codec *codec, void *scratch, slot *slot, const atomic_bool *stop)
{
    static const unsigned words[] = {[TRANSFORM_NONE] = 0, [TRANSFORM_PLANES_16] = 16, [TRANSFORM_PLANES_32] = 32};
    unsigned word = words[slot->transform];
    size_t n = slot->dst_size, size = slot->src_size - HEAD_SIZE;
    bool is_stored = size == n;
    uint8_t *streams = word ? (uint8_t *)scratch + codec->streams_at : slot->dst;
    const uint8_t *block = slot->src ? slot->src + HEAD_SIZE : NULL;
    if (!block) {
        uint8_t *to = is_stored ? slot->dst : scratch;
        int status = read_block(codec, to, slot, stop);
        if (status != DS4KV_OK)
            return status;
        block = to;
    }
    if (is_stored)
        return join_and_judge(slot, block, 0);
    if (!block_read(block, size, streams, n))
        return slot_is_wrong(slot, WRONG_BLOCK);
    return join_and_judge(slot, streams, word);
}

static int decode(const codec *codec, void *scratch, slot *slot, const atomic_bool *stop)
{
    int status = decode_to_dst(codec, scratch, slot, stop);
    if (status == DS4KV_OK && slot->parts.part)
        parts_fill(slot->parts, slot->position, slot->dst, slot->dst_size);
    return status;
}

codec packed_decoder(size_t raw_bound)
{
    return (codec){.run = decode, .form = DS4KV_FORM_PACKED, .scratch_size = raw_bound};
}

codec packed_file_decoder(size_t raw_bound, int fd, uint64_t start, size_t block_bound)
{
    return (codec){
        .run = decode,
        .form = DS4KV_FORM_PACKED,
        .scratch_size = block_bound + raw_bound,
        .streams_at = block_bound,
        .fd = fd,
        .start = start,
    };
}
