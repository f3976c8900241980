/*
 * ring.h - chunks in order through worker threads. A ring of slots is its own job queue, first come first served.
 *
 *     chunk        ... 6    7 |  8    9   10 | 11   12 | 13   14   15 ...
 *                  -----------+--------------+---------+-----------------
 *                   popped    | run, or      | wait    | not there yet
 *                             | done         |         |
 *                             ^              ^         ^
 *                          drained         taken     filled
 *     moved by             the owner       workers   the owner
 *     in                   ring_pop        (or who   ring_push
 *                                          waits)
 *
 * Laws:
 *   - drained <= taken <= filled <= drained + n_slots, and the counters only grow. Chunk i is in slot i mod n_slots.
 *   - One owner. It fills ring_next's slot and pushes it, and later peeks at the oldest and pops it; so chunks come out
 *     in the order in which they went in, whichever worker ends first.
 *   - A slot whose dst isn't the caller's memory is taken only when taken < drained + n_out. So n_out memories for
 *     results are enough, and chunk i uses number i mod n_out.
 *   - Workers say nothing to anybody: they leave a status in the slot.
 *   - Of a large copy that the owner makes, workers that have no chunk to run take pieces.
 */
#ifndef DS4KV_RING_H
#define DS4KV_RING_H

#include <pthread.h>
#include <sys/types.h>

#include "codec.h"

typedef struct {
    pthread_mutex_t mutex; /* guards all up to `stopping`, and slot.done */
    pthread_cond_t work;   /* a slot can be taken, or the end */
    pthread_cond_t done;   /* a slot is done, or a copy, or a worker has left */
    uint64_t filled;       /* chunks pushed; the owner writes */
    uint64_t taken;        /* chunks begun; whoever runs them writes */
    uint64_t drained;      /* chunks popped; the owner writes */
    int idle;              /* workers waiting for work */
    int begun;             /* workers that took a number, for their scratch */
    int running;           /* workers that are inside a chunk */
    int left;              /* workers that have ended */
    struct {
        uint8_t *to;
        const uint8_t *from;
        size_t left; /* bytes that nobody has taken yet */
        int helpers; /* workers that are copying */
    } copy;
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
void ring_copy(ring *ring, uint8_t *to, const uint8_t *from, size_t n); /* by the owner, and workers if it is large */

/* Ends the work of the threads, then calls release(object), which has to call ring_clear. Afterwards no worker uses the caller's
 * memory, and the ring is gone for who called this.
 *
 * It waits for the chunks that are being run. A slow codec's chunk is waited for only until it has read what is lent:
 * then ring_end returns before the end, and the last worker calls release, up to seconds later. */
void ring_end(ring *ring, void (*release)(void *object), void *object);
void ring_clear(ring *ring); /* gives back what the ring itself holds; does nothing to a zeroed one */

#endif
