"""The two things that are changed in a checkpoint which has its name already: its last use, and its trailer.

Both write around text and region, never into them, so that a process killed between any two of these calls leaves a
checkpoint that verifies. What isn't changed stays as it was found: the layout, codes of a reason that isn't known, bits
and bytes of newer engines.

Two writers of one file may undo each other's trailer: callers hold the lock of the store. Other programs hold none, so
each function takes the identity of the file that was looked at, and doesn't touch another that has its name now.
Readers need no lock: :func:`read_at_rest` sees that nobody wrote meanwhile.
"""

from __future__ import annotations

import contextlib
import os
import struct
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from ds4kv.file.sealed import seal_in, with_sum
from ds4kv.format.header import HEADER_SIZE, Ext
from ds4kv.format.layout import examine
from ds4kv.stream.regular import read_at, read_exactly

__all__ = ["identity", "read_at_rest", "rewrite_trailer", "touch", "write_at"]

T = TypeVar("T")

_TOOL_MAP = int(Ext.TOOL_MAP)
_MAX_HITS = (1 << 32) - 1
_REST_SECONDS = 0.05  # a trailer is rewritten in less than a millisecond
_COARSE_TICK_NS = 20_000_000  # of the clock that stamps writes: 10 ms at most

_EXT_FLAGS_AT = 6
_LAST_USED_AT = 32
_TOUCHED_AT = 12
_TOUCHED = struct.Struct("<I16sQ")  # hits, what lies between, last_used
_KEPT = (slice(0, 6), slice(7, 12), slice(16, 32), slice(40, 48))


def identity(status: os.stat_result) -> tuple[int, int]:
    """What a file keeps as long as it exists, whatever is written to it: device and inode.

    Another file may get the same inode once this one is gone, so compare it while something holds the file open.
    """
    return status.st_dev, status.st_ino


def touch(
    path: str,
    *,
    last_used: int,
    hits: int | None = None,
    more_hits: int = 1,
    file: tuple[int, int] | None = None,
    known_head: bytes | None = None,
) -> bool:
    """Notes a use of the checkpoint: ``last_used`` in Unix seconds, and ``hits`` or so many more than there were.

    Hits stop at 2**32 - 1. False, and nothing is written, if ``file`` is the identity of another file than the one of
    this name. A file that still has ``known_head``, 48 bytes, isn't examined again. Raises CorruptError or
    UnsupportedError if it is no checkpoint (any more), ValueError if no header holds the numbers, and OSError.
    """
    with _opened(path) as fd:
        if file is not None and identity(os.fstat(fd)) != file:
            return False
        head = read_exactly(fd, 0, HEADER_SIZE)
        if known_head is None or not _differ_by_use(head, known_head):
            examine(fd, os.fstat(fd).st_size)
        old_hits, between, _ = _TOUCHED.unpack(head[_TOUCHED_AT : _LAST_USED_AT + 8])
        new_hits = min(old_hits + more_hits, _MAX_HITS) if hits is None else _number("hits", hits, 32)
        # One call and 28 bytes of one page, so nobody ever sees half of it. What lies between the fields never changes;
        # what stands before them may: the flag of a trailer that another program is writing.
        write_at(fd, _TOUCHED.pack(new_hits, between, _number("last_used", last_used, 64)), _TOUCHED_AT)
        return True


def rewrite_trailer(
    path: str, trailer: bytes, *, last_used: int, file: tuple[int, int] | None = None, fsync: bool = False
) -> bool:
    """Replaces what follows the region by a tool map, ``trailer``, and notes ``last_used`` in Unix seconds.

    A trailer that is there already, to the byte, isn't written again. False and exceptions as :func:`touch`; after an
    OSError for want of space the old trailer is still there.
    """
    with _opened(path) as fd:
        status = os.fstat(fd)
        if file is not None and identity(status) != file:
            return False
        packed_last_used = _number("last_used", last_used, 64).to_bytes(8, "little")
        outline = examine(fd, status.st_size)
        seal = seal_in(fd, outline)
        stored = with_sum(trailer, seal)
        start = outline.region_end
        end = start + len(stored)
        flags = outline.header.ext_flags
        if not (flags & Ext.TOOL_MAP and status.st_size == end and read_at(fd, start, len(stored)) == stored):
            # Without its flag a trailer is so many bytes that nobody looks at. So the order is: the space, which may
            # not be had; the flag off; the bytes; the file's end; the flag on. Cutting the file off first would save
            # a step and lose the old map to a full disk.
            if seal is None:
                _reserve(fd, status.st_size, end)
                _set_flags(fd, flags & ~_TOOL_MAP, was=flags)
            else:
                _reserve_under_seal(fd, status.st_size, end, flags)
            write_at(fd, stored, start)
            os.ftruncate(fd, end)
            if fsync or seal is not None:
                os.fsync(fd)  # or a power cut could keep the flag and lose the bytes
            if stored or seal is None:
                write_at(fd, bytes([flags | _TOOL_MAP]), _EXT_FLAGS_AT)
        # By itself, and not with the flag: the hits between them may be changing.
        write_at(fd, packed_last_used, _LAST_USED_AT)
        if fsync:
            os.fsync(fd)
        return True


def read_at_rest(
    fd: int, start: int, read: Callable[[int, bool], T], *, is_flagged: bool = False, is_sealed: bool = False
) -> T | None:
    """What ``read`` makes of the trailer behind the region, which ends at ``start``, while nobody rewrites it.

    ``read`` is called with the trailer's size and whether it is flagged as a tool map, and called again if somebody was
    writing meanwhile, with the store's lock or without. Where ``is_flagged``, there was a tool map a moment ago, and a
    flag that is off means that it is being rewritten. None if that goes on for 50 ms, as it does in a process that was
    stopped or killed. Raises what ``read`` does, and OSError.
    """
    deadline = time.monotonic() + _REST_SECONDS
    while True:
        state = _trailer_state(fd, start, is_sealed)
        size, is_tool_map, mtime_ns, _ = state
        if size == 0 and not is_tool_map:
            return read(0, False)
        if is_tool_map or not is_flagged:
            found = read(size, is_tool_map)
            # Two writes within one tick of the clock have the same time: then only the bytes show that there was one.
            is_settled = time.time_ns() - mtime_ns > _COARSE_TICK_NS or read(size, is_tool_map) == found
            if is_settled and _trailer_state(fd, start, is_sealed) == state:
                return found
        if time.monotonic() > deadline:
            return None
        time.sleep(0.001)


def _trailer_state(fd: int, start: int, is_sealed: bool) -> tuple[int, bool, int, int]:
    """Size, flag, and the file's times of change. The flag of a trailer that isn't there counts only under a seal."""
    status = os.fstat(fd)
    size = max(status.st_size - start, 0)
    flags = read_at(fd, _EXT_FLAGS_AT, 1) if size or is_sealed else b""
    return size, bool(flags) and bool(flags[0] & _TOOL_MAP), status.st_mtime_ns, status.st_ctime_ns


@contextlib.contextmanager
def _opened(path: str) -> Iterator[int]:
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        yield fd
    finally:
        os.close(fd)


def _differ_by_use(head: bytes, other: bytes) -> bool:
    """Whether two headers are of one checkpoint, and differ at most by its uses and by the flags of its trailer."""
    return all(head[part] == other[part] for part in _KEPT)


def _number(name: str, value: int, bits: int) -> int:
    if not 0 <= value < 1 << bits:
        raise ValueError(f"{name} is {value}, outside 0..2**{bits} - 1")
    return value


def write_at(fd: int, data: bytes, offset: int) -> None:
    """Writes all of ``data`` at a place of an open file. Raises OSError."""
    view = memoryview(data)
    while view:
        n = os.pwrite(fd, view, offset)
        view, offset = view[n:], offset + n


def _set_flags(fd: int, flags: int, *, was: int) -> None:
    if flags != was:
        write_at(fd, bytes([flags]), _EXT_FLAGS_AT)


def _reserve_under_seal(fd: int, size: int, end: int, flags: int) -> None:
    """As :func:`_reserve`, of a file whose trailer has a sum behind it: after a kill or a power cut, a flagged one with
    other bytes would be damage. So the flag goes off first, on the disk too, and on again if there is no room.
    """
    _set_flags(fd, flags & ~_TOOL_MAP, was=flags)
    try:
        if flags & _TOOL_MAP:
            os.fsync(fd)
        _reserve(fd, size, end)
    except BaseException:
        _set_flags(fd, flags, was=flags & ~_TOOL_MAP)
        raise


def _reserve(fd: int, size: int, end: int) -> None:
    """Has the file system promise the bytes up to ``end``; the file is as it was if it doesn't."""
    if end <= size or not hasattr(os, "posix_fallocate"):  # not on macOS
        return
    try:
        os.posix_fallocate(fd, size, end - size)
    except BaseException:
        os.ftruncate(fd, size)
        raise
