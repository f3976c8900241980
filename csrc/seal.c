/*
 * seal.c - layout packed: what a file's header, text and trailer are known by.
 *
 * The seal is of all that is known when a save begins. So it can be in the frame, and in the seed of every chunk's sum:
 * records of a file with another header or text are refused.
 */
#include "seal.h"

#include <string.h>

#include "fault.h"
#include "file.h"
#include "frame.h"
#include "hash.h"

#define HITS_AT 12
#define LAST_USED_AT 32
#define PAYLOAD_BYTES_AT 40

uint64_t ds4kv_seal(const uint8_t *head, const void *text, size_t text_bytes)
{
    uint8_t facts[DS4KV_PREFIX_SIZE];
    running_hash hash;
    memcpy(facts, head, sizeof facts);
    facts[EXT_FLAGS_AT] &= (uint8_t)~DS4KV_EXT_TOOL_MAP;
    memset(facts + HITS_AT, 0, 4);
    memset(facts + LAST_USED_AT, 0, 8);
    memset(facts + PAYLOAD_BYTES_AT, 0, 8);
    running_hash_begin(&hash, 0);
    running_hash_put(&hash, facts, sizeof facts);
    if (text_bytes > 0)
        running_hash_put(&hash, text, text_bytes);
    return running_hash_end(&hash);
}

int seal_judge(const ds4kv_frame *frame, const uint8_t *head, const void *text, size_t text_bytes, ds4kv_fault *fault)
{
    return ds4kv_seal(head, text, text_bytes) == frame->seal
               ? DS4KV_OK
               : fault_set(fault, DS4KV_CORRUPT, DS4KV_PREFIX_SIZE + text_bytes + FRAME_SEAL_AT, "seal",
                           "header and text are not those that were saved with this payload");
}

int trailer_sum(uint64_t *sum, int fd, uint64_t offset, uint64_t trailer_bytes, uint64_t seal, int *os_error)
{
    uint8_t piece[16384];
    running_hash hash;
    int status = DS4KV_OK;
    running_hash_begin(&hash, seal);
    for (size_t n; trailer_bytes > 0 && status == DS4KV_OK; trailer_bytes -= n, offset += n) {
        n = trailer_bytes < sizeof piece ? (size_t)trailer_bytes : sizeof piece;
        status = file_read(fd, piece, &n, offset, os_error);
        running_hash_put(&hash, piece, n);
    }
    *sum = running_hash_end(&hash);
    return status;
}
