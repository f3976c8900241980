"""Where the C library and its headers lie, for programs that are compiled against them."""

from __future__ import annotations

import os

__all__ = ["get_include", "get_library"]

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def get_include() -> str:
    """The folder of ds4kv.h, ds4kv_stdio.h and ds4kv_file.h: ``cc -I`` wants it."""
    return os.path.join(_PACKAGE, "include")


def get_library() -> str:
    """The path of libds4kv.a, a static library that needs ``-pthread`` and nothing else.

    Raises FileNotFoundError if this installation has none: it was built where no objcopy was there to hide lz4 in it.
    """
    path = os.path.join(_PACKAGE, "lib", "libds4kv.a")
    if not os.path.exists(path):
        raise FileNotFoundError(
            f"{path} is not there: no objcopy was found when ds4kv was built. Install binutils and build it again,"
            " or run make -C csrc install in its sources"
        )
    return path
