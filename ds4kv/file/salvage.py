"""What is left of a damaged checkpoint: every chunk judged by itself, as far as record heads lead from one to the next.

Chunks know nothing of each other, so one that is damaged costs no other: only where a head is broken is all that
follows lost. An engine needs its payload from the first byte on, so what is good ends at the first byte that is lost.
Nothing here changes the file.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections import deque, namedtuple

from ds4kv.core import native as _core
from ds4kv.core import workers as _workers
from ds4kv.errors import CorruptError, Ds4kvError, UnsupportedError
from ds4kv.file.ledger import Ledger
from ds4kv.format import layout
from ds4kv.format.header import CHUNK_SIZE, Codec, Ext, Form, Header, Layout
from ds4kv.format.naming import sha1_mismatch
from ds4kv.stream.regular import RegularFile

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Future
    from typing import Self

    from ds4kv.file.note import Note

    StrPath = str | os.PathLike[str]
    Sink = Callable[[memoryview], object]

__all__ = ["Damage", "Wreck", "examine"]

_FRAME = struct.Struct("<QI")
_HEAD = struct.Struct("<II")
_MIN_BLOCK_SIZE = 2  # token and literal
_MAX_EXPANSION = 255
_MAGIC = b"DSV4"  # a payload of DeepSeek V4 begins with it


class Damage(namedtuple("Damage", "raw_start raw_stop offset why")):
    """Payload bytes from ``raw_start`` up to ``raw_stop`` are lost, as the file shows at ``offset``.

    ``raw_stop`` is None where nothing says any more how large the payload was. Where both are the same no payload is
    lost: ``why`` is about the text, the frame or what follows the records.
    """

    __slots__ = ()
    raw_start: int
    raw_stop: int | None
    offset: int
    why: str


class _Walk(namedtuple("_Walk", "records broken framed")):
    """Records as far as their heads lead on, where that ended too early and why, and the payload's size by the frame.

    ``framed`` is None for a frame that contradicts itself or isn't there.
    """

    __slots__ = ()
    records: list[_Record]
    broken: tuple[int, str] | None
    framed: int | None

    @classmethod
    def over(cls, fp: RegularFile, start: int, file_size: int, header: Header) -> Self:
        """A walk over the region that begins at ``start``."""
        end = start + header.payload_bytes
        if header.codec is Codec.NONE:
            here = max(min(end, file_size) - start, 0)
            cuts = [
                _Record(at, min(CHUNK_SIZE, here - at), start + at, min(CHUNK_SIZE, here - at))
                for at in range(0, here, CHUNK_SIZE)
            ]
            return cls(cuts, None, header.payload_bytes)
        framed = None
        frame = fp.read_at(start, _FRAME.size)
        if len(frame) == _FRAME.size:
            raw_total, chunk_count = _FRAME.unpack(frame)
            framed = raw_total if chunk_count == -(-raw_total // header.chunk_size) else None
        records: list[_Record] = []
        broken = _walk(fp, records, start + _FRAME.size, end, file_size, header)
        return cls(records, broken, framed)


def _walk(
    fp: RegularFile, records: list[_Record], offset: int, end: int, file_size: int, header: Header
) -> tuple[int, str] | None:
    """Adds the records from ``offset`` on; where their heads stop to lead on and why, None if at ``end``."""
    head_size = _core.record_head_size(Form.CHECKED if header.form is Form.CHECKED else Form.PLAIN)
    bound = header.chunk_size + header.chunk_size // _MAX_EXPANSION + 16
    raw_start = 0
    while offset != end or file_size < end:
        chunk = f"chunk {len(records)}"
        if records and records[-1].raw_size < header.chunk_size and offset < min(end, file_size):
            return offset, f"{min(end, file_size) - offset} bytes are left over after the last record"
        if offset + head_size > min(end, file_size):
            return min(offset, end, file_size), f"{chunk}: {_ended(end, file_size)}"
        raw_size, block_size = _HEAD.unpack(fp.read_exactly(offset, _HEAD.size))
        if not 1 <= raw_size <= header.chunk_size:
            return offset, f"{chunk} claims {raw_size} payload bytes"
        if not _MIN_BLOCK_SIZE <= block_size <= bound or raw_size // _MAX_EXPANSION > block_size:
            return offset + 4, f"{chunk}: no block of {block_size} bytes holds {raw_size} payload bytes"
        if offset + head_size + block_size > min(end, file_size):
            return offset, f"{chunk}: {_ended(end, file_size)}"
        records.append(_Record(raw_start, raw_size, offset, head_size + block_size))
        offset, raw_start = offset + head_size + block_size, raw_start + raw_size
    return None


def _ended(end: int, file_size: int) -> str:
    if file_size < end:
        return f"the file ends at byte {file_size}, its region should at {end}"
    return f"the region ends at byte {end}, before the record does"


class _Record(namedtuple("_Record", "raw_start raw_size offset size")):
    """A chunk, and where its record stands in the file; of a raw region, that part of it."""

    __slots__ = ()
    raw_start: int
    raw_size: int
    offset: int
    size: int


def examine(path: StrPath, workers: int | None = None) -> tuple[int, tuple[Damage, ...]]:
    """How many bytes of payload are good from the first one on, and all that is damaged.

    Raises CorruptError or UnsupportedError if there is no header to go by, and OSError.
    """
    with Wreck(path, workers=workers) as wreck:
        return wreck.examine()


class Wreck:
    """An open checkpoint that may be damaged: ``header``, ``text`` and ``trailer``, as far as they are there.

    Where a store has noted the file's sums, what is found is held against them, unless ``verify`` is false.
    ``raw_total`` is the payload's size in bytes, None if nothing says it; ``claimed_bytes`` is how much of it the
    records claim to hold. Raises as :func:`examine`.
    """

    def __init__(self, path: StrPath, *, workers: int | None = None, verify: bool = True) -> None:
        self._path = os.fsdecode(path)
        self._workers = _workers.resolve(workers)
        self._fp = RegularFile(self._path)
        try:
            self._file_size = self._fp.status.st_size
            headers, text_bytes = self._headers()
            left = self._file_size - layout.PREFIX_SIZE
            self.text = self._fp.read_at(layout.PREFIX_SIZE, min(text_bytes, left))
            self._region_start = layout.PREFIX_SIZE + text_bytes
            self._region_end = self._region_start + headers[0].payload_bytes
            self._remarks: list[Damage] = []
            self._note = self._find_note() if verify else None
            self._look_at_text()
            self.trailer = self._read_trailer()
            # Of several layouts that the header allows, the one whose record heads lead on furthest; its frame holds.
            walks = [_Walk.over(self._fp, self._region_start, self._file_size, header) for header in headers]
            walk = max(walks, key=lambda walk: (walk.broken is None, len(walk.records), walk.framed is not None))
            self.header, self._records = headers[walks.index(walk)], walk.records
            form = self.header.form
            self._form = self._form_of_mid() if form is None else form
            self._lost: Damage | None = None
            self.raw_total = self._judge_raw() if self._form is Form.RAW else self._judge(walk)
        except BaseException as error:
            try:
                if isinstance(error, CorruptError):
                    self._fp.check_unchanged()
            finally:
                self._fp.close()
            if isinstance(error, Ds4kvError):
                error.path = self._path
            raise

    @property
    def claimed_bytes(self) -> int:
        """The part of the payload that there are records of."""
        return sum(record.raw_size for record in self._records)

    @property
    def whole_header(self) -> Header:
        """The header, without the flag of a tool map that is not there any more."""
        gone = 0 if self.trailer else Ext.TOOL_MAP
        return self.header._replace(ext_flags=self.header.ext_flags & ~int(gone))

    def _remark(self, offset: int, why: str) -> None:
        """Notes damage that costs no payload."""
        self._remarks.append(Damage(0, 0, offset, why))

    def _find_note(self) -> Note | None:
        """What is noted of this very file. A header that is not the noted one is damage, and the sums hold still."""
        directory, name = os.path.split(self._path)
        with contextlib.closing(Ledger(directory)) as ledger:
            note = ledger.get(name)
        if note is None:
            return None
        try:
            return note.applying(self._fp.fileno())
        except CorruptError as error:
            self._remark(error.offset or 0, error.why)
            return note

    def _look_at_text(self) -> None:
        if (key := sha1_mismatch(self._path, self.text)) is not None:
            self._remark(layout.PREFIX_SIZE, f"the text's SHA-1 is {key}, not the one in the file's name")
            return
        try:
            if self._note is not None:
                self._note.check_text(self.text)
        except CorruptError as error:
            self._remark(layout.PREFIX_SIZE, error.why)

    def _read_trailer(self) -> bytes:
        """What follows the region; b"" where the file ends before it does, or what is there is proven wrong."""
        start = min(self._region_end, self._file_size)
        trailer = self._fp.read_at(start, self._file_size - start)
        try:
            if self._note is not None and self._file_size >= self._region_end:
                self._note.check_trailer(trailer, self._fp.fileno(), offset=self._region_end)
        except CorruptError as error:
            self._remark(self._region_end, error.why)
            return b""
        return trailer

    def _headers(self) -> tuple[list[Header], int]:
        """The header in every layout that it may be of, the likeliest first; and the text's size."""
        head = self._fp.read_at(0, layout.PREFIX_SIZE)
        headers: list[Header] = []
        try:
            header, _ = layout.examine(self._fp.read_at, self._file_size)
            headers = [header]
        except CorruptError as error:
            if error.field != "layout":  # that no layout's region follows is what this is for
                raise
        if not headers or headers[0].codec is not Codec.NONE:
            for each in (Layout.V2, Layout.V2_CHECKED, Layout.V2_MID):
                with contextlib.suppress(Ds4kvError):
                    header = Header.unpack(head, each)
                    if header.codec is not Codec.NONE and header not in headers:
                        headers.append(header)
        return headers, int.from_bytes(head[-4:], "little")

    def _form_of_mid(self) -> Form:
        """How blocks of ``v2-mid`` are to be read, by the first one. Raises UnsupportedError if it doesn't tell."""
        self._form = Form.PLAIN
        if not self._records:
            return self._form
        _, plain, why = self._decode(0, None)
        self._form = Form.TRANSPOSED
        _, transposed, _ = self._decode(0, None)
        begins = [bytes(piece[: len(_MAGIC)]) == _MAGIC for piece in (plain, transposed)]
        if begins == [False, True]:
            return Form.TRANSPOSED
        if begins == [True, False] or why is not None or (plain == transposed and len(self._records) == 1):
            return Form.PLAIN
        raise UnsupportedError(
            "v2-mid files don't say whether their blocks are transposed, and this payload doesn't either",
            offset=21,
            field="codec",
        )

    def _judge_raw(self) -> int:
        """The payload's size; what is behind the file's end is lost."""
        raw_total, here = self.header.payload_bytes, self.claimed_bytes
        if here < raw_total:
            why = f"the file ends at byte {self._file_size}, its region should at {self._region_end}"
            self._lost = Damage(here, raw_total, self._file_size, why)
        return raw_total

    def _judge(self, walk: _Walk) -> int | None:
        """The payload's size, by the record heads if they lead to the region's end, else by the frame."""
        claimed, framed, broken = self.claimed_bytes, walk.framed, walk.broken
        if broken is None and framed == claimed:
            return claimed
        if self._records and framed is not None and self._contradicts(framed) and not self._is_good_last(broken):
            last = self._records.pop()
            broken = last.offset, f"chunk {len(self._records)} claims {last.raw_size} payload bytes, the frame others"
        elif broken is None or (framed is not None and framed < claimed):
            framed = claimed if broken is None else None
            why = f"the frame can't be true: the records hold {claimed} bytes of payload"
            self._remark(self._region_start, why)
        if broken is not None:
            self._lost = Damage(self.claimed_bytes, framed, *broken)
        return framed

    def _contradicts(self, framed: int) -> bool:
        """Whether a frame of so much payload has as many chunks as there are records, or more, and another last one."""
        last = self._records[-1]
        return last.raw_start < framed and last.raw_size != min(self.header.chunk_size, framed - last.raw_start)

    def _is_good_last(self, broken: tuple[int, str] | None) -> bool:
        """Whether the last record, if it ends the region, decodes to what its own head says."""
        return broken is None and self._decode(len(self._records) - 1, None)[2] is None

    @property
    def is_proven(self) -> bool:
        """Whether checksums or sums tell every changed byte of the payload."""
        return self._note is not None or self._form is Form.CHECKED

    def examine(self, into: memoryview | None = None, sink: Sink | None = None) -> tuple[int, tuple[Damage, ...]]:
        """Decodes every chunk that there is; how many bytes are good from the first on, and all that is damaged.

        ``into`` is memory of ``claimed_bytes`` or more: good chunks are placed there, the rest of it is undefined.
        ``sink`` is called with the good bytes from the first on, piece by piece; each is valid until it returns.

        Raises OSError, with ESTALE, if there is damage, and somebody wrote to the file since it was opened.
        """
        damage = list(self._remarks)
        good_bytes, is_whole = 0, True
        for record, piece, why in self._decoded(into):
            if why is not None:
                is_whole = False
                damage.append(Damage(record.raw_start, record.raw_start + record.raw_size, record.offset, why))
            elif is_whole:
                good_bytes += record.raw_size
                if sink is not None:
                    sink(piece)
        if self._lost is not None:
            damage.append(self._lost)
        if damage:
            self._fp.check_unchanged()
        return good_bytes, tuple(_merged(damage))

    def _decoded(self, into: memoryview | None) -> Iterator[tuple[_Record, memoryview, str | None]]:
        """Each record, the memory of its chunk, and what is wrong with it; no more at a time than workers and one."""
        if self._workers < 2 or len(self._records) < 2:
            for index in range(len(self._records)):
                yield self._decode(index, into)
            return
        from concurrent.futures import ThreadPoolExecutor

        under_way: deque[Future[tuple[_Record, memoryview, str | None]]] = deque()
        with ThreadPoolExecutor(self._workers) as pool:
            try:
                for index in range(len(self._records)):
                    if len(under_way) > self._workers:
                        yield under_way.popleft().result()
                    under_way.append(pool.submit(self._decode, index, into))
                while under_way:
                    yield under_way.popleft().result()
            finally:
                pool.shutdown(cancel_futures=True)

    def _decode(self, index: int, into: memoryview | None) -> tuple[_Record, memoryview, str | None]:
        record = self._records[index]
        stop = record.raw_start + record.raw_size
        room = memoryview(bytearray(record.raw_size)) if into is None else into[record.raw_start : stop]
        try:
            self._decode_into(room, record, self._sum_of(index))
        except CorruptError as error:
            return record, room, error.why.replace("chunk 0", f"chunk {index}", 1)  # it is the only one of its region
        except OSError as error:  # of the disk: lost like bytes that are wrong
            return record, room, f"chunk {index}: {error.strerror or error}"
        return record, room, None

    def _sum_of(self, index: int) -> int | None:
        sums = () if self._note is None else self._note.region_sums
        return sums[index] if index < len(sums) else None

    def _decode_into(self, room: memoryview, record: _Record, noted: int | None) -> None:
        if self._form is Form.RAW:
            self._read(room, record.offset)
            _check_sum(room, noted)
            return
        # A region of its own, of one chunk.
        region = memoryview(bytearray(_FRAME.size + record.size))
        _FRAME.pack_into(region, 0, record.raw_size, 1)
        self._read(region[_FRAME.size :], record.offset)
        _check_sum(region[_FRAME.size :], noted)
        with _core.source(region) as stored, _core.target(room) as raw:
            _core.decode(stored, self.header.chunk_size, self._form, raw, 0)

    def _read(self, room: memoryview, offset: int) -> None:
        while room:
            n = os.preadv(self._fp.fileno(), [room], offset)
            if n == 0:
                raise CorruptError("the file became shorter while it was read", offset=offset, field="file")
            room, offset = room[n:], offset + n

    def close(self) -> None:
        """Closes the file."""
        self._fp.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _check_sum(stored: memoryview, noted: int | None) -> None:
    if noted is not None and _core.hash64(stored) != noted:
        raise CorruptError("chunk 0 is not what was saved", field="sum")


def _merged(damage: list[Damage]) -> Iterator[Damage]:
    """Ranges that meet as one, with the first one's offset and words."""
    last: Damage | None = None
    for each in damage:
        if last is not None and last.raw_start != last.raw_stop == each.raw_start != each.raw_stop:
            last = last._replace(raw_stop=each.raw_stop)
            continue
        if last is not None:
            yield last
        last = each
    if last is not None:
        yield last
