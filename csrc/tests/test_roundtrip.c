/*
 * test_roundtrip.c - payloads come back, whichever way they went.
 *
 * For every payload there is one region, made the plainest way and unpacked by hand; all other ways must give the same
 * bytes, and get the payload back from them.
 */
#include "region.h"

static const int workers[] = {0, 1, 2, 3, 8, 64};
static uint64_t seed;

/* How many bytes at once; small pieces are for small payloads only, to save time. */
static size_t draw_piece(size_t n)
{
    static const size_t pieces[] = {1, 13, 4099, SIZE_MAX};
    size_t piece;
    do
        piece = pieces[draw_below(&seed, COUNT(pieces))];
    while (n / piece > 3000);
    return piece;
}

static way draw_way(size_t n, uint32_t chunk_size, bool checked, int n_workers)
{
    size_t aims[] = {0, chunk_size, 2 * (size_t)chunk_size + 1, SIZE_MAX};
    return (way){.chunk_size = chunk_size,
                 .workers = n_workers,
                 .put_size = draw_piece(n),
                 .take_size = draw_piece(n),
                 .aim_size = aims[draw_below(&seed, COUNT(aims))],
                 .lent = draw_below(&seed, 2),
                 .known = draw_below(&seed, 2),
                 .in_file = draw_below(&seed, 3) == 0,
                 .checked = checked};
}

static void check_same(bytes is, bytes should_be)
{
    CHECK_EQ(is.n, should_be.n);
    CHECK(bytes_equal(is, should_be));
    free(is.at);
}

static void check_ways(bytes payload, bytes region, uint32_t chunk_size, bool checked, int n_workers)
{
    way way = draw_way(payload.n, chunk_size, checked, n_workers);
    CASE("%zu bytes, %s", payload.n, way_text(&way));
    check_same(write_region(payload, way), region);

    verdict verdict = read_region(region, way);
    CHECK_EQ(verdict.status, DS4KV_OK);
    check_same(verdict.payload, payload);

    verdict = decode_region(region, chunk_size, form_of(&way), n_workers);
    CHECK_EQ(verdict.status, DS4KV_OK);
    check_same(verdict.payload, payload);

    if (payload.n == 0)
        return;
    uint32_t first = (uint32_t)draw_below(&seed, get_u32(region.at + 8));
    size_t skipped = (size_t)first * chunk_size;
    CASE("%zu bytes from chunk %u on, %s", payload.n, first, way_text(&way));
    verdict = read_from(region, region.n, first, record_offset(region, first, form_of(&way)), way);
    CHECK_EQ(verdict.status, DS4KV_OK);
    check_same(verdict.payload, (bytes){payload.at + skipped, payload.n - skipped});
}

static void check_form(bytes payload, uint32_t chunk_size, bool checked)
{
    way way = {.chunk_size = chunk_size, .put_size = SIZE_MAX, .known = true, .checked = checked};
    bytes region = write_region(payload, way);
    check_same(unpack_region(region, chunk_size, form_of(&way)), payload);
    for (size_t i = 0; i < COUNT(workers); i++)
        for (int round = 0; round < 2; round++)
            check_ways(payload, region, chunk_size, checked, workers[i]);
    free(region.at);
}

static void check_payload(payload_kind kind, size_t n, uint32_t chunk_size)
{
    CASE("payload kind %d of %zu bytes, chunk_size %u", kind, n, chunk_size);
    bytes payload = payload_new(kind, n);
    check_form(payload, chunk_size, false);
    if (n > 0)
        check_form(payload, chunk_size, true);
    free(payload.at);
}

static void check_levels(void)
{
    bytes payload = payload_new(MIXED, 50000);
    for (int level = 0; level <= 2 * DS4KV_MAX_LEVEL + 1; level++) {
        way way = {.chunk_size = 8192, .level = level / 2, .put_size = SIZE_MAX, .checked = level % 2};
        CASE("%s", way_text(&way));
        bytes region = write_region(payload, way);
        check_same(unpack_region(region, way.chunk_size, form_of(&way)), payload);
        way.workers = 3;
        way.put_size = 1000;
        check_same(write_region(payload, way), region);
        free(region.at);
    }
    free(payload.at);
}

int main(void)
{
    watchdog();
    static const uint32_t chunk_sizes[] = {1, 7, 4096, 65536};
    for (size_t i = 0; i < COUNT(chunk_sizes); i++) {
        size_t size = chunk_sizes[i];
        size_t many = size < 4096 ? 200 * size : (size > 4096 ? 5 : 20) * size - 1;
        size_t sizes[] = {0, 1, size - 1, size, size + 1, 2 * size, many};
        int kinds = size < 4096 ? 1 : N_KINDS; /* small blocks are literals, whatever they hold */
        for (int kind = 0; kind < kinds; kind++)
            for (size_t k = 0; k < COUNT(sizes); k++)
                check_payload((payload_kind)kind, sizes[k], chunk_sizes[i]);
    }
    /* Large enough for huge pages. */
    check_payload(MIXED, (3 << 20) + 1, 1 << 20);
    check_payload(MIXED, 5 << 20, 2 << 20);
    check_levels();
    return 0;
}
