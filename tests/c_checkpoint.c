/*
 * c_checkpoint.c - what a C program sees of checkpoints, for test_c_api.py.
 *
 *     c_checkpoint examine FILE...    reads each whole: status, offset and sentence, a line each
 *     c_checkpoint copy FROM TO       reads one and writes it again: the files are to be the same
 *     c_checkpoint payload FILE       writes the payload to the standard output, as an engine that reads to the end
 */
#include <stdlib.h>
#include <string.h>

#include "ds4kv_file.h"

static int examine(const char *path, ds4kv_fault *fault)
{
    static char piece[1000];
    ds4kv_checkpoint *checkpoint;
    int status = ds4kv_checkpoint_open(&checkpoint, path, 2, fault);
    if (status != DS4KV_OK)
        return status;
    uint64_t left = checkpoint->raw_total;
    for (size_t n = 1; n > 0 && left > 0; left -= n)
        n = fread(piece, 1, left < sizeof piece ? (size_t)left : sizeof piece, checkpoint->payload);
    status = ds4kv_checkpoint_close(checkpoint, fault);
    if (status == DS4KV_OK && left > 0)
        abort(); /* a short payload, and nobody says why */
    return status;
}

static int copy(const char *from, const char *to, ds4kv_fault *fault)
{
    ds4kv_checkpoint *in, *out;
    if (ds4kv_checkpoint_open(&in, from, 2, fault) != DS4KV_OK)
        return 1;
    char *payload = malloc(in->raw_total + 1), *trailer = malloc(in->trailer_bytes + 1);
    if (ds4kv_checkpoint_create(&out, to, &in->header, in->text, in->text_bytes, 2, fault) != DS4KV_OK)
        return 2;
    if (fread(payload, 1, in->raw_total, in->payload) != in->raw_total ||
        fwrite(payload, 1, in->raw_total, out->payload) != in->raw_total)
        return 3;
    FILE *trailer_in = ds4kv_checkpoint_trailer(in), *trailer_out = ds4kv_checkpoint_trailer(out);
    if (!trailer_in || !trailer_out || fread(trailer, 1, in->trailer_bytes, trailer_in) != in->trailer_bytes ||
        fwrite(trailer, 1, in->trailer_bytes, trailer_out) != in->trailer_bytes)
        return 4;
    free(payload);
    free(trailer);
    return ds4kv_checkpoint_close(out, fault) != DS4KV_OK || ds4kv_checkpoint_close(in, fault) != DS4KV_OK ? 5 : 0;
}

static int payload(const char *path, ds4kv_fault *fault)
{
    static char piece[1000];
    ds4kv_checkpoint *in;
    if (ds4kv_checkpoint_open(&in, path, 2, fault) != DS4KV_OK)
        return 1;
    for (size_t n; (n = fread(piece, 1, sizeof piece, in->payload)) > 0;)
        fwrite(piece, 1, n, stdout);
    return ds4kv_checkpoint_close(in, fault) != DS4KV_OK;
}

int main(int argc, char **argv)
{
    ds4kv_fault fault = {0};
    if (argc == 4 && strcmp(argv[1], "copy") == 0)
        return copy(argv[2], argv[3], &fault);
    if (argc == 3 && strcmp(argv[1], "payload") == 0)
        return payload(argv[2], &fault);
    for (int i = 2; i < argc; i++) {
        fault = (ds4kv_fault){0};
        int status = examine(argv[i], &fault);
        printf("%d %llu %s\n", status, (unsigned long long)fault.offset, fault.why);
    }
    return 0;
}
