/*
 * header.c - the 48 bytes in front of every checkpoint, to a ds4kv_header and back.
 *
 * What is asked of a header is asked both ways, in the same order, so that nothing is written that would not be read.
 */
#include "header.h"

#include <inttypes.h>
#include <stdbool.h>
#include <string.h>

#include "bytes.h"
#include "fault.h"

static const uint8_t MAGIC[3] = {'K', 'V', 'C'};

/* The layouts that have the exponent of the chunk size in byte 22, and what they have in byte 21. */
static bool has_exponent(int layout)
{
    return layout >= DS4KV_LAYOUT_V2_MID;
}

static uint8_t codec_byte(int layout)
{
    return layout == DS4KV_LAYOUT_V2_MID ? 1 : layout == DS4KV_LAYOUT_V2_CHECKED ? 2 : 0;
}

static uint8_t version_of(int layout)
{
    return layout == DS4KV_LAYOUT_V1 ? 1 : layout == DS4KV_LAYOUT_PACKED ? PACKED_VERSION : 2;
}

/* An exponent of 0 would be what bytes that mean nothing are. */
static uint32_t min_log2(int layout)
{
    return layout == DS4KV_LAYOUT_PACKED ? 1 : 0;
}

/* `wrong` is the status for values that no layout may hold. */
static int judge_model(const ds4kv_header *header, int wrong, ds4kv_fault *fault)
{
    if (header->quant_bits != 2 && header->quant_bits != 4)
        return fault_set(fault, wrong, 4, "quant_bits", "quant bits are 2 or 4, not %d", header->quant_bits);
    if (header->tokens == 0)
        return fault_set(fault, wrong, 8, "tokens", "no tokens; a checkpoint has at least one");
    return DS4KV_OK;
}

static int judge_codec(const ds4kv_header *header, int wrong, int unknown, ds4kv_fault *fault)
{
    if (header->codec > DS4KV_CODEC_LZ4HC)
        return fault_set(fault, unknown, 7, "codec", "codec %d; codecs 0 to 2 are known here", header->codec);
    if (header->codec != DS4KV_CODEC_NONE && (header->chunk_size == 0 || header->chunk_size > DS4KV_MAX_CHUNK_SIZE))
        return fault_set(fault, wrong, 20, "chunk_size", "chunks of %" PRIu32 " bytes; 1 to %d are allowed",
                         header->chunk_size, DS4KV_MAX_CHUNK_SIZE);
    return DS4KV_OK;
}

/* What is asked of headers to be written alone: those that are read can't have it wrong. */
static int judge_layout(const ds4kv_header *header, ds4kv_fault *fault)
{
    if (header->layout < DS4KV_LAYOUT_V1 || header->layout > DS4KV_LAYOUT_PACKED)
        return fault_set(fault, DS4KV_PARAM, 3, "layout", "layout %d; 1 to %d are known here", header->layout,
                         DS4KV_LAYOUT_PACKED);
    if (header->layout == DS4KV_LAYOUT_V1 && (header->codec || header->chunk_size))
        return fault_set(fault, DS4KV_PARAM, 7, "codec", "layout v1 has no codec and no chunks");
    if (header->layout == DS4KV_LAYOUT_V2 && (header->model_id || header->payload_abi))
        return fault_set(fault, DS4KV_PARAM, 7, "model_id", "layout v2 has no room for model_id and payload_abi");
    if (has_exponent(header->layout) && header->codec != DS4KV_CODEC_LZ4)
        return fault_set(fault, DS4KV_PARAM, 21, "codec", "this layout has codec LZ4 and no other");
    if (has_exponent(header->layout) && (header->chunk_size & (header->chunk_size - 1)))
        return fault_set(fault, DS4KV_PARAM, 22, "chunk_size", "chunks of %" PRIu32 " bytes, which is no power of two",
                         header->chunk_size);
    if (has_exponent(header->layout) && header->chunk_size >> min_log2(header->layout) == 0)
        return fault_set(fault, DS4KV_PARAM, 22, "chunk_size",
                         "chunks of %" PRIu32 " bytes; this layout has 2 at least", header->chunk_size);
    if (has_exponent(header->layout) && header->payload_abi > UINT8_MAX)
        return fault_set(fault, DS4KV_PARAM, 20, "payload_abi", "this layout has 8 bits for payload_abi");
    return DS4KV_OK;
}

int ds4kv_header_form(const ds4kv_header *header)
{
    if (header->codec == DS4KV_CODEC_NONE)
        return DS4KV_FORM_RAW;
    return header->layout == DS4KV_LAYOUT_V2       ? DS4KV_FORM_PLAIN
           : header->layout == DS4KV_LAYOUT_V2_MID ? -1
           : header->layout == DS4KV_LAYOUT_PACKED ? DS4KV_FORM_PACKED
                                                   : DS4KV_FORM_CHECKED;
}

static uint32_t exponent_of(uint32_t power)
{
    uint32_t exponent = 0;
    while (power >>= 1)
        exponent++;
    return exponent;
}

int ds4kv_header_pack(const ds4kv_header *header, uint8_t *head, ds4kv_fault *fault)
{
    int status = judge_model(header, DS4KV_PARAM, fault);
    if (status == DS4KV_OK)
        status = judge_codec(header, DS4KV_PARAM, DS4KV_PARAM, fault);
    if (status == DS4KV_OK)
        status = judge_layout(header, fault);
    if (status != DS4KV_OK)
        return status;

    bool is_v2 = header->layout == DS4KV_LAYOUT_V2;
    uint32_t word20 = is_v2 ? header->chunk_size : header->payload_abi;
    if (has_exponent(header->layout))
        word20 |= (uint32_t)codec_byte(header->layout) << 8 | exponent_of(header->chunk_size) << 16;
    memcpy(head, MAGIC, sizeof MAGIC);
    head[3] = version_of(header->layout);
    head[4] = header->quant_bits;
    head[5] = header->reason;
    head[6] = header->ext_flags;
    head[7] = is_v2 ? header->codec : header->model_id;
    put_u32(head + 8, header->tokens);
    put_u32(head + 12, header->hits);
    put_u32(head + 16, header->ctx_size);
    put_u32(head + 20, word20);
    put_u64(head + 24, header->created_at);
    put_u64(head + 32, header->last_used);
    put_u64(head + 40, header->payload_bytes);
    return DS4KV_OK;
}

/* Codec, chunk size, model id and ABI, each where its layout has it. */
static int unpack_codec(ds4kv_header *header, const uint8_t *head, ds4kv_fault *fault)
{
    if (header->layout == DS4KV_LAYOUT_V2) {
        header->codec = head[7];
        header->chunk_size = get_u32(head + 20);
        return DS4KV_OK;
    }
    header->model_id = head[7];
    if (header->layout == DS4KV_LAYOUT_V1) {
        header->payload_abi = get_u32(head + 20);
        return DS4KV_OK;
    }
    if (head[21] != codec_byte(header->layout))
        return fault_set(fault, DS4KV_CORRUPT, 21, "codec", "codec %d is not that of the layout", head[21]);
    if (head[22] < min_log2(header->layout) || head[22] > MAX_LOG2)
        return fault_set(fault, DS4KV_CORRUPT, 22, "chunk_size",
                         "chunks of 2**%d bytes; 2**%" PRIu32 " to 2**26 can be", head[22], min_log2(header->layout));
    if (head[23] != 0)
        return fault_set(fault, DS4KV_CORRUPT, 23, "chunk_size", "%d where the layout has 0", head[23]);
    header->codec = DS4KV_CODEC_LZ4;
    header->chunk_size = (uint32_t)1 << head[22];
    header->payload_abi = head[20];
    return DS4KV_OK;
}

int ds4kv_header_unpack(ds4kv_header *header, const uint8_t *head, int layout, ds4kv_fault *fault)
{
    if (layout < DS4KV_LAYOUT_V2 || layout > DS4KV_LAYOUT_V2_CHECKED)
        return fault_set(fault, DS4KV_PARAM, 3, "layout", "layout %d is none of version 2", layout);
    if (memcmp(head, MAGIC, sizeof MAGIC) != 0)
        return fault_set(fault, DS4KV_CORRUPT, 0, "magic",
                         "a checkpoint begins with KVC (4b 56 43), this with %02x %02x %02x", head[0], head[1],
                         head[2]);
    if (head[3] != 1 && head[3] != 2 && head[3] != PACKED_VERSION)
        return fault_set(fault, DS4KV_UNSUPPORTED, 3, "version", "version %d; versions 1, 2 and %d are known here",
                         head[3], PACKED_VERSION);
    if (head[3] != 2)
        layout = head[3] == 1 ? DS4KV_LAYOUT_V1 : DS4KV_LAYOUT_PACKED;
    ds4kv_header found = {
        .layout = (uint8_t)layout,
        .quant_bits = head[4],
        .reason = head[5],
        .ext_flags = head[6],
        .tokens = get_u32(head + 8),
        .hits = get_u32(head + 12),
        .ctx_size = get_u32(head + 16),
        .created_at = get_u64(head + 24),
        .last_used = get_u64(head + 32),
        .payload_bytes = get_u64(head + 40),
    };
    int status = judge_model(&found, DS4KV_CORRUPT, fault);
    if (status == DS4KV_OK)
        status = unpack_codec(&found, head, fault);
    if (status == DS4KV_OK)
        status = judge_codec(&found, DS4KV_CORRUPT, DS4KV_UNSUPPORTED, fault);
    if (status == DS4KV_OK)
        *header = found;
    return status;
}
