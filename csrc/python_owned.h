/*
 * python_owned.h - what Python holds of the core, ended by C alone.
 *
 * Between two bytecodes a signal handler may raise. So Python owns a place for the pointer before there is one, and no
 * bytecode stands between the making of an object and its owner, nor between the end of a loan and the end of its use.
 *
 * For the extension alone, behind ds4kv.h.
 */

static void drop_writer(ds4kv_writer **writer)
{
    ds4kv_writer_free(*writer);
    *writer = NULL;
}

static void drop_reader(ds4kv_reader **reader)
{
    ds4kv_reader_free(*reader);
    *reader = NULL;
}

static void drop_hasher(ds4kv_hasher **hasher)
{
    ds4kv_hasher_free(*hasher);
    *hasher = NULL;
}

/* The caller's memory is the caller's again. Where it is still in use, as an exception came first, that is the end of the
 * writer or reader. */
static void reclaim_writer(ds4kv_writer **writer)
{
    if (ds4kv_writer_lent(*writer) != 0)
        drop_writer(writer);
}

static void reclaim_reader(ds4kv_reader **reader)
{
    if (ds4kv_reader_aimed(*reader) != 0)
        drop_reader(reader);
}
