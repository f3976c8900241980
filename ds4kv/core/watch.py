"""Which names of a directory change, as the kernel tells it: nobody has to look at them all to find one.

Not every file system can say it, see csrc/python_watch.h, and a process may have no more watches: then there is none.
"""

from __future__ import annotations

import io
import os
import struct

from ds4kv.core._native import lib

__all__ = ["Watch"]

_EVENT = struct.Struct("iIII")  # which watch, what happened, a number that is for renames, size of the name
_READ_SIZE = 1 << 16
_LARGEST_EVENT = _EVENT.size + 256  # a name of 255 bytes, and its end
_ENDED = 0x400 | 0x800 | 0x2000 | 0x4000 | 0x8000
"""IN_DELETE_SELF, IN_MOVE_SELF, IN_UNMOUNT, IN_Q_OVERFLOW, IN_IGNORED: from here on it says nothing, or not all."""


class _News(io.FileIO):
    """A descriptor of the kernel's. It ends with its owner, whichever the garbage collector takes first."""

    def __del__(self) -> None:
        self.close()


class Watch:
    """A watch of a directory, from its making on. For one thread at a time, and not for a forked child, which would
    take its parent's news.

    Raises OSError where there can't be one.
    """

    def __init__(self, directory: str) -> None:
        try:
            # The descriptor has its owner at once: no bytecode lies between, where a signal could lose it.
            self._file = next(map(_News, map(lib.watch_open, (os.fsencode(directory),))))
        except ValueError as error:  # of a number that is none
            raise OSError(f"{directory} can't be watched") from error

    def changed(self) -> set[str] | None:
        """The names that were made, written to, renamed or removed since the last call; None if that isn't known, and
        from then on always.
        """
        names: set[str] = set()
        is_all = False
        while not is_all and not self._file.closed and (news := self._file.read(_READ_SIZE)):
            is_all = len(news) <= _READ_SIZE - _LARGEST_EVENT  # another one would have had room
            at = 0
            while at < len(news):
                _, what, _, size = _EVENT.unpack_from(news, at)
                if what & _ENDED:
                    self.close()
                    break
                at += _EVENT.size + size
                if name := news[at - size : at].rstrip(b"\0"):  # else it is about the directory itself
                    names.add(os.fsdecode(name))
        return None if self._file.closed else names

    def close(self) -> None:
        """Ends it."""
        self._file.close()
