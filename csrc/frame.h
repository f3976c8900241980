/*
 * frame.h - what the numbers of a region must be: those of its frame and of each record head.
 *
 * Law: every number of a region is judged here before anybody acts on it.
 *
 * frame.c has ds4kv_frame_decode and its like as well; they are declared in ds4kv.h.
 */
#ifndef DS4KV_FRAME_H
#define DS4KV_FRAME_H

#include <stdbool.h>

#include "ds4kv.h"

/* What LZ4 makes of bytes that it can do nothing with: a length byte for every 255 of them, and 16 bytes. */
#define BLOCK_BOUND(raw_size) ((raw_size) + (raw_size) / 255 + 16)

#define MAX_FRAME_SIZE DS4KV_PACKED_FRAME_SIZE
#define MAX_HEAD_SIZE DS4KV_PACKED_HEAD_SIZE
#define FRAME_SEAL_AT 16 /* in a frame of form PACKED */
#define PACKED_SUM_AT 12 /* in a record head of it */

typedef struct {
    uint32_t raw_size;
    uint32_t block_size;
    uint32_t transform; /* a TRANSFORM; form PACKED alone */
    uint64_t checksum;  /* XXH32 in form CHECKED, XXH3-64 in form PACKED, 0 where there is none */
} record_head;

/* What was done to a chunk of form PACKED before it was made a block: nothing, or its words of so many bits are planes. */
enum { TRANSFORM_NONE, TRANSFORM_PLANES_16, TRANSFORM_PLANES_32 };

void record_head_encode(const record_head *head, uint32_t form, uint8_t *bytes);

/* Whether these bytes are a frame of form PACKED, by its own sum. */
bool is_packed_frame(const uint8_t *head);

/* The seed for the sum of chunk `index`. So a chunk of another file, or of another place in it, has another sum. */
uint64_t frame_seed(const ds4kv_frame *frame, uint32_t index);

/* Reads the record head at `offset` of the region and holds it against the frame and the bytes that are left. */
int record_head_decode(record_head *head, const uint8_t *bytes, const ds4kv_frame *frame, uint64_t region_bytes,
                       uint32_t index, uint64_t offset, ds4kv_fault *fault);

/* The same of a head whose frame is not to be trusted: a chunk of the file's size could have it. */
int record_head_alone(record_head *head, const uint8_t *bytes, uint32_t chunk_size, uint32_t form, uint32_t index,
                      uint64_t offset, ds4kv_fault *fault);

/* Payload bytes in chunk `index`. */
uint32_t frame_raw_size(const ds4kv_frame *frame, uint32_t index);

#endif
