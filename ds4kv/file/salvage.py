"""What is left of a damaged checkpoint: every chunk judged by itself, as far as record heads lead from one to the next.

Chunks know nothing of each other, so one that is damaged costs no other: only where a head is broken is all that
follows lost. An engine needs its payload from the first byte on, so what is good ends at the first byte that is lost.
Nothing here changes the file.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple, Self, TypeAlias

from ds4kv.core import memory, native
from ds4kv.core import workers as _workers
from ds4kv.core.region import Record
from ds4kv.errors import CorruptError, Ds4kvError, UnsupportedError
from ds4kv.file.opening import OpenFile
from ds4kv.file.sealed import judge_seal
from ds4kv.file.walk import Walk, read_into, region_of_one
from ds4kv.format.header import CHUNK_SIZE, Codec, Ext, Form, Header, Layout

if TYPE_CHECKING:
    from concurrent.futures import Future

__all__ = ["Damage", "Wreck", "examine"]

_Decoded: TypeAlias = tuple[memoryview, str | None]
"""The memory of a chunk, and what is wrong with it."""

_CHUNK_SIZE_AT = (21, 22, 23)  # layout packed has the exponent there, between zeros
_MAGIC = b"DSV4"  # a payload of DeepSeek V4 begins with it


class Damage(NamedTuple):
    """Payload bytes from ``raw_start`` up to ``raw_stop`` are lost, as the file shows at ``offset``.

    ``raw_stop`` is None where nothing says any more how large the payload was. Where both are the same no payload is
    lost: ``why`` is about the text, the frame or what follows the records.
    """

    raw_start: int
    raw_stop: int | None
    offset: int
    why: str


def examine(path: str | os.PathLike[str], workers: int | None = None) -> tuple[int, tuple[Damage, ...]]:
    """How many bytes of payload are good from the first one on, and all that is damaged.

    Raises CorruptError or UnsupportedError if there is no header to go by, and OSError.
    """
    with Wreck(path, workers=workers) as wreck:
        return wreck.examine()


class Wreck:
    """An open checkpoint that may be damaged: ``header``, ``text`` and ``trailer``, as far as they are there.

    Where a store has noted the file's sums, what is found is held against them, unless ``verify`` is false.
    ``raw_total`` is the payload's size in bytes, None if nothing says it; ``claimed_bytes`` is how much of it the
    records claim to hold. ``is_as_sealed`` is whether a seal proves header and text. Raises as :func:`examine`.
    """

    is_as_sealed = False

    def __init__(self, path: str | os.PathLike[str], *, workers: int | None = None, verify: bool = True) -> None:
        self._workers = _workers.resolve(workers)
        self._remarks: list[Damage] = []
        self._file = OpenFile(os.fsdecode(path), verify=verify, report=self._report)
        self.text = self._file.text
        try:
            with self._file.judging:
                # Of several layouts that the header allows, the one whose record heads lead on furthest.
                walks = [Walk.over(self._file, header) for header in self._headers()]
                walk = max(walks, key=lambda walk: (walk.broken is None, len(walk.records), walk.framed is not None))
                self.header, self._records, self._frame = walk.header, walk.records, walk.frame
                if self.header.form is Form.PACKED:
                    self._judge_front(walk)
                self.trailer = self._read_trailer()
                form = self.header.form
                self._form = self._form_of_mid() if form is None else form
                self._lost: Damage | None = None
                judge = {Form.RAW: self._judge_raw, Form.PACKED: self._judge_packed}.get(self._form, self._judge)
                self.raw_total = judge(walk)
        except BaseException:
            self._file.close()
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

    def _report(self, error: CorruptError) -> None:
        """Told while the file is opened; the seal is judged later, when more is known."""
        if error.field != "seal":
            self._remark(error)

    def _remark(self, error: CorruptError) -> None:
        """Notes damage that costs no payload."""
        self._remarks.append(Damage(0, 0, error.offset or 0, error.why))

    def _read_trailer(self) -> bytes:
        """What follows the region; b"" where the file ends before it does, or what is there is proven wrong."""
        if self._file.fp.status.st_size < self._file.outline.region_end:
            return b""
        try:
            return self._file.read_trailer()[0]
        except CorruptError as error:
            self._remark(error)
            return b""

    def _judge_front(self, walk: Walk) -> None:
        """Layout packed: header, text and frame by what the walk found of them."""
        told = {each.offset for each in self._remarks}
        for offset, why in walk.remarks:
            if offset not in _CHUNK_SIZE_AT or told.isdisjoint(_CHUNK_SIZE_AT):  # which one of them said already
                self._remark(CorruptError(why, offset=offset))
        self._file.outline = self._file.outline._replace(header=walk.header)
        if walk.frame is None:
            return
        self._file.seal = walk.frame.seal
        try:
            judge_seal(walk.frame.seal, self._file.outline, self.text)
            self.is_as_sealed = True
        except CorruptError as error:
            self._remark(error)

    def _headers(self) -> list[Header]:
        """The header in every layout that it may be of, the likeliest first."""
        found = self._file.outline.header
        headers = [found]
        if found.codec is not Codec.NONE:
            for layout in (Layout.V2, Layout.V2_CHECKED, Layout.V2_MID):
                with contextlib.suppress(Ds4kvError):
                    header = Header.unpack(found.pack(), layout)
                    if header.codec is not Codec.NONE and header not in headers:
                        headers.append(header)
        return headers

    @property
    def _chunk_size(self) -> int:
        """Payload bytes of each record but the last."""
        return CHUNK_SIZE if self.header.codec is Codec.NONE else self.header.chunk_size

    def _form_of_mid(self) -> Form:
        """How blocks of ``v2-mid`` are to be read, by the first one. Raises UnsupportedError if it doesn't tell."""
        self._form = Form.PLAIN
        if not self._records:
            return self._form
        plain, why = self._decode(0, None)
        self._form = Form.TRANSPOSED
        transposed, _ = self._decode(0, None)
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

    def _judge_raw(self, walk: Walk) -> int:
        """The payload's size; what is behind the file's end is lost."""
        raw_total, here = self.header.payload_bytes, self.claimed_bytes
        if here < raw_total:
            file_size, region_end = self._file.fp.status.st_size, self._file.outline.region_end
            why = f"the file ends at byte {file_size}, and by its header the payload ends at {region_end}"
            self._lost = Damage(here, raw_total, file_size, why)
        return raw_total

    def _judge(self, walk: Walk) -> int | None:
        """The payload's size, by the record heads if they lead to the region's end, else by the frame."""
        claimed, framed, broken = self.claimed_bytes, walk.framed, walk.broken
        if broken is None and framed == claimed:
            return claimed
        if self._records and framed is not None and self._contradicts(framed) and not self._is_good_last(broken):
            last = self._records.pop()
            why = f"chunk {len(self._records)} claims {last.raw_size} payload bytes, and has others by the frame"
            broken = last.offset, why
        elif broken is None or (framed is not None and framed < claimed):
            framed = claimed if broken is None else None
            why = f"the frame can't be true: the records hold {claimed} bytes of payload"
            self._remark(CorruptError(why, offset=self._file.outline.region_start))
        if broken is not None:
            self._lost = Damage(self.claimed_bytes, framed, *broken)
        return framed

    def _judge_packed(self, walk: Walk) -> int | None:
        """The payload's size by the frame, or by the records where that was made anew."""
        claimed = self.claimed_bytes
        if walk.frame is None:
            total = walk.framed
            why = "the frame is damaged, and header, text and first chunk don't tell it: no chunk can be proven"
            self._records, self._lost = [], Damage(0, total, self._file.outline.region_start, why)
            return total
        if walk.broken is not None:
            self._lost = Damage(claimed, walk.framed, *walk.broken)
        return walk.framed

    def _contradicts(self, framed: int) -> bool:
        """Whether a frame of so much payload has as many chunks as there are records, or more, and another last one."""
        last_start = (len(self._records) - 1) * self._chunk_size
        return last_start < framed and self._records[-1].raw_size != min(self._chunk_size, framed - last_start)

    def _is_good_last(self, broken: tuple[int, str] | None) -> bool:
        """Whether the last record, if it ends the region, decodes to what its own head says."""
        return broken is None and self._decode(len(self._records) - 1, None)[1] is None

    @property
    def is_proven(self) -> bool:
        """Whether checksums or sums tell every changed byte of the payload."""
        return self._file.note is not None or self._form in (Form.CHECKED, Form.PACKED)

    def examine(
        self, into: memoryview | None = None, sink: Callable[[memoryview], object] | None = None
    ) -> tuple[int, tuple[Damage, ...]]:
        """Decodes every chunk that there is; how many bytes are good from the first on, and all that is damaged.

        ``into`` is memory of ``claimed_bytes`` or more: good chunks are placed there, the rest of it is undefined.
        ``sink`` is called with the good bytes from the first on, piece by piece; each is valid until it returns.

        Raises OSError, with ESTALE, if there is damage, and somebody wrote to the file since it was opened.
        """
        damage = list(self._remarks)
        good_bytes, is_whole = 0, True
        for index, (piece, why) in enumerate(self._decoded(into)):
            start = index * self._chunk_size
            if why is not None:
                is_whole = False
                damage.append(Damage(start, start + len(piece), self._records[index].offset, why))
            elif is_whole:
                good_bytes += len(piece)
                if sink is not None:
                    sink(piece)
        if self._lost is not None:
            damage.append(self._lost)
        if damage:
            self._file.fp.check_unchanged()
        return good_bytes, tuple(_merged(damage))

    def _decoded(self, into: memoryview | None) -> Iterator[_Decoded]:
        """The memory of each chunk, and what is wrong with it; no more at a time than workers and one."""
        if self._workers < 2 or len(self._records) < 2:
            for index in range(len(self._records)):
                yield self._decode(index, into)
            return
        from concurrent.futures import ThreadPoolExecutor

        under_way: deque[Future[_Decoded]] = deque()
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

    def _decode(self, index: int, into: memoryview | None) -> _Decoded:
        record, start = self._records[index], index * self._chunk_size
        room = memoryview(bytearray(record.raw_size)) if into is None else into[start : start + record.raw_size]
        try:
            self._decode_into(room, record, index)
        except CorruptError as error:
            return room, error.why.replace("chunk 0", f"chunk {index}", 1)  # it is the only one of its region
        except OSError as error:  # of the disk: lost like bytes that are wrong
            return room, f"chunk {index}: {error.strerror or error}"
        return room, None

    def _sum_of(self, index: int) -> int | None:
        note = self._file.note
        sums = () if note is None else note.region_sums
        return sums[index] if index < len(sums) else None

    def _decode_into(self, room: memoryview, record: Record, index: int) -> None:
        noted = self._sum_of(index)
        if self._form is Form.RAW:
            read_into(room, self._file, record.offset)
            _check_sum(room, noted)
            return
        frame = native.Frame(0, 0, self.header.chunk_size, self._form)
        if self._form is Form.PACKED and self._frame is not None:
            frame = self._frame
        region = region_of_one(self._file, record, frame, index)
        _check_sum(region[native.frame_size(self._form) :], noted)
        with memory.source(region) as stored, memory.target(room) as raw:
            native.decode(stored, self.header.chunk_size, self._form, raw, 0)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _check_sum(stored: memoryview, noted: int | None) -> None:
    if noted is not None and native.hash64(stored) != noted:
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
