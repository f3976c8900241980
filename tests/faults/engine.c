/* engine.c - a C engine's save and load, as a library that Python calls: 0, or what ds4kv_file.h returns. */
#include <string.h>

#include "ds4kv_file.h"

int engine_save(const char *path, int layout, const void *text, size_t text_bytes, const void *payload, size_t size,
                int fsync, int *os_error)
{
    ds4kv_header header = {.layout = (uint8_t)layout, .quant_bits = 2, .reason = DS4KV_REASON_COLD, .tokens = 600,
                           .ctx_size = 1000, .created_at = 1, .last_used = 1};
    ds4kv_fault fault = {0};
    ds4kv_checkpoint *checkpoint;
    if (layout != DS4KV_LAYOUT_V1)
        header.codec = DS4KV_CODEC_LZ4, header.chunk_size = 4096;
    int status = ds4kv_checkpoint_create(&checkpoint, path, &header, text, text_bytes, 2, &fault);
    if (status == DS4KV_OK) {
        checkpoint->fsync = fsync;
        /* What goes wrong here is close's to say. */
        for (size_t at = 0, n; at < size; at += n) {
            n = fwrite((const char *)payload + at, 1, size - at < 5000 ? size - at : 5000, checkpoint->payload);
            if (n == 0)
                break;
        }
        status = ds4kv_checkpoint_close(checkpoint, &fault);
    }
    *os_error = fault.os_error;
    return status;
}

int engine_load(const char *path, void *payload, size_t size, size_t *read, int *os_error)
{
    ds4kv_fault fault = {0};
    ds4kv_checkpoint *checkpoint;
    int status = ds4kv_checkpoint_open(&checkpoint, path, 2, &fault);
    *read = 0;
    if (status == DS4KV_OK) {
        size_t n = 1;
        for (*read = 0; *read < size && n > 0; *read += n)
            n = fread((char *)payload + *read, 1, size - *read < 5000 ? size - *read : 5000, checkpoint->payload);
        status = ds4kv_checkpoint_close(checkpoint, &fault);
    }
    *os_error = fault.os_error;
    return status;
}
