/*
 * crew.h - threads, and memory of megabytes, that outlive what they were made for by a second.
 *
 * An engine loads one checkpoint and saves another. Each time, threads would be started and memory zeroed by the system
 * that were given back a moment before.
 *
 * Laws:
 *   - A thread that has had nothing to do for CREW_IDLE_MS ends, and with the last such one goes all the memory.
 *   - At most CREW_MEMORY bytes are kept, and no thread that was not at work in the last second. Memory is kept only
 *     while there is a thread without work, as that one sees to it.
 *   - A thread is handed on only to who would have started one like it: of the same CPUs, niceness and scheduling.
 *   - A forked child begins with neither. A library that is unloaded leaves none that is kept.
 */
#ifndef DS4KV_CREW_H
#define DS4KV_CREW_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define CREW_IDLE_MS 1000
#define CREW_MEMORY ((size_t)512 << 20)

/* Runs work(arg) on another thread. It never sees a signal. If work changes what the thread is, it must not be kept.
 * work calls crew_leave once, moments before it returns. false: the system gives no thread. */
bool crew_start(void (*work)(void *arg), void *arg, bool is_kept);

/* From here on the thread counts as one without work: so memory that is given back meanwhile is kept. */
void crew_leave(void);

/* Memory of exactly this size that was given back; NULL: there is none. */
uint8_t *crew_memory(size_t size);

/* Memory that free() takes. It is kept for a while, or freed. */
void crew_give_back(uint8_t *memory, size_t size);

/* Frees what is kept, for who was refused memory by the system. */
void crew_drop_memory(void);

#endif
