/*
 * open.h - the end of a checkpoint that was read.
 */
#ifndef DS4KV_OPEN_H
#define DS4KV_OPEN_H

#include "checkpoint.h"

/* What came of reading the payload, as far as it was read. */
int open_judge(checkpoint *checkpoint, ds4kv_fault *fault);

#endif
