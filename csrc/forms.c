/*
 * forms.c - the codec of each form: packed.c's, or records.c's of those that ds4 knows.
 */
#include "forms.h"

#include "ds4kv.h"
#include "packed.h"
#include "records.h"

bool form_has_level(uint32_t form, int level)
{
    if (form == DS4KV_FORM_RAW)
        return level == 0;
    bool has_runs = form == DS4KV_FORM_CHECKED || form == DS4KV_FORM_PACKED;
    return level >= (has_runs ? DS4KV_MIN_LEVEL : 0) && level <= DS4KV_MAX_LEVEL;
}

codec form_encoder(uint32_t form, int level, size_t raw_bound)
{
    return form == DS4KV_FORM_PACKED ? packed_encoder(level, raw_bound) : records_encoder(form, level, raw_bound);
}

codec form_decoder(uint32_t form, size_t raw_bound)
{
    return form == DS4KV_FORM_PACKED ? packed_decoder(raw_bound) : records_decoder(form, raw_bound);
}

codec form_file_decoder(uint32_t form, size_t raw_bound, int fd, uint64_t start, size_t block_bound)
{
    return form == DS4KV_FORM_PACKED ? packed_file_decoder(raw_bound, fd, start, block_bound)
                                     : records_file_decoder(form, raw_bound, fd, start, block_bound);
}
