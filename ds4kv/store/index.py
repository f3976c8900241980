"""What a directory of checkpoints holds, told from 52 bytes of each file.

An :class:`Index` remembers what it read and reads a file again only when its stamp changed: device, inode, size, and
the times of its last change. Whatever wrote the file, this process, another one or ds4 itself, is noticed by that.
"""

from __future__ import annotations

import errno
import functools
import os
import stat
import time
from collections.abc import Callable
from typing import NamedTuple, Self, TypeAlias

from ds4kv.core.region import PREFIX_SIZE, look
from ds4kv.errors import Ds4kvError
from ds4kv.format.header import HEADER_SIZE, Header, Layout
from ds4kv.format.layout import LAYOUTS
from ds4kv.format.naming import NAME_SIZE, is_entry_name
from ds4kv.stream.regular import read_at

Stamp: TypeAlias = tuple[int, int, int, int, int]

__all__ = ["Entry", "Index", "read_entry", "read_text", "stamp"]

# A clock ticks every few milliseconds, on some file systems every two seconds. A file that was changed within that time
# before it was read may have changed again since, with the same stamp.
_COARSEST_TICK_NS = 2_000_000_000


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
    ``layout`` what they are to be read as.
    The rest is from the file's status, and tells this state of it from any other.
    """

    matched: bytes | None = None
    """The beginning of the prompt that it was found for, which is its text."""

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

    def found_for(self, text: bytes) -> Self:
        """The same, with its text as ``matched``."""
        found = type(self)(*self)
        found.matched = text
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
    entry, seen_stamp, error = _look(path)
    if entry is not None:
        return entry
    assert error is not None, seen_stamp
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


def _look(path: str) -> tuple[Entry | None, Stamp, Ds4kvError | None]:
    """The entry and the stamp, or the stamp and why there is no entry."""
    # Without O_NONBLOCK, a FIFO that took the name since would be waited for.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        status = os.fstat(fd)
        file, file_size = stamp(status), status.st_size
        if not stat.S_ISREG(status.st_mode):
            code = errno.EISDIR if stat.S_ISDIR(status.st_mode) else errno.EINVAL
            raise OSError(code, "not a regular file", path)
        head, layout, tokens, ctx_size, quant_bits, text_bytes = look(fd, file_size)
    except Ds4kvError as error:
        return None, file, error
    finally:
        os.close(fd)
    sha = path[-NAME_SIZE : -len(".kv")].lower()
    device, inode, _, mtime_ns, ctime_ns = file
    of_header = (tokens, ctx_size, quant_bits, head[:HEADER_SIZE], LAYOUTS[layout])
    fields = (sha, path, file_size, text_bytes, *of_header, device, inode, mtime_ns, ctime_ns)
    return Entry._make(fields), file, None


class Index:
    """The checkpoints of one directory, for one thread at a time."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        # By name. Not one object a file that holds all this: ten thousand more make the garbage collector work longer
        # than the whole scan.
        self._entries: dict[str, Entry] = {}
        self._refused: dict[str, Stamp] = {}
        self._unsettled: set[str] = set()
        self.temporaries: list[str] = []
        """Names of files that are being written, or were when their writer was killed, as the last scan saw them."""

    def scan(self) -> list[Entry]:
        """Every checkpoint that is there now, in the directory's order.

        A file that can't be read or isn't a checkpoint of a layout that is read is left out. Two spellings of one key
        are two entries. Raises OSError if the directory can't be read.
        """
        entries: dict[str, Entry] = {}
        refused: dict[str, Stamp] = {}
        unsettled: set[str] = set()
        temporaries: list[str] = []
        # What is older when the scan begins has a stamp that no later change gets; by the clock that makes stamps.
        settled_ns = time.time_ns() - _COARSEST_TICK_NS
        with os.scandir(self.directory) as names:
            for found in names:
                name = found.name
                known = self._entries.get(name)
                if known is None and not is_entry_name(name):
                    if ".tmp." in name:
                        temporaries.append(name)
                    continue
                try:
                    if name not in self._unsettled:
                        if known is not None and known.has_stamp(found.stat()):
                            entries[name] = known
                            continue
                        if name in self._refused and self._refused[name] == stamp(found.stat()):
                            refused[name] = self._refused[name]
                            continue
                    if not found.is_file():
                        continue
                    entry, file, _ = _look(found.path)
                except OSError:
                    continue  # gone since, or not to be read now: no verdict, so it is tried again
                if entry is None:
                    refused[name] = file
                else:
                    entries[name] = entry
                if max(file[3:]) >= settled_ns:
                    unsettled.add(name)
        self._entries, self._refused, self._unsettled = entries, refused, unsettled
        self.temporaries = temporaries
        return list(entries.values())

    def leave_out(self, path: str, is_same: Callable[[os.stat_result], bool]) -> None:
        """Doesn't list a file any more, until it changes: it was proven corrupt, and stands where it can't be moved."""
        try:
            status = os.stat(path)
        except OSError:
            return  # gone, or the next scan's to find out
        if is_same(status):
            name = os.path.basename(path)
            self._entries.pop(name, None)
            self._unsettled.discard(name)
            self._refused[name] = stamp(status)
