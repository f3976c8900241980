/*
 * mid.c - layout v2-mid, whose files have plain blocks or transposed ones and don't say which.
 *
 * The way by which the payload begins as one of DeepSeek V4 is the right one. If neither or both do, and the two
 * ways give different payloads, the file is ambiguous.
 */
#include <stdbool.h>
#include <string.h>

#include "ds4kv_file.h"
#include "fault.h"

#define MAGIC "DSV4"
#define MAGIC_SIZE 4

typedef struct {
    ds4kv_reader *reader[2]; /* of form PLAIN, of form TRANSPOSED */
    uint8_t piece[2][4096];
    int64_t size[2];
} trial;

static int begin(trial *trial, const ds4kv_frame *frame, int fd, uint64_t start, uint64_t region_bytes)
{
    for (int i = 0; i < 2; i++) {
        ds4kv_frame as = *frame;
        as.form = i ? DS4KV_FORM_TRANSPOSED : DS4KV_FORM_PLAIN;
        int status = ds4kv_reader_new(&trial->reader[i], &as, region_bytes, 0, DS4KV_FRAME_SIZE, 0);
        if (status == DS4KV_OK)
            status = ds4kv_reader_from_file(trial->reader[i], fd, start);
        if (status != DS4KV_OK)
            return status;
    }
    return DS4KV_OK;
}

/* The next piece of both. */
static int advance(trial *trial, ds4kv_fault *fault)
{
    for (int i = 0; i < 2; i++) {
        trial->size[i] = ds4kv_reader_take(trial->reader[i], trial->piece[i], sizeof trial->piece[i], 1);
        if (trial->size[i] < 0) {
            ds4kv_reader_fault(trial->reader[i], fault);
            return (int)trial->size[i];
        }
    }
    return DS4KV_OK;
}

static bool is_payload(const trial *trial, int i)
{
    return trial->size[i] >= MAGIC_SIZE && memcmp(trial->piece[i], MAGIC, MAGIC_SIZE) == 0;
}

static bool is_same(const trial *trial)
{
    return trial->size[0] == trial->size[1] && memcmp(trial->piece[0], trial->piece[1], (size_t)trial->size[0]) == 0;
}

/* The form, or a status. */
static int decide(trial *trial, ds4kv_fault *fault)
{
    int status = advance(trial, fault);
    bool plain = is_payload(trial, 0), transposed = is_payload(trial, 1);
    if (status == DS4KV_OK && plain != transposed)
        return transposed ? DS4KV_FORM_TRANSPOSED : DS4KV_FORM_PLAIN;
    while (status == DS4KV_OK && trial->size[0] > 0 && is_same(trial))
        status = advance(trial, fault);
    if (status != DS4KV_OK)
        return status;
    if (is_same(trial))
        return DS4KV_FORM_PLAIN;
    return fault_set(fault, DS4KV_UNSUPPORTED, 21, "codec",
                     "v2-mid doesn't say whether its blocks are transposed, and this payload is ambiguous");
}

int ds4kv_mid_form(int fd, uint64_t start, uint64_t region_bytes, uint32_t chunk_size, ds4kv_fault *fault)
{
    trial trial = {0};
    ds4kv_frame frame;
    int status = ds4kv_frame_at(&frame, fd, start, region_bytes, chunk_size, DS4KV_FORM_PLAIN, fault);
    if (status != DS4KV_OK)
        return status;
    status = begin(&trial, &frame, fd, start, region_bytes);
    if (status == DS4KV_NOMEM)
        fault_set(fault, status, 0, "file", "no memory for a chunk");
    if (status == DS4KV_OK)
        status = decide(&trial, fault);
    for (int i = 0; i < 2; i++)
        ds4kv_reader_free(trial.reader[i]);
    if (status == DS4KV_CORRUPT || status == DS4KV_TRUNCATED)
        fault->offset += start;
    return status;
}
