/*
 * test_host_lz4.c - a program that has an lz4 of its own.
 *
 * It links, and both stay what they are; and, as it has one, it shows that a block of level 0 is what
 * LZ4_compress_default makes, which is what every file of the format so far holds; and that ds4kv_block_bound is lz4's.
 */
#include "region.h"

#include "lz4.c"

static void test_level_0(payload_kind kind, size_t n, uint32_t chunk_size)
{
    CASE("payload kind %d of %zu bytes, chunk_size %u", kind, n, chunk_size);
    bytes payload = payload_new(kind, n);
    bytes region = write_region(payload, (way){.chunk_size = chunk_size, .workers = 2, .put_size = 1000});
    size_t at = DS4KV_FRAME_SIZE;
    for (size_t done = 0; done < n; done += chunk_size) {
        int raw_size = (int)least(chunk_size, n - done), room = LZ4_compressBound(raw_size);
        bytes block = bytes_new((size_t)room);
        int block_size = LZ4_compress_default((char *)payload.at + done, (char *)block.at, raw_size, room);
        CHECK_EQ(get_u32(region.at + at + 4), block_size);
        CHECK(memcmp(region.at + at + DS4KV_RECORD_HEAD_SIZE, block.at, (size_t)block_size) == 0);
        at += DS4KV_RECORD_HEAD_SIZE + (size_t)block_size;
        free(block.at);
    }
    CHECK_EQ(at, region.n);
    free(region.at);
    free(payload.at);
}

/* The core has LZ4's bound without LZ4. */
static void test_bound(void)
{
    uint64_t state = 1;
    const uint32_t edges[] = {
        0, 1, 254, 255, 256, DS4KV_MAX_CHUNK_SIZE, LZ4_MAX_INPUT_SIZE, LZ4_MAX_INPUT_SIZE + 1, INT32_MAX, UINT32_MAX};
    for (size_t i = 0; i < COUNT(edges) + 1000; i++) {
        uint32_t n = i < COUNT(edges) ? edges[i] : (uint32_t)draw(&state);
        CASE("%u bytes", n);
        CHECK_EQ(ds4kv_block_bound(n), LZ4_compressBound((int)n));
    }
}

int main(void)
{
    watchdog();
    test_bound();
    for (int kind = 0; kind < N_KINDS; kind++) {
        test_level_0((payload_kind)kind, 1, 10);
        test_level_0((payload_kind)kind, 1000, 13);
        test_level_0((payload_kind)kind, 100000, 20000);  /* lz4 has a table of 16 bits up to 64 KiB */
        test_level_0((payload_kind)kind, 300000, 100000); /* and one of 32 bits above */
    }
    return 0;
}
