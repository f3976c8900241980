/*
 * fault.h - what is wrong, and where: the ds4kv_fault behind a status.
 *
 * Laws:
 *   - Each of these fills in the whole fault and returns its status, so that a caller can return with it.
 *   - CORRUPT says that bytes are proven wrong. What the system can't do is IO, with an errno, or NOMEM.
 */
#ifndef DS4KV_FAULT_H
#define DS4KV_FAULT_H

#include "ds4kv.h"

/* Why, printf-like. os_error is 0 then. */
__attribute__((format(printf, 5, 6))) int fault_set(ds4kv_fault *fault, int status, uint64_t offset, const char *field,
                                                    const char *why, ...);

/* The system failed: IO, or NOMEM if os_error, which is an errno, is ENOMEM. */
int fault_io(ds4kv_fault *fault, uint64_t offset, const char *what, int os_error);

#endif
