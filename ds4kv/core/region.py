"""What C can tell of a checkpoint file by its descriptor: where everything is in it, and record after record.

Only C reads these bytes, but for the header: that is parsed in Python too, by :mod:`ds4kv.format.header`.
"""

from __future__ import annotations

from typing import NamedTuple

from ds4kv.core._native import ffi, lib
from ds4kv.core.native import Frame, c_frame, check, frame_of

__all__ = ["PREFIX_SIZE", "Record", "frame_at", "look", "mid_form", "record_at", "record_size"]

PREFIX_SIZE: int = lib.DS4KV_PREFIX_SIZE
"""Header and text length, in bytes: the text begins here."""


class _Examiner:
    """The memory of one look, which takes as long to make as the look itself."""

    def __init__(self) -> None:
        self.outline = ffi.new("ds4kv_outline *")
        self.fault = ffi.new("ds4kv_fault *")
        self.head = ffi.buffer(self.outline.head)


_free: list[_Examiner] = []  # those that nobody is using: whoever takes one out has it alone


def look(fd: int, file_size: int, *, may_be_damaged: bool = False) -> tuple[bytes, int, int, int, int, int]:
    """Of an open file: header and text length, 52 bytes; the layout's number; tokens, context size, quant bits; and the
    size of the text.

    Where the file ``may_be_damaged``, text and region may end beyond the file, and the region be of none of the layouts
    that the header could be of. Raises CorruptError, TruncatedError or UnsupportedError if it is no checkpoint that is
    read, and OSError.
    """
    try:
        examiner = _free.pop()
    except IndexError:
        examiner = _Examiner()
    try:
        outline = examiner.outline
        status = lib.ds4kv_examine(outline, fd, file_size, examiner.fault)
        if status != 0 and not (may_be_damaged and outline.region_start):
            check(status, examiner.fault)
        header = outline.header
        return examiner.head[:], header.layout, header.tokens, header.ctx_size, header.quant_bits, outline.text_bytes
    finally:
        _free.append(examiner)


def frame_at(fd: int, start: int, region_bytes: int, chunk_size: int, form: int) -> Frame:
    """The frame of a region at ``start`` of an open file.

    Raises CorruptError or TruncatedError, with an offset into the file, if it can't be true of so many bytes; OSError.
    """
    frame, fault = ffi.new("ds4kv_frame *"), ffi.new("ds4kv_fault *")
    check(lib.ds4kv_frame_at(frame, fd, start, region_bytes, chunk_size, form, fault), fault)
    return frame_of(frame)


def mid_form(fd: int, start: int, region_bytes: int, chunk_size: int) -> int:
    """PLAIN or TRANSPOSED: how the blocks of a region of v2-mid, at ``start`` of an open file, are to be read.

    The one by which the payload begins as one of DeepSeek V4. If neither or both do, all of it is read both ways: it
    has to be the same. Raises UnsupportedError if it isn't, CorruptError or TruncatedError, and OSError.
    """
    fault = ffi.new("ds4kv_fault *")
    return check(lib.ds4kv_mid_form(fd, start, region_bytes, chunk_size, fault), fault)


def record_size(frame: Frame, region_bytes: int, index: int, offset: int, head: bytes) -> int:
    """Bytes of the record of chunk ``index``, whose head stands at ``offset`` of its region.

    Raises CorruptError, with an offset into the region, if the head can't be true.
    """
    fault = ffi.new("ds4kv_fault *")
    return check(lib.ds4kv_record_size(c_frame(frame), region_bytes, index, offset, head, fault), fault)


class Record(NamedTuple):
    """A record by its own head: where it stands in its file, its size with the head, and its chunk's, in bytes."""

    offset: int
    size: int
    raw_size: int


def record_at(
    fd: int, file_size: int, index: int, offset: int, region: tuple[int, int], chunk_size: int, form: int
) -> Record | None:
    """The record of chunk ``index`` at ``offset`` of an open file, whatever the frame says; None where the region ends.

    ``region`` is where that begins, and its size in bytes.
    Raises CorruptError, with an offset into the file, if no record can be there, and OSError.
    """
    record, fault = ffi.new("ds4kv_record *", {"offset": offset, "index": index}), ffi.new("ds4kv_fault *")
    found = check(lib.ds4kv_record_at(record, fd, file_size, *region, chunk_size, form, fault), fault)
    return Record(offset, record.size, record.raw_size) if found else None
