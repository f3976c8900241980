/*
 * layout.c - which of six layouts a file has, as several proposals called themselves version 2.
 *
 * A layout that the header allows is a candidate; it fits when its frame holds and a walk over its record heads ends
 * exactly at the region's end. The walk reads heads only, and happens only where there is more than one candidate:
 * whoever reads the region of a single one holds it against its frame and heads. A good file is never called damaged.
 */
#include <inttypes.h>
#include <stdbool.h>
#include <string.h>

#include "bytes.h"
#include "ds4kv_file.h"
#include "fault.h"
#include "file.h"
#include "frame.h"
#include "header.h"

#define CRC_HEADER_SIZE 64
#define MIN_LOG2 12 /* chunks of 4 KiB: a smaller exponent of an unknown codec may be a byte that means nothing */
#define MIN_BLOCK_SIZE 2 /* token and literal */
#define FITS UINT64_MAX

typedef struct {
    int fd;
    uint64_t size;
    uint8_t head[CRC_HEADER_SIZE + 4];
    size_t head_size; /* less, if the file is shorter */
} file;

typedef struct {
    int layout;
    uint32_t chunk_size;
    uint32_t record_head_size;
} candidate;

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

static uint64_t region_start(const file *file)
{
    return DS4KV_PREFIX_SIZE + (uint64_t)get_u32(file->head + DS4KV_HEADER_SIZE);
}

/* Where the region ends; false: beyond the file. */
static bool region_end(const file *file, uint64_t *end)
{
    uint64_t start = region_start(file), bytes = get_u64(file->head + 40);
    *end = start + bytes;
    return start <= file->size && bytes <= file->size - start;
}

/* OK and the bytes, CORRUPT if the file has fewer, or what the system says. */
static int read_piece(const file *file, uint8_t *bytes, size_t n, uint64_t at, ds4kv_fault *fault)
{
    int os_error, status = file_read(file->fd, bytes, &n, at, &os_error);
    if (status == DS4KV_IO)
        return fault_io(fault, at, "can't be read", os_error);
    return status == DS4KV_OK ? DS4KV_OK : DS4KV_CORRUPT;
}

/* Where the region, all of which is there, stops being of this layout, or FITS. OK, or IO. */
static int walk(const file *file, candidate layout, uint64_t *misfit, ds4kv_fault *fault)
{
    uint8_t bytes[DS4KV_FRAME_SIZE];
    uint64_t end, at = region_start(file);
    *misfit = at;
    if (!region_end(file, &end) || end - at < DS4KV_FRAME_SIZE)
        return DS4KV_OK;
    int status = read_piece(file, bytes, DS4KV_FRAME_SIZE, at, fault);
    if (status != DS4KV_OK)
        return status == DS4KV_CORRUPT ? DS4KV_OK : status;
    at += DS4KV_FRAME_SIZE;

    uint64_t left = get_u64(bytes);
    uint32_t chunk_count = get_u32(bytes + 8);
    if (chunk_count != left / layout.chunk_size + (left % layout.chunk_size != 0) ||
        (chunk_count == 0 && layout.layout == DS4KV_LAYOUT_V2_CHECKED) ||
        (end - at) / (layout.record_head_size + MIN_BLOCK_SIZE) < chunk_count)
        return DS4KV_OK;
    for (uint32_t i = 0; i < chunk_count; i++) {
        uint32_t raw_size = min_u32(layout.chunk_size, left);
        *misfit = at;
        if (end - at < layout.record_head_size)
            return DS4KV_OK;
        status = read_piece(file, bytes, 8, at, fault);
        if (status != DS4KV_OK)
            return status == DS4KV_CORRUPT ? DS4KV_OK : status;
        uint32_t block_size = get_u32(bytes + 4);
        if (get_u32(bytes) != raw_size || block_size < MIN_BLOCK_SIZE ||
            block_size > end - at - layout.record_head_size)
            return DS4KV_OK;
        at += (uint64_t)layout.record_head_size + block_size;
        left -= raw_size;
    }
    *misfit = at == end ? FITS : at;
    return DS4KV_OK;
}

/* The layouts with a codec that the header allows, the one that is preferred where several fit first. */
static int find_candidates(const file *file, candidate found[2])
{
    int n = 0;
    uint32_t chunk_size = get_u32(file->head + 20);
    uint8_t codec = file->head[7], other_codec = file->head[21], log2 = file->head[22];
    if ((codec == DS4KV_CODEC_LZ4 || codec == DS4KV_CODEC_LZ4HC) && chunk_size > 0 &&
        chunk_size <= DS4KV_MAX_CHUNK_SIZE)
        found[n++] = (candidate){DS4KV_LAYOUT_V2, chunk_size, 8};
    if ((other_codec == 1 || other_codec == 2) && log2 <= MAX_LOG2 && file->head[23] == 0)
        found[n++] = other_codec == 1 ? (candidate){DS4KV_LAYOUT_V2_MID, (uint32_t)1 << log2, 8}
                                      : (candidate){DS4KV_LAYOUT_V2_CHECKED, (uint32_t)1 << log2, 12};
    return n;
}

/* Whether the region fits with chunks of the size that its first record claims, whatever the header says. */
static int is_of_records(const file *file, uint32_t record_head_size, bool *is, ds4kv_fault *fault)
{
    uint8_t bytes[4];
    uint64_t misfit = 0;
    int status = read_piece(file, bytes, sizeof bytes, region_start(file) + DS4KV_FRAME_SIZE, fault);
    *is = false;
    if (status != DS4KV_OK || get_u32(bytes) == 0)
        return status == DS4KV_CORRUPT ? DS4KV_OK : status;
    status = walk(file, (candidate){DS4KV_LAYOUT_V2, get_u32(bytes), record_head_size}, &misfit, fault);
    *is = misfit == FITS;
    return status;
}

/* For a version-2 header without a codec in byte 7, and something in byte 21.
 *
 * Raw files may have anything in byte 21, so most of them are let pass. Two cases are refused, as blocks would be handed
 * over as payload. Byte 21 is a codec that is known, and byte 22 or 23 can't be: one of the two was damaged, if the region
 * is of records. Or it is a codec that is not known: bytes 22 and 23 are an exponent that writers choose, 12 or more, or a
 * smaller one and the region is of records. */
static int refuse_unknown_codec(const file *file, ds4kv_fault *fault)
{
    uint8_t codec = file->head[21], log2 = file->head[22];
    bool is = false;
    int status = DS4KV_OK;
    if (codec == 1 || codec == 2) {
        status = is_of_records(file, codec == 1 ? 8 : 12, &is, fault);
        if (status == DS4KV_OK && is) { /* says which of the two bytes is wrong */
            ds4kv_header header;
            int layout = codec == 1 ? DS4KV_LAYOUT_V2_MID : DS4KV_LAYOUT_V2_CHECKED;
            status = ds4kv_header_unpack(&header, file->head, layout, fault);
        }
        return status;
    }
    if (file->head[23] != 0 || log2 > MAX_LOG2)
        return DS4KV_OK;
    is = log2 >= MIN_LOG2;
    if (!is)
        status = is_of_records(file, 8, &is, fault);
    if (status == DS4KV_OK && !is)
        status = is_of_records(file, 12, &is, fault);
    if (status == DS4KV_OK && is)
        status = fault_set(fault, DS4KV_UNSUPPORTED, 21, "codec", "codec %d in byte 21 is not known", codec);
    return status;
}

/* Not OK if byte 21 says that there is no codec, while byte 22 is an exponent and the region is of such records: one
 * flipped bit would hand the blocks over as payload. Without an exponent, or records, it is what it says. */
static int refuse_lost_codec(const file *file, ds4kv_fault *fault)
{
    uint8_t log2 = file->head[22];
    if (file->head[23] != 0 || log2 < 1 || log2 > MAX_LOG2)
        return DS4KV_OK;
    for (uint32_t head_size = 12; head_size >= 8; head_size -= 4) {
        /* As v2-checked both times: no region is empty, and twelve zeros may be a payload. */
        uint64_t misfit = 0;
        int status = walk(file, (candidate){DS4KV_LAYOUT_V2_CHECKED, (uint32_t)1 << log2, head_size}, &misfit, fault);
        if (status != DS4KV_OK)
            return status;
        if (misfit == FITS)
            return fault_set(fault, DS4KV_CORRUPT, 21, "codec", "no codec in byte 21, and the region is of records");
    }
    return DS4KV_OK;
}

/* Not OK if the file says that its payload is there as it is, and the region is of layout packed: bits of the version
 * were flipped, and frame and blocks would be handed over as payload. The frame's own sum tells. ds4's raw files have
 * zeros in bytes 21 to 23, where packed has an exponent, and are not looked at. */
static int refuse_lost_version(const file *file, ds4kv_fault *fault)
{
    uint8_t bytes[DS4KV_PACKED_FRAME_SIZE];
    if ((file->head[21] | file->head[22] | file->head[23]) == 0 || get_u64(file->head + 40) < sizeof bytes)
        return DS4KV_OK;
    int status = read_piece(file, bytes, sizeof bytes, region_start(file), fault);
    if (status != DS4KV_OK)
        return status == DS4KV_CORRUPT ? DS4KV_OK : status;
    return is_packed_frame(bytes) ? fault_set(fault, DS4KV_CORRUPT, 3, "version",
                                              "version %d, and the region is one of layout packed", file->head[3])
                                  : DS4KV_OK;
}

/* The layout of a version-2 file, or a status. is_of_none: CORRUPT, as it may be of two, v2 first, and is of neither. */
static int find_layout(const file *file, bool *is_of_none, ds4kv_fault *fault)
{
    static const char *const names[] = {[DS4KV_LAYOUT_V2_MID] = "v2-mid", [DS4KV_LAYOUT_V2_CHECKED] = "v2-checked"};
    candidate candidates[2];
    uint64_t end, farthest = 0;
    bool is_whole = region_end(file, &end);

    if (file->head[7] == 0 && get_u32(file->head + 20) == 0 && has_header_crc(file))
        return fault_set(fault, DS4KV_UNSUPPORTED, 48, "layout", "layout v2-crc is not read");
    int n = find_candidates(file, candidates);
    if (n < 2 || !is_whole) {
        int status = DS4KV_OK;
        if (n == 0 && file->head[7] == 0)
            status = file->head[21] != 0 ? refuse_unknown_codec(file, fault) : refuse_lost_codec(file, fault);
        return status != DS4KV_OK ? status : n > 0 ? candidates[0].layout : DS4KV_LAYOUT_V2;
    }
    for (int i = 0; i < n; i++) {
        uint64_t misfit = 0;
        int status = walk(file, candidates[i], &misfit, fault);
        if (status != DS4KV_OK)
            return status;
        if (misfit == FITS)
            return candidates[i].layout;
        farthest = misfit > farthest ? misfit : farthest;
    }
    *is_of_none = true;
    return fault_set(fault, DS4KV_CORRUPT, farthest, "layout",
                     "layout v2 or %s is claimed, and the region is of neither", names[candidates[1].layout]);
}

/* Whether text and region lie within the file. */
static int judge_sizes(const ds4kv_outline *outline, uint64_t file_size, ds4kv_fault *fault)
{
    uint64_t left = file_size < DS4KV_PREFIX_SIZE ? 0 : file_size - DS4KV_PREFIX_SIZE;
    if (outline->text_bytes > left)
        return fault_set(fault, DS4KV_TRUNCATED, DS4KV_HEADER_SIZE, "text_bytes",
                         "a text of %" PRIu32 " bytes is claimed, the file has %" PRIu64 " left", outline->text_bytes,
                         left);
    left -= outline->text_bytes;
    if (outline->header.payload_bytes > left)
        return fault_set(fault, DS4KV_TRUNCATED, 40, "payload_bytes",
                         "a region of %" PRIu64 " bytes is claimed, the file has %" PRIu64 " left",
                         outline->header.payload_bytes, left);
    return DS4KV_OK;
}

/* What the beginning of the file says in this layout, if it can be of it. */
static int fill(ds4kv_outline *outline, const file *file, int layout, ds4kv_fault *fault)
{
    int status = ds4kv_header_unpack(&outline->header, file->head, layout, fault);
    if (status != DS4KV_OK)
        return status;
    memcpy(outline->head, file->head, sizeof outline->head);
    outline->text_bytes = get_u32(file->head + DS4KV_HEADER_SIZE);
    outline->region_start = region_start(file);
    return DS4KV_OK;
}

int ds4kv_examine(ds4kv_outline *outline, int fd, uint64_t file_size, ds4kv_fault *fault)
{
    file file = {.fd = fd, .size = file_size, .head_size = sizeof file.head};
    int os_error, status = file_read(fd, file.head, &file.head_size, 0, &os_error);
    outline->region_start = 0;
    if (status == DS4KV_IO)
        return fault_io(fault, file.head_size, "can't be read", os_error);

    const uint8_t *head = file.head;
    size_t magic_size = file.head_size < 3 ? file.head_size : 3;
    bool is_checkpoint = memcmp(head, "KVC", magic_size) == 0;
    /* Other versions may be shorter. */
    bool is_known = file.head_size < 4 || head[3] == 1 || head[3] == 2 || head[3] == PACKED_VERSION;
    if (is_checkpoint && is_known && file.head_size < DS4KV_PREFIX_SIZE)
        return fault_set(fault, DS4KV_TRUNCATED, file.head_size, "header",
                         "the file ends after %zu of the %d bytes of header and text length", file.head_size,
                         DS4KV_PREFIX_SIZE);
    if (is_checkpoint && head[3] == 1 && (head[21] == 1 || head[21] == 2))
        return fault_set(fault, DS4KV_UNSUPPORTED, 21, "codec", "version 1 with codec %d in byte 21", head[21]);
    bool is_of_none = false;
    int layout = is_checkpoint && head[3] == 2 ? find_layout(&file, &is_of_none, fault) : DS4KV_LAYOUT_V2;
    if (is_of_none) { /* the likeliest, for who salvages; what is wrong has been said */
        ds4kv_fault unsaid;
        (void)fill(outline, &file, DS4KV_LAYOUT_V2, &unsaid);
    }
    if (layout < 0)
        return layout;
    status = fill(outline, &file, layout, fault);
    if (status == DS4KV_OK && outline->header.codec == DS4KV_CODEC_NONE) {
        status = refuse_lost_version(&file, fault);
        if (status != DS4KV_OK)
            outline->region_start = 0; /* nothing is to be salvaged by this header */
    }
    return status == DS4KV_OK ? judge_sizes(outline, file_size, fault) : status;
}
