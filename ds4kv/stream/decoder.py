"""From the bytes of a compressed region to its payload: records from a file object, decoded by the core's ring.

A decoder is the inner half of a reader. The stream around it has the position, one thread at a time, and what an error
means for the file.
"""

from __future__ import annotations

from array import array
from collections.abc import Generator
from typing import Any

from ds4kv.core import memory
from ds4kv.core import native as _core
from ds4kv.core.region import record_size
from ds4kv.core.turn import Turn
from ds4kv.errors import Ds4kvError, TruncatedError
from ds4kv.format.header import Form
from ds4kv.stream.fileobj import STEP_SIZE, BinaryFile, add_path, read_exactly, read_into
from ds4kv.stream.regular import regular_fd

__all__ = ["RecordDecoder"]

_SCRATCH_SIZE = 1 << 20


class RecordDecoder:
    """What a reader takes payload from: a region that begins at the position of ``fp``. Workers read the records of a
    regular file themselves; from anything else this reads them, and seeks only if there is a ``start``.

    Raises CorruptError or TruncatedError, with an offset into the region, if its frame can't be true.
    """

    _ring: _core.Decompressor | None = None
    _ring_position: int | None = None  # in the payload; None: not known, and the ring is of no use

    def __init__(
        self,
        fp: BinaryFile,
        start: int | None,
        region_bytes: int,
        *,
        chunk_size: int,
        form: Form,
        workers: int,
        sums: array[int] | None,
        turn: Turn,
    ) -> None:
        self._fp = fp
        self._fd = regular_fd(fp)
        self._start = start
        if form is Form.RAW and (self._fd is None or start is None):
            raise ValueError("form RAW is for regular files: a RawReader takes any file object")
        self._region_bytes = region_bytes
        self.frame = frame = self._read_frame(chunk_size, form)
        if sums is not None and form is Form.PACKED:
            raise ValueError("sums are for forms that have none: each record of form PACKED has its own")
        if sums is not None and len(sums) != frame.chunk_count:
            raise ValueError(f"{len(sums)} sums for {frame.chunk_count} chunks")
        self._workers = workers
        self._sums = sums
        self._look = turn.look
        self._head_size = _core.record_head_size(form)
        frame_size = _core.frame_size(form)
        self._fed = frame_size  # bytes of the region given to the ring, counted from the region's start
        self._at_first_record = True
        self._offsets = array("Q", [frame_size])  # of records in the region, as far as walked

    def _read_frame(self, chunk_size: int, form: Form) -> _core.Frame:
        size = _core.frame_size(form)
        if self._region_bytes < size:
            size = 0  # and that is refused below
        head = read_exactly(self._fp, size)
        if len(head) < size:
            raise TruncatedError("the input ends within the frame", offset=len(head), field="frame")
        return _core.frame_decode(head, self._region_bytes, chunk_size, form)

    def fill(self, room: Any, position: int, n: int) -> None:
        """Puts the ``n`` payload bytes from ``position`` on into a :func:`ds4kv.core.memory.target`."""
        try:
            ring = self._ring_at(position)
            self._ring_position = None  # until it is n further
            if n < self.frame.chunk_size:
                self._pump(ring, room, n)
            else:
                with ring.loan():
                    ring.aim(room, 0, n)
                    self._pump(ring, room, n)
            self._reach(position + n)
        except BaseException as error:
            self._give_up(error)
            raise

    def fill_parts(self, rooms: list[Any], position: int, n: int) -> None:
        """The same into several targets, which together are of ``n`` bytes."""
        try:
            ring = self._ring_at(position)
            self._ring_position = None
            with ring.loan():
                ring.aim_parts(rooms)
                self._pump(ring, None, n)
            self._reach(position + n)
        except BaseException as error:
            self._give_up(error)
            raise

    def steps(self, room: Any, position: int, n: int, step: int) -> Generator[int]:
        """As :meth:`fill`, while it goes on: how many bytes are there, at each ``step`` of them and at the end.
        Between, workers write to ``room``; any other use of the decoder ends that.
        """
        ring, done = None, 0
        try:
            ring = self._ring_at(position)
            self._ring_position = None
            with ring.loan():
                ring.aim(room, 0, n)
                while True:
                    enough = min(n, done + step)
                    while done < enough:
                        done += self._take(ring, room, done, enough)
                    if done == n:
                        break
                    yield done
                    if self._ring is not ring:
                        raise RuntimeError("the stream was used for something else, which ended this iteration")
            self._reach(position + n)
        except BaseException as error:
            if ring is None or self._ring is ring:
                self._give_up(error)
            raise
        yield done

    def _reach(self, position: int) -> None:
        """All up to there is in its place."""
        self._ring_position = position
        if self._start is not None and position == self.frame.raw_total:
            self._fp.seek(self._start + self._region_bytes)

    def _give_up(self, error: BaseException) -> None:
        self.drop()  # a file that seeks can be tried again
        add_path(error, self._fp)

    def _pump(self, ring: _core.Decompressor, room: Any, n: int) -> None:
        done = 0
        while done < n:
            done += self._take(ring, room, done, n)

    def _take(self, ring: _core.Decompressor, room: Any, done: int, n: int) -> int:
        """Some of the payload bytes ``done`` up to ``n`` to ``room``, or with None to where they are aimed."""
        if self._fd is not None:
            self._await(ring)
            return ring.take(room, done, n, wait=True)
        # A file that seeks answers at once, so workers get all they can hold before anything is waited for; what comes
        # through a pipe is passed on first.
        if self._start is not None:
            while self._feed(ring):
                pass
        took = ring.take(room, done, n, wait=False)
        if took == 0 and not self._feed(ring):
            self._await(ring)
            took = ring.take(room, done, n, wait=True)
        return took

    def _await(self, ring: _core.Decompressor) -> None:
        """Until there is something to be taken, or for the thread that takes it to do."""
        self._look()
        while not ring.wait():
            self._look()

    def _feed(self, ring: _core.Decompressor) -> bool:
        """Reads once into the ring; False if it holds all that it can."""
        room = ring.room()
        if room is None:
            return False
        if self._start is not None:
            self._fp.seek(self._start + self._fed)  # another stream may share the file object
        self._look()
        n = read_into(self._fp, room[:STEP_SIZE])
        if n == 0:
            ring.finish()
        self._fed += n
        ring.put(n)
        return True

    def _ring_at(self, position: int) -> _core.Decompressor:
        chunk_size = self.frame.chunk_size
        ahead = -1 if self._ring_position is None else position - self._ring_position
        if self._ring is None or not 0 <= ahead <= chunk_size:
            self.drop()
            chunk, ahead = divmod(position, chunk_size)
            if self._start is None and not self._at_first_record:
                raise Ds4kvError("an earlier read failed, and the file object can't seek back")
            self._at_first_record = False
            self._fed = self.offset_of(chunk)
            file = None if self._fd is None or self._start is None else (self._fd, self._start)
            self._ring_position = None
            self._ring = _core.Decompressor(
                self.frame, self._region_bytes, chunk, self._fed, self._workers, file, self._sums
            )
        if ahead:
            self._ring_position = None
            with memory.target(bytearray(min(ahead, _SCRATCH_SIZE))) as scratch:
                while ahead:
                    n = min(len(scratch), ahead)
                    self._pump(self._ring, scratch, n)
                    ahead -= n
        self._ring_position = position
        return self._ring

    def offset_of(self, chunk: int) -> int:
        """Where a record begins in the region; walks the record heads that were not walked before."""
        if self.frame.form == Form.RAW:
            return chunk * self.frame.chunk_size
        while len(self._offsets) <= chunk:
            offset = self._offsets[-1]
            self._fp.seek((self._start or 0) + offset)
            head = read_exactly(self._fp, self._head_size)
            if len(head) < self._head_size:
                raise TruncatedError("the input ends within a record head", offset=offset, field="record")
            index = len(self._offsets) - 1
            self._offsets.append(offset + record_size(self.frame, self._region_bytes, index, offset, head))
        return self._offsets[chunk]

    def stored_record(self, chunk: int) -> bytes:
        """A record as it is stored; in form RAW, the chunk. Raises CorruptError or TruncatedError where none can be."""
        start = self.offset_of(chunk)
        is_last = chunk == self.frame.chunk_count - 1
        end = self._region_bytes if is_last else self.offset_of(chunk + 1)
        self._fp.seek((self._start or 0) + start)
        record = read_exactly(self._fp, end - start)
        if len(record) < end - start:
            raise TruncatedError("the input ends within a record", offset=start + len(record), field="region")
        return record

    def drop(self) -> None:
        """Gives up what is held, if it still is."""
        if self._ring is not None:
            self._ring.free()
            self._ring = None
