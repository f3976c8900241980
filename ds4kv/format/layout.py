"""Which of five layouts a file has: several proposals called themselves version 2.

A layout that the header allows is a candidate; it fits when its frame holds and a walk over its record heads ends
exactly at the region's end. The walk reads heads only, and happens only where there is more than one candidate: whoever
reads the region of a single one holds it against its frame and heads. Plain Python, as :mod:`ds4kv.format.header`.
"""

from __future__ import annotations

import struct
from collections import namedtuple

from ds4kv.errors import CorruptError, TruncatedError, UnsupportedError
from ds4kv.format.header import HEADER_SIZE, MAGIC, MAX_CHUNK_SIZE, Codec, Header, Layout

__all__ = ["PREFIX_SIZE", "examine"]

PREFIX_SIZE = HEADER_SIZE + 4
"""Header and text length: what has to be read to know where everything is."""

_FRAME = struct.Struct("<QI")
_RECORD = struct.Struct("<II")  # what the heads of all records begin with: raw size, block size
_IN_BYTE_21 = {1: (Layout.V2_MID, 8), 2: (Layout.V2_CHECKED, 12)}  # and the sizes of their record heads
_CRC_HEADER_SIZE = 64
_MAX_LOG2 = MAX_CHUNK_SIZE.bit_length() - 1
_MIN_LOG2 = 12  # chunks of 4 KiB: a smaller exponent of an unknown codec may be a byte that means nothing

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
    layout = _layout_of_version_2(read_at, file_size, head) if version == 2 else None
    return Header.unpack(head, layout), _text_bytes(head)


def _layout_of_version_2(read_at: ReadAt, file_size: int, head: bytes) -> Layout:
    if not head[7] and not any(head[20:24]) and _has_header_crc(head):
        raise UnsupportedError(f"layout {Layout.V2_CRC} is not read", offset=48, field="layout")
    is_whole = _region_end(head) <= file_size
    candidates = _candidates(head)
    if len(candidates) > 1 and is_whole:
        misfits = []
        for candidate in candidates:
            misfit = _misfit(read_at, head, candidate)
            if misfit is None:
                return candidate.layout
            misfits.append(misfit)
        names = " or ".join(candidate.layout for candidate in candidates)
        raise CorruptError(
            f"layout {names} is claimed, and the region is of neither", offset=max(misfits), field="layout"
        )
    if candidates:
        return candidates[0].layout
    if not head[7] and head[21]:
        _refuse_unknown_codec(read_at, head, is_whole)
    elif not head[7] and is_whole:
        _refuse_lost_codec(read_at, head)
    return Layout.V2


def _candidates(head: bytes) -> list[_Candidate]:
    """The layouts with a codec that the header allows, the one that is preferred where several fit first."""
    candidates = []
    chunk_size = int.from_bytes(head[20:24], "little")
    if head[7] in (Codec.LZ4, Codec.LZ4HC) and 1 <= chunk_size <= MAX_CHUNK_SIZE:
        candidates.append(_Candidate(Layout.V2, chunk_size, 8))
    if head[21] in _IN_BYTE_21 and head[22] <= _MAX_LOG2 and head[23] == 0:
        layout, record_head_size = _IN_BYTE_21[head[21]]
        candidates.append(_Candidate(layout, 1 << head[22], record_head_size))
    return candidates


def _refuse_unknown_codec(read_at: ReadAt, head: bytes, is_whole: bool) -> None:
    """Raises if byte 21 is a codec after all, without being a candidate's, and not one of bytes that mean nothing.

    With an exponent behind it that no writer would choose it may be either: the region tells, if it is of records.
    """
    codec, log2, zero = head[21:24]
    if codec in _IN_BYTE_21:
        if is_whole and _is_of_records(read_at, head, _IN_BYTE_21[codec][1]):
            Header.unpack(head, _IN_BYTE_21[codec][0])  # says which of the two bytes is wrong
        return
    if zero != 0 or log2 > _MAX_LOG2:
        return
    if log2 >= _MIN_LOG2 or (is_whole and any(_is_of_records(read_at, head, size) for size in (8, 12))):
        raise UnsupportedError(f"codec {codec} in byte 21 is not known", offset=21, field="codec")


def _refuse_lost_codec(read_at: ReadAt, head: bytes) -> None:
    """Raises if byte 21 says that there is no codec, while byte 22 is an exponent and the region is of such records.

    One flipped bit would hand the blocks over as payload. Without an exponent, or records, it is what it says.
    """
    log2, zero = head[22:24]
    if zero != 0 or not 1 <= log2 <= _MAX_LOG2:
        return
    # As v2-checked both times: no region is empty, and twelve zeros may be a payload.
    if any(_misfit(read_at, head, _Candidate(Layout.V2_CHECKED, 1 << log2, size)) is None for size in (12, 8)):
        raise CorruptError("no codec in byte 21, and the region is of records", offset=21, field="codec")


def _text_bytes(head: bytes) -> int:
    return int.from_bytes(head[HEADER_SIZE:PREFIX_SIZE], "little")


def _region_end(head: bytes) -> int:
    return PREFIX_SIZE + _text_bytes(head) + int.from_bytes(head[40:48], "little")


def _is_of_records(read_at: ReadAt, head: bytes, record_head_size: int) -> bool:
    """Whether the region fits with chunks of the size that its first record claims, whatever the header says."""
    first = read_at(PREFIX_SIZE + _text_bytes(head) + _FRAME.size, 4)
    chunk_size = int.from_bytes(first, "little")
    return chunk_size > 0 and _misfit(read_at, head, _Candidate(Layout.V2, chunk_size, record_head_size)) is None


def _misfit(read_at: ReadAt, head: bytes, candidate: _Candidate) -> int | None:
    """The offset at which the region, which the file has all of, stops being of this layout; None if it fits."""
    chunk_size, head_size = candidate.chunk_size, candidate.record_head_size
    offset, end = PREFIX_SIZE + _text_bytes(head), _region_end(head)
    frame = read_at(offset, _FRAME.size)
    if len(frame) < _FRAME.size or end - offset < _FRAME.size:
        return offset
    raw_total, chunk_count = _FRAME.unpack(frame)
    if chunk_count != -(-raw_total // chunk_size):
        return offset
    if chunk_count == 0 and candidate.layout is Layout.V2_CHECKED:
        return offset
    offset += _FRAME.size
    if chunk_count * (head_size + _MIN_BLOCK_SIZE) > end - offset:
        return offset - _FRAME.size
    for index in range(chunk_count):
        record = read_at(offset, _RECORD.size)
        if len(record) < _RECORD.size or end - offset < head_size:
            return offset
        raw_size, block_size = _RECORD.unpack(record)
        if raw_size != min(chunk_size, raw_total - index * chunk_size):
            return offset
        if not _MIN_BLOCK_SIZE <= block_size <= end - offset - head_size:
            return offset
        offset += head_size + block_size
    return None if offset == end else offset


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
