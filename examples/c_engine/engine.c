/*
 * engine.c - an inference engine, without the inference, that keeps its sessions in .kv checkpoints.
 *
 *     engine save FILE TOKENS    computes a session of so many tokens and saves it
 *     engine load FILE           loads it and says what it is
 *     engine cat FILE            writes the payload of any checkpoint to the standard output
 *
 * save_payload and load_payload are an engine's own: fwrite and fread, and not a word of compression. The rest is what
 * it takes to have their bytes in a compressed, checked and atomically published file. The exit status is that of
 * ds4kv.h without its sign: 1 for a file that is proven corrupt, 2 for one that is truncated, 8 for what the system
 * could not do, 9 for a file that is not read here; 65 for a session that is not this engine's.
 */
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "ds4kv_file.h"

#define WORKERS 8
#define ROW 64 /* floats per token */

/* ---- the engine ---- */

typedef struct {
    uint32_t tokens;
    float *rows;
} session;

static session session_compute(uint32_t tokens)
{
    session new = {tokens, malloc(sizeof(float) * ROW * tokens)};
    for (size_t i = 0; new.rows && i < (size_t)tokens * ROW; i++)
        new.rows[i] = (float)(i * i % 997) / 8;
    return new;
}

static bool save_payload(const session *session, FILE *file)
{
    if (fwrite("FAKE", 1, 4, file) != 4 || fwrite(&session->tokens, 4, 1, file) != 1)
        return false;
    for (uint32_t id = 0; id < session->tokens; id++)
        if (fwrite(&id, 4, 1, file) != 1)
            return false;
    return fwrite(session->rows, sizeof(float) * ROW, session->tokens, file) == session->tokens;
}

static bool load_payload(session *session, FILE *file, uint64_t budget)
{
    char magic[4];
    uint32_t tokens, id;
    if (fread(magic, 1, 4, file) != 4 || memcmp(magic, "FAKE", 4) != 0 || fread(&tokens, 4, 1, file) != 1 ||
        budget != 8 + tokens * (uint64_t)(4 + sizeof(float) * ROW))
        return false;
    for (uint32_t i = 0; i < tokens; i++)
        if (fread(&id, 4, 1, file) != 1 || id != i)
            return false;
    *session = session_compute(tokens);
    return session->rows && fread(session->rows, sizeof(float) * ROW, tokens, file) == tokens;
}

/* ---- its checkpoints ---- */

static int complain(const char *path, int status, const ds4kv_fault *fault)
{
    fprintf(stderr, "%s at byte %llu (%s): %s\n", path, (unsigned long long)fault->offset, fault->field, fault->why);
    return -status;
}

static int save(const char *path, const session *session, const char *text)
{
    const char *fixed_time = getenv("SOURCE_DATE_EPOCH");
    uint64_t now = fixed_time ? strtoull(fixed_time, NULL, 10) : (uint64_t)time(NULL);
    ds4kv_header header = {.layout = DS4KV_LAYOUT_V2,
                           .quant_bits = 2,
                           .reason = DS4KV_REASON_COLD,
                           .codec = DS4KV_CODEC_LZ4,
                           .chunk_size = DS4KV_CHUNK_SIZE,
                           .tokens = session->tokens,
                           .ctx_size = 32768,
                           .created_at = now,
                           .last_used = now};
    ds4kv_checkpoint *checkpoint;
    ds4kv_fault fault;
    int status = ds4kv_checkpoint_create(&checkpoint, path, &header, text, strlen(text), WORKERS, &fault);
    if (status != DS4KV_OK)
        return complain(path, status, &fault);
    if (!save_payload(session, checkpoint->payload)) {
        perror(path);
        ds4kv_checkpoint_abandon(checkpoint);
        return -DS4KV_IO;
    }
    status = ds4kv_checkpoint_close(checkpoint, &fault);
    return status == DS4KV_OK ? 0 : complain(path, status, &fault);
}

static int load(const char *path, session *session, bool *is_ours)
{
    ds4kv_checkpoint *checkpoint;
    ds4kv_fault fault;
    int status = ds4kv_checkpoint_open(&checkpoint, path, WORKERS, &fault);
    if (status != DS4KV_OK)
        return complain(path, status, &fault);
    *is_ours = load_payload(session, checkpoint->payload, checkpoint->raw_total);
    if (*is_ours)
        printf("%u tokens after \"%s\"\n", (unsigned)session->tokens, checkpoint->text);
    status = ds4kv_checkpoint_close(checkpoint, &fault); /* a file that is fine may hold another engine's session */
    return status == DS4KV_OK ? 0 : complain(path, status, &fault);
}

static int cat(const char *path)
{
    static char piece[1 << 20];
    ds4kv_checkpoint *checkpoint;
    ds4kv_fault fault;
    int status = ds4kv_checkpoint_open(&checkpoint, path, WORKERS, &fault);
    if (status != DS4KV_OK)
        return complain(path, status, &fault);
    for (uint64_t left = checkpoint->raw_total; left > 0;) {
        size_t n = fread(piece, 1, left < sizeof piece ? (size_t)left : sizeof piece, checkpoint->payload);
        left = n ? left - n : 0;
        fwrite(piece, 1, n, stdout);
    }
    status = ds4kv_checkpoint_close(checkpoint, &fault);
    return status == DS4KV_OK ? 0 : complain(path, status, &fault);
}

int main(int argc, char **argv)
{
    session session = {0};
    bool is_ours = true;
    int result = 64;
    if (argc == 4 && strcmp(argv[1], "save") == 0) {
        session = session_compute((uint32_t)strtoul(argv[3], NULL, 10));
        result = session.rows ? save(argv[2], &session, "What is the time?") : 70;
    } else if (argc == 3 && strcmp(argv[1], "load") == 0) {
        result = load(argv[2], &session, &is_ours);
    } else if (argc == 3 && strcmp(argv[1], "cat") == 0) {
        result = cat(argv[2]);
    } else {
        fprintf(stderr, "usage: engine save FILE TOKENS | load FILE | cat FILE\n");
    }
    if (result == 0 && !is_ours) {
        fprintf(stderr, "%s: not a session of this engine\n", argv[2]);
        result = 65;
    }
    free(session.rows);
    return result;
}
