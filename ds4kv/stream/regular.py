"""Regular files, read at offsets: what a checkpoint and the workers of a stream read from.

A system may give fewer bytes than it is asked for: at a signal, over a network, or because another program is just
writing the file. So nobody else calls ``os.pread``: :func:`read_at` gives fewer bytes only at the file's end, and
:func:`read_exactly` never. An end that isn't where the file's size has it proves nothing of the file: it is an OSError.
"""

from __future__ import annotations

import errno
import io
import os
import stat
from typing import TYPE_CHECKING

from ds4kv.errors import TruncatedError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

__all__ = ["RegularFile", "read_at", "read_exactly", "regular_fd"]

_TRIES = 3


def read_at(fd: int, offset: int, size: int) -> bytes:
    """Those bytes of an open file; fewer only at its end. Raises OSError."""
    data = os.pread(fd, size, offset)
    tries = 0
    while len(data) < size:
        piece = os.pread(fd, size - len(data), offset + len(data))
        if not piece:
            if _is_end(fd, offset + len(data), tries):
                break
            tries += 1
        data += piece
    return data


def _is_end(fd: int, offset: int, tries: int) -> bool:
    """Whether a file of which nothing could be read at ``offset`` ends there; if not, it may have grown this moment.

    Raises OSError, with EIO, if that was tried again and again.
    """
    if os.fstat(fd).st_size <= offset:
        return True
    if tries == _TRIES:
        raise OSError(errno.EIO, f"nothing could be read at byte {offset}, and the file doesn't end there")
    return False


def read_exactly(fd: int, offset: int, size: int) -> bytes:
    """Those bytes of an open file. Raises TruncatedError if it ends before, and OSError."""
    data = read_at(fd, offset, size)
    if len(data) < size:
        raise TruncatedError(
            f"the file ends {size - len(data)} bytes too early",
            offset=offset + len(data),
            field="file",
        )
    return data


class RegularFile(io.RawIOBase):
    """A regular file to read, at a position of its own: a forked child shares the descriptor's, and moves it.

    ``status`` is what the system said of it when it was opened.
    """

    _fd = -1  # until it is open

    def __init__(self, path: str) -> None:
        self.name = path
        # Without O_NONBLOCK, a FIFO would be waited for before it can be refused.
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        self._position = 0
        self.status = os.fstat(self._fd)
        if not stat.S_ISREG(self.status.st_mode):
            self.close()
            kind = errno.EISDIR if stat.S_ISDIR(self.status.st_mode) else errno.EINVAL
            raise OSError(kind, "not a regular file", path)

    def fileno(self) -> int:
        return self._fd

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        if whence != os.SEEK_SET:
            raise io.UnsupportedOperation("only from the start")
        self._position = offset
        return offset

    def readinto(self, b: WriteableBuffer, /) -> int:
        n = os.preadv(self._fd, [b], self._position)
        tries = 0
        while n == 0 and memoryview(b).nbytes and not _is_end(self._fd, self._position, tries):
            n = os.preadv(self._fd, [b], self._position)
            tries += 1
        self._position += n
        return n

    def read_at(self, offset: int, size: int) -> bytes:
        """Those bytes; fewer only at the file's end."""
        return read_at(self._fd, offset, size)

    def read_exactly(self, offset: int, size: int) -> bytes:
        """Those bytes. Raises TruncatedError if the file ends before."""
        return read_exactly(self._fd, offset, size)

    def check_unchanged(self) -> None:
        """For who has found the bytes wrong: they prove nothing if somebody was writing while they were read.

        Raises OSError, with ESTALE, if the file has another size or time of change than when it was opened.
        """
        status = os.fstat(self._fd)
        if (status.st_size, status.st_mtime_ns) != (self.status.st_size, self.status.st_mtime_ns):
            raise OSError(errno.ESTALE, "the file was changed while it was read", self.name)

    def close(self) -> None:
        if not self.closed:
            super().close()
            if self._fd >= 0:
                os.close(self._fd)


def regular_fd(fp: object) -> int | None:
    """The descriptor of the regular file whose very bytes ``fp`` reads; None of any other file object.

    Only of types that are known: one that decrypts or unpacks may have a descriptor too, of other bytes.
    """
    raw = fp.raw if type(fp) is io.BufferedReader else fp
    if type(raw) not in (io.FileIO, RegularFile):
        return None
    assert isinstance(raw, io.RawIOBase)
    fd = raw.fileno()
    if type(raw) is RegularFile:
        return fd
    return fd if stat.S_ISREG(os.fstat(fd).st_mode) else None
