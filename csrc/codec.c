/*
 * codec.c - one chunk through LZ4, either way. The only file that knows lz4.
 *
 * Level 0 gives the bytes of LZ4_compress_default, which is LZ4_compress_fast_extState at acceleration 1; the state is
 * given so that a worker sets it up in memory that it owns and not on a stack whose size the host chose.
 */
#include <stdlib.h>

#include "internal.h"
#include "lz4.h"
#include "lz4hc.h"

const char *ds4kv_lz4_version(void)
{
    return LZ4_versionString();
}

uint32_t ds4kv_block_bound(uint32_t raw_size)
{
    return (uint32_t)LZ4_compressBound((int)raw_size);
}

static int encode(const codec *codec, void *scratch, slot *slot)
{
    const char *raw = (const char *)slot->src;
    char *block = (char *)slot->dst + DS4KV_RECORD_HEAD_SIZE;
    int raw_size = (int)slot->src_size;
    int room = (int)(slot->dst_size - DS4KV_RECORD_HEAD_SIZE);
    int block_size = codec->level == 0 ? LZ4_compress_fast_extState(scratch, raw, block, raw_size, room, 1)
                                       : LZ4_compress_HC_extStateHC(scratch, raw, block, raw_size, room, codec->level);
    if (block_size <= 0) /* there is room for any block: the parser of the highest levels found no memory */
        return codec->level >= LZ4HC_CLEVEL_OPT_MIN ? DS4KV_NOMEM : DS4KV_CODEC;
    record_head head = {(uint32_t)raw_size, (uint32_t)block_size};
    record_head_encode(&head, slot->dst);
    slot->dst_size = DS4KV_RECORD_HEAD_SIZE + (size_t)block_size;
    return DS4KV_OK;
}

static int decode(const codec *codec, void *scratch, slot *slot)
{
    const void *block = slot->src ? slot->src : scratch;
    if (!slot->src) {
        int status = file_read(codec->fd, scratch, &slot->src_size, codec->start + slot->offset, &slot->os_error);
        if (status != DS4KV_OK)
            return status;
    }
    int made = LZ4_decompress_safe(block, (char *)slot->dst, (int)slot->src_size, (int)slot->dst_size);
    return made >= 0 && (size_t)made == slot->dst_size ? DS4KV_OK : DS4KV_CORRUPT;
}

codec codec_encoder(int level)
{
    size_t scratch_size = level == 0 ? (size_t)LZ4_sizeofState() : (size_t)LZ4_sizeofStateHC();
    return (codec){.run = encode, .scratch_size = scratch_size, .level = level};
}

codec codec_decoder(void)
{
    return (codec){.run = decode};
}

codec codec_file_decoder(int fd, uint64_t start, size_t block_bound)
{
    return (codec){.run = decode, .scratch_size = block_bound, .fd = fd, .start = start};
}
