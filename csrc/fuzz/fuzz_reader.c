/*
 * fuzz_reader.c - any bytes as a region, by every way of a reader; and as a whole file.
 *
 * The first byte says which: a file, or a region of some form. The sums of a region of form PACKED may be set right
 * first, or nothing would ever be looked at behind them. What the ways say of a region must be the same.
 */
#define _GNU_SOURCE
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../tests/by_bits.h"
#include "ds4kv_file.h"

#define HEAD 4
#define MOST_PAYLOAD ((size_t)1 << 20) /* more would take the time of many inputs */

typedef struct {
    uint8_t *region;
    size_t size;
    uint32_t chunk_size, form;
    int workers;
    size_t put, take;
} input;

static void check(bool is_right)
{
    if (!is_right)
        abort();
}

static uint32_t get_u32(const uint8_t *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static void set_u64(uint8_t *p, uint64_t v)
{
    for (int i = 0; i < 8; i++)
        p[i] = (uint8_t)(v >> 8 * i);
}

static size_t least(size_t a, size_t b)
{
    return a < b ? a : b;
}

static int judge_frame(ds4kv_frame *frame, const input *in, ds4kv_fault *fault)
{
    uint8_t head[DS4KV_PACKED_FRAME_SIZE] = {0};
    memcpy(head, in->region, least(in->size, sizeof head));
    return ds4kv_frame_decode(frame, head, in->size, in->chunk_size, in->form, fault);
}

/* ---- right sums ---- */

/* Sets the sum of a record right, if that is a chunk's; `raw` is memory for it. */
static void repair_record(const ds4kv_frame *frame, uint8_t *record, size_t size, uint32_t index, uint8_t *raw)
{
    size_t n = get_u32(record);
    uint8_t plain[DS4KV_FRAME_SIZE + DS4KV_RECORD_HEAD_SIZE], *region;
    size_t block_size = size - DS4KV_PACKED_HEAD_SIZE;
    ds4kv_fault fault;
    if (block_size == n) {
        memcpy(raw, record + DS4KV_PACKED_HEAD_SIZE, n);
    } else { /* LZ4, by a region of form PLAIN that has no other record */
        ds4kv_frame one;
        check(ds4kv_frame_init(&one, n, (uint32_t)n, DS4KV_FORM_PLAIN) == DS4KV_OK);
        ds4kv_frame_encode(&one, plain);
        memcpy(plain + DS4KV_FRAME_SIZE, record, DS4KV_RECORD_HEAD_SIZE);
        check((region = malloc(sizeof plain + block_size)));
        memcpy(region, plain, sizeof plain);
        memcpy(region + sizeof plain, record + DS4KV_PACKED_HEAD_SIZE, block_size);
        int status = ds4kv_decode(region, sizeof plain + block_size, (uint32_t)n, DS4KV_FORM_PLAIN, raw, n, 0, &fault);
        free(region);
        if (status != DS4KV_OK)
            return;
        unsigned word = 16 * get_u32(record + 8);
        uint8_t *planes = malloc(n);
        check(planes);
        memcpy(planes, raw, n);
        for (size_t at = 0, k; word && (k = least(n - at, 256 << 10) / 2048 * 2048) > 0; at += k) {
            memset(raw + at, 0, k);
            for (size_t i = 0; i < 8 * k / word; i++)
                for (unsigned bit = word; bit-- > 0;) {
                    bool is_set = bit_of(planes + at, plane_place(i, bit, k, word));
                    if (word == 32 ? bit >= 23 && bit < 30 : bit >= 7 && bit < 14)
                        is_set ^= bit_of(raw + at, i * word + bit + 1);
                    raw[at + (i * word + bit) / 8] |= (uint8_t)(is_set << (i * word + bit) % 8);
                }
        }
        free(planes);
    }
    set_u64(record + 12, ds4kv_hash_seeded(raw, n, frame->seal + frame->first_sum + index));
}

/* Sets the sums of frame and records right, as far as the numbers are. */
static void repair(const input *in)
{
    ds4kv_frame frame;
    ds4kv_fault fault;
    if (in->size < DS4KV_PACKED_FRAME_SIZE)
        return;
    memset(in->region + 12, 0, 4);
    set_u64(in->region + 32, ds4kv_hash(in->region, 32));
    if (judge_frame(&frame, in, &fault) != DS4KV_OK || frame.raw_total > MOST_PAYLOAD)
        return;
    uint8_t *raw = malloc(least(in->chunk_size, frame.raw_total) + 1);
    check(raw);
    size_t at = DS4KV_PACKED_FRAME_SIZE;
    for (uint32_t i = 0; i < frame.chunk_count && in->size - at >= DS4KV_PACKED_HEAD_SIZE; i++) {
        int64_t size = ds4kv_record_size(&frame, in->size, i, at, in->region + at, &fault);
        if (size < 0)
            break;
        repair_record(&frame, in->region + at, (size_t)size, i, raw);
        at += (size_t)size;
    }
    free(raw);
}

/* ---- the ways of a reader ---- */

static int feed(ds4kv_reader *reader, const input *in, size_t *fed)
{
    for (;;) {
        void *room;
        int64_t size = ds4kv_reader_room(reader, &room);
        if (size <= 0)
            return (int)size;
        size_t part = least(least((size_t)size, in->put), in->size - *fed);
        if (part == 0)
            return ds4kv_reader_finish(reader);
        memcpy(room, in->region + *fed, part);
        *fed += part;
        int status = ds4kv_reader_put(reader, part);
        if (status != DS4KV_OK)
            return status;
    }
}

/* By put, or from memory. `aimed`: into its place. */
static int read_all(const input *in, const ds4kv_frame *frame, uint8_t *raw, bool is_put, bool aimed)
{
    ds4kv_reader *reader;
    ds4kv_fault fault;
    size_t start = ds4kv_frame_size(in->form), fed = start, done = 0;
    check(ds4kv_reader_new(&reader, frame, in->size, 0, start, in->workers) == DS4KV_OK);
    if (!is_put)
        check(ds4kv_reader_from_memory(reader, in->region) == DS4KV_OK);
    if (aimed)
        check(ds4kv_reader_aim(reader, raw, (size_t)frame->raw_total) == DS4KV_OK);
    int status = DS4KV_OK;
    while (status == DS4KV_OK && done < frame->raw_total) {
        if (is_put)
            status = feed(reader, in, &fed);
        int64_t taken = status != DS4KV_OK
                            ? status
                            : ds4kv_reader_take(reader, raw + done, least(in->take, frame->raw_total - done), 1);
        if (taken < 0)
            status = (int)taken;
        else
            done += (size_t)taken;
    }
    ds4kv_reader_fault(reader, &fault);
    check(status == DS4KV_OK || fault.offset <= in->size);
    ds4kv_reader_free(reader);
    return status;
}

static void read_region(const input *in)
{
    ds4kv_frame frame;
    ds4kv_fault fault;
    int status = judge_frame(&frame, in, &fault);
    check(status == DS4KV_OK || status == DS4KV_CORRUPT || status == DS4KV_PARAM);
    if (status != DS4KV_OK || frame.raw_total > MOST_PAYLOAD)
        return;
    size_t n = (size_t)frame.raw_total;
    uint8_t *raw = malloc(n + 1), *other = malloc(n + 1);
    check(raw && other);
    int of_all = ds4kv_decode(in->region, in->size, in->chunk_size, in->form, raw, n, in->workers, &fault);
    check(of_all == DS4KV_OK || of_all == DS4KV_CORRUPT);
    check(of_all == DS4KV_OK || fault.offset <= in->size);
    for (int way = 0; way < 4; way++) {
        if (in->form == DS4KV_FORM_RAW && way < 2)
            continue; /* a region without records is not put */
        status = read_all(in, &frame, other, way < 2, way % 2);
        if (n > 0) /* of nothing, nothing is asked for */
            check(status == of_all || (status == DS4KV_TRUNCATED && of_all == DS4KV_CORRUPT));
        check(status != DS4KV_OK || of_all != DS4KV_OK || memcmp(raw, other, n) == 0);
    }
    free(raw);
    free(other);
}

/* ---- a whole file ---- */

static void read_records(const ds4kv_outline *outline, int fd, size_t size, ds4kv_fault *fault)
{
    int form = ds4kv_header_form(&outline->header);
    uint64_t start = outline->region_start, bytes = outline->header.payload_bytes;
    ds4kv_frame frame;
    if (form < 0)
        form = ds4kv_mid_form(fd, start, bytes, outline->header.chunk_size, fault);
    if (form < 0)
        return;
    (void)ds4kv_frame_at(&frame, fd, start, bytes, outline->header.chunk_size, (uint32_t)form, fault);
    if (form == DS4KV_FORM_RAW || form == DS4KV_FORM_TRANSPOSED)
        return;
    ds4kv_record record = {.offset = start + ds4kv_frame_size((uint32_t)form)};
    while (ds4kv_record_at(&record, fd, size, start, bytes, outline->header.chunk_size, (uint32_t)form, fault) == 1) {
        check(record.size > 0 && record.raw_size <= outline->header.chunk_size);
        record.offset += record.size;
        record.index++;
    }
}

/* Opens and reads what is there under its name in /proc. */
static void open_file(int fd)
{
    char path[64], piece[5000];
    ds4kv_checkpoint *checkpoint;
    ds4kv_fault fault;
    (void)snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    if (ds4kv_checkpoint_open(&checkpoint, path, 0, &fault) != DS4KV_OK)
        return;
    uint64_t n = 0, left = checkpoint->raw_total;
    for (size_t part; n < MOST_PAYLOAD && (part = fread(piece, 1, sizeof piece, checkpoint->payload)) > 0;)
        n += part;
    check(n <= left);
    bool is_whole = n == left;
    FILE *trailer = ds4kv_checkpoint_trailer(checkpoint);
    if (trailer)
        for (uint64_t at = 0; at < checkpoint->trailer_bytes; at++)
            check(getc(trailer) != EOF);
    check(ds4kv_checkpoint_close(checkpoint, &fault) == DS4KV_OK || !is_whole);
}

static void read_file(uint8_t *bytes, size_t size, bool is_repaired)
{
    ds4kv_outline outline;
    ds4kv_fault fault;
    if (is_repaired && size >= DS4KV_PREFIX_SIZE + DS4KV_PACKED_FRAME_SIZE) {
        /* Layout packed, of a text that is there, and a region up to the end; seal and sums are right. */
        memcpy(bytes, "KVCK", 4);
        size_t text = get_u32(bytes + 48) % (size - DS4KV_PREFIX_SIZE - DS4KV_PACKED_FRAME_SIZE + 1);
        uint8_t *region = bytes + DS4KV_PREFIX_SIZE + text;
        size_t region_bytes = size - DS4KV_PREFIX_SIZE - text;
        size_t behind = bytes[46] % 32;
        region_bytes -= region_bytes - DS4KV_PACKED_FRAME_SIZE < behind ? 0 : behind;
        set_u64(bytes + 40, region_bytes);
        for (int i = 0; i < 4; i++)
            bytes[48 + i] = (uint8_t)(text >> 8 * i);
        bytes[21] = bytes[23] = 0;
        bytes[22] = (uint8_t)(1 + bytes[22] % 26);
        bytes[4] = bytes[4] & 2 ? 2 : 4;
        bytes[8] |= 1;
        uint64_t seal = ds4kv_seal(bytes, bytes + DS4KV_PREFIX_SIZE, text);
        set_u64(region + 16, seal);
        repair(&(input){
            .region = region, .size = region_bytes, .chunk_size = (uint32_t)1 << bytes[22], .form = DS4KV_FORM_PACKED});
        size_t trailer = size - DS4KV_PREFIX_SIZE - text - region_bytes;
        if (trailer > 8)
            set_u64(bytes + size - 8, ds4kv_hash_seeded(region + region_bytes, trailer - 8, seal));
    }
    int fd = memfd_create("fuzz", MFD_CLOEXEC);
    check(fd >= 0 && write(fd, bytes, size) == (ssize_t)size);
    int status = ds4kv_examine(&outline, fd, size, &fault);
    check(status == DS4KV_OK || status == DS4KV_CORRUPT || status == DS4KV_TRUNCATED || status == DS4KV_UNSUPPORTED);
    check(status == DS4KV_OK || fault.why[0]);
    if (outline.region_start > 0)
        read_records(&outline, fd, size, &fault);
    open_file(fd);
    check(close(fd) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < HEAD)
        return 0;
    uint8_t what = data[0], *bytes = malloc(size - HEAD + 1); /* one byte too much is seen by ASan, but for none */
    check(bytes);
    uint8_t *exact = size > HEAD ? realloc(bytes, size - HEAD) : bytes;
    check(exact);
    memcpy(exact, data + HEAD, size - HEAD);
    if (what & 1) {
        read_file(exact, size - HEAD, what & 2);
    } else {
        uint32_t form = what >> 2 & 3 ? DS4KV_FORM_PACKED : what >> 4 & 3;
        input in = {
            .region = exact,
            .size = size - HEAD,
            .chunk_size = form == DS4KV_FORM_PACKED ? (uint32_t)1 << data[1] % 27 : 1 + (uint32_t)data[1] * data[2],
            .form = form,
            .workers = what >> 6 == 3 ? 1 : 0,
            .put = 1 + (size_t)data[2] * 13,
            .take = 1 + (size_t)data[3] * 97,
        };
        if (what & 2 && form == DS4KV_FORM_PACKED)
            repair(&in);
        read_region(&in);
    }
    free(exact);
    return 0;
}
