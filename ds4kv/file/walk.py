"""The records of a region that may be damaged, as far as their heads lead from one to the next.

In layout packed more than one number says the same, and sums say which of them is true. So what a flipped bit took from
header or frame is found anew there: the chunk size and the region's size by frame and records, and the frame by header,
text and first chunk.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from typing import NamedTuple, Self, TypeAlias

from ds4kv.core import memory, native
from ds4kv.core.region import Record, frame_at, record_at
from ds4kv.errors import CorruptError
from ds4kv.file.opening import OpenFile
from ds4kv.file.sealed import judge_trailer, seal_of
from ds4kv.format.header import CHUNK_SIZE, MAX_CHUNK_SIZE, Codec, Form, Header

__all__ = ["Walk", "read_into", "region_of_one"]

_ANY_SIZE = 1 << 62
_PAYLOAD_BYTES_AT, _CHUNK_SIZE_AT = 40, 22  # in the header

_Told: TypeAlias = tuple[int, str]
"""An offset of the file, and what is wrong there."""


class Walk(NamedTuple):
    """Records as far as their heads lead on, where that ended too early and why, and the payload's size by the frame.

    ``header`` is the one that they were walked by, with what they and the frame prove in place of what it says.
    ``frame`` and ``framed`` are None for a frame that contradicts itself or the region, or isn't there. Of a packed
    file, ``frame`` may also be one that was found anew, and is None only where none is proven; ``remarks`` is what was
    wrong about header and frame, and is made up for. Of a raw region each chunk counts as a record.
    """

    header: Header
    records: list[Record]
    broken: _Told | None
    framed: int | None
    frame: native.Frame | None = None
    remarks: tuple[_Told, ...] = ()

    @classmethod
    def over(cls, file: OpenFile, header: Header) -> Self:
        """A walk over the region, with this one of the headers that the file may have."""
        start, size = file.outline.region_start, header.payload_bytes
        if header.codec is Codec.NONE:
            here = max(min(start + size, file.fp.status.st_size) - start, 0)
            sizes = [min(CHUNK_SIZE, here - at) for at in range(0, here, CHUNK_SIZE)]
            records = [Record(start + CHUNK_SIZE * i, size, size) for i, size in enumerate(sizes)]
            return cls(header, records, None, size)
        if header.form is Form.PACKED:
            frame = _true_frame(file, header)
            return cls._without_frame(file, header) if frame is None else cls._by_frame(file, header, frame)
        form = header.form or Form.PLAIN  # v2-mid, whose two forms have the same heads
        frame = None
        with contextlib.suppress(CorruptError):
            frame = frame_at(file.fp.fileno(), start, size, header.chunk_size, form)
        framed = None if frame is None else frame.raw_total
        return cls(header, *_walked(_records(file, header, form)), framed, frame)

    @classmethod
    def _by_frame(cls, file: OpenFile, header: Header, frame: native.Frame) -> Self:
        """Packed, with a frame that is true by its own sum: it says how many records there are, and of which chunks."""
        start, remarks = file.outline.region_start, []
        if frame.chunk_size != header.chunk_size:
            why = f"chunks of {header.chunk_size} bytes by the header, and of {frame.chunk_size} by the frame"
            remarks.append((_CHUNK_SIZE_AT, why))
        records, broken = _walked(_framed_records(file, header, frame))
        if broken is None:
            size = _region_end(file, header, frame, records) - start
            if size != header.payload_bytes:
                why = f"the region ends at byte {start + size}, and by the header at {start + header.payload_bytes}"
                remarks.append((_PAYLOAD_BYTES_AT, why))
            header = header._replace(payload_bytes=size)
        header = header._replace(chunk_size=frame.chunk_size)
        return cls(header, records, broken, frame.raw_total, frame, tuple(remarks))

    @classmethod
    def _without_frame(cls, file: OpenFile, header: Header) -> Self:
        """Packed, with a damaged frame: the first record proves one that is made anew, or nothing is proven."""
        records, broken = _walked(_records(file, header, Form.PACKED))
        total = sum(record.raw_size for record in records) if broken is None else None
        frame = _frame_anew(file, header, records)
        if frame is None:
            return cls(header, records, broken, total)
        why = "the frame is damaged, and is known again by header, text and first chunk"
        return cls(header, records, broken, total, frame, ((file.outline.region_start, why),))


def _walked(found: Iterable[Record]) -> tuple[list[Record], _Told | None]:
    """The records, and what ended them too early."""
    records: list[Record] = []
    try:
        for record in found:
            records.append(record)
    except CorruptError as error:
        return records, (error.offset or 0, error.why)
    return records, None


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


# --------------------------------------------------------------------------------------------- packed


def _true_frame(file: OpenFile, header: Header) -> native.Frame | None:
    """The frame, if its own sum is right, with a chunk size that fits it: that one by which the seal holds, or else the
    header's.
    """
    sizes = [header.chunk_size, *(1 << log2 for log2 in range(1, MAX_CHUNK_SIZE.bit_length()))]
    fitting = [frame for size in sizes if (frame := _fitting_frame(file, size)) is not None]
    for frame in fitting:
        if seal_of(header._replace(chunk_size=frame.chunk_size), file.text) == frame.seal:
            return frame
    return fitting[0] if fitting else None


def _fitting_frame(file: OpenFile, chunk_size: int) -> native.Frame | None:
    """The frame, if it can be true with such chunks, whatever the header says of the region's size."""
    for region_bytes in (_ANY_SIZE, native.frame_size(Form.PACKED)):  # that of an empty payload is alone
        with contextlib.suppress(CorruptError):
            return frame_at(file.fp.fileno(), file.outline.region_start, region_bytes, chunk_size, Form.PACKED)
    return None


def _framed_records(file: OpenFile, header: Header, frame: native.Frame) -> Iterator[Record]:
    """As many records as the frame says; CorruptError where there is none of such a chunk."""
    start, file_size = file.outline.region_start, file.fp.status.st_size
    region = start, max(header.payload_bytes, file_size - start)
    offset, done = start + native.frame_size(Form.PACKED), 0
    for index in range(frame.chunk_count):
        record = record_at(file.fp.fileno(), file_size, index, offset, region, frame.chunk_size, Form.PACKED)
        if record is None:
            why = f"the records end after {done} of {frame.raw_total} bytes of payload"
            raise CorruptError(why, offset=offset)
        if record.raw_size != min(frame.chunk_size, frame.raw_total - done):
            why = f"chunk {index} claims {record.raw_size} payload bytes, and has others by the frame"
            raise CorruptError(why, offset=offset)
        yield record
        offset, done = offset + record.size, done + record.raw_size


def _region_end(file: OpenFile, header: Header, frame: native.Frame, records: list[Record]) -> int:
    """Where all records end. If the header says another end, the size of the last block may be what is wrong: then
    what follows tells, if that is a trailer with its sum, or nothing.
    """
    last = records[-1] if records else Record(file.outline.region_start, native.frame_size(Form.PACKED), 0)
    walked, claimed = last.offset + last.size, file.outline.region_start + header.payload_bytes
    file_size = file.fp.status.st_size
    for end in (walked, claimed):
        if end == file_size or walked == claimed:
            return end
        if last.offset < end < file_size:
            stored = file.fp.read_at(end, file_size - end)
            if judge_trailer(stored, frame.seal, is_flagged=False, offset=end)[0]:
                return end
    return walked


def _frame_anew(file: OpenFile, header: Header, records: list[Record]) -> native.Frame | None:
    """A frame with the seal that header and text have, and the sum that the first chunk has, if that chunk's record
    proves both.
    """
    seal = seal_of(header, file.text)
    if not records or seal is None:
        return None
    frame = native.Frame(0, 0, header.chunk_size, Form.PACKED, seal)
    room = memoryview(bytearray(records[0].raw_size))
    for _ in range(2):
        try:
            with memory.source(region_of_one(file, records[0], frame, 0)) as stored, memory.target(room) as raw:
                native.decode(stored, header.chunk_size, Form.PACKED, raw, 0)
                return frame
        except (CorruptError, OSError):
            # Decoded it is, if it can be. What is there is a guess, which is judged by the second decoding.
            frame = frame._replace(first_sum=native.hash64(room))
    return None


# --------------------------------------------------------------------------------------- one record


def region_of_one(file: OpenFile, record: Record, frame: native.Frame, index: int) -> memoryview:
    """A region with this record alone. Where a sum is of the chunk's place, the seal has that here.

    Raises CorruptError and OSError.
    """
    seal = (frame.seal + index) % (1 << 64)
    head = frame._replace(raw_total=record.raw_size, chunk_count=1, seal=seal).pack()
    region = memoryview(bytearray(head) + bytes(record.size))
    read_into(region[len(head) :], file, record.offset)
    return region


def read_into(room: memoryview, file: OpenFile, offset: int) -> None:
    """Fills it with bytes of the file. Raises CorruptError where that has become shorter, and OSError."""
    while room:
        n = os.preadv(file.fp.fileno(), [room], offset)
        if n == 0:
            raise CorruptError("the file became shorter while it was read", offset=offset, field="file")
        room, offset = room[n:], offset + n
