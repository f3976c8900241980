"""What is left of a damaged checkpoint: every chunk judged by itself, as far as record heads lead from one to the next.

Chunks know nothing of each other, so one that is damaged costs no other: only where a head is broken is all that
follows lost. An engine needs its payload from the first byte on, so what is good ends at the first byte that is lost.
Nothing here changes the file.
"""

from __future__ import annotations

import os
import struct
from collections import deque, namedtuple

from ds4kv import _core, layout
from ds4kv import workers as _workers
from ds4kv.errors import CorruptError, Ds4kvError
from ds4kv.files import RegularFile
from ds4kv.header import CHUNK_SIZE, Codec, Ext, Header
from ds4kv.index import is_entry_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Future
    from typing import Self

    StrPath = str | os.PathLike[str]
    Sink = Callable[[memoryview], object]

__all__ = ["Damage", "Wreck", "examine"]

_FRAME = struct.Struct("<QI")
_HEAD = struct.Struct("<II")
_MIN_BLOCK_SIZE = 2  # token and literal
_MAX_EXPANSION = 255


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

    ``raw_total`` is the payload's size in bytes, None if nothing says it; ``claimed_bytes`` is how much of it the
    records claim to hold. Raises as :func:`examine`.
    """

    def __init__(self, path: StrPath, *, workers: int | None = None) -> None:
        self._path = os.fsdecode(path)
        self._workers = _workers.resolve(workers)
        self._fp = RegularFile(self._path)
        try:
            self._file_size = os.fstat(self._fp.fileno()).st_size
            self.header, text_bytes = layout.examine(self._fp.read_at, self._file_size)
            self.text = self._fp.read_at(layout.PREFIX_SIZE, text_bytes)
            self._region_start = layout.PREFIX_SIZE + text_bytes
            self._region_end = self._region_start + self.header.payload_bytes
            self._notes = self._look_at_text()
            self._records: list[_Record] = []
            self._lost: Damage | None = None
            self.raw_total = self._find_raw() if self.header.codec is Codec.NONE else self._find_records()
        except BaseException as error:
            self._fp.close()
            if isinstance(error, Ds4kvError):
                error.path = self._path
            raise

    @property
    def claimed_bytes(self) -> int:
        """The part of the payload that there are records of."""
        return sum(record.raw_size for record in self._records)

    @property
    def trailer(self) -> bytes:
        """What follows the region; b"" where the file ends before it does."""
        return self._fp.read_at(self._region_end, max(self._file_size - self._region_end, 0))

    @property
    def whole_header(self) -> Header:
        """The header, without the flag of a tool map that is not there any more."""
        gone = Ext.TOOL_MAP if self._file_size <= self._region_end else 0
        return self.header._replace(ext_flags=self.header.ext_flags & ~int(gone))

    def _look_at_text(self) -> list[Damage]:
        name = os.path.basename(self._path)
        if not is_entry_name(name):
            return []
        import hashlib

        key = hashlib.sha1(self.text, usedforsecurity=False).hexdigest()
        if key == name[:40].lower():
            return []
        why = f"the text's SHA-1 is {key}, not the one in the file's name"
        return [Damage(0, 0, layout.PREFIX_SIZE, why)]

    def _find_raw(self) -> int:
        """Cuts a raw region into chunks, as far as the file goes; the payload's size."""
        raw_total = self.header.payload_bytes
        here = max(min(self._file_size - self._region_start, raw_total), 0)
        for start in range(0, here, CHUNK_SIZE):
            size = min(CHUNK_SIZE, here - start)
            self._records.append(_Record(start, size, self._region_start + start, size))
        if here < raw_total:
            self._lost = Damage(here, raw_total, self._file_size, self._end_of_file)
        return raw_total

    def _find_records(self) -> int | None:
        """Walks the record heads; the payload's size, by the heads or by the frame."""
        chunk_size = self.header.chunk_size
        frame = self._fp.read_at(self._region_start, _FRAME.size)
        broken = self._walk(chunk_size)
        raw_total = self.claimed_bytes
        framed: int | None
        framed, chunk_count = _FRAME.unpack(frame) if len(frame) == _FRAME.size else (None, None)
        if framed is not None and chunk_count != -(-framed // chunk_size):
            framed = None
        if broken is None:
            if framed != raw_total:
                why = f"the frame can't be true: the records hold {raw_total} bytes of payload"
                self._notes.append(Damage(0, 0, self._region_start, why))
            return raw_total
        if framed is not None and framed < raw_total:
            framed = None
        # What the heads say is true only as far as the frame agrees, if there is one.
        if framed is not None and self._records:
            last = self._records[-1]
            if last.raw_size != min(chunk_size, framed - last.raw_start):
                self._records.pop()
                why = f"chunk {len(self._records)} claims {last.raw_size} payload bytes, which the frame contradicts"
                broken = last.offset, why
        raw_start = self.claimed_bytes
        self._lost = Damage(raw_start, framed, *broken)
        return framed

    def _walk(self, chunk_size: int) -> tuple[int, str] | None:
        """Finds records as far as their heads lead on; where that ended and why, None if at the region's end."""
        offset, raw_start = self._region_start + _FRAME.size, 0
        end = min(self._region_end, self._file_size)
        ended = self._end_of_file if self._file_size < self._region_end else "the region ends too early"
        if self._region_end == offset <= self._file_size:
            return None
        while True:
            chunk = f"chunk {len(self._records)}"
            head = self._fp.read_at(offset, _HEAD.size)
            if offset + self._head_size > end or len(head) < _HEAD.size:
                return max(min(offset, end), 0), f"{chunk}: {ended}"
            raw_size, block_size = _HEAD.unpack(head)
            if not 1 <= raw_size <= chunk_size:
                return offset, f"{chunk} claims {raw_size} payload bytes"
            if not _MIN_BLOCK_SIZE <= block_size <= _block_bound(chunk_size) or raw_size // _MAX_EXPANSION > block_size:
                return offset + 4, f"{chunk}: no block of {block_size} bytes holds {raw_size} payload bytes"
            size = self._head_size + block_size
            if offset + size > end:
                return offset, f"{chunk}: {ended}"
            self._records.append(_Record(raw_start, raw_size, offset, size))
            offset, raw_start = offset + size, raw_start + raw_size
            if offset == self._region_end:
                return None
            if raw_size < chunk_size:
                left = f"{self._region_end - offset} bytes are left over after the last record"
                return offset, left

    @property
    def _head_size(self) -> int:
        return _HEAD.size

    @property
    def _end_of_file(self) -> str:
        return f"the file ends at byte {self._file_size}, its region should at {self._region_end}"

    def examine(self, into: memoryview | None = None, sink: Sink | None = None) -> tuple[int, tuple[Damage, ...]]:
        """Decodes every chunk that there is; how many bytes are good from the first on, and all that is damaged.

        ``into`` is memory of ``claimed_bytes`` or more: good chunks are placed there, the rest of it is undefined.
        ``sink`` is called with the good bytes from the first on, piece by piece; each is valid until it returns.
        """
        damage = list(self._notes)
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
            self._decode_into(room, record)
        except CorruptError as error:
            return record, room, f"chunk {index}: {error.why.partition(': ')[2] or error.why}"
        except OSError as error:  # of the disk: lost like bytes that are wrong
            return record, room, f"chunk {index}: {error.strerror or error}"
        return record, room, None

    def _decode_into(self, room: memoryview, record: _Record) -> None:
        if self.header.codec is Codec.NONE:
            self._read(room, record.offset)
            return
        # A region of its own, of one chunk.
        region = memoryview(bytearray(_FRAME.size + record.size))
        _FRAME.pack_into(region, 0, record.raw_size, 1)
        self._read(region[_FRAME.size :], record.offset)
        with _core.source(region) as stored, _core.target(room) as raw:
            _core.decode(stored, self.header.chunk_size, raw, 0)

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


def _block_bound(raw_size: int) -> int:
    return raw_size + raw_size // 255 + 16


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
