#ifndef DS4KV_PLANES_H
#define DS4KV_PLANES_H
#include <stddef.h>
#include <stdint.h>
#define PLANES_BLOCK ((size_t)256 << 10)
void planes_split(uint8_t *planes, const uint8_t *raw, size_t n, unsigned word);
void planes_join(uint8_t *raw, const uint8_t *planes, size_t n, unsigned word);
#endif
