/*
 * records.c - a chunk to its record, and back, in the forms that ds4 knows.
 */
#include "records.h"

#include <stdlib.h>
#include <string.h>

#include "block.h"
#include "bytes.h"
#include "file.h"
#include "frame.h"
#include "hash.h"
#include "runs.h"
#include "transpose.h"

/* Samples tell whether a chunk is worth compressing: 4 of them, of 64 KiB, compressed at level 0, or at -1 where that is
 * asked for. Each has 16 KiB of each byte stream. Of a chunk of less than 4 MiB there are 2, and of less than 1 MiB
 * none, as they would be too large a part of it. */
#define SAMPLES 4
#define SAMPLE_SIZE ((size_t)64 << 10)
#define SAMPLED_SIZE ((size_t)1 << 20)
#define WORTH_IT 64 /* it is, if it saves 1 byte of 64 */

#define SAMPLED_CHUNKS 4 /* of a payload */

/* ---- encoding ---- */

/* What a chunk's block is likely to be at level 0 or -1, by its samples; 0 of one that is too small for them. `streams`
 * has room for a sample, `out` for its block. */
static size_t likely_size(int level, const uint8_t *raw, size_t n, void *state, uint8_t *streams, uint8_t *out)
{
    size_t total = 0, samples = n < SAMPLES * SAMPLED_SIZE ? SAMPLES / 2 : SAMPLES;
    if (n < SAMPLED_SIZE)
        return 0;
    for (size_t i = 0; i < samples; i++) {
        size_t at = (2 * i + 1) * (n / (2 * samples)) & ~(size_t)3;
        transpose(streams, raw + at, SAMPLE_SIZE);
        total += (size_t)block_make(level, state, streams, SAMPLE_SIZE, out, BLOCK_BOUND(SAMPLE_SIZE));
    }
    return (size_t)((double)total / (double)(samples * SAMPLE_SIZE) * (double)n);
}

static bool is_worth_it(size_t block_size, size_t n)
{
    return block_size <= n - n / WORTH_IT;
}

int ds4kv_is_hopeless(const void *raw, size_t n, uint32_t chunk_size, int level)
{
    if (level > 0)
        level = 0;
    size_t state_size = block_state_size(0);
    if (n < SAMPLED_SIZE || chunk_size < SAMPLED_SIZE)
        return 0;
    bool is_worth = false;
    size_t step = (n / chunk_size < SAMPLED_CHUNKS ? 1 : n / chunk_size / SAMPLED_CHUNKS) * chunk_size;
    uint8_t *memory = malloc(state_size + SAMPLE_SIZE + ds4kv_block_bound((uint32_t)SAMPLE_SIZE));
    if (!memory)
        return DS4KV_NOMEM;
    for (size_t i = 0, at = 0; !is_worth && i < SAMPLED_CHUNKS && at + SAMPLED_SIZE <= n; i++, at += step) {
        size_t size = min_u32(chunk_size, n - at);
        is_worth = is_worth_it(likely_size(level, (const uint8_t *)raw + at, size, memory, memory + state_size,
                                           memory + state_size + SAMPLE_SIZE),
                               size);
    }
    free(memory);
    return !is_worth;
}

static int encode(const codec *codec, void *scratch, slot *slot, const atomic_bool *stop)
{
    (void)stop; /* LZ4 can't be asked to end */
    size_t head_size = ds4kv_record_head_size(codec->form), n = slot->src_size;
    uint8_t *block = slot->dst + head_size, *streams = (uint8_t *)scratch + codec->streams_at;
    size_t room = slot->dst_size - head_size, likely = 0;
    int block_size;
    record_head head = {.raw_size = (uint32_t)n};
    if (codec->form == DS4KV_FORM_CHECKED) {
        /* At levels 0 and -1 samples would save nothing: there the encoder itself skips what it can't compress. */
        if (codec->level > 0)
            likely = likely_size(0, slot->src, n, scratch, streams, block);
        head.checksum = transpose(streams, slot->src, n);
        atomic_store(&slot->is_read, true);
    }
    if (!is_worth_it(likely, n))
        block_size = literal_block(block, streams, n);
    else if (codec->other_at)
        block_size = block_make_smaller(codec->level, scratch, streams, n, block, room,
                                        (uint8_t *)scratch + codec->other_at, likely);
    else
        block_size = block_make(codec->level, scratch, codec->form == DS4KV_FORM_CHECKED ? streams : slot->src, n,
                                block, room);
    if (block_size <= 0)
        return block_allocates(codec->level) ? DS4KV_NOMEM : DS4KV_CODEC;
    head.block_size = (uint32_t)block_size;
    record_head_encode(&head, codec->form, slot->dst);
    slot->dst_size = head_size + (size_t)block_size;
    if (codec->sums)
        slot->sum = ds4kv_hash(slot->dst, slot->dst_size);
    return DS4KV_OK;
}

codec records_encoder(uint32_t form, int level, size_t raw_bound)
{
    size_t state_size = block_state_size(level);
    size_t streams_size = form == DS4KV_FORM_PLAIN ? 0 : raw_bound;
    bool leaps = form == DS4KV_FORM_CHECKED && block_leaps(level);
    return (codec){
        .run = encode,
        .scratch_size = state_size + streams_size + (leaps ? BLOCK_BOUND(raw_bound) : 0),
        .streams_at = state_size,
        .other_at = leaps ? state_size + streams_size : 0,
        .form = form,
        .level = level,
        .is_slow = block_is_slow(level, raw_bound),
        .reads_first = form == DS4KV_FORM_CHECKED,
    };
}

/* ---- decoding ---- */

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
    return status == DS4KV_OK && sum != slot->sum ? slot_is_wrong(slot, WRONG_SUM) : status;
}

static int decode_to_dst(const codec *codec, void *scratch, slot *slot, const atomic_bool *stop)
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
    if (!block_read(record + head_size, slot->src_size - head_size, out, slot->dst_size))
        return slot_is_wrong(slot, WRONG_BLOCK);
    if (codec->form != DS4KV_FORM_PLAIN) {
        uint32_t checksum = restore(slot->dst, out, slot->dst_size);
        if (codec->form == DS4KV_FORM_CHECKED && checksum != slot->checksum)
            return slot_is_wrong(slot, WRONG_CHECKSUM);
    }
    return DS4KV_OK;
}

/* Reads a chunk of a raw region right into the parts that it belongs in. */
static int read_parts(const codec *codec, slot *slot, const atomic_bool *stop)
{
    int status = DS4KV_OK;
    for (slot->src_size = 0; slot->src_size < slot->dst_size && status == DS4KV_OK;) {
        size_t done = slot->src_size, piece;
        uint8_t *to = parts_at(&slot->parts, slot->position + done, slot->dst_size - done, &piece);
        status = file_read_until(codec->fd, to, &piece, codec->start + slot->offset + done, stop, &slot->os_error);
        slot->src_size += piece;
    }
    return status;
}

static int decode(const codec *codec, void *scratch, slot *slot, const atomic_bool *stop)
{
    if (slot->aimed && slot->parts.part)
        return read_parts(codec, slot, stop);
    int status = decode_to_dst(codec, scratch, slot, stop);
    if (status == DS4KV_OK && slot->parts.part)
        parts_fill(slot->parts, slot->position, slot->dst, slot->dst_size);
    return status;
}

codec records_decoder(uint32_t form, size_t raw_bound)
{
    bool has_streams = form == DS4KV_FORM_TRANSPOSED || form == DS4KV_FORM_CHECKED;
    return (codec){.run = decode, .form = form, .scratch_size = has_streams ? raw_bound : 0};
}

codec records_file_decoder(uint32_t form, size_t raw_bound, int fd, uint64_t start, size_t block_bound)
{
    codec codec = records_decoder(form, raw_bound);
    codec.fd = fd;
    codec.start = start;
    if (form != DS4KV_FORM_RAW) {
        codec.streams_at = ds4kv_record_head_size(form) + block_bound;
        codec.scratch_size += codec.streams_at;
    }
    return codec;
}
