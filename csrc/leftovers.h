/*
 * leftovers.h - what processes that were killed left of the files that they wrote, see leftovers.c.
 */
#ifndef DS4KV_LEFTOVERS_H
#define DS4KV_LEFTOVERS_H

#include <stdbool.h>

#define LONGEST_STEM 231 /* a name is at most 255 bytes, and .tmp.4294967295.01234567 has 24 */

/* What the names of all drafts of `name` begin with: itself, or if that is too long a part of it and its hash. */
void stem_of(const char *name, char stem[LONGEST_STEM + 1]);

/* errno, or 0. EWOULDBLOCK: somebody else holds it. */
int lock_file(int fd);

/* Whether this error of lock_file is that there are no locks. */
bool is_without_locks(int os_error);

/* Removes the drafts of this target that nobody holds, unless that would take more than 1 % of the time. */
void sweep_now_and_then(const char *target);

#endif
