/*
 * create.h - what close.c calls for a checkpoint that was written: the end of its payload, then its name.
 */
#ifndef DS4KV_CREATE_H
#define DS4KV_CREATE_H

#include "checkpoint.h"

/* As checkpoint_end_payload. If v2-checked saved too little, the file has layout v1 then. */
int create_end_payload(checkpoint *checkpoint);

/* Writes the header as it is in the end, and gives the file its name. */
int create_publish(checkpoint *checkpoint, ds4kv_fault *fault);

#endif
