/*
 * test_walk.c - where everything is in a file, and from record to record of one that is damaged.
 *
 * Each refusal has its control: the same file with that one thing repaired.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <sys/mman.h>

#include "ds4kv_file.h"
#include "region.h"

#define TEXT_BYTES 5
#define START (DS4KV_PREFIX_SIZE + TEXT_BYTES)
#define CHUNK 1024

/* A file of header, text and region, in memory. */
static int file_with(const ds4kv_header *header, bytes region)
{
    int fd = memfd_create("walk", MFD_CLOEXEC);
    uint8_t front[START] = {0};
    ds4kv_fault fault;
    CHECK(fd >= 0);
    CHECK_EQ(ds4kv_header_pack(header, front, &fault), DS4KV_OK);
    set_u32(front + DS4KV_HEADER_SIZE, TEXT_BYTES);
    CHECK_EQ(pwrite(fd, front, sizeof front, 0), START);
    CHECK_EQ(pwrite(fd, region.at, region.n, START), region.n);
    return fd;
}

static ds4kv_header header_of(int layout, size_t region_bytes)
{
    return (ds4kv_header){.layout = (uint8_t)layout,
                          .quant_bits = 2,
                          .codec = DS4KV_CODEC_LZ4,
                          .tokens = 9,
                          .ctx_size = 64,
                          .chunk_size = CHUNK,
                          .payload_bytes = region_bytes};
}

/* Walks to the end; how many records were found, and the status at the end. */
static uint32_t walk(int fd, uint64_t file_size, uint64_t region_bytes, uint32_t form, int *status, ds4kv_fault *fault)
{
    ds4kv_record record = {.offset = START + DS4KV_FRAME_SIZE};
    while ((*status = ds4kv_record_at(&record, fd, file_size, START, region_bytes, CHUNK, form, fault)) == 1) {
        record.offset += record.size;
        record.index++;
    }
    return record.index;
}

static void test_walk(uint32_t form)
{
    bytes payload = payload_new(MIXED, 5 * CHUNK + 100);
    bytes region = write_region(payload, (way){.chunk_size = CHUNK,
                                               .checked = form == DS4KV_FORM_CHECKED,
                                               .put_size = payload.n});
    ds4kv_header header = header_of(form == DS4KV_FORM_CHECKED ? DS4KV_LAYOUT_V2_CHECKED : DS4KV_LAYOUT_V2, region.n);
    uint64_t size = START + region.n, third = START + record_offset(region, 2, form);
    ds4kv_outline outline;
    ds4kv_fault fault;
    ds4kv_frame frame;
    int status, fd = file_with(&header, region);

    CASE("form %u, whole", form);
    CHECK_EQ(ds4kv_examine(&outline, fd, size, &fault), DS4KV_OK);
    CHECK_EQ(outline.header.layout, header.layout);
    CHECK_EQ(outline.text_bytes, TEXT_BYTES);
    CHECK_EQ(outline.region_start, START);
    CHECK_EQ(get_u32(outline.head + DS4KV_HEADER_SIZE), TEXT_BYTES);
    CHECK_EQ(ds4kv_frame_at(&frame, fd, START, region.n, CHUNK, form, &fault), DS4KV_OK);
    CHECK_EQ(frame.raw_total, payload.n);
    CHECK(region.n <= ds4kv_region_bound(payload.n, CHUNK, form));
    CHECK_EQ(walk(fd, size, region.n, form, &status, &fault), 6);
    CHECK_EQ(status, 0);
    uint64_t at = DS4KV_FRAME_SIZE;
    for (uint32_t i = 0; i < frame.chunk_count; i++) {
        CHECK_EQ(at, record_offset(region, i, form));
        int64_t record_size = ds4kv_record_size(&frame, region.n, i, at, region.at + at, &fault);
        CHECK(record_size > 0);
        at += (uint64_t)record_size;
    }
    CHECK_EQ(at, region.n);

    CASE("form %u, cut within the third record", form);
    CHECK_EQ(ds4kv_examine(&outline, fd, third + 9, &fault), DS4KV_TRUNCATED);
    CHECK_EQ(fault.offset, 40);
    CHECK_EQ(outline.region_start, START);
    CHECK_EQ(walk(fd, third + 9, region.n, form, &status, &fault), 2);
    CHECK_EQ(status, DS4KV_CORRUPT);
    CHECK_EQ(fault.offset, third);

    CASE("form %u, cut within the text, and within the header", form);
    CHECK_EQ(ds4kv_examine(&outline, fd, START - 1, &fault), DS4KV_TRUNCATED);
    CHECK_EQ(fault.offset, DS4KV_HEADER_SIZE);
    CHECK_EQ(outline.region_start, START);
    CHECK_EQ(ftruncate(fd, DS4KV_PREFIX_SIZE - 1), 0);
    CHECK_EQ(ds4kv_examine(&outline, fd, DS4KV_PREFIX_SIZE - 1, &fault), DS4KV_TRUNCATED);
    CHECK_EQ(outline.region_start, 0);
    close(fd);

    CASE("form %u, a head that can't be true", form);
    for (int field = 0; field < 2; field++) {
        bytes broken = bytes_copy(region);
        set_u32(broken.at + record_offset(region, 2, form) + 4 * field, field ? 1 : CHUNK + 1);
        fd = file_with(&header, broken);
        CHECK_EQ(walk(fd, size, region.n, form, &status, &fault), 2);
        CHECK_EQ(status, DS4KV_CORRUPT);
        CHECK_EQ(fault.offset, third + 4 * field);
        at = record_offset(region, 2, form);
        CHECK_EQ(ds4kv_record_size(&frame, region.n, 2, at, broken.at + at, &fault), DS4KV_CORRUPT);
        CHECK_EQ(fault.offset, at + 4 * field);
        close(fd);
        free(broken.at);
    }

    CASE("form %u, a region larger than any file", form);
    fd = file_with(&header, region);
    CHECK_EQ(walk(fd, size, UINT64_MAX, form, &status, &fault), 6);
    CHECK_EQ(status, DS4KV_CORRUPT);
    CHECK_EQ(fault.offset, size);
    close(fd);
    free(payload.at);
    free(region.at);
}

/* A header that could be of two layouts, and a region of neither: refused, and told to who salvages. */
static void test_of_none(void)
{
    CASE("of none");
    bytes payload = payload_new(MIXED, 3 * CHUNK);
    bytes region = write_region(payload, (way){.chunk_size = CHUNK, .checked = true, .put_size = payload.n});
    ds4kv_header header = header_of(DS4KV_LAYOUT_V2_CHECKED, region.n);
    header.model_id = 1; /* where v2 has its codec */
    ds4kv_outline outline;
    ds4kv_fault fault;
    int fd = file_with(&header, region);
    CHECK_EQ(ds4kv_examine(&outline, fd, START + region.n, &fault), DS4KV_OK);
    CHECK_EQ(outline.header.layout, DS4KV_LAYOUT_V2_CHECKED);
    close(fd);

    set_u32(region.at + record_offset(region, 1, DS4KV_FORM_CHECKED), 7);
    fd = file_with(&header, region);
    CHECK_EQ(ds4kv_examine(&outline, fd, START + region.n, &fault), DS4KV_CORRUPT);
    CHECK(strcmp(fault.field, "layout") == 0);
    CHECK_EQ(outline.region_start, START);
    CHECK_EQ(outline.header.layout, DS4KV_LAYOUT_V2);
    close(fd);
    free(payload.at);
    free(region.at);
}

/* v2-mid tells by its payload alone. */
static void test_mid(bool is_payload)
{
    CASE("mid, %s", is_payload ? "DSV4" : "ambiguous");
    ds4kv_fault fault;
    for (uint32_t form = DS4KV_FORM_PLAIN; form <= DS4KV_FORM_TRANSPOSED; form++) {
        bytes payload = payload_new(TEXT, 3 * CHUNK), raw = bytes_copy(payload);
        if (is_payload)
            memcpy(payload.at, "DSV4", 4);
        memcpy(raw.at, payload.at, payload.n);
        if (form == DS4KV_FORM_TRANSPOSED)
            for (size_t chunk = 0; chunk < payload.n; chunk += CHUNK)
                for (size_t i = 0; i < CHUNK; i++)
                    raw.at[chunk + transposed(i, CHUNK)] = payload.at[chunk + i];
        bytes region = write_region(raw, (way){.chunk_size = CHUNK, .put_size = raw.n});
        ds4kv_header header = header_of(DS4KV_LAYOUT_V2, region.n);
        int fd = file_with(&header, region);
        int found = ds4kv_mid_form(fd, START, region.n, CHUNK, &fault);
        CHECK_EQ(found, is_payload ? (int)form : DS4KV_UNSUPPORTED);
        region.at[8]++; /* the frame's chunk count */
        CHECK_EQ(pwrite(fd, region.at, region.n, START), region.n);
        CHECK_EQ(ds4kv_mid_form(fd, START, region.n, CHUNK, &fault), DS4KV_CORRUPT);
        CHECK_EQ(fault.offset, START + 8);
        close(fd);
        free(payload.at);
        free(raw.at);
        free(region.at);
    }
}

int main(void)
{
    watchdog();
    test_walk(DS4KV_FORM_PLAIN);
    test_walk(DS4KV_FORM_CHECKED);
    test_of_none();
    test_mid(true);
    test_mid(false);
    return 0;
}
