"""The cffi builder of ds4kv.core._native: what Python sees of the C core, and nothing else, in one extension.

ds4kv.h and ds4kv_file.h are one text for two compilers. What stands between their two cdef marks is plain C
prototypes and types; it is cut out here for cffi, so that no second copy of the API can drift from the first.
"""

import os
import re
import sys
from pathlib import Path

from cffi import FFI

# setuptools wants paths relative to the folder it runs in, whichever that is.
CSRC = Path(os.path.relpath(Path(__file__).resolve().parent))


def cdef_of(header: str) -> str:
    _, _, rest = (CSRC / header).read_text(encoding="utf-8").partition("/* cdef: begin */")
    declarations, end, _ = rest.partition("/* cdef: end */")
    if not end:
        raise ValueError(f"{header} has no '/* cdef: begin */' followed by '/* cdef: end */'")
    return re.sub(r"\bDS4KV_API\b", "", declarations)


PYTHON_FILE = """
extern "Python" int64_t python_write(void *stream, const char *raw, size_t n);
extern "Python" int64_t python_read(void *stream, char *raw, size_t n);
static int python_file_open(FILE **out, void *stream, int writes);
static void python_file_close(FILE **file);
int fflush(FILE *file);
int ferror(FILE *file);
void clearerr(FILE *file);
"""

PYTHON_OWNED = """
static void drop_writer(ds4kv_writer **writer);
static void drop_reader(ds4kv_reader **reader);
static void drop_hasher(ds4kv_hasher **hasher);
static void reclaim_writer(ds4kv_writer **writer);
static void reclaim_reader(ds4kv_reader **reader);
"""

PYTHON_WATCH = """
static int watch_open(const char *directory);
"""

ffibuilder = FFI()
ffibuilder.cdef(cdef_of("ds4kv.h"))
ffibuilder.cdef(cdef_of("ds4kv_file.h"))
ffibuilder.cdef(PYTHON_FILE)
ffibuilder.cdef(PYTHON_OWNED)
ffibuilder.cdef(PYTHON_WATCH)
ffibuilder.set_source(
    "ds4kv.core._native",
    '#include "ds4kv_file.h"\n#include "python_owned.h"\n#include "python_file.h"\n#include "python_watch.h"',
    sources=[],  # the core itself comes from setup.py, as an archive
    include_dirs=[str(CSRC)],
    # -g0: CPython's own flags ask for debug information, which would be most of the wheel.
    extra_compile_args=["-O3", "-std=c11", "-pthread", "-fvisibility=hidden", "-g0"],
    # No symbol is visible but PyInit__native: what the archive marks for export, for C programs, is hidden here.
    # macOS's linker can't do that; its modules see each other's symbols only if they ask.
    extra_link_args=["-pthread"] + ([] if sys.platform == "darwin" else ["-Wl,--exclude-libs,ALL"]),
)
