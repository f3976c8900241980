/*
 * create.h - the end of a checkpoint that is written.
 */
#ifndef DS4KV_CREATE_H
#define DS4KV_CREATE_H

#include "checkpoint.h"

/* checkpoint_end_payload, and what was written is as it stays: once more as it is, if v2-checked saves too little. */
int create_end_payload(checkpoint *checkpoint);

/* Writes the header as it is in the end, and gives the file its name. */
int create_publish(checkpoint *checkpoint, ds4kv_fault *fault);

#endif
