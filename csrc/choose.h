#ifndef DS4KV_CHOOSE_H
#define DS4KV_CHOOSE_H
#include <stddef.h>
#include <stdint.h>
#define CHOOSE_STORE 1
#define CHOOSE_SCRATCH 65536
unsigned choose_word(const uint8_t *raw, size_t n, void *state, uint8_t *scratch);
#endif
