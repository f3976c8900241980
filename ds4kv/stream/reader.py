"""Streams that a payload is read from, over any binary file object, with the manners of :mod:`ds4kv.stream.writer`.

Its size is known before its first byte, so a position in it is a number, and reading on from anywhere is a seek.
"""

from __future__ import annotations

import contextlib
import io
import os
import threading
from array import array
from collections.abc import Generator, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ds4kv.core import memory
from ds4kv.core import workers as _workers
from ds4kv.errors import CorruptError, Ds4kvError
from ds4kv.format.header import CHUNK_SIZE, MAX_CHUNK_SIZE, Form
from ds4kv.stream.decoder import RecordDecoder
from ds4kv.stream.fileobj import BinaryFile, can_seek, name_of, path_of
from ds4kv.stream.lifetime import Scoped, Stream
from ds4kv.stream.raw import RawDecoder
from ds4kv.stream.regular import RegularFile

if TYPE_CHECKING:
    from ds4kv.core.memory import Writeable

__all__ = ["PayloadReader", "RawReader"]


class _Reader(Scoped, Stream):
    """What both readers share: a position in a payload whose size is known before its first byte."""

    fault: CorruptError | None = None
    """What a read has proven wrong."""

    decoder: RecordDecoder | RawDecoder  # for the classes of streams, not for who uses one

    def __init__(self, fp: BinaryFile, region_bytes: int) -> None:
        super().__init__()
        self._fp = fp
        self._region_bytes = region_bytes
        self._raw_total = region_bytes
        self._start = fp.tell() if can_seek(fp) else None  # of the region
        self._position = 0
        if not 0 <= region_bytes < 1 << 64:
            raise ValueError(f"region_bytes is {region_bytes}, outside 0..2**64 - 1")

    def __repr__(self) -> str:
        state = "closed" if self.closed else "damaged" if self.fault is not None else "open"
        place = f"at {self._position} of {self._raw_total} bytes"
        return f"<{type(self).__name__} of {name_of(self._fp)}: {state}, {place}>"

    @property
    def raw_total(self) -> int:
        """Size of the payload in bytes."""
        return self._raw_total

    @property
    def region_bytes(self) -> int:
        """Size of the region in bytes, as stored."""
        return self._region_bytes

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self._start is not None

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Moves the position, in payload bytes; nothing is read before the next read.

        Raises io.UnsupportedOperation if the file object can't seek, ValueError for a position before the start.
        """
        self.turn.refuse_second()
        self.c_side.refuse_if_it_reads()
        with self.turn.lock:
            self.turn.thread = threading.get_ident()
            self._check_open()
            if self._start is None:
                raise io.UnsupportedOperation("the file object can't seek")
            base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._raw_total}.get(whence)
            if base is None:
                raise ValueError(f"whence is {whence}, not 0, 1 or 2")
            if base + offset < 0:
                raise ValueError(f"position {base + offset} is before the start")
            self._position = base + offset
            return self._position

    def readinto(self, b: Writeable, /) -> int:
        """Fills any writable C-contiguous buffer and returns the bytes put there: fewer only at the payload's end.

        Raises CorruptError for proven-wrong bytes, TruncatedError if the file object ends before the region,
        CancelledError after cancel(). While another thread reads, RuntimeError.
        """
        return self._read(b, False)

    def readinto_exactly(self, b: Writeable, /) -> None:
        """Fills any writable C-contiguous buffer with all that is left of the payload.

        Raises ValueError, before anything is read, if that is not the buffer's size: then it is of another engine, or
        another setting. Else as readinto().
        """
        self._read(b, True)

    def readinto_parts(self, buffers: Sequence[Writeable], /) -> int:
        """Fills several buffers, one after the other, and returns the bytes put there: fewer than they hold together
        only at the payload's end.

        Workers see them all at once, and decode chunks where they belong; only those that belong in two buffers are
        decoded elsewhere and copied. Raises as readinto().
        """
        with contextlib.ExitStack() as held:
            rooms = [held.enter_context(memory.target(b)) for b in buffers]
            self._refuse_others()
            with self.turn.lock:
                self.turn.thread = threading.get_ident()
                self._check_open()
                return self._fill_parts(rooms)

    def _fill_parts(self, rooms: list[Any]) -> int:
        left = n = min(sum(map(len, rooms)), self._left())
        wanted = []
        for room in rooms:
            if left:
                wanted.append(room[0 : min(len(room), left)])
                left -= len(wanted[-1])
        if n:
            try:
                self.decoder.fill_parts(wanted, self._position, n)
            except Ds4kvError as error:
                self._blame(error)
                raise
            self._position += n
        return n

    def iter_into(self, b: Writeable, /, *, step: int = CHUNK_SIZE) -> Iterator[int]:
        """Fills a buffer as readinto() does, and yields how many bytes of it are there, from its start on: ``step``,
        twice that, and so on, and at last all.

        So an engine copies to its GPU what is there while the rest is decoded. Until the iterator ends, or is closed,
        the buffer is written to. Any other use of the stream ends it: its next step is a RuntimeError. Else raises as
        readinto(), at the first step, and at once ValueError for a ``step`` below 1.
        """
        if step < 1:
            raise ValueError(f"step is {step}, and must be 1 byte at least")
        return self._steps_into(b, step)

    def _steps_into(self, b: Writeable, step: int) -> Iterator[int]:
        done = 0
        steps: Generator[int] | None = None
        with memory.target(b) as room:
            n, start = min(len(room), self._left()), self._position
            try:
                while done < n:
                    self._refuse_others()
                    with self.turn.lock:
                        self.turn.thread = threading.get_ident()
                        self._check_open()
                        if steps is None:
                            steps = self.decoder.steps(room, start, n, step)
                        if self._position != start + done:
                            raise RuntimeError("the stream was used for something else, which ended this iteration")
                        try:
                            done = next(steps)
                        except Ds4kvError as error:
                            self._blame(error)
                            raise
                        self._position = start + done
                    yield done
            finally:  # nothing is written to the buffer after it
                if steps is not None and (self.turn.is_mine() or os.getpid() != self.turn.process):
                    steps.close()  # from garbage collection within another call of this thread's, or in a fork
                elif steps is not None:
                    with self.turn.lock:
                        steps.close()

    def _left(self) -> int:
        return max(self._raw_total - self._position, 0)

    def _refuse_others(self) -> None:
        if self.turn.lock.locked():
            self.turn.refuse_second()
        if self.c_side.file is not None:
            self.c_side.refuse_if_it_reads()

    def _read(self, b: Writeable, whole_rest: bool) -> int:
        self._refuse_others()
        with self.turn.lock:
            self.turn.thread = threading.get_ident()
            self._check_open()
            with memory.target(b) as room:
                left = self._left()
                if whole_rest and len(room) != left:
                    raise ValueError(f"into is {len(room)} bytes, the payload has {left} left")
                n = min(len(room), left)
                if n == 0:
                    return 0
                try:
                    self.decoder.fill(room, self._position, n)
                except Ds4kvError as error:
                    self._blame(error)
                    raise
                self._position += n
            return n

    def _blame(self, error: Ds4kvError) -> None:
        """Places an error that a read has met. Raises OSError if the bytes prove nothing: somebody writes to them."""
        self._place(error)
        if isinstance(error, CorruptError):
            if isinstance(self._fp, RegularFile):
                self._fp.check_unchanged()
            self.fault = error

    def read(self, size: int | None = -1, /) -> bytes:
        """Up to ``size`` bytes, or all that are left; never more memory than the payload's."""
        left = self._left()
        piece = bytearray(left if size is None or size < 0 else min(size, left))
        n = self.readinto(piece)
        return bytes(memoryview(piece)[:n])

    def readall(self) -> bytes:
        return self.read()

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError("read from a closed stream")
        self.turn.look()

    def close(self) -> None:
        """Ends the threads; the file object stays open. RuntimeError while another thread reads, and it goes on."""
        if self.closed:
            return
        self.turn.refuse_second()
        with self.turn.lock:
            self.turn.thread = threading.get_ident()
            error = self._end()
        if error is not None:
            raise error

    def abandon(self) -> None:
        """Closes the stream, whoever reads: a thread that is in it is cancelled first, and waited for. An error that C
        has met is not told.
        """
        if not self.closed:
            with self.turn.last():
                self._end()

    def _end(self) -> BaseException | None:
        """Returns what C has met and nobody was told."""
        if hasattr(self, "decoder"):  # else the constructor has failed
            self.decoder.drop()
        error = self.c_side.drop()
        io.RawIOBase.close(self)
        return error

    def _place(self, error: Ds4kvError) -> None:
        """Makes an error of the region one of the file."""
        if error.offset is not None:
            error.offset += self._start or 0
        error.path = error.path or path_of(self._fp)


class PayloadReader(_Reader):
    """The payload of a compressed region of ``region_bytes`` bytes, which begins at ``fp``'s position.

    The frame is read at once: ``raw_total``, the payload's exact size, is known before the first byte. ``chunk_size``
    is the one in the file's header; ``workers`` as :func:`ds4kv.workers.resolve` has it. Memory is at most
    2 x workers + 1 chunks, 2 without workers, and whole chunks go straight to where a readinto() wants them. It seeks
    if ``fp`` does, by walking the record heads up to the chunk that is wanted. From a regular file, workers read the
    blocks that they decode; any other file object is read by the thread that reads here.

    ``form`` is how the region holds its chunks. ``sums`` are 64-bit integers, the XXH3-64 that each record should have:
    workers hold what they read against them before they decode it. In form RAW the region has no frame and no records,
    and is cut into chunks; that is for regular files, whose workers read and sum at once: else there is RawReader. In
    form PACKED, which has sums of its own, ``sums`` are a ValueError.

    Raises CorruptError if the frame can't be true of a region of this size, TruncatedError if ``fp`` ends within it.
    """

    decoder: RecordDecoder

    def __init__(
        self,
        fp: BinaryFile,
        region_bytes: int,
        *,
        chunk_size: int,
        form: Form = Form.PLAIN,
        workers: int | None = None,
        sums: array[int] | None = None,
    ) -> None:
        super().__init__(fp, region_bytes)
        if not 1 <= chunk_size <= MAX_CHUNK_SIZE:
            raise ValueError(f"chunk_size is {chunk_size}, outside 1..{MAX_CHUNK_SIZE}")
        form, count = Form(form), _workers.resolve(workers)
        try:
            self.decoder = RecordDecoder(
                fp,
                self._start,
                region_bytes,
                chunk_size=chunk_size,
                form=form,
                workers=count,
                sums=sums,
                turn=self.turn,
            )
        except Ds4kvError as error:
            self._place(error)
            raise
        self._raw_total = self.decoder.frame.raw_total

    @property
    def chunk_count(self) -> int:
        """Number of chunks in the region."""
        return self.decoder.frame.chunk_count

    @property
    def seal(self) -> int:
        """What the writer of a region of form PACKED was given as its ``seal``; 0 in the other forms."""
        return self.decoder.frame.seal

    def stored_records(self) -> Iterator[bytes]:
        """The records as they are stored, one after the other; in form RAW, the chunks.

        Raises CorruptError or TruncatedError where one can't be.
        """
        for chunk in range(self.chunk_count):
            self._check_open()
            yield self.decoder.stored_record(chunk)


class RawReader(_Reader):
    """The payload of a region of codec ``none``: ``region_bytes`` bytes from ``fp``'s position on.

    From a regular file, ``workers`` read 4 MiB and more together.
    """

    def __init__(self, fp: BinaryFile, region_bytes: int, *, workers: int | None = None) -> None:
        super().__init__(fp, region_bytes)
        self.decoder = RawDecoder(fp, self._start, self.turn, workers=_workers.resolve(workers))
