/*
 * crew.c - threads and memory that are kept for a second.
 *
 * What is kept is a stack of idle threads, each with a condition of its own, and a stack of pieces of memory: what came
 * last is the warmest. One mutex guards all of it, and is held for moments.
 */
#define _GNU_SOURCE /* sched_getaffinity, under -std=c11 */
#include "crew.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "ds4kv.h"
#include "timed.h"

/* What a thread takes over from the one that starts it, as far as it matters. */
typedef struct {
    bool is_unknown; /* then it is like no other */
#ifdef __linux__
    cpu_set_t cpus;
    int niceness, policy, priority;
#endif
} character;

typedef struct member {
    pthread_t thread;
    pthread_cond_t wake; /* there is work, or the end */
    void (*work)(void *arg);
    void *arg;
    bool is_kept;
    bool is_dismissed; /* somebody joins it */
    character character;
    struct member *below; /* in the stack of idle ones */
} member;

typedef struct piece {
    struct piece *below;
    size_t size;
} piece; /* at the beginning of the memory that it is about */

static struct {
    pthread_mutex_t mutex;
    member *idle;
    unsigned leaving; /* threads that will be idle in a moment */
    piece *pieces;
    size_t bytes; /* of all pieces */
} crew = {.mutex = PTHREAD_MUTEX_INITIALIZER};

static _Thread_local member *this_member;

/* ---- memory ---- */

static piece *take_all(void)
{
    piece *all = crew.pieces;
    crew.pieces = NULL;
    crew.bytes = 0;
    return all;
}

static void free_all(piece *top)
{
    while (top) {
        piece *below = top->below;
        free(top);
        top = below;
    }
}

uint8_t *crew_memory(size_t size)
{
    pthread_mutex_lock(&crew.mutex);
    piece **at = &crew.pieces, *found;
    while (*at && (*at)->size != size)
        at = &(*at)->below;
    if ((found = *at)) {
        *at = found->below;
        crew.bytes -= size;
    }
    pthread_mutex_unlock(&crew.mutex);
    return (uint8_t *)found;
}

void crew_give_back(uint8_t *memory, size_t size)
{
    piece *piece = (void *)memory, *others = NULL;
    if (!memory)
        return;
    pthread_mutex_lock(&crew.mutex);
    bool is_kept = (crew.idle || crew.leaving > 0) && size <= CREW_MEMORY;
    if (is_kept) {
        if (size > CREW_MEMORY - crew.bytes)
            others = take_all(); /* of sizes that nobody asks for any more */
        piece->size = size;
        piece->below = crew.pieces;
        crew.pieces = piece;
        crew.bytes += size;
    }
    pthread_mutex_unlock(&crew.mutex);
    free_all(others);
    if (!is_kept)
        free(memory);
}

void crew_drop_memory(void)
{
    pthread_mutex_lock(&crew.mutex);
    piece *all = take_all();
    pthread_mutex_unlock(&crew.mutex);
    free_all(all);
}

/* ---- threads ---- */

static void look_at(character *character)
{
    memset(character, 0, sizeof *character); /* they are compared by their bytes */
#ifdef __linux__
    struct sched_param param = {0};
    character->niceness = getpriority(PRIO_PROCESS, 0); /* 0: this thread */
    character->policy = sched_getscheduler(0);
    character->is_unknown = sched_getaffinity(0, sizeof character->cpus, &character->cpus) != 0 ||
                            sched_getparam(0, &param) != 0;
    character->priority = param.sched_priority;
#endif
}

static void leave_idle(member *member)
{
    struct member **at = &crew.idle;
    while (*at != member)
        at = &(*at)->below;
    *at = member->below;
}

void crew_leave(void)
{
    if (!this_member->is_kept)
        return;
    pthread_mutex_lock(&crew.mutex);
    crew.leaving++;
    pthread_mutex_unlock(&crew.mutex);
}

/* Waits for more work. Called and left with the mutex locked; false: there is none. */
static bool has_more(member *member)
{
    member->work = NULL;
    if (!member->is_kept)
        return false;
    crew.leaving--;
    member->below = crew.idle;
    crew.idle = member;
    struct timespec end = timed_end(CREW_IDLE_MS);
    while (!member->work && !member->is_dismissed && timed_wait(&member->wake, &crew.mutex, &end))
        continue;
    if (!member->work && !member->is_dismissed)
        leave_idle(member);
    return member->work != NULL;
}

static void *live(void *arg)
{
    member *member = this_member = arg;
    for (;;) {
        member->work(member->arg);
        pthread_mutex_lock(&crew.mutex);
        if (!has_more(member))
            break;
        pthread_mutex_unlock(&crew.mutex);
    }
    if (!member->is_dismissed)
        pthread_detach(pthread_self());
    piece *pieces = !crew.idle && crew.leaving == 0 ? take_all() : NULL;
    pthread_mutex_unlock(&crew.mutex);
    free_all(pieces);
    pthread_cond_destroy(&member->wake);
    free(member);
    return NULL;
}

static member *member_new(const character *character)
{
    member *member = calloc(1, sizeof *member);
    if (member && timed_init(&member->wake) != 0) {
        free(member);
        return NULL;
    }
    if (member)
        member->character = *character;
    return member;
}

/* Signals are the host's business: all of them are blocked in a new thread. */
static bool begin(member *member)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    bool is_there = pthread_create(&member->thread, NULL, live, member) == 0;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return is_there;
}

static void before_fork(void)
{
    pthread_mutex_lock(&crew.mutex);
}

static void after_fork(void)
{
    pthread_mutex_unlock(&crew.mutex);
}

/* What is in memory is a copy of the parent's, whose threads stayed behind. */
static void after_fork_in_child(void)
{
    while (crew.idle) {
        member *member = crew.idle;
        crew.idle = member->below;
        free(member);
    }
    crew.leaving = 0;
    piece *pieces = take_all();
    pthread_mutex_unlock(&crew.mutex);
    free_all(pieces);
}

__attribute__((constructor)) static void watch_forks(void)
{
    (void)pthread_atfork(before_fork, after_fork, after_fork_in_child);
}

bool crew_start(void (*work)(void *arg), void *arg, bool is_kept)
{
    character character;
    look_at(&character);
    pthread_mutex_lock(&crew.mutex);
    member **at = &crew.idle, *found;
    while (*at && (character.is_unknown || memcmp(&(*at)->character, &character, sizeof character) != 0))
        at = &(*at)->below;
    if ((found = *at)) {
        *at = found->below;
        found->work = work;
        found->arg = arg;
        found->is_kept = is_kept;
        pthread_cond_signal(&found->wake);
    }
    pthread_mutex_unlock(&crew.mutex);
    if (found)
        return true;

    member *new = member_new(&character);
    if (!new)
        return false;
    new->work = work;
    new->arg = arg;
    new->is_kept = is_kept;
    if (begin(new))
        return true;
    pthread_cond_destroy(&new->wake);
    free(new);
    return false;
}

/* A thread may still be on its way from what it has just done for a ring that is gone: it is waited for, a little. */
void ds4kv_trim(void)
{
    const struct timespec moment = {.tv_nsec = 1000000};
    pthread_mutex_lock(&crew.mutex);
    for (int moments = 0; crew.idle || (crew.leaving > 0 && moments < 50);) {
        member *member = crew.idle;
        if (member) {
            pthread_t thread = member->thread;
            crew.idle = member->below;
            member->is_dismissed = true;
            pthread_cond_signal(&member->wake);
            pthread_mutex_unlock(&crew.mutex);
            pthread_join(thread, NULL);
        } else {
            pthread_mutex_unlock(&crew.mutex);
            nanosleep(&moment, NULL);
            moments++;
        }
        pthread_mutex_lock(&crew.mutex);
    }
    pthread_mutex_unlock(&crew.mutex);
    crew_drop_memory();
}

/* The end of the program, or the library is unloaded: no thread that is kept may be in code that is unmapped. */
__attribute__((destructor)) static void end(void)
{
    ds4kv_trim();
}
