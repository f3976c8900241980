/*
 * mid.h - layout v2-mid, whose files don't say whether their blocks are plain or transposed.
 */
#ifndef DS4KV_MID_H
#define DS4KV_MID_H

#include "ds4kv.h"

/* PLAIN or TRANSPOSED, for a region of layout v2-mid that begins at `start` of a file and has this frame, whose form is
 * not looked at. UNSUPPORTED if it is ambiguous; else what reading it may come to. */
int mid_form(uint32_t *form, const ds4kv_frame *frame, int fd, uint64_t start, uint64_t region_bytes,
             ds4kv_fault *fault);

#endif
