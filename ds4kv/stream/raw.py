"""The payload as it is: the inner halves of a writer and of a reader that have nothing to encode or decode."""

from __future__ import annotations

from array import array
from collections.abc import Generator, Sequence
from typing import Any

from ds4kv.core import memory
from ds4kv.core import native as _core
from ds4kv.core.turn import Turn
from ds4kv.errors import Ds4kvError, TruncatedError
from ds4kv.format.header import CHUNK_SIZE, Form
from ds4kv.stream.fileobj import STEP_SIZE, BinaryFile, add_path, read_into, write_all
from ds4kv.stream.regular import regular_fd

__all__ = ["RawDecoder", "RawEncoder"]

_SHARED_SIZE = 4 << 20  # of a read that is worth waking workers for
_PIECE_SIZE = 2 << 20  # of a read by one of them: a huge page of fresh memory


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

    def put(self, payloads: Sequence[Any], size: int) -> None:
        for payload in payloads:
            self._put_one(payload)

    def _put_one(self, payload: Any) -> None:
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
    """In place of a :class:`ds4kv.stream.decoder.RecordDecoder`. Much of a regular file is read by ``workers`` at a
    time, anything else by the thread that asks.
    """

    _is_lost = False  # the file object has moved on, and the position hasn't
    _ring: _core.Decompressor | None = None  # while workers read

    def __init__(self, fp: BinaryFile, start: int | None, turn: Turn, *, workers: int) -> None:
        self._fp = fp
        self._start = start
        self._fd = regular_fd(fp) if workers > 0 else None
        self._workers = workers
        self._look = turn.look

    def fill(self, room: Any, position: int, n: int) -> None:
        for _ in self.steps(room, position, n, n):
            pass

    def fill_parts(self, rooms: list[Any], position: int, n: int) -> None:
        self.drop()
        if self._is_shared(n):
            for _ in self._shared(rooms, position, n, n):
                pass
            return
        for room in rooms:
            self.fill(room, position, len(room))
            position += len(room)

    def steps(self, room: Any, position: int, n: int, step: int) -> Generator[int]:
        self.drop()  # what an iteration that goes on has under way
        if self._is_shared(n):
            yield from self._shared([room], position, n, step)
        else:
            yield from self._alone(room, position, n, step)

    def _is_shared(self, n: int) -> bool:
        return self._fd is not None and self._start is not None and n >= _SHARED_SIZE

    def _alone(self, room: Any, position: int, n: int, step: int) -> Generator[int]:
        if self._start is not None:
            self._fp.seek(self._start + position)
        elif self._is_lost:
            raise Ds4kvError("an earlier read failed, and the file object can't seek back")
        self._is_lost = True  # until all of it is there
        done, enough = 0, min(n, step)
        while done < n:
            self._look()
            with memory.view(room, done, min(enough, done + STEP_SIZE)) as piece:
                took = read_into(self._fp, piece)
            if took == 0:
                raise _truncated(position + done)
            done += took
            if done == enough < n:
                enough = min(n, done + step)
                yield done
                if self._start is not None:
                    self._fp.seek(self._start + position + done)  # others may have moved it meanwhile
        self._is_lost = False
        yield done

    def _shared(self, rooms: list[Any], position: int, n: int, step: int) -> Generator[int]:
        """By a ring of this one's own, so that it never reads what nobody has asked for."""
        assert self._fd is not None and self._start is not None
        start = self._start + position
        frame = _core.Frame(n, -(-n // _PIECE_SIZE), _PIECE_SIZE, Form.RAW)
        ring = self._ring = _core.Decompressor(frame, n, 0, 0, self._workers, (self._fd, start))
        done, enough = 0, min(n, step)
        try:
            with ring.loan():
                ring.aim_parts(rooms)
                while done < n:
                    self._look()
                    while not ring.wait():
                        self._look()
                    done += ring.take(None, done, enough, wait=True)
                    if done == enough < n:
                        enough = min(n, done + step)
                        yield done
                        if self._ring is not ring:
                            raise RuntimeError("the stream was used for something else, which ended this iteration")
        except TruncatedError as error:
            raise _truncated(position + (error.offset or 0)) from None
        except OSError as error:
            add_path(error, self._fp)
            raise
        finally:
            if self._ring is ring:
                self.drop()
        self._fp.seek(start + n)
        yield done

    def drop(self) -> None:
        """Ends what workers read."""
        if self._ring is not None:
            self._ring.free()
            self._ring = None


def _truncated(offset: int) -> TruncatedError:
    return TruncatedError("the input ends within the payload", offset=offset, field="payload")
