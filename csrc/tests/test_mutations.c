/*
 * test_mutations.c - damaged regions: whatever they are, reader and ds4kv_decode say the same of them.
 *
 * No damage may hang, write outside the payload's memory, or split the two; what both accept must be the same payload.
 */
#include "region.h"

static uint64_t seed = 42;

/* Numbers that break programs. */
static uint32_t odd_u32(void)
{
    static const uint32_t odd[] = {0, 1, 2, 254, 255, 256, 0x7fffffff, 0x80000000, 0xfffffff7, 0xffffffff};
    return draw_below(&seed, 2) ? odd[draw_below(&seed, COUNT(odd))] : (uint32_t)draw_below(&seed, 2000);
}

/* One damage; it may give the region another size. */
static bytes damage(bytes region, uint32_t chunk_count)
{
    size_t at = (size_t)draw_below(&seed, region.n);
    size_t head = record_offset(region, (uint32_t)draw_below(&seed, chunk_count), DS4KV_FORM_PLAIN);
    bytes damaged = bytes_copy(region);
    switch (draw_below(&seed, 7)) {
    case 0:
        damaged.at[at] ^= (uint8_t)(1 << draw_below(&seed, 8));
        break;
    case 1:
        damaged.at[at] = (uint8_t)draw(&seed);
        break;
    case 2:
        set_u32(damaged.at + head + 4 * draw_below(&seed, 2), odd_u32());
        break;
    case 3:
        set_u32(damaged.at + 4 * draw_below(&seed, 3), odd_u32());
        break;
    case 4: /* a size a little off */
        head += 4 * draw_below(&seed, 2);
        set_u32(damaged.at + head, get_u32(damaged.at + head) + (uint32_t)draw_below(&seed, 5) - 2);
        break;
    case 5: /* cut off */
        damaged.n = at;
        break;
    default: /* a piece copied elsewhere */
        if (head + 8 < region.n)
            memmove(damaged.at + least(at, head), region.at + head, least(20, region.n - head));
    }
    bytes exact = bytes_copy(damaged);
    free(damaged.at);
    return exact;
}

static void check_same_verdict(bytes region, uint32_t chunk_size, unsigned verdicts[2])
{
    static const int workers[] = {0, 0, 0, 1, 2, 5};
    static const size_t pieces[] = {1, 7, 100, SIZE_MAX};
    way way = {.chunk_size = chunk_size,
               .workers = workers[draw_below(&seed, COUNT(workers))],
               .put_size = pieces[draw_below(&seed, COUNT(pieces))],
               .take_size = pieces[draw_below(&seed, COUNT(pieces))],
               .aim_size = draw_below(&seed, 2) ? SIZE_MAX : 0,
               .in_file = draw_below(&seed, 2)};
    verdict read = read_region(region, way);
    verdict decoded = decode_region(region, chunk_size, DS4KV_FORM_PLAIN, workers[draw_below(&seed, COUNT(workers))]);
    CHECK_EQ(read.status, decoded.status);
    CHECK(read.status == DS4KV_OK || read.status == DS4KV_CORRUPT);
    if (read.status == DS4KV_OK)
        CHECK(bytes_equal(read.payload, decoded.payload));
    else
        CHECK(read.fault.offset <= region.n && decoded.fault.offset <= region.n);
    verdicts[read.status == DS4KV_OK]++;
    free(read.payload.at);
    free(decoded.payload.at);
}

int main(void)
{
    watchdog();
    static const uint32_t chunk_sizes[] = {1, 13, 500, 1500};
    unsigned verdicts[2] = {0, 0};
    for (int kind = 0; kind < N_KINDS; kind++)
        for (size_t i = 0; i < COUNT(chunk_sizes); i++) {
            size_t n = least(3000, 20 * chunk_sizes[i] + 7);
            bytes payload = payload_new((payload_kind)kind, n);
            bytes region = write_region(payload, (way){.chunk_size = chunk_sizes[i], .put_size = SIZE_MAX});
            for (int round = 0; round < 250; round++) {
                CASE("kind %d, chunk_size %u, round %d", kind, chunk_sizes[i], round);
                bytes damaged = damage(region, get_u32(region.at + 8));
                check_same_verdict(damaged, chunk_sizes[i], verdicts);
                free(damaged.at);
            }
            free(region.at);
            free(payload.at);
        }
    CASE("both verdicts were seen often");
    CHECK(verdicts[0] > 300 && verdicts[1] > 300);
    return 0;
}
