/*
 * forms.h - the codec of each form.
 */
#ifndef DS4KV_FORMS_H
#define DS4KV_FORMS_H

#include "codec.h"

/* Whether a payload of this form can be encoded at this level. Where nothing is encoded there is 0 alone. */
bool form_has_level(uint32_t form, int level);

/* Makes a record of a chunk of at most raw_bound bytes: head and block. */
codec form_encoder(uint32_t form, int level, size_t raw_bound);

/* Makes a chunk of at most raw_bound bytes of a record, which is the slot's src. */
codec form_decoder(uint32_t form, size_t raw_bound);

/* The same of records with blocks of at most block_bound bytes, which whoever runs the slot reads from a file. */
codec form_file_decoder(uint32_t form, size_t raw_bound, int fd, uint64_t start, size_t block_bound);

#endif
