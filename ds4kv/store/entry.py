"""A checkpoint as a directory shows it, from 52 bytes of the file."""

from __future__ import annotations

import errno
import functools
import os
import stat
from typing import NamedTuple, Self, TypeAlias

from ds4kv.core.region import PREFIX_SIZE, look
from ds4kv.errors import Ds4kvError
from ds4kv.format.header import HEADER_SIZE, Header, Layout
from ds4kv.format.layout import LAYOUTS
from ds4kv.format.naming import NAME_SIZE
from ds4kv.stream.regular import read_at

Stamp: TypeAlias = tuple[int, int, int, int, int]

__all__ = ["Entry", "Stamp", "look_at", "read_entry", "read_text", "stamp"]


class _Fields(NamedTuple):
    sha: str
    path: str
    file_size: int
    text_bytes: int
    tokens: int
    ctx_size: int
    quant_bits: int
    head: bytes
    layout: Layout
    device: int
    inode: int
    mtime_ns: int
    ctime_ns: int


class Entry(_Fields):
    """A checkpoint as the directory shows it.

    ``sha`` is the key, 40 lower-case hex digits; ``path`` keeps the spelling of the file's name. ``file_size`` and
    ``text_bytes`` are in bytes. ``tokens``, ``ctx_size`` and ``quant_bits`` are the header's, ``head`` its 48 bytes and
    ``layout`` what they are to be read as. A text has a mark before it where the store has an ``identity``.
    The rest is from the file's status, and tells this state of it from any other.
    """

    matched: bytes | None = None
    """The beginning of the prompt that it was found for: its text, without the mark of an identity."""

    known_text: bytes | None = None
    """What its text was when it was found."""

    @classmethod
    def of(cls, path: str, header: Header, text_bytes: int, status: os.stat_result) -> Self:
        """The entry of a file that has, or will have, this name and these facts."""
        return cls(
            sha=path[-NAME_SIZE : -len(".kv")].lower(),
            path=path,
            file_size=status.st_size,
            text_bytes=text_bytes,
            tokens=header.tokens,
            ctx_size=header.ctx_size,
            quant_bits=header.quant_bits,
            head=header.pack(),
            layout=header.layout,
            device=status.st_dev,
            inode=status.st_ino,
            mtime_ns=status.st_mtime_ns,
            ctime_ns=status.st_ctime_ns,
        )

    def found_for(self, text: bytes, *, mark_bytes: int) -> Self:
        """The same, with its ``text``, whose first ``mark_bytes`` are not the prompt's."""
        found = type(self)(*self)
        found.known_text, found.matched = text, text[mark_bytes:]
        return found

    def __repr__(self) -> str:
        return f"Entry({self.path!r}, tokens={self.tokens}, file_size={self.file_size})"

    @property
    def stamp(self) -> Stamp:
        """What changes with every change of the file, as :func:`stamp` has it."""
        return self.device, self.inode, self.file_size, self.mtime_ns, self.ctime_ns

    @property
    def file(self) -> tuple[int, int]:
        """Which file it is, whatever is written to it: device and inode."""
        return self.device, self.inode

    def has_stamp(self, status: os.stat_result) -> bool:
        """Whether the status has this stamp: no tuples are made, as this is asked of each file at each look."""
        return (
            self.mtime_ns == status.st_mtime_ns
            and self.ctime_ns == status.st_ctime_ns
            and self.inode == status.st_ino
            and self.file_size == status.st_size
            and self.device == status.st_dev
        )

    @property
    def ext_flags(self) -> int:
        """The header's, without making it."""
        return self.head[6]

    @functools.cached_property
    def header(self) -> Header:
        """All of the header. Made when it is asked for: that takes as long as reading the file did."""
        return Header.unpack(self.head, self.layout)


def stamp(status: os.stat_result) -> Stamp:
    """Changes with every change of a file, and with the file."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def read_entry(path: str) -> Entry:
    """The entry of one file.

    Raises CorruptError or UnsupportedError for what no store takes for a checkpoint, and OSError.
    """
    entry, status, error = look_at(path)
    if entry is not None:
        return entry
    assert error is not None, status
    error.path = path
    raise error


def read_text(entry: Entry) -> bytes | None:
    """The stored text, or None if the file is gone. Raises OSError."""
    try:
        fd = os.open(entry.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            return read_at(fd, PREFIX_SIZE, entry.text_bytes)
        finally:
            os.close(fd)
    except FileNotFoundError:
        return None


def look_at(path: str) -> tuple[Entry | None, os.stat_result, Ds4kvError | None]:
    """The entry and the file's status, or that and why there is no entry. Raises OSError."""
    # Without O_NONBLOCK, a FIFO that took the name since would be waited for.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            code = errno.EISDIR if stat.S_ISDIR(status.st_mode) else errno.EINVAL
            raise OSError(code, "not a regular file", path)
        head, layout, tokens, ctx_size, quant_bits, text_bytes = look(fd, status.st_size)
    except Ds4kvError as error:
        return None, status, error
    finally:
        os.close(fd)
    sha = path[-NAME_SIZE : -len(".kv")].lower()
    device, inode, file_size, mtime_ns, ctime_ns = stamp(status)
    of_header = (tokens, ctx_size, quant_bits, head[:HEADER_SIZE], LAYOUTS[layout])
    fields = (sha, path, file_size, text_bytes, *of_header, device, inode, mtime_ns, ctime_ns)
    return Entry._make(fields), status, None
