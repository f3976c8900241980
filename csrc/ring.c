/*
 * ring.c - chunks in order through worker threads; ring.h has a drawing.
 *
 * Three counters that only grow keep the order: nothing is sorted, nothing is searched. A worker sees one slot at a
 * time and leaves a status in it; what it means is for the owner to say.
 *
 * The owner runs a chunk itself where there is no thread: with no workers, for a single chunk, and where the system
 * gives no thread. So "no threads" is not another program, it is this one with n_threads == 0.
 *
 * A slow codec is LZ4HC: seconds for a chunk, and nothing ends one before. So even a single chunk of it gets a thread,
 * as its owner may want to look up from waiting. And a ring that ends in the middle of one isn't joined but left to its
 * workers, the last of which gives all memory back. Nothing in such a ring is the caller's: what was lent has been
 * read.
 */
#define _GNU_SOURCE /* getpriority, under -std=c11 */
#include "ring.h"

#include <stdlib.h>
#include <sys/resource.h>
#include <unistd.h>

#include "chunk.h"
#include "copy.h"
#include "crew.h"
#include "ds4kv.h"
#include "timed.h"

#define SMALL_SIZE ((size_t)64 << 10) /* a single chunk of 64 KiB gets no thread, even of a slow codec */
#define SHARED_SIZE ((size_t)1 << 20) /* a copy of so much is shared, as 0.1 ms is worth waking others */
#define COPY_SIZE ((size_t)256 << 10) /* of what one takes of it at a time */

static slot *slot_of(ring *ring, uint64_t index)
{
    return &ring->slots[index % ring->n_slots];
}

static int run(ring *ring, slot *slot, void **scratch)
{
    if (ring->codec.scratch_size && !*scratch && !(*scratch = chunk_alloc(ring->codec.scratch_size)))
        return DS4KV_NOMEM;
    return ring->codec.run(&ring->codec, *scratch, slot, &ring->stopping);
}

/* Takes the next chunk and runs it with the mutex open; called and left with it locked. */
static void run_next(ring *ring, void **scratch)
{
    slot *slot = slot_of(ring, ring->taken++);
    pthread_mutex_unlock(&ring->mutex);
    slot->status = run(ring, slot, scratch);
    pthread_mutex_lock(&ring->mutex);
    slot->done = true;
    pthread_cond_signal(&ring->done);
}

static bool has_work(ring *ring)
{
    return ring->taken < ring->filled &&
           (ring->taken < ring->drained + ring->n_out || slot_of(ring, ring->taken)->aimed);
}

/* Copies the next piece with the mutex open; called and left with it locked. */
static void copy_piece(ring *ring)
{
    size_t n = ring->copy.left < COPY_SIZE ? ring->copy.left : COPY_SIZE;
    uint8_t *to = ring->copy.to;
    const uint8_t *from = ring->copy.from;
    ring->copy.to += n;
    ring->copy.from += n;
    ring->copy.left -= n;
    pthread_mutex_unlock(&ring->mutex);
    copy_far(to, from, n);
    pthread_mutex_lock(&ring->mutex);
}

static void help_to_copy(ring *ring)
{
    ring->copy.helpers++;
    copy_piece(ring);
    if (--ring->copy.helpers == 0 && ring->copy.left == 0)
        pthread_cond_signal(&ring->done);
}

/* How many rings are left to their workers, in the lower half of the bits. In the upper half, the process that counts
 * them: a forked child has none of its parent's threads, and begins at 0. */
static atomic_ulong stragglers;

#define HALF (4 * sizeof(unsigned long))

static int count_stragglers(int change)
{
    unsigned long process = (unsigned long)getpid(), before = atomic_load(&stragglers), count;
    do {
        count = before >> HALF == process ? before & ((1ul << HALF) - 1) : 0;
        count += (unsigned long)change;
    } while (!atomic_compare_exchange_weak(&stragglers, &before, process << HALF | count));
    return (int)count;
}

int ds4kv_stragglers(void)
{
    return count_stragglers(0);
}

/* A wish, as everything about priorities is: refused or unknown, the thread works as the others do. */
static void be_nicer(int by)
{
#ifdef __linux__
    if (by > 0)
        (void)setpriority(PRIO_PROCESS, 0, getpriority(PRIO_PROCESS, 0) + by); /* 0: this thread */
#else
    (void)by;
#endif
}

static void worker(void *arg)
{
    ring *ring = arg;
    be_nicer(ring->nice);
    pthread_mutex_lock(&ring->mutex);
    void **scratch = &ring->scratches[ring->begun++];
    while (!ring->stopping) {
        if (has_work(ring)) {
            ring->running++;
            run_next(ring, scratch);
            ring->running--;
        } else if (ring->copy.left > 0) {
            help_to_copy(ring);
        } else {
            ring->idle++;
            pthread_cond_wait(&ring->work, &ring->mutex);
            ring->idle--;
        }
    }
    crew_leave();
    ring->left++;
    void (*release)(void *object) = ring->left == ring->n_threads ? ring->release : NULL;
    void *object = ring->object;
    pthread_cond_signal(&ring->done);
    pthread_mutex_unlock(&ring->mutex); /* from here on, the ring may be gone */
    if (release) {
        release(object);
        count_stragglers(-1);
    }
}

static void start_worker(ring *ring)
{
    if (!crew_start(worker, ring, ring->nice == 0))
        return;
    pthread_mutex_lock(&ring->mutex);
    ring->n_threads++;
    pthread_mutex_unlock(&ring->mutex);
}

int ring_init(ring *ring, codec codec, int n_workers, uint32_t n_slots, uint32_t n_out)
{
    if (pthread_mutex_init(&ring->mutex, NULL) != 0)
        return DS4KV_NOMEM;
    if (pthread_cond_init(&ring->work, NULL) != 0)
        goto no_work;
    if (timed_init(&ring->done) != 0)
        goto no_done;
    ring->slots = calloc(n_slots, sizeof *ring->slots);
    ring->scratches = calloc((size_t)n_workers + 1, sizeof *ring->scratches);
    if (!ring->slots || !ring->scratches)
        goto no_memory;
    ring->n_slots = n_slots;
    ring->n_out = n_out;
    ring->codec = codec;
    ring->n_workers = n_workers;
    ring->owner = getpid();
    return DS4KV_OK;

no_memory:
    free(ring->slots);
    free(ring->scratches);
    ring->slots = NULL;
    pthread_cond_destroy(&ring->done);
no_done:
    pthread_cond_destroy(&ring->work);
no_work:
    pthread_mutex_destroy(&ring->mutex);
    return DS4KV_NOMEM;
}

bool ring_is_foreign(const ring *ring)
{
    return ring->owner != getpid();
}

slot *ring_next(ring *ring)
{
    return slot_of(ring, ring->filled);
}

bool ring_is_full(const ring *ring)
{
    return ring->filled - ring->drained == ring->n_slots;
}

void ring_push(ring *ring, bool more)
{
    pthread_mutex_lock(&ring->mutex);
    slot *slot = slot_of(ring, ring->filled);
    bool is_slow = ring->codec.is_slow && slot->src_size > SMALL_SIZE;
    slot->done = false;
    atomic_store(&slot->is_read, false);
    ring->filled++;
    bool short_of_hands = ring->filled - ring->taken > (uint64_t)ring->idle;
    pthread_cond_signal(&ring->work);
    pthread_mutex_unlock(&ring->mutex);
    if ((more || is_slow) && short_of_hands && ring->n_threads < ring->n_workers)
        start_worker(ring);
}

bool ring_done(ring *ring, uint64_t index)
{
    pthread_mutex_lock(&ring->mutex);
    bool done = index < ring->drained || (index < ring->filled && slot_of(ring, index)->done);
    pthread_mutex_unlock(&ring->mutex);
    return done;
}

slot *ring_peek(ring *ring, bool wait)
{
    slot *oldest = slot_of(ring, ring->drained);
    pthread_mutex_lock(&ring->mutex);
    bool there = ring->drained < ring->filled;
    while (there && wait && !oldest->done)
        if (ring->n_threads == 0)
            run_next(ring, &ring->own_scratch);
        else
            pthread_cond_wait(&ring->done, &ring->mutex);
    there = there && oldest->done;
    pthread_mutex_unlock(&ring->mutex);
    return there ? oldest : NULL;
}

bool ring_wait(ring *ring, int ms)
{
    struct timespec end = {0};
    slot *oldest = slot_of(ring, ring->drained);
    pthread_mutex_lock(&ring->mutex);
    bool there = ring->drained < ring->filled && ring->n_threads > 0;
    if (there && !oldest->done)
        end = timed_end(ms);
    while (there && !oldest->done && timed_wait(&ring->done, &ring->mutex, &end))
        continue;
    bool is_over = !there || oldest->done;
    pthread_mutex_unlock(&ring->mutex);
    return is_over;
}

void ring_pop(ring *ring)
{
    pthread_mutex_lock(&ring->mutex);
    ring->drained++;
    pthread_cond_signal(&ring->work);
    pthread_mutex_unlock(&ring->mutex);
}

void ring_copy(ring *ring, uint8_t *to, const uint8_t *from, size_t n)
{
    if (ring->n_threads == 0 || n < SHARED_SIZE) {
        copy_far(to, from, n);
        return;
    }
    pthread_mutex_lock(&ring->mutex);
    ring->copy.to = to;
    ring->copy.from = from;
    ring->copy.left = n;
    pthread_cond_broadcast(&ring->work);
    while (ring->copy.left > 0)
        copy_piece(ring);
    while (ring->copy.helpers > 0)
        pthread_cond_wait(&ring->done, &ring->mutex);
    pthread_mutex_unlock(&ring->mutex);
}

/* Whether a worker is reading what is lent. */
static bool reads_lent(ring *ring)
{
    for (uint64_t i = ring->drained; i < ring->taken; i++) {
        slot *slot = slot_of(ring, i);
        if (slot->lent && !slot->done && !atomic_load(&slot->is_read))
            return true;
    }
    return false;
}

/* Until none does. Called and left with the mutex locked. */
static void wait_for_lent(ring *ring)
{
    while (reads_lent(ring)) {
        struct timespec end = timed_end(1);
        (void)timed_wait(&ring->done, &ring->mutex, &end);
    }
}

void ring_end(ring *ring, void (*release)(void *object), void *object)
{
    if (ring->slots && !ring_is_foreign(ring)) {
        pthread_mutex_lock(&ring->mutex);
        atomic_store(&ring->stopping, true);
        pthread_cond_broadcast(&ring->work);
        if (ring->codec.is_slow)
            wait_for_lent(ring);
        bool is_left = ring->codec.is_slow && ring->running > 0;
        if (is_left) {
            count_stragglers(1);
            ring->release = release;
            ring->object = object;
        }
        while (!is_left && ring->left < ring->n_threads)
            pthread_cond_wait(&ring->done, &ring->mutex);
        pthread_mutex_unlock(&ring->mutex); /* from here on, a ring that is left may be gone */
        if (is_left)
            return;
    }
    release(object);
}

void ring_clear(ring *ring)
{
    if (!ring->slots)
        return;
    if (!ring_is_foreign(ring)) {
        pthread_cond_destroy(&ring->done);
        pthread_cond_destroy(&ring->work);
        pthread_mutex_destroy(&ring->mutex);
    }
    for (int i = 0; i < ring->begun; i++)
        chunk_free(ring->scratches[i], ring->codec.scratch_size);
    chunk_free(ring->own_scratch, ring->codec.scratch_size);
    free(ring->scratches);
    free(ring->slots);
    ring->slots = NULL;
}
