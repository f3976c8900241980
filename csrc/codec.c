/*
 * codec.c - one chunk to its record, and back. The only file that knows lz4.
 *
 * Level 0 gives the bytes of LZ4_compress_default, which is LZ4_compress_fast_extState at acceleration 1; the state is
 * given so that a worker sets it up in memory that it owns and not on a stack whose size the host chose.
 */
#include "codec.h"

#include <stdlib.h>
#include <string.h>

#include "bytes.h"
#include "file.h"
#include "frame.h"
#include "hash.h"
#include "lz4.h"
#include "lz4hc.h"
#include "transpose.h"

_Static_assert(BLOCK_BOUND(DS4KV_MAX_CHUNK_SIZE) == LZ4_COMPRESSBOUND(DS4KV_MAX_CHUNK_SIZE),
               "frame.h knows how large a block of LZ4 may be");

/* Samples tell whether a chunk is worth compressing: 4 of them, of 64 KiB, compressed at level 0. Each has 16 KiB of
 * each byte stream. A chunk of less than 1 MiB isn't sampled, as the samples would be too large a part of it. */
#define SAMPLES 4
#define SAMPLE_SIZE ((size_t)64 << 10)
#define SAMPLED_SIZE ((size_t)1 << 20)
#define WORTH_IT 64 /* it is, if it saves 1 byte of 64 */

#define SAMPLED_CHUNKS 4 /* of a payload */

/* A larger chunk is slow above level 0: at the last level 64 KiB take 25 ms and 16 MiB 6 s. Level 0 takes 10 ms for 16
 * MiB, level 1 0.1 s. */
#define SLOW_SIZE ((size_t)64 << 10)

const char *ds4kv_lz4_version(void)
{
    return LZ4_versionString();
}

/* ---- encoding ---- */

/* Whether a chunk is not worth compressing, by its samples. `state` is LZ4's, `streams` has room for a sample, `out`
 * for its block. */
static bool is_hopeless(const uint8_t *raw, size_t n, void *state, uint8_t *streams, uint8_t *out)
{
    size_t total = 0;
    if (n < SAMPLED_SIZE)
        return false;
    for (size_t i = 0; i < SAMPLES; i++) {
        size_t at = (2 * i + 1) * (n / (2 * SAMPLES)) & ~(size_t)3;
        transpose(streams, raw + at, SAMPLE_SIZE);
        int made = LZ4_compress_fast_extState(state, (char *)streams, (char *)out, (int)SAMPLE_SIZE,
                                              LZ4_compressBound((int)SAMPLE_SIZE), 1);
        total += (size_t)made;
    }
    return total > SAMPLES * (SAMPLE_SIZE - SAMPLE_SIZE / WORTH_IT);
}

int ds4kv_is_hopeless(const void *raw, size_t n, uint32_t chunk_size)
{
    size_t state_size = (size_t)LZ4_sizeofState();
    if (n < SAMPLED_SIZE || chunk_size < SAMPLED_SIZE)
        return 0;
    bool hopeless = true;
    size_t step = (n / chunk_size < SAMPLED_CHUNKS ? 1 : n / chunk_size / SAMPLED_CHUNKS) * chunk_size;
    uint8_t *memory = malloc(state_size + SAMPLE_SIZE + ds4kv_block_bound((uint32_t)SAMPLE_SIZE));
    if (!memory)
        return DS4KV_NOMEM;
    for (size_t i = 0, at = 0; hopeless && i < SAMPLED_CHUNKS && at + SAMPLED_SIZE <= n; i++, at += step)
        hopeless = is_hopeless((const uint8_t *)raw + at, min_u32(chunk_size, n - at), memory, memory + state_size,
                               memory + state_size + SAMPLE_SIZE);
    free(memory);
    return hopeless;
}

/* Makes an LZ4 block that holds n >= 15 bytes as they are: token, length, literals. Returns its size. */
static int literal_block(uint8_t *block, const uint8_t *bytes, size_t n)
{
    uint8_t *at = block;
    size_t left = n - 15;
    *at++ = 0xf0;
    for (; left >= 255; left -= 255)
        *at++ = 255;
    *at++ = (uint8_t)left;
    memcpy(at, bytes, n);
    return (int)(at + n - block);
}

static int encode(const codec *codec, void *scratch, slot *slot, const atomic_bool *stop)
{
    (void)stop; /* LZ4 can't be asked to end */
    size_t head_size = ds4kv_record_head_size(codec->form), n = slot->src_size;
    uint8_t *block = slot->dst + head_size, *streams = (uint8_t *)scratch + codec->streams_at;
    int block_size, room = (int)(slot->dst_size - head_size);
    const char *raw = (const char *)slot->src;
    record_head head = {.raw_size = (uint32_t)n};
    bool hopeless = false;
    if (codec->form == DS4KV_FORM_CHECKED) {
        /* At level 0 samples would save nothing: there LZ4 itself skips what it can't compress. */
        hopeless = codec->level > 0 && is_hopeless(slot->src, n, scratch, streams, block);
        head.checksum = transpose(streams, slot->src, n);
        atomic_store(&slot->is_read, true);
        raw = (const char *)streams;
    }
    if (hopeless)
        block_size = literal_block(block, streams, n);
    else if (codec->level == 0)
        block_size = LZ4_compress_fast_extState(scratch, raw, (char *)block, (int)n, room, 1);
    else
        block_size = LZ4_compress_HC_extStateHC(scratch, raw, (char *)block, (int)n, room, codec->level);
    if (block_size <= 0) /* there was room for any block; only the highest levels need memory of their own */
        return codec->level >= LZ4HC_CLEVEL_OPT_MIN ? DS4KV_NOMEM : DS4KV_CODEC;
    head.block_size = (uint32_t)block_size;
    record_head_encode(&head, codec->form, slot->dst);
    slot->dst_size = head_size + (size_t)block_size;
    if (codec->sums)
        slot->sum = ds4kv_hash(slot->dst, slot->dst_size);
    return DS4KV_OK;
}

codec codec_encoder(uint32_t form, int level, size_t raw_bound)
{
    size_t state_size = (size_t)(level == 0 ? LZ4_sizeofState() : LZ4_sizeofStateHC());
    size_t streams_size = form == DS4KV_FORM_PLAIN ? 0 : raw_bound;
    return (codec){
        .run = encode,
        .scratch_size = state_size + streams_size,
        .streams_at = state_size,
        .form = form,
        .level = level,
        .is_slow = level > 0 && raw_bound > SLOW_SIZE,
        .reads_first = form == DS4KV_FORM_CHECKED,
    };
}

/* ---- decoding ---- */

static int wrong(slot *slot, int what)
{
    slot->wrong = what;
    return DS4KV_CORRUPT;
}

/* Fetches the record, from memory or from the file, and checks its sum. */
static int get_record(const codec *codec, void *scratch, slot *slot, const atomic_bool *stop, const uint8_t **record)
{
    uint8_t *memory = codec->form == DS4KV_FORM_RAW ? slot->dst : scratch;
    uint64_t at = codec->start + slot->offset, sum = slot->sum;
    int status = DS4KV_OK;
    *record = slot->src ? slot->src : memory;
    if (!slot->src && codec->sums)
        status = file_read_hashed(codec->fd, memory, &slot->src_size, at, stop, &sum, &slot->os_error);
    else if (!slot->src)
        status = file_read_until(codec->fd, memory, &slot->src_size, at, stop, &slot->os_error);
    else if (codec->sums)
        sum = ds4kv_hash(slot->src, slot->src_size);
    return status == DS4KV_OK && sum != slot->sum ? wrong(slot, WRONG_SUM) : status;
}

static int decode(const codec *codec, void *scratch, slot *slot, const atomic_bool *stop)
{
    const uint8_t *record;
    size_t head_size = ds4kv_record_head_size(codec->form);
    int status = get_record(codec, scratch, slot, stop, &record);
    if (status != DS4KV_OK)
        return status;
    if (codec->form == DS4KV_FORM_RAW) {
        if (record != slot->dst)
            memcpy(slot->dst, record, slot->dst_size);
        return DS4KV_OK;
    }
    uint8_t *out = codec->form == DS4KV_FORM_PLAIN ? slot->dst : (uint8_t *)scratch + codec->streams_at;
    int made = LZ4_decompress_safe((const char *)record + head_size, (char *)out, (int)(slot->src_size - head_size),
                                   (int)slot->dst_size);
    if (made < 0 || (size_t)made != slot->dst_size)
        return wrong(slot, WRONG_BLOCK);
    if (codec->form != DS4KV_FORM_PLAIN) {
        uint32_t checksum = restore(slot->dst, out, slot->dst_size);
        if (codec->form == DS4KV_FORM_CHECKED && checksum != slot->checksum)
            return wrong(slot, WRONG_CHECKSUM);
    }
    return DS4KV_OK;
}

codec codec_decoder(uint32_t form, size_t raw_bound)
{
    bool has_streams = form == DS4KV_FORM_TRANSPOSED || form == DS4KV_FORM_CHECKED;
    return (codec){.run = decode, .form = form, .scratch_size = has_streams ? raw_bound : 0};
}

codec codec_file_decoder(uint32_t form, size_t raw_bound, int fd, uint64_t start, size_t block_bound)
{
    codec codec = codec_decoder(form, raw_bound);
    codec.fd = fd;
    codec.start = start;
    if (form != DS4KV_FORM_RAW) {
        codec.streams_at = ds4kv_record_head_size(form) + block_bound;
        codec.scratch_size += codec.streams_at;
    }
    return codec;
}
