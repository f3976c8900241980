/*
 * python_owned.h - how Python holds a writer, a reader or a hasher without ever losing it.
 *
 * The danger: a signal handler may raise between any two bytecodes. If one made a writer and the next kept it, Ctrl-C
 * between them would lose the writer, its threads and its memory. So Python has a place for the pointer first, C puts
 * it there, and what ends it is one call of C as well.
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

/* The memory that the caller lent is the caller's again. If it is still in use, because an exception came first, the
 * writer or reader ends here. */
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
