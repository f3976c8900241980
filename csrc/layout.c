/*
 * layout.c - which of five layouts a file has, as several proposals called themselves version 2.
 *
 * A layout that the header allows is a candidate; it fits when its frame holds and a walk over its record heads ends
 * exactly at the region's end. The walk reads heads only, and happens only where there is more than one candidate or one
 * that is not read here. A good file of another layout is never called damaged.
 */
#include <inttypes.h>
#include <string.h>

#include "internal.h"

#define CRC_HEADER_SIZE 64
#define MAX_LOG2 26
#define MIN_LOG2 12 /* chunks of 4 KiB: below, a byte is taken for something else than a chunk size */
#define MIN_BLOCK_SIZE 2

typedef struct {
    int fd;
    uint64_t size;
    uint8_t head[CRC_HEADER_SIZE + 4];
    size_t head_size; /* less, if the file is shorter */
} file;

static int io_fault(ds4kv_fault *fault, uint64_t offset, int os_error)
{
    fault_set(fault, DS4KV_IO, offset, "file", "can't be read: %s", strerror(os_error));
    fault->os_error = os_error;
    return DS4KV_IO;
}

/* Whether bytes 48 to 51 are the CRC-32C of a 64-byte header, itself zeroed, and the text length behind it. */
static bool has_header_crc(const file *file)
{
    uint32_t crc = 0xffffffff;
    if (file->head_size < sizeof file->head)
        return false;
    for (size_t i = 0; i < sizeof file->head; i++) {
        crc ^= i >= 48 && i < 52 ? 0 : file->head[i];
        for (int bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (crc & 1 ? 0x82f63b78 : 0);
    }
    return (crc ^ 0xffffffff) == get_u32(file->head + 48);
}

/* Where the region ends; false: beyond the file. */
static bool region_end(const file *file, uint64_t *end)
{
    uint64_t start = PREFIX_SIZE + (uint64_t)get_u32(file->head + 48), bytes = get_u64(file->head + 40);
    *end = start + bytes;
    return start <= file->size && bytes <= file->size - start;
}

/* 1: the region is one of this layout, 0: it is not, or IO. */
static int fits(const file *file, uint64_t chunk_size, uint64_t record_head_size, ds4kv_fault *fault)
{
    uint8_t bytes[DS4KV_FRAME_SIZE];
    size_t n = DS4KV_FRAME_SIZE;
    uint64_t end, at = PREFIX_SIZE + (uint64_t)get_u32(file->head + 48);
    int os_error, status;
    if (!region_end(file, &end) || end - at < n)
        return 0;
    status = file_read(file->fd, bytes, &n, at, &os_error);
    if (status != DS4KV_OK)
        return status == DS4KV_IO ? io_fault(fault, at, os_error) : 0;
    at += n;

    uint64_t raw_total = get_u64(bytes);
    uint32_t chunk_count = get_u32(bytes + 8);
    if (chunk_count != raw_total / chunk_size + (raw_total % chunk_size != 0) ||
        (end - at) / (record_head_size + MIN_BLOCK_SIZE) < chunk_count)
        return 0;
    for (uint32_t i = 0; i < chunk_count; i++) {
        if (end - at < record_head_size)
            return 0;
        n = DS4KV_RECORD_HEAD_SIZE;
        status = file_read(file->fd, bytes, &n, at, &os_error);
        if (status != DS4KV_OK)
            return status == DS4KV_IO ? io_fault(fault, at, os_error) : 0;
        at += record_head_size;
        uint32_t block_size = get_u32(bytes + 4);
        if (block_size < MIN_BLOCK_SIZE || block_size > end - at)
            return 0;
        at += block_size;
    }
    return at == end;
}

/* OK: of the version-2 layouts, this is v2. */
static int refuse_others(const file *file, ds4kv_fault *fault)
{
    const uint8_t *head = file->head;
    uint32_t chunk_size = get_u32(head + 20);
    uint8_t codec = head[7], other_codec = head[21], log2 = head[22];

    if (codec == 0 && chunk_size == 0 && has_header_crc(file))
        return fault_set(fault, DS4KV_UNSUPPORTED, 48, "layout", "layout v2-crc is not read by this release");
    if ((other_codec != 1 && other_codec != 2) || log2 > MAX_LOG2) {
        if (codec == 0 && other_codec > 2 && log2 >= MIN_LOG2 && log2 <= MAX_LOG2 && head[23] == 0)
            return fault_set(fault, DS4KV_UNSUPPORTED, 21, "codec", "codec %d in byte 21 is not known", other_codec);
        return DS4KV_OK;
    }
    if ((codec == DS4KV_CODEC_LZ4 || codec == DS4KV_CODEC_LZ4HC) && chunk_size <= DS4KV_MAX_CHUNK_SIZE) {
        int fit = fits(file, chunk_size, 8, fault);
        if (fit != 0)
            return fit < 0 ? fit : DS4KV_OK;
    }
    int fit = fits(file, (uint64_t)1 << log2, other_codec == 2 ? 12 : 8, fault);
    if (fit != 0)
        return fit < 0 ? fit
                       : fault_set(fault, DS4KV_UNSUPPORTED, 21, "layout", "layout %s is not read by this release",
                                   other_codec == 2 ? "v2-checked" : "v2-mid");
    uint64_t end;
    if (codec == 0 && region_end(file, &end))
        return fault_set(fault, DS4KV_CORRUPT, 21, "codec",
                         "byte 21 claims codec %d, and the region holds no records of it", other_codec);
    return DS4KV_OK;
}

int layout_examine(ds4kv_header *header, uint32_t *text_bytes, int fd, uint64_t file_size, ds4kv_fault *fault)
{
    file file = {.fd = fd, .size = file_size, .head_size = sizeof file.head};
    int os_error, status = file_read(fd, file.head, &file.head_size, 0, &os_error);
    if (status == DS4KV_IO)
        return io_fault(fault, file.head_size, os_error);

    const uint8_t *head = file.head;
    size_t magic_size = file.head_size < 3 ? file.head_size : 3;
    bool is_checkpoint = memcmp(head, "KVC", magic_size) == 0;
    bool is_known = file.head_size < 4 || head[3] == 1 || head[3] == 2; /* other versions may be shorter */
    if (is_checkpoint && is_known && file.head_size < PREFIX_SIZE)
        return fault_set(fault, DS4KV_TRUNCATED, file.head_size, "header",
                         "the file ends after %zu of the %d bytes of header and text length", file.head_size,
                         PREFIX_SIZE);
    if (is_checkpoint && head[3] == 1 && (head[21] == 1 || head[21] == 2))
        return fault_set(fault, DS4KV_UNSUPPORTED, 21, "codec", "version 1 with codec %d in byte 21", head[21]);
    if (is_checkpoint && head[3] == 2) {
        status = refuse_others(&file, fault);
        if (status != DS4KV_OK)
            return status;
    }
    *text_bytes = get_u32(head + DS4KV_HEADER_SIZE);
    return ds4kv_header_unpack(header, head, fault);
}
