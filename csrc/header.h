/*
 * header.h - the 48 bytes in front of every checkpoint.
 *
 * ds4kv_header_pack and ds4kv_header_unpack are declared in ds4kv_file.h.
 */
#ifndef DS4KV_HEADER_H
#define DS4KV_HEADER_H

#include "ds4kv_file.h"

#define MAX_LOG2 26 /* of DS4KV_MAX_CHUNK_SIZE */
#define PACKED_VERSION 75 /* 'K' in byte 3: no ds4 takes it for its own */

#endif
