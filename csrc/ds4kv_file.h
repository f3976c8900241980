/*
 * ds4kv_file.h - whole .kv checkpoints for C engines that save and load by FILE *.
 *
 *     file:  header (48 bytes), u32 text length, text, region, trailer       (FORMAT.md has every byte)
 *
 * A checkpoint is opened or created, its payload goes through a FILE * that knows nothing of compression, then perhaps
 * its trailer through another, and it is closed. Reading refuses what is proven wrong before anything is allocated for
 * it. Writing goes to a temporary file beside the target, which takes its name in close, when it is whole.
 *
 *     ds4kv_checkpoint *checkpoint;
 *     ds4kv_fault fault;
 *     if (ds4kv_checkpoint_create(&checkpoint, path, &header, text, text_bytes, 8, &fault) != DS4KV_OK)
 *         return complain(&fault);
 *     if (save_payload(session, checkpoint->payload) != 0) {
 *         ds4kv_checkpoint_abandon(checkpoint);
 *         return -1;
 *     }
 *     if (ds4kv_checkpoint_close(checkpoint, &fault) != DS4KV_OK)
 *         return complain(&fault);
 *
 * Laws:
 *   - Each function that takes a fault fills it in when it returns anything but DS4KV_OK: offset and field where bytes
 *     are wrong, errno in os_error for IO, always a sentence.
 *   - CORRUPT and TRUNCATED alone are a reason to remove a file. UNSUPPORTED files may be perfect, and so may those that
 *     the system could not read.
 *   - Streams that a checkpoint gives are closed by it, and by nobody else.
 *   - A checkpoint stays with the process that opened it. A forked child ends by _exit, or abandons its copy before it
 *     calls exit, which would move the position that the parent reads at; close does as abandon there, and answers
 *     STATE. What a child has of a checkpoint that is written goes nowhere, and keeps its temporary file from being
 *     removed until it ends too.
 */
#ifndef DS4KV_FILE_H
#define DS4KV_FILE_H

#include <stdio.h>

#include "ds4kv.h"

#ifdef __cplusplus
extern "C" {
#endif

/* cdef: begin */

#define DS4KV_HEADER_SIZE 48
#define DS4KV_PREFIX_SIZE 52      /* header and text length: the text begins here */
#define DS4KV_CHUNK_SIZE 16777216 /* what other writers of the format use */

/* Best for v2-checked and packed: 16 threads load twice as fast, in a sixteenth of the memory. */
#define DS4KV_CHECKED_CHUNK_SIZE 1048576

#define DS4KV_TRAILER_SUM_SIZE 8 /* behind the trailer of a file in layout packed */

/* ---- header ---- */

/* All are read, and all but v2-mid written. No ds4 reads packed, which is for engines that have none beside them. */
enum { DS4KV_LAYOUT_V1 = 1, DS4KV_LAYOUT_V2, DS4KV_LAYOUT_V2_MID, DS4KV_LAYOUT_V2_CHECKED, DS4KV_LAYOUT_PACKED };

enum { DS4KV_CODEC_NONE, DS4KV_CODEC_LZ4, DS4KV_CODEC_LZ4HC };

enum {
    DS4KV_REASON_UNKNOWN,
    DS4KV_REASON_COLD,
    DS4KV_REASON_CONTINUED,
    DS4KV_REASON_EVICT,
    DS4KV_REASON_SHUTDOWN,
    DS4KV_REASON_AGENT_SYSTEM,
    DS4KV_REASON_AGENT_SESSION
};

enum { DS4KV_EXT_TOOL_MAP = 1, DS4KV_EXT_RESPONSES_VISIBLE = 2, DS4KV_EXT_THINKING_VISIBLE = 4 };

/* Everything that the 48 bytes hold: a header that was unpacked packs to the same bytes. */
typedef struct {
    uint8_t layout;       /* a DS4KV_LAYOUT: byte 3 is 1 for v1, 75 for packed, 2 for all others */
    uint8_t quant_bits;   /* 2 or 4 */
    uint8_t reason;       /* above 6 reads as unknown */
    uint8_t ext_flags;    /* unknown bits pass through */
    uint8_t codec;        /* how the region is stored: any in v2, none in v1, LZ4 in the others */
    uint8_t model_id;     /* byte 7; 0 in v2, which has its codec there */
    uint32_t tokens;      /* at least 1 */
    uint32_t hits;
    uint32_t ctx_size;
    uint32_t chunk_size;  /* payload bytes per chunk, 1 to 64 MiB, and a power of two but in v2; 0 without a codec */
    uint32_t payload_abi; /* v1: bytes 20 to 23; v2: 0; others: byte 20 */
    uint64_t created_at;  /* Unix seconds */
    uint64_t last_used;
    uint64_t payload_bytes; /* of the region, so after compression */
} ds4kv_header;

/* PARAM, with the field's name, for what no file may hold. */
DS4KV_API int ds4kv_header_pack(const ds4kv_header *header, uint8_t *head, ds4kv_fault *fault);

/* Reads 48 bytes, if they are of version 2 as those of this layout: CORRUPT, or UNSUPPORTED for a version or codec that
 * is not read. Which of the layouts it is takes more of the file: ds4kv_examine tells. PARAM: none of them. */
DS4KV_API int ds4kv_header_unpack(ds4kv_header *header, const uint8_t *head, int layout, ds4kv_fault *fault);

/* The seal of a file in layout packed: the XXH3-64 of header, text length and text. `head` is the first two, 52 bytes. What
 * changes later counts as 0 in it: hits, last_used, the flag of the tool map, and payload_bytes, which the records prove. */
DS4KV_API uint64_t ds4kv_seal(const uint8_t *head, const void *text, size_t text_bytes);

/* ---- where everything is in a file ---- */

typedef struct {
    ds4kv_header header;
    uint8_t head[52];      /* header and text length as they are in the file, DS4KV_PREFIX_SIZE bytes */
    uint32_t text_bytes;
    uint64_t region_start; /* the region ends header.payload_bytes later, and there the trailer begins */
} ds4kv_outline;

/* Finds the layout of an open file of so many bytes. Four layouts call themselves version 2: where the header could be
 * of two of them, the heads of the records tell. CORRUPT, TRUNCATED, UNSUPPORTED, IO: region_start is 0 then. But where
 * only the sizes are wrong, as text or region end beyond the file, or the region is of none of the layouts that the header
 * could be of, the outline is filled in all the same: for who salvages. */
DS4KV_API int ds4kv_examine(ds4kv_outline *outline, int fd, uint64_t file_size, ds4kv_fault *fault);

/* How a region holds its chunks: a DS4KV_FORM; -1 for v2-mid, whose blocks alone tell. */
DS4KV_API int ds4kv_header_form(const ds4kv_header *header);

/* The form of a region of v2-mid that begins at `start` of an open file: PLAIN or TRANSPOSED, by which of them the payload
 * begins as one of DeepSeek V4. If neither or both do, all of it has to be the same both ways, else UNSUPPORTED.
 * CORRUPT, TRUNCATED, with an offset into the file; NOMEM, IO. */
DS4KV_API int ds4kv_mid_form(int fd, uint64_t start, uint64_t region_bytes, uint32_t chunk_size, ds4kv_fault *fault);

/* ---- a region in its file: frame, and records one by one ---- */

/* Reads the frame of a region that begins at `start` of an open file, and holds it against the region's size: as
 * ds4kv_frame_decode, with offsets into the file. The forms of v2-mid have the same. CORRUPT, TRUNCATED, IO. */
DS4KV_API int ds4kv_frame_at(ds4kv_frame *frame, int fd, uint64_t start, uint64_t region_bytes, uint32_t chunk_size,
                             uint32_t form, ds4kv_fault *fault);

typedef struct {
    uint64_t offset;   /* of the record in its file */
    uint32_t index;    /* of its chunk, for faults */
    uint32_t size;     /* in bytes, head included */
    uint32_t raw_size; /* of its chunk */
} ds4kv_record;

/* For files that may be damaged: the record at record->offset by its own head, whatever the frame says. 1: `size` and
 * `raw_size` are filled in. 0: the region ends here. CORRUPT: no record can be here, and nothing says where the next one
 * is. IO. The region begins at `start` of the file, and its form is PLAIN, CHECKED or PACKED. */
DS4KV_API int ds4kv_record_at(ds4kv_record *record, int fd, uint64_t file_size, uint64_t start, uint64_t region_bytes,
                              uint32_t chunk_size, uint32_t form, ds4kv_fault *fault);

/* cdef: end */

/* ---- checkpoint ---- */

typedef struct {
    /* Being written: all but layout, codec and chunk_size may be changed until close; in layout packed hits, last_used and
     * the flag of a tool map alone. */
    ds4kv_header header;
    const char *text;    /* being read: its text_bytes, any bytes, and a NUL behind them; else NULL */
    uint32_t text_bytes;
    FILE *payload;          /* fread or fwrite it in pieces of any size; NULL once the trailer was asked for */
    uint64_t raw_total;     /* being read: bytes of payload, the engine's budget */
    uint64_t trailer_bytes; /* being read; in layout packed without its sum, and as it was when last asked for */
    int fsync;              /* being written: set it, and close returns when file and name are on the disk */
} ds4kv_checkpoint;

/* The name that a store gives a checkpoint with this text: its SHA-1 in hex and ".kv", and a NUL. */
DS4KV_API void ds4kv_checkpoint_name(const void *text, size_t text_bytes, char name[44]);

/* Opens one for reading: header, text and frame are read and held against each other, the file's size and, if it is
 * named by a SHA-1, its name. CORRUPT, TRUNCATED, UNSUPPORTED, IO, NOMEM; PARAM: workers outside 0..64.
 * The payload's stream ends after raw_total bytes. */
DS4KV_API int ds4kv_checkpoint_open(ds4kv_checkpoint **checkpoint, const char *path, int workers, ds4kv_fault *fault);

/* Creates a temporary file beside `path`, with this header and text, which may go when the call returns. It has the mode
 * of the file that it replaces, and where that is allowed its owner and group; else mode 0600. What killed processes left
 * of the same name is removed.
 * Layout v2-checked is written at level 1, and becomes v1 in close if it saves less than 1/64 of the payload. The others
 * are written at level 0.
 * A link at `path` stays, and what it leads to is replaced or made. PARAM: a header that no file may hold, codec LZ4HC,
 * which needs Python, a name that is the SHA-1 of another text, workers outside 0..64. IO, NOMEM. */
DS4KV_API int ds4kv_checkpoint_create(ds4kv_checkpoint **checkpoint, const char *path, const ds4kv_header *header,
                                      const void *text, size_t text_bytes, int workers, ds4kv_fault *fault);

/* The same at any level that ds4kv_writer_new has for the layout's form: 0 of one that is not compressed; PARAM: another.
 * Level -1 of v2-checked and packed takes no longer than to write the payload as it is. */
DS4KV_API int ds4kv_checkpoint_create_as(ds4kv_checkpoint **checkpoint, const char *path, const ds4kv_header *header,
                                         const void *text, size_t text_bytes, int level, int workers,
                                         ds4kv_fault *fault);

/* Ends the payload and gives the stream for the trailer: trailer_bytes to fread, or what is to be fwritten. NULL, with
 * errno: the payload could not be written or the place not be found, and close will say so. */
DS4KV_API FILE *ds4kv_checkpoint_trailer(ds4kv_checkpoint *checkpoint);

/* Frees the checkpoint, whatever it returns. One that was created is first finished and takes its name; if that can't be
 * done its temporary file is removed, what was at `path` stays, and IO, NOMEM or PARAM say why. Only an error of fsync's
 * last step, which is the directory's, comes after the file has its name. Of one that was opened it returns what an fread
 * that failed has met: CORRUPT, TRUNCATED, IO or NOMEM. */
DS4KV_API int ds4kv_checkpoint_close(ds4kv_checkpoint *checkpoint, ds4kv_fault *fault);

/* Frees the checkpoint; one that was created leaves nothing behind, and what is not yet written is dropped. NULL is let
 * pass. */
DS4KV_API void ds4kv_checkpoint_abandon(ds4kv_checkpoint *checkpoint);

#ifdef __cplusplus
}
#endif

#endif
