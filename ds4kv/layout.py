"""Which of five layouts a file has: several proposals called themselves version 2.

A layout that the header allows is a candidate; it fits when its frame holds and a walk over its record heads ends
exactly at the region's end. The walk reads heads only, and happens only where there is more than one candidate or one
that this release doesn't read. Plain Python, as :mod:`ds4kv.header`.
"""

from __future__ import annotations

import struct
from collections import namedtuple

from ds4kv.errors import CorruptError, TruncatedError, UnsupportedError
from ds4kv.header import HEADER_SIZE, MAGIC, MAX_CHUNK_SIZE, Codec, Header, Layout

__all__ = ["PREFIX_SIZE", "examine"]

PREFIX_SIZE = HEADER_SIZE + 4
"""Header and text length: what has to be read to know where everything is."""

_FRAME = struct.Struct("<QI")
_CRC_HEADER_SIZE = 64
_MIN_LOG2 = 12  # chunks of 4 KiB: below, a byte is taken for something else than a chunk size

_MIN_BLOCK_SIZE = 2  # token and literal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    ReadAt = Callable[[int, int], bytes]
    """read_at(offset, size): those bytes of the file, fewer only at its end."""


class _Candidate(namedtuple("_Candidate", "layout chunk_size record_head_size")):
    __slots__ = ()
    layout: Layout
    chunk_size: int
    record_head_size: int


def examine(read_at: ReadAt, file_size: int) -> tuple[Header, int]:
    """The header of a file and the size of its text in bytes.

    Raises CorruptError if no layout's rules hold, UnsupportedError if it is one that isn't read. Sizes that point past
    the file's end are the caller's to judge.
    """
    head = read_at(0, _CRC_HEADER_SIZE + 4)
    version = head[3] if head[:3] == MAGIC and len(head) > 3 else None
    if version is not None and version not in (1, 2):
        raise UnsupportedError(f"version {version}; versions 1 and 2 are read", offset=3, field="version")
    if version is not None and len(head) < PREFIX_SIZE:
        raise TruncatedError(
            f"the file ends after {len(head)} of the {PREFIX_SIZE} bytes of header and text length",
            offset=len(head),
            field="header",
        )
    if version == 1 and head[21] in (1, 2):
        raise UnsupportedError(f"version 1 with codec {head[21]} in byte 21", offset=21, field="codec")
    if version == 2:
        _refuse_others(read_at, file_size, head)
    return Header.unpack(head), _text_bytes(head)


def _refuse_others(read_at: ReadAt, file_size: int, head: bytes) -> None:
    """Raises if this version-2 file is not ``v2``."""
    if not head[7] and not any(head[20:24]) and _has_header_crc(head):
        raise _unsupported(Layout.V2_CRC, 48)
    others = [_Candidate(Layout.V2_CHECKED, 1 << head[22], 12)] if head[21] == 2 and head[22] <= 26 else []
    others += [_Candidate(Layout.V2_MID, 1 << head[22], 8)] if head[21] == 1 and head[22] <= 26 else []
    chunk_size = int.from_bytes(head[20:24], "little")
    is_candidate = head[7] in (Codec.LZ4, Codec.LZ4HC) and 1 <= chunk_size <= MAX_CHUNK_SIZE
    if not others:
        if head[7] == 0 and head[21] > 2 and _MIN_LOG2 <= head[22] <= 26 and head[23] == 0:
            raise UnsupportedError(f"codec {head[21]} in byte 21 is not known", offset=21, field="codec")
        return
    if is_candidate and _fits(read_at, file_size, head, _Candidate(Layout.V2, chunk_size, 8)):
        return
    for other in others:
        if _fits(read_at, file_size, head, other):
            raise _unsupported(other.layout, 21)
    if head[7] == Codec.NONE and _region_end(head) <= file_size:
        raise CorruptError(
            f"byte 21 claims codec {head[21]}, and the region holds no records of it", offset=21, field="codec"
        )


def _unsupported(layout: Layout, offset: int) -> UnsupportedError:
    return UnsupportedError(f"layout {layout} is not read by this release", offset=offset, field="layout")


def _text_bytes(head: bytes) -> int:
    return int.from_bytes(head[HEADER_SIZE:PREFIX_SIZE], "little")


def _region_end(head: bytes) -> int:
    return PREFIX_SIZE + _text_bytes(head) + int.from_bytes(head[40:48], "little")


def _fits(read_at: ReadAt, file_size: int, head: bytes, candidate: _Candidate) -> bool:
    offset, end = PREFIX_SIZE + _text_bytes(head), _region_end(head)
    if end > file_size or offset + _FRAME.size > end:
        return False
    raw_total, chunk_count = _FRAME.unpack(read_at(offset, _FRAME.size))
    offset += _FRAME.size
    if chunk_count != -(-raw_total // candidate.chunk_size):
        return False
    if chunk_count * (candidate.record_head_size + _MIN_BLOCK_SIZE) > end - offset:
        return False
    for _ in range(chunk_count):
        if offset + candidate.record_head_size > end:
            return False
        block_size = int.from_bytes(read_at(offset + 4, 4), "little")
        if block_size < _MIN_BLOCK_SIZE:  # also, so that a walk over an empty file ends
            return False
        offset += candidate.record_head_size + block_size
    return offset == end


def _has_header_crc(head: bytes) -> bool:
    """Whether bytes 48-51 are the CRC-32C of a 64-byte header, itself zeroed, and the text length behind it."""
    if len(head) < _CRC_HEADER_SIZE + 4:
        return False
    crc = 0xFFFFFFFF
    for byte in head[:48] + bytes(4) + head[52:]:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF == int.from_bytes(head[48:52], "little")
