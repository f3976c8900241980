#include "choose.h"
#include "block.h"
#include "planes.h"
unsigned choose_word(const uint8_t *raw, size_t n, void *state, uint8_t *scratch)
{
    size_t s = n < 8192 ? n : 8192;
    int best = (int)(s - s / 8);
    unsigned word = CHOOSE_STORE;
    uint8_t *out = scratch + 16384;
    for (unsigned w = 0; w <= 32; w += 16) {
        const uint8_t *from = raw;
        if (w)
            planes_split(scratch, raw, s, w), from = scratch;
        int made = block_make(0, state, from, s, out, 16384);
        if (made < best)
            best = made, word = w;
    }
    return word;
}
