/*
 * fault.c - what is wrong, and where, as a sentence.
 */
#include "fault.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

int fault_set(ds4kv_fault *fault, int status, uint64_t offset, const char *field, const char *why, ...)
{
    va_list args;
    fault->offset = offset;
    fault->field = field;
    fault->os_error = 0;
    va_start(args, why);
    vsnprintf(fault->why, sizeof fault->why, why, args);
    va_end(args);
    return status;
}

int fault_io(ds4kv_fault *fault, uint64_t offset, const char *what, int os_error)
{
    int status = os_error == ENOMEM ? DS4KV_NOMEM : DS4KV_IO;
    fault_set(fault, status, offset, "file", "%s: %s", what, strerror(os_error));
    fault->os_error = os_error;
    return status;
}
