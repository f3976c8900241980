/*
 * draft.h - the file that has no name yet, see draft.c. What returns int returns errno, or 0.
 */
#ifndef DS4KV_DRAFT_H
#define DS4KV_DRAFT_H

#include <stdio.h>

typedef struct draft draft;

/* A new file beside `path`, whose links are followed, for the name of it. EISDIR or EEXIST: what has the name is no
 * regular file. Removes what dead processes left of the same name, now and then. */
int draft_new(draft **out, const char *path);

const char *draft_target(const draft *draft); /* `path` as it stays, whatever becomes of the working directory */
const char *draft_path(const draft *draft);   /* where the file is until then */
int draft_fd(const draft *draft);

/* A stream that writes to it. It is the caller's to close, before the draft ends. */
FILE *draft_stream(draft *draft);

/* The first error that a write by a stream has met, also one that stdio has forgotten; 0: none. */
int draft_error(const draft *draft);

/* The file takes its name. After an error the draft is only to be freed. */
int draft_publish(draft *draft);

/* Sends the directory of the name to the disk. */
int draft_sync_name(const draft *draft);

/* Removes the file, unless it has its name, and frees the rest. A forked child leaves the file, which is its parent's. */
void draft_free(draft *draft);

#endif
