/*
 * header.h - the 48 bytes in front of every checkpoint, for those who know them inside out.
 *
 * ds4kv_header_pack and ds4kv_header_unpack, which ds4kv_file.h has, are of this room too.
 */
#ifndef DS4KV_HEADER_H
#define DS4KV_HEADER_H

#include "ds4kv_file.h"

#define PREFIX_SIZE (DS4KV_HEADER_SIZE + 4) /* header and text length */

#define MAX_LOG2 26 /* of DS4KV_MAX_CHUNK_SIZE */

/* The form of the region, a DS4KV_FORM; -1 for v2-mid, where only blocks tell PLAIN from TRANSPOSED. */
int header_form(const ds4kv_header *header);

#endif
