"""A note: what one file was when it was saved, and what that proves of the file that has its name now.

Two things are told apart. *Untouched* is the very file, with the mtime that was noted, in the boot that was noted:
nobody wrote to it, so whatever differs is damage. Of any other file somebody may have written, or another one has the
name; then the note is about it only if its region is the original's, which samples of the region tell.

docs/architecture.md has the table of all cases.
"""

from __future__ import annotations

import contextlib
import functools
import os
import struct
import sys
import time
from array import array
from typing import NamedTuple, Self

from ds4kv.core import native as _core
from ds4kv.errors import CorruptError
from ds4kv.file.verdict import Verdict
from ds4kv.format.facts import facts_of, field_at, is_raw, later_facts, structure
from ds4kv.format.header import CHUNK_SIZE, PACKED_VERSION, Ext
from ds4kv.format.layout import PREFIX_SIZE
from ds4kv.stream.regular import read_at

__all__ = ["Note", "boot"]

_BOOT_ID = "/proc/sys/kernel/random/boot_id"
_SAMPLE_COUNT = 4
_SAMPLE_SIZE = 2048
_LEAST_RECORD = 10  # head and block
_PACKED = bytes([PACKED_VERSION])
_SUM_SIZE = 8


@functools.cache
def boot() -> int:
    """A number of this run of the system, other after a power cut; 0 where it can't be told, which equals none.

    What is written reaches the disk in any order. After a power cut a file may have the mtime of a write, and the bytes
    from before it: so there a noted mtime doesn't say any more that nobody wrote.
    """
    try:
        with open(_BOOT_ID, "rb") as fp:
            return _core.hash64(fp.read())
    except OSError:
        return 0  # not on macOS


# SQLite has no checksums of its pages, and a rotten note would condemn a good file: so a note is one value, with its
# own sum at the end.
_NOTE = struct.Struct(f"<QQQqQ{PREFIX_SIZE}s4xQQQ{_SAMPLE_COUNT * _SUM_SIZE}s")
_SAMPLES = struct.Struct(f"<{_SAMPLE_COUNT}Q")


class Note(NamedTuple):
    """What a file was when it was noted.

    ``device``, ``inode`` and ``birth_ns`` (0 where the system can't say) tell the very file from a copy; ``head`` is
    header and text length, 52 bytes; ``samples`` is of places all over the region, see :func:`_samples`;
    ``region_sums`` has one sum a record, of a raw region one for each 16 MiB.
    """

    device: int
    inode: int
    birth_ns: int
    mtime_ns: int
    boot: int
    head: bytes
    text_sum: int
    trailer_bytes: int
    trailer_sum: int
    samples: bytes
    region_sums: array[int]

    @classmethod
    def of(cls, fd: int, head: bytes, *, text_sum: int, trailer: bytes, region_sums: array[int]) -> Self:
        """The note of a file, open to read, that holds these. Sets the file's mtime, see :func:`_pin_mtime`."""
        mtime_ns = _pin_mtime(fd)
        status = os.fstat(fd)
        return cls(
            device=status.st_dev,
            inode=status.st_ino,
            birth_ns=_core.file_birth(fd),
            mtime_ns=mtime_ns,
            boot=boot(),
            head=head,
            text_sum=text_sum,
            trailer_bytes=len(trailer),
            trailer_sum=_core.hash64(trailer),
            samples=_samples(fd, head),
            region_sums=region_sums,
        )

    @property
    def has_tool_map(self) -> bool:
        """Whether the trailer was flagged to be one."""
        return bool(self.head[6] & Ext.TOOL_MAP)

    def pack(self, name: bytes) -> bytes:
        """The note as it is stored under ``name``."""
        *fixed, region_sums = self
        packed = _NOTE.pack(*fixed) + _little_endian(region_sums).tobytes()
        return packed + _core.hash64(name + packed).to_bytes(_SUM_SIZE, "little")

    @classmethod
    def unpack(cls, name: bytes, stored: bytes) -> Self | None:
        """The note; None if it isn't what was stored, or can't be of any file."""
        packed, own_sum = stored[:-_SUM_SIZE], stored[-_SUM_SIZE:]
        if len(packed) < _NOTE.size or len(packed) % _SUM_SIZE != _NOTE.size % _SUM_SIZE:
            return None
        if _core.hash64(name + packed) != int.from_bytes(own_sum, "little"):
            return None
        region_sums = array("Q", packed[_NOTE.size :])
        note = cls._make((*_NOTE.unpack_from(packed), _little_endian(region_sums)))
        _, region_bytes = _region(note.head)
        if is_raw(note.head):
            can_be = len(region_sums) == -(-region_bytes // CHUNK_SIZE)
        else:
            can_be = len(region_sums) * _LEAST_RECORD <= region_bytes
        return note if can_be else None

    def is_untouched(self, fd: int) -> bool:
        """Whether this is the very file that was noted, and nobody has written to it since. Raises OSError."""
        return self.has_stamp(os.fstat(fd)) and self.birth_ns == _core.file_birth(fd) != 0

    def is_of(self, status: os.stat_result) -> bool:
        """Whether it is the very file that was noted, as long as that exists."""
        return (status.st_dev, status.st_ino) == (self.device, self.inode)

    def has_stamp(self, status: os.stat_result) -> bool:
        """Whether a file of this status is as it was noted, in the same boot; of the birth nothing is said."""
        return self.is_of(status) and status.st_mtime_ns == self.mtime_ns and self.boot == boot() != 0

    def applying(self, fd: int) -> Self | None:
        """Itself if it is about this open file, else None: another one has its name, or may have.

        What it says of text and records then holds, and what differs from it is damage. Raises CorruptError if that is
        known already, by the header, and OSError.
        """
        head = read_at(fd, 0, PREFIX_SIZE)
        # The time is looked at after the bytes: of who wrote before, they show the bytes and this the time. Where the
        # header is the same too, the birth need not be asked for: no other file gets an mtime to the nanosecond.
        if head == self.head and self.has_stamp(os.fstat(fd)):
            return self
        if head[3:4] == _PACKED:
            return None  # it proves itself
        if head != self.head and self.is_untouched(fd):
            raise _other_header(self.head, head, "nobody wrote to the file")
        noted, facts = facts_of(self.head), facts_of(head)
        if facts in later_facts(noted):
            return self if self._has_region(fd) else None
        if structure(facts) != structure(noted) and self._has_size(fd) and self._has_region(fd):
            raise _other_header(noted, facts, "what it says of its region is not true of the one that was saved")
        return None

    def _has_region(self, fd: int) -> bool:
        """Whether the region is the one that was noted, or was before it was damaged: at least half of it is the same.

        A checkpoint that was saved anew may have the same header, size, first bytes (token ids) and last bytes
        (zeros); it doesn't have the same numbers in between.
        """
        start, region_bytes = _region(self.head)
        if region_bytes == 0:  # then the text tells
            return self._has_text(read_at(fd, PREFIX_SIZE, start - PREFIX_SIZE))
        noted = _SAMPLES.unpack(self.samples)
        left = -(-sum(map(bool, noted)) // 2)
        for sample, place in zip(noted, _places(self.head), strict=True):
            left -= sample != 0 and _core.hash64(read_at(fd, *place)) == sample
            if left <= 0:
                return any(noted)
        return False

    def _has_size(self, fd: int) -> bool:
        start, region_bytes = _region(self.head)
        return os.fstat(fd).st_size == start + region_bytes + self.trailer_bytes

    def check_text(self, text: bytes) -> None:
        """Raises CorruptError if this isn't the text that was noted."""
        if not self._has_text(text):
            raise CorruptError("the text is not the one that was saved", offset=PREFIX_SIZE, field="text")

    def _has_text(self, text: bytes) -> bool:
        return bool(_core.hash64(text) == self.text_sum)

    def check_trailer(self, trailer: bytes, fd: int, *, offset: int) -> Verdict:
        """OK for the trailer that was noted, UNKNOWN for one that may have been written since.

        ``fd`` is the open file that ``trailer`` was read from, where it begins at ``offset``. Raises CorruptError if it
        is another trailer and nobody wrote to the file, and OSError.
        """
        if self._has_trailer(trailer):
            return Verdict.OK
        if not self.is_untouched(fd):
            return Verdict.UNKNOWN
        raise CorruptError(
            "the trailer is not the one that was saved, and nobody has written to the file",
            offset=offset,
            field="trailer",
        )

    def _has_trailer(self, trailer: bytes) -> bool:
        return len(trailer) == self.trailer_bytes and bool(_core.hash64(trailer) == self.trailer_sum)

    def rewritten(self, fd: int, trailer: bytes | None = None, *, is_original: bool = False) -> Self | None:
        """The note of the same open file after a hit or, with ``trailer``, a trailer was written to it.

        None if the file isn't as that leaves it: then someone else wrote to it, too. A process killed between the write
        and the storing of this note leaves a file with another mtime than the noted one, of which nothing is said that
        isn't true. Where the file ``is_original`` its region isn't looked at. Raises OSError.
        """
        later = later_facts(facts_of(self.head))
        if facts_of(read_at(fd, 0, PREFIX_SIZE)) not in later:
            return None  # another file, whose mtime is not ours to set
        note = self._replace(mtime_ns=_pin_mtime(fd), boot=boot())
        # Before all looks that count: who writes after them changes the mtime.
        status = os.fstat(fd)
        if trailer is not None:
            note = note._replace(trailer_bytes=len(trailer), trailer_sum=_core.hash64(trailer))
        head = read_at(fd, 0, PREFIX_SIZE)
        if not self.is_of(status):
            note = note._replace(device=status.st_dev, inode=status.st_ino, birth_ns=_core.file_birth(fd))
        if facts_of(head) not in later or not (is_original or self._has_region(fd)):
            return None
        start, region_bytes = _region(head)
        end = start + region_bytes
        is_noted = status.st_size - end == note.trailer_bytes and note._has_trailer(
            read_at(fd, end, note.trailer_bytes)
        )
        return note._replace(head=head) if is_noted else None


def _samples(fd: int, head: bytes) -> bytes:
    """The sums of four places of the region that is at where ``head`` says; 0 is of one that tells nothing.

    That is of one byte, over and over: many payloads end with zeros. Only where all four are so, all tell.
    """
    pieces = [read_at(fd, *place) for place in _places(head)]
    is_telling = [piece.count(piece[:1]) < len(piece) for piece in pieces]
    if not any(is_telling):
        is_telling = [True] * _SAMPLE_COUNT
    sums = [_core.hash64(piece) if tells else 0 for piece, tells in zip(pieces, is_telling, strict=True)]
    return _SAMPLES.pack(*sums)


def _places(head: bytes) -> list[tuple[int, int]]:
    """Offset and size of beginning, end and two places between, of the region that is at where ``head`` says."""
    start, region_bytes = _region(head)
    size = min(_SAMPLE_SIZE, -(-region_bytes // _SAMPLE_COUNT))
    step = (region_bytes - size) // (_SAMPLE_COUNT - 1)
    return [(start + step * i, size) for i in range(_SAMPLE_COUNT)]


def _region(head: bytes) -> tuple[int, int]:
    """Where the region begins, and its size."""
    return PREFIX_SIZE + int.from_bytes(head[48:52], "little"), int.from_bytes(head[40:48], "little")


def _other_header(noted: bytes, found: bytes, why: str) -> CorruptError:
    at = next(i for i in range(PREFIX_SIZE) if noted[i : i + 1] != found[i : i + 1])
    return CorruptError(f"byte {at} of the header is not what was saved, and {why}", offset=at, field=field_at(at))


def _pin_mtime(fd: int) -> int:
    """Sets the file's mtime to one that no later write gives it, and returns that.

    Writes have times that are whole ticks of a coarse clock: two of them, by two programs, may get the same. A file
    system that can't keep it to the nanosecond has another mtime than this, which then proves nothing.
    """
    now = time.time_ns()
    with contextlib.suppress(OSError):
        os.utime(fd, ns=(os.fstat(fd).st_atime_ns, now))
    return now


def _little_endian(sums: array[int]) -> array[int]:
    if sys.byteorder == "big":
        sums = sums[:]
        sums.byteswap()
    return sums
