/*
 * internal.h - what the files of the core share and nobody else sees.
 *
 * Floors: oneshot.c stands on reader.c; writer.c and reader.c on ring.c, codec.c and frame.c; those three do not know
 * each other, but that a ring runs a codec on its slots, and a codec makes record heads. codec.c stands on transpose.c
 * and hash.c. file.c is below all. Of whole files, checkpoint.c, open.c and create.c
 * share checkpoint.h and stand on stdio.c; open.c on layout.c and mid.c too, and create.c on draft.c, which stands on
 * leftovers.c, and that on sha1.c. layout.c stands on header.c and file.c, mid.c on reader.c.
 */
#ifndef DS4KV_INTERNAL_H
#define DS4KV_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <sys/types.h>

#include "ds4kv.h"
#include "ds4kv_file.h"

/* ---- slot: one chunk on its way through a ring ---- */

typedef struct {
    const uint8_t *src; /* pusher writes before the push, worker reads; NULL: the worker reads it from the codec's file */
    uint8_t *dst;       /* pusher writes before the push, worker writes behind it */
    size_t src_size;    /* pusher; worker: bytes that it could read */
    size_t dst_size;    /* pusher: room at dst; worker: bytes it made */
    uint64_t offset;    /* pusher: where the record is in its region, for faults and reading */
    uint32_t checksum;  /* pusher, decoding: what the record's head has */
    uint64_t sum;       /* pusher, decoding: what the record should have; worker, encoding: what it has */
    int status;         /* worker */
    int os_error;       /* worker: errno behind status IO */
    enum { WRONG_SUM, WRONG_BLOCK, WRONG_CHECKSUM } wrong; /* worker: behind status CORRUPT */
    bool lent;          /* pusher: src is the caller's own memory */
    bool aimed;         /* pusher: dst is the caller's own memory */
    bool done;          /* under the ring's mutex: the worker is through with it */
    atomic_bool is_read; /* worker: src is not needed any more */
} slot;

/* ---- codec.c ---- */

/* What a ring does to a slot. Each thread has its own scratch memory, of scratch_size bytes. Once `stop` is true nobody
 * wants the slot any more, and what reads from a file reads no further. */
typedef struct codec {
    int (*run)(const struct codec *codec, void *scratch, slot *slot, const atomic_bool *stop);
    size_t scratch_size;
    size_t streams_at; /* where in the scratch a transposed chunk is */
    uint32_t form;
    int level;
    bool sums;      /* an encoder's: records are to be summed; a decoder's: held against their sums */
    int fd;         /* a decoder's: of the file that has the records, if slots have no src */
    uint64_t start; /* of the region in that file */
    bool is_slow;   /* a chunk may take seconds, and nothing can end it before: nobody is to wait for one to end */
    bool reads_first; /* and if so, src is read in the first few milliseconds of them: so it may be lent */
} codec;

/* Makes a record of a chunk of at most raw_bound bytes: head and block. */
codec codec_encoder(uint32_t form, int level, size_t raw_bound);

/* Makes a chunk of at most raw_bound bytes of a record, which is the slot's src. */
codec codec_decoder(uint32_t form, size_t raw_bound);

/* The same of records with blocks of at most block_bound bytes, which whoever runs the slot reads from a file. */
codec codec_file_decoder(uint32_t form, size_t raw_bound, int fd, uint64_t start, size_t block_bound);

/* ---- transpose.c ---- */

/* Both return the XXH32 of the n raw bytes. */
uint32_t transpose(uint8_t *streams, const uint8_t *raw, size_t n);
uint32_t restore(uint8_t *raw, const uint8_t *streams, size_t n);

/* ---- hash.c ---- */

/* file_read_until, and the XXH3-64 of what was read. */
int file_read_hashed(int fd, void *bytes, size_t *n, uint64_t offset, const atomic_bool *stop, uint64_t *hash,
                     int *os_error);

/* ---- file.c ---- */

/* Fills in a fault for an errno. Returns IO. */
int file_fault(ds4kv_fault *fault, uint64_t offset, int os_error);

/* Reads *n bytes at `offset`: OK, TRUNCATED if the file ends before, or IO with errno in os_error; *n are there now. */
int file_read(int fd, void *bytes, size_t *n, uint64_t offset, int *os_error);

/* The same by pieces, with a look at `stop` before each: STATE once it is true. */
int file_read_until(int fd, void *bytes, size_t *n, uint64_t offset, const atomic_bool *stop, int *os_error);

/* ---- frame.c ---- */

typedef struct {
    uint32_t raw_size;
    uint32_t block_size;
    uint32_t checksum; /* 0 where there is none */
} record_head;

void record_head_encode(const record_head *head, uint32_t form, uint8_t *bytes);

/* Reads the record head at `offset` of the region and holds it against the frame and the bytes that are left. */
int record_head_decode(record_head *head, const uint8_t *bytes, const ds4kv_frame *frame, uint64_t region_bytes,
                       uint32_t index, uint64_t offset, ds4kv_fault *fault);

/* The same of a head whose frame is not to be trusted: a chunk of the file's size could have it. */
int record_head_alone(record_head *head, const uint8_t *bytes, uint32_t chunk_size, uint32_t form, uint32_t index,
                      uint64_t offset, ds4kv_fault *fault);

/* Payload bytes in chunk `index`. */
uint32_t frame_raw_size(const ds4kv_frame *frame, uint32_t index);

/* Fills in a fault, printf-like, and returns status. os_error is left 0. */
__attribute__((format(printf, 5, 6))) int fault_set(ds4kv_fault *fault, int status, uint64_t offset, const char *field,
                                                    const char *why, ...);

/* ---- header.c ---- */

#define MAX_LOG2 26 /* of DS4KV_MAX_CHUNK_SIZE */

/* ---- sha1.c ---- */

/* The SHA-1 of n bytes as 40 hex digits, lower case, and a NUL. */
void sha1_hex(const void *bytes, size_t n, char hex[41]);

/* ---- ring.c ---- */

/*
 * A ring of slots that is its own job queue, first come first served.
 *
 *     drained <= taken <= filled <= drained + n_slots           slot of chunk i: i mod n_slots
 *
 * The owner fills slot `filled` and pushes it, workers take it, the owner peeks at the oldest and pops it. A slot that is
 * not aimed may be taken only when taken < drained + n_out: so n_out destination memories are enough, chunk i using
 * number i mod n_out.
 */
typedef struct {
    pthread_mutex_t mutex; /* guards all up to `stopping`, and slot.done */
    pthread_cond_t work;   /* a slot can be taken, or the end */
    pthread_cond_t done;   /* a slot is done */
    uint64_t filled;       /* chunks pushed; the owner writes */
    uint64_t taken;        /* chunks begun; whoever runs them writes */
    uint64_t drained;      /* chunks popped; the owner writes */
    int idle;              /* workers waiting for work */
    int begun;             /* workers that took a number, for their scratch */
    int running;           /* workers that are inside a chunk */
    int left;              /* workers that have ended */
    void (*release)(void *object); /* set once the ring is left to its workers: the last of them calls it */
    void *object;
    atomic_bool stopping; /* written under the mutex, read by whoever reads from a file */

    void *own_scratch; /* for chunks that the owner runs itself */
    void **scratches;  /* of the workers: here, so that a forked child can free them */
    slot *slots;
    uint32_t n_slots;
    uint32_t n_out;
    codec codec;
    int nice;      /* how much nicer threads are than the owner */
    int n_workers; /* threads allowed */
    int n_threads; /* threads there */
    pthread_t *threads;
    pid_t owner;
} ring;

int ring_init(ring *ring, codec codec, int n_workers, uint32_t n_slots, uint32_t n_out);
bool ring_is_foreign(const ring *ring); /* a forked child's copy: the threads stayed behind */
slot *ring_next(ring *ring);            /* the slot to fill; only if filled < drained + n_slots */
void ring_push(ring *ring, bool more);  /* more: others follow, so that a thread is worth its start */
bool ring_is_full(const ring *ring);
bool ring_done(ring *ring, uint64_t index);
slot *ring_peek(ring *ring, bool wait); /* the oldest slot once done; NULL: none, or not done and no wait */
bool ring_wait(ring *ring, int ms);     /* false: after so long, a ring_peek that waits would still have to */
void ring_pop(ring *ring);

/* Ends the threads, then calls release(object), which is to call ring_clear. It waits for the chunks being run, and the
 * caller's memory is the caller's again. Those of a slow codec are waited for until they have read what is lent, and no
 * longer: the last thread that leaves one calls release, later, and who called this has no part in the ring any more. */
void ring_end(ring *ring, void (*release)(void *object), void *object);
void ring_clear(ring *ring); /* gives back what the ring itself holds; does nothing to a zeroed one */

/* ---- memory of a chunk ---- */

/* Memory for `size` bytes that are mostly written in full: huge pages where the system grants them. */
uint8_t *chunk_alloc(size_t size);

/* Buffer `i` of a table, allocated when first asked for. */
uint8_t *chunk_buffer(uint8_t **table, uint64_t i, size_t size);

void chunk_table_free(uint8_t **table, uint32_t n);

/* ---- numbers as files have them: little-endian ---- */

static inline uint32_t get_u32(const uint8_t *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static inline uint64_t get_u64(const uint8_t *p)
{
    return (uint64_t)get_u32(p + 4) << 32 | get_u32(p);
}

static inline void put_u32(uint8_t *p, uint32_t v)
{
    for (int i = 0; i < 4; i++)
        p[i] = (uint8_t)(v >> 8 * i);
}

static inline void put_u64(uint8_t *p, uint64_t v)
{
    put_u32(p, (uint32_t)v);
    put_u32(p + 4, (uint32_t)(v >> 32));
}

static inline uint32_t min_u32(uint32_t a, uint64_t b)
{
    return b < a ? (uint32_t)b : a;
}

#endif
