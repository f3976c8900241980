/*
 * header.c - the 48 bytes in front of every checkpoint, to a ds4kv_header and back.
 *
 * What is asked of a header is asked both ways, in the same order, so that nothing is written that would not be read.
 */
#include <inttypes.h>
#include <string.h>

#include "internal.h"

static const uint8_t MAGIC[3] = {'K', 'V', 'C'};

/* `wrong` is the status for values that no version may hold. */
static int judge(const ds4kv_header *header, int wrong, int unknown, ds4kv_fault *fault)
{
    if (header->version != 1 && header->version != 2)
        return fault_set(fault, unknown, 3, "version", "version %d; versions 1 and 2 are known here", header->version);
    if (header->quant_bits != 2 && header->quant_bits != 4)
        return fault_set(fault, wrong, 4, "quant_bits", "quant bits are 2 or 4, not %d", header->quant_bits);
    if (header->tokens == 0)
        return fault_set(fault, wrong, 8, "tokens", "no tokens; a checkpoint has at least one");
    if (header->codec > DS4KV_CODEC_LZ4HC)
        return fault_set(fault, unknown, 7, "codec", "codec %d; codecs 0 to 2 are known here", header->codec);
    if (header->codec != DS4KV_CODEC_NONE && (header->chunk_size == 0 || header->chunk_size > DS4KV_MAX_CHUNK_SIZE))
        return fault_set(fault, wrong, 20, "chunk_size", "chunks of %" PRIu32 " bytes; 1 to %d are allowed",
                         header->chunk_size, DS4KV_MAX_CHUNK_SIZE);
    return DS4KV_OK;
}

int ds4kv_header_pack(const ds4kv_header *header, uint8_t *head, ds4kv_fault *fault)
{
    bool is_v1 = header->version == 1;
    int status = judge(header, DS4KV_PARAM, DS4KV_PARAM, fault);
    if (status != DS4KV_OK)
        return status;
    if (is_v1 && (header->codec || header->chunk_size))
        return fault_set(fault, DS4KV_PARAM, 7, "codec", "version 1 has no codec and no chunks");
    if (!is_v1 && (header->model_id || header->payload_abi))
        return fault_set(fault, DS4KV_PARAM, 7, "model_id", "version 2 has no room for model_id and payload_abi");

    memcpy(head, MAGIC, sizeof MAGIC);
    head[3] = header->version;
    head[4] = header->quant_bits;
    head[5] = header->reason;
    head[6] = header->ext_flags;
    head[7] = is_v1 ? header->model_id : header->codec;
    put_u32(head + 8, header->tokens);
    put_u32(head + 12, header->hits);
    put_u32(head + 16, header->ctx_size);
    put_u32(head + 20, is_v1 ? header->payload_abi : header->chunk_size);
    put_u64(head + 24, header->created_at);
    put_u64(head + 32, header->last_used);
    put_u64(head + 40, header->payload_bytes);
    return DS4KV_OK;
}

int ds4kv_header_unpack(ds4kv_header *header, const uint8_t *head, ds4kv_fault *fault)
{
    if (memcmp(head, MAGIC, sizeof MAGIC) != 0)
        return fault_set(fault, DS4KV_CORRUPT, 0, "magic",
                         "a checkpoint begins with 4b 56 43, this with %02x %02x %02x", head[0], head[1], head[2]);
    bool is_v1 = head[3] == 1;
    ds4kv_header found = {
        .version = head[3],
        .quant_bits = head[4],
        .reason = head[5],
        .ext_flags = head[6],
        .codec = is_v1 ? 0 : head[7],
        .model_id = is_v1 ? head[7] : 0,
        .tokens = get_u32(head + 8),
        .hits = get_u32(head + 12),
        .ctx_size = get_u32(head + 16),
        .chunk_size = is_v1 ? 0 : get_u32(head + 20),
        .payload_abi = is_v1 ? get_u32(head + 20) : 0,
        .created_at = get_u64(head + 24),
        .last_used = get_u64(head + 32),
        .payload_bytes = get_u64(head + 40),
    };
    int status = judge(&found, DS4KV_CORRUPT, DS4KV_UNSUPPORTED, fault);
    if (status == DS4KV_OK)
        *header = found;
    return status;
}
