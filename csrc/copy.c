/*
 * copy.c - payload from the ring's memory to the caller's: megabytes, which fit into no cache.
 *
 * memcpy passes the caches only from several MiB on. Below that it first reads what it is to overwrite; and where the
 * last 12 bits of the target's address are 1 to 31 above the source's, glibc before 2.39 copies at 2 GB/s on an AMD
 * EPYC, by an instruction that is slow there. So pieces of 256 KiB took three times as long as 8 MiB at once.
 */
#include "copy.h"

#include <string.h>

#if defined(__x86_64__)
#include <emmintrin.h>

#define FAR_SIZE ((size_t)32 << 10)

void copy_far(uint8_t *to, const uint8_t *from, size_t n)
{
    if (n < FAR_SIZE) {
        memcpy(to, from, n);
        return;
    }
    size_t head = -(uintptr_t)to % 16;
    memcpy(to, from, head);
    to += head;
    from += head;
    n -= head;
    for (; n >= 64; n -= 64, to += 64, from += 64)
        for (size_t i = 0; i < 64; i += 16)
            _mm_stream_si128((__m128i *)(void *)(to + i), _mm_loadu_si128((const __m128i *)(const void *)(from + i)));
    _mm_sfence();
    memcpy(to, from, n);
}

#else

void copy_far(uint8_t *to, const uint8_t *from, size_t n)
{
    memcpy(to, from, n);
}

#endif
