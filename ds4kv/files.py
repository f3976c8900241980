"""Regular files, read at offsets: what a checkpoint and the workers of a stream read from."""

from __future__ import annotations

import errno
import io
import os
import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

__all__ = ["RegularFile", "regular_fd"]


class RegularFile(io.RawIOBase):
    """A regular file to read, at a position of its own: a forked child shares the descriptor's, and moves it."""

    _fd = -1  # until it is open

    def __init__(self, path: str) -> None:
        self.name = path
        # Without O_NONBLOCK, a FIFO would be waited for before it can be refused.
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        self._position = 0
        mode = os.fstat(self._fd).st_mode
        if not stat.S_ISREG(mode):
            self.close()
            kind = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
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
        self._position += n
        return n

    def read_at(self, offset: int, size: int) -> bytes:
        """Those bytes; fewer only at the file's end."""
        data = os.pread(self._fd, size, offset)
        while len(data) < size and (piece := os.pread(self._fd, size - len(data), offset + len(data))):
            data += piece
        return data

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
    return fd if stat.S_ISREG(os.fstat(fd).st_mode) else None
