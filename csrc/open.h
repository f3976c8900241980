/*
 * open.h - what close.c asks of a checkpoint that was read: whether its payload was proven wrong on the way.
 */
#ifndef DS4KV_OPEN_H
#define DS4KV_OPEN_H

#include "checkpoint.h"

/* What came of reading the payload, as far as it was read. */
int open_judge(checkpoint *checkpoint, ds4kv_fault *fault);

#endif
