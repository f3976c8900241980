/*
 * ds4kv.h - payload bytes <-> the compressed region of a .kv checkpoint.
 *
 * The core is bytes in, bytes out. It opens no file, calls nothing back and knows no Python. A writer turns payload
 * bytes into records, a reader turns records into payload bytes; both are a ring of chunks served by worker threads,
 * behind five verbs: new, put, finish, take, free. Whoever owns the file loops over put and take. A reader that is
 * shown where its region lies, in memory or in an open file, needs no put: its workers fetch their blocks by
 * themselves.
 *
 *     region:  frame (12 bytes), then chunk_count records
 *     frame:   u64 raw_total, u32 chunk_count
 *     record:  u32 raw_size, u32 block_size, one LZ4 block          (all integers little-endian)
 *
 * That is form PLAIN. There are three others:
 *     TRANSPOSED  the block is of the chunk's four byte streams: bytes 0, 4, 8, ... of it, then 1, 5, 9, ..., then
 *                 2, 6, 10, ..., then 3, 7, 11, ..., and at the end the 0 to 3 bytes left over
 *     CHECKED     the same, and before the block the record has a u32 more: the XXH32 of the chunk
 *     RAW         the payload as it is, without frame and records; the reader cuts it into chunks
 *     PACKED      the block is of the chunk's bit planes, where they are smaller, or the chunk as it is. Frame and records
 *                 have sums that are of this one file and of this place in it:
 *                 frame (40 bytes): u64 raw_total, u32 chunk_count, u32 0, u64 seal, u64 first_sum, u64 XXH3-64 of these
 *                 record: u32 raw_size, u32 block_size, u32 transform, u64 XXH3-64 of the chunk, and the block
 *
 * Laws:
 *   - One object, one thread at a time. Different objects are independent.
 *   - Errors stick: after the first one, an object answers with it until it is freed.
 *   - Output bytes depend on the payload, the chunk size, the form and the level alone: never on the number of workers,
 *     nor on how the input was split.
 *   - Nothing is allocated from a number in a file before ds4kv_frame_decode has checked it against the other
 *     numbers and against the bytes that are there.
 *   - workers = 0 runs everything on the calling thread. Threads start with the second chunk, above level 0 with the
 *     first. Where the system refuses one, the work goes on with those there are.
 *   - free ends the work of the threads, and no memory of the caller's is in use after it. It waits until each is through
 *     with its chunk, which is milliseconds; but not for LZ4HC, which may take seconds: see ds4kv_stragglers.
 *   - Threads without work, and up to 512 MiB of memory, are kept for a second, for the next object: see ds4kv_trim.
 *   - After fork() the child's copy of an object answers DS4KV_STATE, as NULL does; freeing either is safe.
 */
#ifndef DS4KV_H
#define DS4KV_H

#include <stddef.h>
#include <stdint.h>

#ifndef DS4KV_API
#define DS4KV_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* cdef: begin */

/* Status codes; their numbers are frozen. Only CORRUPT and TRUNCATED say something about a file. */
#define DS4KV_OK 0
#define DS4KV_CORRUPT -1     /* the bytes are proven wrong */
#define DS4KV_TRUNCATED -2   /* the input ended before the region did */
#define DS4KV_PARAM -3       /* an argument is out of its range */
#define DS4KV_STATE -4       /* the wrong moment for this call, or a forked child */
#define DS4KV_NOMEM -5       /* no memory */
#define DS4KV_CODEC -7       /* the compressor failed on good arguments */
#define DS4KV_IO -8          /* the system could not read the file; the fault has its errno */
#define DS4KV_UNSUPPORTED -9 /* a layout, version or codec that is not read here; the file may be perfect */

#define DS4KV_FRAME_SIZE 12
#define DS4KV_RECORD_HEAD_SIZE 8
#define DS4KV_CHECKED_HEAD_SIZE 12
#define DS4KV_PACKED_FRAME_SIZE 40
#define DS4KV_PACKED_HEAD_SIZE 20
#define DS4KV_MAX_CHUNK_SIZE 67108864
#define DS4KV_MAX_WORKERS 64
#define DS4KV_MIN_LEVEL -1 /* of forms CHECKED and PACKED; 0 of form PLAIN */
#define DS4KV_MAX_LEVEL 12
#define DS4KV_UNKNOWN 0xffffffffffffffff /* a raw_total not known beforehand */

/* How the bytes of a region hold its chunks. */
#define DS4KV_FORM_RAW 0        /* read only */
#define DS4KV_FORM_PLAIN 1
#define DS4KV_FORM_TRANSPOSED 2 /* read only */
#define DS4KV_FORM_CHECKED 3
#define DS4KV_FORM_PACKED 4

/* What is in front of the records, and the chunk size and form, which the file's header tells. */
typedef struct {
    uint64_t raw_total;
    uint32_t chunk_count;
    uint32_t chunk_size;
    uint32_t form;
    uint64_t seal;      /* PACKED: what the file's header and text are known by; else 0 */
    uint64_t first_sum; /* PACKED: the XXH3-64 of the first chunk, 0 of an empty payload */
} ds4kv_frame;

/* Where a region is wrong: an offset from its start, the name of the field there, and a sentence. */
typedef struct {
    uint64_t offset;
    const char *field;
    int32_t os_error; /* errno, for IO */
    char why[128];
} ds4kv_fault;

/* A piece of the caller's memory that payload belongs in. */
typedef struct {
    void *bytes;
    size_t size;
} ds4kv_part;

typedef struct ds4kv_writer ds4kv_writer;
typedef struct ds4kv_reader ds4kv_reader;

DS4KV_API const char *ds4kv_lz4_version(void);

/* The largest block that raw_size bytes can become. */
DS4KV_API uint32_t ds4kv_block_bound(uint32_t raw_size);

/* The largest region that raw_total bytes can become. */
DS4KV_API uint64_t ds4kv_region_bound(uint64_t raw_total, uint32_t chunk_size, uint32_t form);

/* ---- frame ---- */

/* Bytes before the first record: 0 in form RAW. */
DS4KV_API uint32_t ds4kv_frame_size(uint32_t form);

/* Bytes before each block: 0 in form RAW. */
DS4KV_API uint32_t ds4kv_record_head_size(uint32_t form);

/* Fills in chunk_count. PARAM: chunk_size outside 1..64 MiB, no such form, or more chunks than a u32 counts. */
DS4KV_API int ds4kv_frame_init(ds4kv_frame *frame, uint64_t raw_total, uint32_t chunk_size, uint32_t form);

/* Writes ds4kv_frame_size bytes. */
DS4KV_API void ds4kv_frame_encode(const ds4kv_frame *frame, uint8_t *head);

/* Reads the ds4kv_frame_size bytes at head and holds them against chunk_size and region_bytes: what the frame claims
 * could be there. CORRUPT fills in the fault. A region of form RAW has no frame, and head is not looked at. */
DS4KV_API int ds4kv_frame_decode(ds4kv_frame *frame, const uint8_t *head, uint64_t region_bytes, uint32_t chunk_size,
                                 uint32_t form, ds4kv_fault *fault);

/* Bytes of the record whose head is at `offset` of a region, head included. CORRUPT if the head can't be true of this
 * frame and a region of this size. */
DS4KV_API int64_t ds4kv_record_size(const ds4kv_frame *frame, uint64_t region_bytes, uint32_t index, uint64_t offset,
                                    const uint8_t *head, ds4kv_fault *fault);

/* ---- writer: payload in, records out ---- */

/* level 0 is LZ4_compress_default, 1..12 is LZ4HC. raw_total is the payload's size, which must then be put, or
 * DS4KV_UNKNOWN. Form CHECKED has no empty payload. There and in form PACKED, level -1 looks for runs of one byte alone,
 * the fastest way by far, and levels 1 and 2 give a chunk the block of level 0 where that is smaller. In form CHECKED above
 * level 0, chunks that LZ4 could not make smaller are put into blocks as they are; in form PACKED, at any level, those of
 * which it would save less than 1/8, going by a sample. */
DS4KV_API int ds4kv_writer_new(ds4kv_writer **writer, uint64_t raw_total, uint32_t chunk_size, uint32_t form, int level,
                               int workers);

/* Threads that start from now on are nicer than the one that starts them by 0 to 19, so that others go before them.
 * Only on Linux is a thread's niceness its own; elsewhere nothing changes. */
DS4KV_API int ds4kv_writer_nice(ds4kv_writer *writer, int nice);

/* From now on, the XXH3-64 of each record is made with it: ds4kv_writer_sum tells the one of the record taken last.
 * Before the first put. */
DS4KV_API int ds4kv_writer_sums(ds4kv_writer *writer);
DS4KV_API uint64_t ds4kv_writer_sum(const ds4kv_writer *writer);

/* Form PACKED, before the first put: the seal that the frame gets, 0 without. ds4kv_seal makes a file's. */
DS4KV_API int ds4kv_writer_seal(ds4kv_writer *writer, uint64_t seal);

/* Form PACKED, before the first put: chunks that are stored as they are aren't copied. Their record is then its head alone,
 * and after each take ds4kv_writer_stored tells the chunk that belongs behind it, if there is one, and its size: it is the
 * caller's memory, where that was lent, and valid until the next call. 0: the record is whole. */
DS4KV_API int ds4kv_writer_leave_stored(ds4kv_writer *writer);
DS4KV_API int64_t ds4kv_writer_stored(const ds4kv_writer *writer, const void **chunk);

/* Accepts up to n payload bytes and returns how many. Fewer than n: take one record, then put the rest. With lent,
 * whole chunks are compressed where they lie: they must stay as they are until ds4kv_writer_lent says 0, or free. (In
 * form PLAIN above level 0 they are copied even so.) */
DS4KV_API int64_t ds4kv_writer_put(ds4kv_writer *writer, const void *raw, size_t n, int lent);

/* How many chunks in the ring are still to be read from the caller's memory. */
DS4KV_API int64_t ds4kv_writer_lent(ds4kv_writer *writer);

/* No more input. STATE if the payload is shorter than the raw_total given. */
DS4KV_API int ds4kv_writer_finish(ds4kv_writer *writer);

/* Lends the oldest record, whole, until the next call, and returns its size; waits while it is being compressed.
 * 0: every chunk that was put whole is taken (after finish: all is). */
DS4KV_API int64_t ds4kv_writer_take(ds4kv_writer *writer, const void **record);

/* Waits up to ms milliseconds for what ds4kv_writer_take would wait for, so that the caller can look up in between: 1
 * if a take would not wait for another thread any more, whatever it then says, 0 if it still would. The record that was
 * taken is given back. */
DS4KV_API int ds4kv_writer_wait(ds4kv_writer *writer, int ms);

/* The frame of what was put so far; after finish, the region's. */
DS4KV_API void ds4kv_writer_frame(const ds4kv_writer *writer, ds4kv_frame *frame);

/* A chunk that LZ4HC is compressing is not waited for: its thread ends with it later, and gives the memory back. */
DS4KV_API void ds4kv_writer_free(ds4kv_writer *writer);

/* How many writers were freed and still have a thread in a chunk, and so memory. */
DS4KV_API int ds4kv_stragglers(void);

/* Ends the threads that are without work, and frees the memory that is kept. Else both happen when they have been without
 * work for a second, in a forked child at once, and when the library is unloaded. */
DS4KV_API void ds4kv_trim(void);

/* ---- reader: records in, payload out ---- */

/* Starts at record first_chunk, which lies first_offset bytes into the region (0 and ds4kv_frame_size for all of it).
 * The frame is one that ds4kv_frame_decode gave. */
DS4KV_API int ds4kv_reader_new(ds4kv_reader **reader, const ds4kv_frame *frame, uint64_t region_bytes,
                               uint32_t first_chunk, uint64_t first_offset, int workers);

/* Instead of room and put, before the first of either: the region lies there, whole, and stays until free. In a file it
 * begins at byte `start`; workers pread their blocks, and the file's position is left alone. Memory must not be a
 * mapping of a file that others may cut short: reading past its new end is a SIGBUS. */
DS4KV_API int ds4kv_reader_from_memory(ds4kv_reader *reader, const void *region);
DS4KV_API int ds4kv_reader_from_file(ds4kv_reader *reader, int fd, uint64_t start);

/* Before anything is read or decoded: the XXH3-64 that each record should have. There must be as many sums as the frame
 * has chunks, and they must stay until free. A record that has another one is CORRUPT, and is not decoded. */
DS4KV_API int ds4kv_reader_sums(ds4kv_reader *reader, const uint64_t *sums);

/* Where the next bytes of the region belong, and how many of them at most. 0: take first, or the region is complete. */
DS4KV_API int64_t ds4kv_reader_room(ds4kv_reader *reader, void **room);

/* n bytes were placed in that room. CORRUPT as soon as a record head is wrong. */
DS4KV_API int ds4kv_reader_put(ds4kv_reader *reader, size_t n);

/* The input has ended. TRUNCATED if the region had more to come. */
DS4KV_API int ds4kv_reader_finish(ds4kv_reader *reader);

/* Until they have been taken, the n payload bytes that come next belong at dst: whole chunks are decoded there with no
 * copy between. If that is a chunk for each worker at least, none that begins behind them is decoded meanwhile. dst must
 * live until they are taken, or free. */
DS4KV_API int ds4kv_reader_aim(ds4kv_reader *reader, void *dst, size_t n);

/* The same for memory in several parts, which are filled one after the other; the array must live as long as they. A chunk
 * that belongs in two of them, which don't lie side by side, is decoded elsewhere and copied by the thread that decoded it.
 * What is aimed at in parts is taken with dst NULL, PARAM else, and all of it before the next aim, STATE else. */
DS4KV_API int ds4kv_reader_aim_parts(ds4kv_reader *reader, const ds4kv_part *parts, size_t n_parts);

/* How many payload bytes are still to come to the memory of the last aim. */
DS4KV_API int64_t ds4kv_reader_aimed(ds4kv_reader *reader);

/* The same as ds4kv_writer_wait, before a take that waits. */
DS4KV_API int ds4kv_reader_wait(ds4kv_reader *reader, int ms);

/* Moves up to n payload bytes to dst and returns how many. 0: room first, or the end. It waits for one chunk if nothing
 * is ready and wait is not 0, never for a second. With dst NULL they go where they were aimed, at most as many as that
 * are (else PARAM): so many bytes more of the caller's memory are ready, in order, while others are still decoded. */
DS4KV_API int64_t ds4kv_reader_take(ds4kv_reader *reader, void *dst, size_t n, int wait);

/* The fault behind a CORRUPT, TRUNCATED or IO. */
DS4KV_API void ds4kv_reader_fault(const ds4kv_reader *reader, ds4kv_fault *fault);

DS4KV_API void ds4kv_reader_free(ds4kv_reader *reader);

/* ---- sums ---- */

/* The XXH3-64 of n bytes; with a seed, or without, which is a seed of 0. */
DS4KV_API uint64_t ds4kv_hash(const void *bytes, size_t n);
DS4KV_API uint64_t ds4kv_hash_seeded(const void *bytes, size_t n, uint64_t seed);

/* The same of bytes that come by pieces; take begins anew. */
typedef struct ds4kv_hasher ds4kv_hasher;
DS4KV_API int ds4kv_hasher_new(ds4kv_hasher **hasher);
DS4KV_API void ds4kv_hasher_put(ds4kv_hasher *hasher, const void *bytes, size_t n);
DS4KV_API uint64_t ds4kv_hasher_take(ds4kv_hasher *hasher);
DS4KV_API void ds4kv_hasher_free(ds4kv_hasher *hasher);

/* Whether compressing n payload bytes in form CHECKED at this level would save less than 1/64 of them, going by samples
 * of up to 4 chunks: 1 if so, 0 if a chunk is worth it, or NOMEM. */
DS4KV_API int ds4kv_is_hopeless(const void *raw, size_t n, uint32_t chunk_size, int level);

/* ---- file ---- */

/* When the file came into being, in nanoseconds since 1970; 0 where the system can't tell. An inode number is used
 * again once its file is gone; the two together are not. */
DS4KV_API uint64_t ds4kv_file_birth(int fd);

/* Lets the system begin to write those bytes of a file to its disk, without waiting for it, so that a later fsync has
 * less to do. Only on Linux; elsewhere nothing happens. */
DS4KV_API void ds4kv_file_write_out(int fd, uint64_t offset, uint64_t n);

/* ---- one shot ---- */

/* Decodes a whole region that lies in memory into raw, which is raw_total bytes, with nothing in between. */
DS4KV_API int ds4kv_decode(const void *region, uint64_t region_bytes, uint32_t chunk_size, uint32_t form, void *raw,
                           uint64_t raw_total, int workers, ds4kv_fault *fault);

/* cdef: end */

#ifdef __cplusplus
}
#endif

#endif
