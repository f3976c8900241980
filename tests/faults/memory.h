/* memory.h - memory and threads that can't be had: a part of shim.c. */

extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t),
    *__libc_memalign(size_t, size_t);

#define CALLER __builtin_return_address(0)

void *malloc(size_t size) { return FAILS(on_caller(MALLOC, CALLER)) ? NULL : __libc_malloc(size); }
void *calloc(size_t count, size_t size)
{
    return FAILS(on_caller(MALLOC, CALLER)) ? NULL : __libc_calloc(count, size);
}
void *realloc(void *memory, size_t size)
{
    return FAILS(on_caller(MALLOC, CALLER)) ? NULL : __libc_realloc(memory, size);
}
void *aligned_alloc(size_t alignment, size_t size)
{
    return FAILS(on_caller(MALLOC, CALLER)) ? NULL : __libc_memalign(alignment, size);
}
int posix_memalign(void **memory, size_t alignment, size_t size)
{
    void *found = FAILS(on_caller(MALLOC, CALLER)) ? NULL : __libc_memalign(alignment, size);
    if (!found)
        return ENOMEM;
    *memory = found;
    return 0;
}

static void *do_mmap(void *where, size_t size, int protection, int flags, int fd, off_t offset, void *caller)
{
    if (FAILS(on_caller(MMAP, caller)))
        return MAP_FAILED;
    return (void *)syscall(SYS_mmap, where, size, protection, flags, fd, offset);
}

void *mmap(void *where, size_t size, int protection, int flags, int fd, off_t offset)
{
    return do_mmap(where, size, protection, flags, fd, offset, CALLER);
}
void *mmap64(void *where, size_t size, int protection, int flags, int fd, off_t offset)
{
    return do_mmap(where, size, protection, flags, fd, offset, CALLER);
}

int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*run)(void *), void *argument)
{
    if (armed.on && FAILS(verdict(THREAD)))
        return EAGAIN;
    REAL(int, pthread_create, pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
    return real(thread, attributes, run, argument);
}
