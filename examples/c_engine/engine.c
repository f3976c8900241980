/*
 * engine.c - an inference engine, without the inference, that keeps its sessions in .kv checkpoints.
 *
 *     engine save FILE TOKENS    computes a session of so many tokens and saves it
 *     engine load FILE           loads it and says what it is
 *
 * save_payload and load_payload are an engine's own: fwrite and fread, and not a word of compression. The rest is what
 * it takes to have their bytes in a compressed, checked and atomically published file. The exit status is that of
 * ds4kv.h without its sign: 1 for a file that is proven corrupt, 2 for a truncated one, 5 for no memory, 8 for what the
 * system could not do, 9 for a file that is not read here; 65 for a session that is not this engine's.
 */
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "ds4kv_file.h"

#define ROW 64 /* floats per token */

/* ---- the engine ---- */

typedef struct {
    uint32_t tokens;
    float *rows;
} session;

static bool compute(session *session, uint32_t tokens)
{
    session->tokens = tokens;
    session->rows = malloc(sizeof(float) * ROW * tokens);
    for (size_t i = 0; session->rows && i < (size_t)tokens * ROW; i++)
        session->rows[i] = (float)(i * i % 997) / 8;
    return session->rows;
}

static bool save_payload(const session *session, FILE *file)
{
    return fwrite("FAKE", 1, 4, file) == 4 && fwrite(&session->tokens, 4, 1, file) == 1 &&
           fwrite(session->rows, sizeof(float) * ROW, session->tokens, file) == session->tokens;
}

static bool load_payload(session *session, FILE *file, uint64_t budget)
{
    char magic[4];
    uint32_t tokens;
    return fread(magic, 1, 4, file) == 4 && memcmp(magic, "FAKE", 4) == 0 && fread(&tokens, 4, 1, file) == 1 &&
           budget == 8 + tokens * (uint64_t)(sizeof(float) * ROW) && compute(session, tokens) &&
           fread(session->rows, sizeof(float) * ROW, tokens, file) == tokens;
}

/* ---- its checkpoints ---- */

static int save(const char *path, const session *session, const char *text, ds4kv_fault *fault)
{
    uint64_t now = (uint64_t)time(NULL);
    ds4kv_header header = {.layout = DS4KV_LAYOUT_V2, .quant_bits = 2, .reason = DS4KV_REASON_COLD,
                           .codec = DS4KV_CODEC_LZ4, .chunk_size = DS4KV_CHUNK_SIZE, .tokens = session->tokens,
                           .ctx_size = 32768, .created_at = now, .last_used = now};
    ds4kv_checkpoint *checkpoint;
    int status = ds4kv_checkpoint_create(&checkpoint, path, &header, text, strlen(text), 8, fault);
    if (status != DS4KV_OK)
        return status;
    if (save_payload(session, checkpoint->payload))
        return ds4kv_checkpoint_close(checkpoint, fault);
    perror(path);
    ds4kv_checkpoint_abandon(checkpoint);
    return -DS4KV_IO;
}

static int load(const char *path, session *session, ds4kv_fault *fault)
{
    ds4kv_checkpoint *checkpoint;
    int status = ds4kv_checkpoint_open(&checkpoint, path, 8, fault);
    if (status != DS4KV_OK)
        return status;
    bool is_ours = load_payload(session, checkpoint->payload, checkpoint->raw_total);
    if (is_ours)
        printf("%u tokens after \"%s\"\n", (unsigned)session->tokens, checkpoint->text);
    status = ds4kv_checkpoint_close(checkpoint, fault); /* a file that is fine may hold another engine's session */
    return status == DS4KV_OK && !is_ours ? 65 : status;
}

int main(int argc, char **argv)
{
    session session = {0};
    ds4kv_fault fault = {.field = "payload", .why = "not a session of this engine"};
    int status = 64;
    if (argc == 4 && strcmp(argv[1], "save") == 0)
        status = compute(&session, (uint32_t)strtoul(argv[3], NULL, 10))
                     ? save(argv[2], &session, "What is the time?", &fault) : -DS4KV_NOMEM;
    else if (argc == 3 && strcmp(argv[1], "load") == 0)
        status = load(argv[2], &session, &fault);
    else
        fprintf(stderr, "usage: engine save FILE TOKENS | load FILE\n");
    if (status < 0 || status == 65)
        fprintf(stderr, "%s, byte %llu, %s: %s\n", argv[2], (unsigned long long)fault.offset, fault.field, fault.why);
    free(session.rows);
    return abs(status);
}
