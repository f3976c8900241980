"""The payload as it is: the inner halves of a writer and of a reader that have nothing to encode or decode."""

from __future__ import annotations

from array import array
from typing import Any

from ds4kv.core import memory
from ds4kv.core import native as _core
from ds4kv.core.turn import Turn
from ds4kv.errors import Ds4kvError, TruncatedError
from ds4kv.format.header import CHUNK_SIZE
from ds4kv.stream.fileobj import STEP_SIZE, BinaryFile, read_into, write_all

__all__ = ["RawDecoder", "RawEncoder"]


class RawEncoder:
    """In place of a :class:`ds4kv.stream.encoder.RecordEncoder`. ``sums`` are those of every CHUNK_SIZE bytes, and of
    the rest at the end.
    """

    raw_bytes = 0
    is_raw = True

    def __init__(self, fp: BinaryFile, turn: Turn, *, sums: bool) -> None:
        self._fp = fp
        self._look = turn.look
        self._hasher = _core.Hasher() if sums else None
        self.sums = array("Q")

    @property
    def region_bytes(self) -> int:
        return self.raw_bytes

    def put(self, payload: Any) -> None:
        size = len(payload)
        for start in range(0, size, STEP_SIZE):
            self._look()
            stop = min(size, start + STEP_SIZE)
            with memory.view(payload, start, stop) as step:
                write_all(self._fp, step)
            if self._hasher is not None:
                self._sum_up(self._hasher, payload, start, stop)
        self.raw_bytes += size

    def _sum_up(self, hasher: _core.Hasher, payload: Any, start: int, end: int) -> None:
        while start < end:
            room = CHUNK_SIZE - (self.raw_bytes + start) % CHUNK_SIZE
            stop = min(end, start + room)
            hasher.put(payload, start, stop)
            if stop - start == room:
                self.sums.append(hasher.take())
            start = stop

    def finish(self) -> None:
        if self._hasher is not None and self.raw_bytes % CHUNK_SIZE:
            self.sums.append(self._hasher.take())

    def free(self) -> None:
        """Nothing is held."""


class RawDecoder:
    """In place of a :class:`ds4kv.stream.decoder.RecordDecoder`."""

    _is_lost = False  # the file object has moved on, and the position hasn't

    def __init__(self, fp: BinaryFile, start: int | None, turn: Turn) -> None:
        self._fp = fp
        self._start = start
        self._look = turn.look

    def fill(self, room: Any, position: int, n: int) -> None:
        if self._start is not None:
            self._fp.seek(self._start + position)
        elif self._is_lost:
            raise Ds4kvError("an earlier read failed, and the file object can't seek back")
        self._is_lost = True  # until all of it is there
        done = 0
        while True:
            with memory.view(room, done, min(n, done + STEP_SIZE)) as step:
                took = read_into(self._fp, step)
            if took == 0:
                raise TruncatedError("the input ends within the payload", offset=position + done, field="payload")
            done += took
            if done == n:
                break
            self._look()
        self._is_lost = False

    def drop(self) -> None:
        """Nothing is held."""
