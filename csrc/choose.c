/*
 * choose.c - which words a chunk is of, and whether compressing it is worth the time.
 *
 * A sample tells: pieces from all over the chunk, in a row. How many 8 bytes of its planes are one byte repeated says
 * whether words of 16 or of 32 bits are better, for next to nothing. Blocks of level 0 say the rest: by planes, or as
 * bytes, or not at all. The block by planes is first, as it's quicker to make; what would be larger than it ends early.
 *
 * That takes 3 % of the time of a save at level 0 in chunks of a MiB or more. In smaller ones it takes a larger part, as a
 * sample that is very small says too little.
 */
#include "choose.h"

#include <string.h>

#include "block.h"
#include "frame.h"
#include "planes.h"

/* A sample is 1 byte of so many, but not less than LEAST nor more than MOST; and a chunk of up to ALL bytes is its own. */
#define OF_BYTES 160
#define LEAST ((size_t)4 << 10)
#define MOST ((size_t)32 << 10)
#define ALL ((size_t)8 << 10)
#define PIECE ((size_t)512)

/* Compressed is what is smaller by 1 byte of 10 in the sample. Of a whole chunk that is about 1 of 8: what repeats far
 * off is not in the sample. Floats of 16 bits save 1 of 12, floats of 32 bits without any pattern 1 of 8. */
#define WORTH_IT 10

/* Planes have to be smaller than bytes as they are by 1 part of so many. A chunk's bytes have more to repeat than a
 * sample's, while the planes of both are much alike; and bytes need not be put together again. */
#define BETTER 16

/* Both words are tried if their planes have as many runs, to 1 part of so many. */
#define ALIKE 8

static size_t sample_size(size_t n)
{
    size_t size = n <= ALL ? n : n / OF_BYTES < LEAST ? LEAST : n / OF_BYTES > MOST ? MOST : n / OF_BYTES;
    return size / PLANES_GRAIN * PLANES_GRAIN;
}

/* One piece from each of as many equal parts, but from some place in it, as what a chunk is made of may have a period. */
static void take_sample(uint8_t *sample, size_t size, const uint8_t *raw, size_t n)
{
    size_t pieces = size / PIECE, part = n / pieces / 64 * 64, places = (part - PIECE) / 64 + 1;
    for (size_t i = 0; i < pieces; i++) {
        uint32_t drawn = (uint32_t)(i + 1) * 2654435761u >> 8;
        memcpy(sample + i * PIECE, raw + i * part + drawn % places * 64, PIECE);
    }
}

static size_t count_runs(const uint8_t *planes, size_t size)
{
    size_t runs = 0;
    for (size_t at = 0; at < size; at += 8) {
        uint64_t word;
        memcpy(&word, planes + at, sizeof word);
        runs += word == (word << 8 | word >> 56);
    }
    return runs;
}

_Static_assert(3 * MOST + BLOCK_BOUND(MOST) <= CHOOSE_SCRATCH, "a sample, its planes of two kinds, and a block of it");

unsigned choose_word(const uint8_t *raw, size_t n, int level, void *state, uint8_t *scratch)
{
    if (level > 0)
        level = 0;
    if (n < PLANES_GRAIN)
        return 0;
    uint8_t *sample = scratch, *block = scratch + 3 * MOST, *planes[] = {scratch + MOST, scratch + 2 * MOST};
    size_t size = sample_size(n), runs[2];
    take_sample(sample, size, raw, n);
    for (unsigned i = 0; i < 2; i++) {
        planes_split(planes[i], sample, size, 16 << i);
        runs[i] = count_runs(planes[i], size);
    }

    size_t most = size - size / WORTH_IT, room = most;
    unsigned word = CHOOSE_STORE, better = runs[1] > runs[0];
    for (unsigned k = 0; k < 2; k++) {
        unsigned i = k == 0 ? better : !better;
        if (k && runs[i] < runs[better] - runs[better] / ALIKE)
            break;
        int made = block_make(level, state, planes[i], size, block, room);
        if (made > 0) {
            room = (size_t)made - 1;
            word = 16 << i;
        }
    }
    if (word != CHOOSE_STORE)
        room = room + room / BETTER < most ? room + room / BETTER : most;
    return block_make(level, state, sample, size, block, room) > 0 ? 0 : word;
}
