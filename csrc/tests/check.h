/*
 * check.h - what every test needs: a check that says what failed, an end to what hangs, numbers drawn at random.
 *
 * A test is a main() that returns; a check that fails ends the process, also from a thread or a forked child.
 */
#ifndef CHECK_H
#define CHECK_H

#include <errno.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

/* The case at hand, printed before a check that fails. */
static _Thread_local char check_case[256];

/* The forked child that is under way; 0 for none. One at a time. */
static volatile pid_t check_child;

/* No child outlives the test that it is of. */
static inline _Noreturn void end_failed(void)
{
    if (check_child > 0)
        kill(check_child, SIGKILL);
    _exit(1);
}

#define CASE(...) snprintf(check_case, sizeof check_case, __VA_ARGS__)

#define FAIL(...)                                                                                                      \
    (fprintf(stderr, "%s:%d: [%s] ", __FILE__, __LINE__, check_case), fprintf(stderr, __VA_ARGS__),                    \
     fprintf(stderr, "\n"), end_failed())

#define CHECK(condition) ((condition) ? (void)0 : FAIL("failed: %s", #condition))

/* For integers: prints both. */
#define CHECK_EQ(is, should_be)                                                                                        \
    do {                                                                                                               \
        long long is_ = (long long)(is), should_ = (long long)(should_be);                                             \
        if (is_ != should_)                                                                                            \
            FAIL("%s is %lld, not %s = %lld", #is, is_, #should_be, should_);                                          \
    } while (0)

#define COUNT(array) (sizeof(array) / sizeof *(array))

/*
 * A deadlock becomes a failure: SIGALRM ends the process, whatever was inherited of whoever started it. Generous, as
 * sanitizers and valgrind are slow.
 */
static inline void watchdog(void)
{
    sigset_t mine;
    sigemptyset(&mine);
    sigaddset(&mine, SIGALRM);
    signal(SIGALRM, SIG_DFL);
    sigprocmask(SIG_UNBLOCK, &mine, NULL);
    alarm(600);
}

/* fork, for a test: an alarm is not inherited, so the child gets its own. */
static inline pid_t fork_child(void)
{
    pid_t child = fork();
    CHECK(child >= 0);
    check_child = child;
    if (child == 0)
        watchdog();
    return child;
}

/* Waits for the end of a child that has found nothing wrong. */
static inline void wait_for_child(pid_t child)
{
    int status;
    while (waitpid(child, &status, 0) < 0)
        CHECK(errno == EINTR);
    check_child = 0;
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

/* splitmix64: the same numbers in every run. */
static inline uint64_t draw(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

static inline uint64_t draw_below(uint64_t *state, uint64_t limit)
{
    return draw(state) % limit;
}

#endif
