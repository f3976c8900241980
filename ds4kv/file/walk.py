"""The records of a region that may be damaged, as far as their heads lead from one to the next."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NamedTuple, Self

from ds4kv.core import native
from ds4kv.core.region import Record, frame_at, record_at
from ds4kv.errors import CorruptError
from ds4kv.file.opening import OpenFile
from ds4kv.format.header import CHUNK_SIZE, Codec, Form, Header

__all__ = ["Walk"]

_ANY_SIZE = 1 << 62


class Walk(NamedTuple):
    """Records as far as their heads lead on, where that ended too early and why, and the payload's size by the frame.

    ``frame`` and ``framed`` are None for a frame that contradicts itself or the region, or isn't there. Of a raw region
    each chunk counts as a record.
    """

    records: list[Record]
    broken: tuple[int, str] | None
    framed: int | None
    frame: native.Frame | None = None

    @classmethod
    def over(cls, file: OpenFile, header: Header) -> Self:
        """A walk over the region, with this one of the headers that the file may have."""
        start, size = file.outline.region_start, header.payload_bytes
        if header.codec is Codec.NONE:
            here = max(min(start + size, file.fp.status.st_size) - start, 0)
            sizes = [min(CHUNK_SIZE, here - at) for at in range(0, here, CHUNK_SIZE)]
            return cls([Record(start + CHUNK_SIZE * i, size, size) for i, size in enumerate(sizes)], None, size)
        form = header.form or Form.PLAIN  # v2-mid, whose two forms have the same heads
        frame = _frame(file, header, form)
        framed = None if frame is None else frame.raw_total
        records: list[Record] = []
        try:
            for record in _records(file, header, form):
                records.append(record)
        except CorruptError as error:
            return cls(records, (error.offset or 0, error.why), framed, frame)
        return cls(records, None, framed, frame)


def _frame(file: OpenFile, header: Header, form: Form) -> native.Frame | None:
    """The frame, if it can be true. One of form PACKED has a sum, and is true whatever the header says of the region's
    size, which is no part of the seal.
    """
    start, size = file.outline.region_start, header.payload_bytes
    for region_bytes in (size, _ANY_SIZE) if form is Form.PACKED else (size,):
        with contextlib.suppress(CorruptError):
            return frame_at(file.fp.fileno(), start, region_bytes, header.chunk_size, form)
    return None


def _records(file: OpenFile, header: Header, form: Form) -> Iterator[Record]:
    """Record after record; CorruptError where their heads stop to lead on before the region's end."""
    fd, file_size = file.fp.fileno(), file.fp.status.st_size
    region = file.outline.region_start, header.payload_bytes
    offset, index = file.outline.region_start + native.frame_size(form), 0
    while (record := record_at(fd, file_size, index, offset, region, header.chunk_size, form)) is not None:
        yield record
        offset, index = offset + record.size, index + 1
        end = min(sum(region), file_size)
        if record.raw_size < header.chunk_size and offset < end:
            raise CorruptError(f"{end - offset} bytes are left over after the last record", offset=offset)
