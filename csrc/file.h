/*
 * file.h - bytes of a file that someone else opened.
 *
 * Laws:
 *   - Read by pread: the file's position is the owner's, and any thread may read at any time.
 *   - A short read is no end. TRUNCATED means that the file's size says so too; anything else that is missing is IO.
 *   - *n is how many bytes are wanted, and afterwards how many are there, whatever the status.
 */
#ifndef DS4KV_FILE_ROOM_H
#define DS4KV_FILE_ROOM_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

/* Reads *n bytes at `offset`: OK, TRUNCATED, or IO with errno in os_error. */
int file_read(int fd, void *bytes, size_t *n, uint64_t offset, int *os_error);

/* The same by pieces of 1 MiB, with a look at `stop` before each: STATE once it is true. */
int file_read_until(int fd, void *bytes, size_t *n, uint64_t offset, const atomic_bool *stop, int *os_error);

#endif
