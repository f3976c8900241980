"""Binary file objects, as programs have them: of the standard library, or with the few methods that are needed.

One to read from has ``readinto(room)`` or ``read(size)``, one to write to has ``write(bytes)``. One that has ``seek``
and ``tell`` is taken to seek, unless its ``seekable()`` says no.

Some answer None. From an :class:`io.RawIOBase` that is EAGAIN, as io has it. From any other write() it means that all
was taken: many that gather or send on return nothing.
"""

from __future__ import annotations

import errno
import fcntl
import io
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, BinaryIO, TypeAlias

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

__all__ = [
    "STEP_SIZE",
    "BinaryFile",
    "Nowhere",
    "add_path",
    "appends",
    "can_seek",
    "name_of",
    "path_of",
    "read_exactly",
    "read_into",
    "write_all",
    "write_steps",
]

BinaryFile: TypeAlias = BinaryIO | io.RawIOBase | io.BufferedIOBase

STEP_SIZE = 4 << 20
"""Of one read or write, where signals and cancel() are to be heard: 40 ms at 100 MB/s."""


class Nowhere(io.RawIOBase):
    """A file object that takes everything and keeps nothing."""

    def writable(self) -> bool:
        return True

    def write(self, b: ReadableBuffer, /) -> int:
        return memoryview(b).nbytes


def write_all(fp: BinaryFile, data: memoryview) -> None:
    """Writes until nothing is left, as a raw file may take less than it is given."""
    while data:
        n = fp.write(data)
        if n is None and isinstance(fp, io.RawIOBase):
            raise BlockingIOError(errno.EAGAIN, "the file object is non-blocking and took nothing")
        if n is None or n == len(data):
            return
        if not 0 < n < len(data):
            raise OSError(errno.EIO, f"the file object was given {len(data)} bytes and says that it took {n}")
        data = data[n:]


def write_steps(fp: BinaryFile, data: memoryview, look: Callable[[], None]) -> None:
    """Writes all of it, in steps, and looks between them whether it is still wanted."""
    if len(data) <= STEP_SIZE:
        write_all(fp, data)
        return
    for start in range(0, len(data), STEP_SIZE):
        look()
        with data[start : start + STEP_SIZE] as step:
            write_all(fp, step)


def read_into(fp: BinaryFile, room: memoryview) -> int:
    """Bytes read into ``room``; 0 at the end."""
    if hasattr(fp, "readinto"):
        n = fp.readinto(room)
    else:
        piece = fp.read(len(room))
        n = piece if piece is None else len(piece)
        if n and n <= len(room):
            room[:n] = piece
    if n is None:
        raise BlockingIOError(errno.EAGAIN, "the file object is non-blocking and had nothing")
    if not 0 <= n <= len(room):
        raise OSError(errno.EIO, f"the file object was asked for {len(room)} bytes and says that it gave {n}")
    return int(n)


def read_exactly(fp: BinaryFile, size: int) -> bytes:
    """``size`` bytes, fewer only at the end."""
    data = bytearray(size)
    room = memoryview(data)
    while room and (n := read_into(fp, room)):
        room = room[n:]
    return bytes(data[: size - len(room)])


def path_of(fp: object) -> str | None:
    """The path that a file object was opened by, if it tells one."""
    name = getattr(fp, "name", None)
    return os.fsdecode(name) if isinstance(name, (str, bytes, os.PathLike)) else None


def add_path(error: BaseException, fp: object) -> None:
    """Tells an error of the system, of a read by number, which file it is about."""
    if isinstance(error, OSError) and error.errno is not None and error.filename is None:
        path = path_of(fp)
        if path is not None:
            error.filename = path


def name_of(fp: object) -> str:
    """What a file object is called in a repr: by its path, else by its own repr."""
    try:
        return repr(path_of(fp) or fp)
    except ValueError:  # a buffer that its raw file was taken from has no name
        return repr(fp)


def can_seek(fp: object) -> bool:
    """Whether the file object can go back."""
    if hasattr(fp, "seekable"):
        return bool(fp.seekable())
    return hasattr(fp, "seek") and hasattr(fp, "tell")


def appends(fp: object) -> bool:
    """Whether all that is written goes to the file's end, wherever the position is."""
    if "a" in str(getattr(fp, "mode", "")):
        return True
    if hasattr(fp, "rollover"):  # tempfile's: asked for its descriptor, it would move from memory to a file
        return False
    try:
        fd = fp.fileno()  # type: ignore[attr-defined]
        return bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_APPEND)
    except (AttributeError, OSError, ValueError, TypeError):
        return False  # it has none
