"""Payload streams over any binary file object: what an engine writes its state to, and reads it from.

All four are :class:`io.RawIOBase` objects, so :class:`io.BufferedWriter`, :func:`shutil.copyfileobj` and the like take
them, and C takes them by as_file(). They leave the file object open, positioned at the region's end, and are for one
thread at a time; any thread may cancel() them.

A finished region and a broken one differ in one thing: ``close()`` was reached. ``abandon()``, leaving a ``with`` block
by an exception, and being garbage collected end the threads and write nothing more.

What may take long is done in steps, and between them Python hears signals and cancel().
"""

from __future__ import annotations

import io
import os
import threading
from array import array

from ds4kv.core import native as _core
from ds4kv.core import workers as _workers
from ds4kv.errors import CorruptError, Ds4kvError, TruncatedError
from ds4kv.format.header import CHUNK_SIZE, MAX_CHUNK_SIZE, Codec, Form
from ds4kv.stream.fileobj import Nowhere, appends, can_seek, path_of, read_exactly, read_into, write_all
from ds4kv.stream.lifetime import Finishable, Single, Stream
from ds4kv.stream.regular import RegularFile, regular_fd

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType
    from typing import Any

    from _typeshed import ReadableBuffer, WriteableBuffer

    from ds4kv.stream.fileobj import BinaryFile

__all__ = [
    "Finishable",
    "Nowhere",
    "PayloadReader",
    "PayloadWriter",
    "RawReader",
    "RawWriter",
    "Single",
    "encoder_level",
    "region_sums",
    "write_all",
]

_SCRATCH_SIZE = 1 << 20
_STEP_SIZE = 4 << 20  # of one read or write of the file object: 40 ms at 100 MB/s
_MAX_CHUNK_COUNT = (1 << 32) - 1


def encoder_level(codec: Codec, level: int | None, form: Form = Form.PLAIN) -> int:
    """The core's level for a codec and what the caller asked for; ValueError if they don't go together.

    Codec ``lz4`` without a level, or at 0, is LZ4_compress_default, whose bytes are the reference's. Its levels 1 to 12
    are LZ4HC: denser blocks that every reader of codec ``lz4`` takes. Codec ``lz4hc`` marks the same blocks by the
    number that the format keeps for them, 9 being its default level. In form CHECKED 1 is the default, as ds4 has it.
    """
    lowest, default = {Codec.LZ4: (0, int(form is Form.CHECKED)), Codec.LZ4HC: (1, 9)}.get(codec, (None, None))
    if lowest is None or default is None:
        raise ValueError("codec none has no blocks: write the payload as it is")
    if level is None:
        return default
    if not lowest <= level <= _core.MAX_LEVEL:
        raise ValueError(f"level is {level}, outside {lowest}..{_core.MAX_LEVEL} of codec {codec.name.lower()}")
    return level


class _Writer(Finishable, Stream):
    """What both writers share: counting, and the difference between an end and a finish."""

    def __init__(self, fp: BinaryFile, raw_total: int | None) -> None:
        super().__init__()
        if raw_total is not None and raw_total < 0:
            raise ValueError(f"raw_total is {raw_total}")
        self._fp = fp
        self._raw_total = raw_total
        self._raw_bytes = 0
        self._failed = False
        self._complete = False

    @property
    def region_bytes(self) -> int:
        """Bytes of the region written so far; after close, its size."""
        raise NotImplementedError

    @property
    def raw_total(self) -> int | None:
        """Size of the payload in bytes, as it was announced; None if it wasn't."""
        return self._raw_total

    @property
    def complete(self) -> bool:
        """Whether close() succeeded: the region is whole."""
        return self._complete

    def _put(self, payload: Any) -> None:
        raise NotImplementedError

    def _finish(self) -> None:
        raise NotImplementedError

    def _free(self) -> None:
        """Gives up what is held, if it still is."""

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        """Payload bytes written so far."""
        self._settle_file()
        return self._raw_bytes

    def write(self, b: ReadableBuffer, /) -> int:
        """Takes all of any C-contiguous buffer and returns its size in bytes.

        An exception of the file object, or of a signal handler, passes through; the stream is broken after, and only to
        be abandoned. Raises ValueError if that is more than raw_total announced, CancelledError after cancel().
        """
        if self._turn.locked():
            self._refuse_second()
        if self._c_file is not None:
            self._settle_file()
        with self._turn:
            self._thread = threading.get_ident()
            if self.closed or self._complete:
                raise ValueError("write to a closed stream")
            self._look()
            if self._failed:
                raise Ds4kvError("the region is broken: an earlier write failed")
            if os.getpid() != self._process:
                raise RuntimeError("a stream is written by the process that made it, and this is a fork of it")
            with _core.source(b) as payload:
                size = len(payload)
                if self._raw_total is not None and size > self._raw_total - self._raw_bytes:
                    raise ValueError(
                        f"raw_total is {self._raw_total} bytes; {size} more after {self._raw_bytes} are too many"
                    )
                self._failed = True  # until all of it is taken
                try:
                    self._put(payload)
                    self._raw_bytes += size
                except BaseException:
                    self._free()
                    raise
                self._failed = False
            return size

    def _write(self, data: memoryview) -> None:
        """Passes on to the file object, in steps."""
        if len(data) <= _STEP_SIZE:
            write_all(self._fp, data)
            return
        for start in range(0, len(data), _STEP_SIZE):
            self._look()
            with data[start : start + _STEP_SIZE] as step:
                write_all(self._fp, step)

    def close(self) -> None:
        """Finishes the region; the file object stays open, positioned behind it.

        Raises Ds4kvError if an earlier write failed, ValueError if raw_total announced more than was written,
        CancelledError after cancel(); the stream is ended all the same. While another thread writes, RuntimeError, and
        nothing has happened.
        """
        if self.closed:
            return
        self._refuse_second()
        try:
            self._settle_file()
        except BaseException:
            self.abandon()
            raise
        with self._turn:
            self._thread = threading.get_ident()
            try:
                if not self._complete:
                    self._finish_whole()
            finally:
                self._end()

    def _finish_whole(self) -> None:
        self._look()
        if self._failed:
            raise Ds4kvError("the region is broken: an earlier write failed")
        if self._raw_total not in (None, self._raw_bytes):
            raise ValueError(f"raw_total is {self._raw_total} bytes, but {self._raw_bytes} were written")
        self._failed = True  # until it is finished
        self._finish()
        self._failed, self._complete = False, True

    def abandon(self) -> None:
        """Ends the stream without finishing the region, which no reader will take.

        A thread that is in it is cancelled first, and waited for.
        """
        if not self.closed:
            with self._last_turn():
                self._end()

    def _end(self) -> None:
        self._failed = not self._complete
        self._drop_file()
        self._free()
        self._unfinished = False
        io.RawIOBase.close(self)


class PayloadWriter(_Writer):
    """Payload in, a compressed region out to ``fp``, from its current position on.

    ``chunk_size`` is in payload bytes, 1 to 64 MiB, and goes into the file's header; ``workers`` as
    :func:`ds4kv.workers.resolve` has it. By ``nice``, 0 to 19, workers let other threads and processes go first (on
    Linux; elsewhere niceness is not a thread's). Memory is at most 2 x workers + 1 chunks, 2 without workers. The
    region begins with its own size in payload bytes: with ``raw_total`` that is written at once and ``fp`` may be a
    pipe or a socket, without it ``fp`` must seek, as close() goes back to fill it in.

    ``form`` is PLAIN, as layout ``v2`` has it, or CHECKED, as ``v2-checked``: smaller where the payload is of 32-bit
    numbers, and with a checksum of each chunk, at the price of a chunk of memory more for each worker and no empty
    payload. With ``sums``, the attribute of that name gets the XXH3-64 of each record.

    Raises io.UnsupportedOperation if ``fp`` can't seek, ValueError for an argument outside its range.
    """

    sums: array[int]
    _ring: _core.Compressor | None = None

    def __init__(
        self,
        fp: BinaryFile,
        *,
        chunk_size: int = CHUNK_SIZE,
        form: Form = Form.PLAIN,
        workers: int | None = None,
        nice: int = 0,
        codec: Codec = Codec.LZ4,
        level: int | None = None,
        raw_total: int | None = None,
        sums: bool = False,
    ) -> None:
        super().__init__(fp, raw_total)
        if form not in (Form.PLAIN, Form.CHECKED):
            raise ValueError(f"form {Form(form).name} is read, not written")
        if form is Form.CHECKED and raw_total == 0:
            raise ValueError("raw_total is 0, and no region of form CHECKED is empty")
        if not 1 <= chunk_size <= MAX_CHUNK_SIZE:
            raise ValueError(f"chunk_size is {chunk_size}, outside 1..{MAX_CHUNK_SIZE}")
        if not 0 <= nice <= 19:
            raise ValueError(f"nice is {nice}, outside 0..19")
        if (raw_total or 0) > _MAX_CHUNK_COUNT * chunk_size:
            raise ValueError(f"{raw_total} bytes are more than {_MAX_CHUNK_COUNT} chunks of {chunk_size}")
        if raw_total is None and (not can_seek(fp) or appends(fp)):
            raise io.UnsupportedOperation("the file object can't go back: give raw_total, the payload's size")
        count = _workers.resolve(workers)
        self._start = fp.tell() if raw_total is None else None
        self._region_bytes = 0
        # A lent chunk must be compressed before write() returns. The chunks at the end of a large write are copied
        # instead, as many as may be under way, so that there is nothing left to wait for.
        self._copied_at_end = (count + 1) * chunk_size
        self._frame = _core.Frame(raw_total or 0, -(-(raw_total or 0) // chunk_size), chunk_size, form)
        self._with_sums = sums
        self.sums = array("Q")
        core_level = encoder_level(Codec(codec), level, Form(form))
        self._ring = _core.Compressor(raw_total, chunk_size, form, core_level, count, nice=nice, sums=sums)
        self._unfinished = True

    @property
    def region_bytes(self) -> int:
        return self._region_bytes

    def _put(self, payload: Any) -> None:
        assert self._ring is not None
        size = len(payload)
        if size == 0:
            return
        completes = self._raw_total is not None and self._raw_bytes + size == self._raw_total
        lent = size if completes else size - self._copied_at_end
        if lent <= 0:
            self._put_part(payload, 0, size, lent=False)
            return
        with self._ring.loan():
            self._put_part(payload, 0, lent, lent=True)
            self._put_part(payload, lent, size, lent=False)
            if completes:
                self._ring.finish()
            while self._ring.lent():
                self._drain_one()

    def _put_part(self, payload: Any, start: int, stop: int, *, lent: bool) -> None:
        assert self._ring is not None
        while True:
            start += self._ring.put(payload, start, stop, lent=lent)
            if start == stop:
                return
            self._drain_one()

    def _drain_one(self) -> bool:
        assert self._ring is not None
        self._look()
        while not self._ring.wait():
            self._look()
        record = self._ring.take()
        if record is None:
            return False
        if self._with_sums:
            self.sums.append(self._ring.sum)
        self._emit_frame()
        with record:  # whoever keeps it finds it released, and not memory that is something else by now
            self._write(record)
            self._region_bytes += len(record)
        return True

    def _emit_frame(self) -> None:
        if self._region_bytes == 0:
            self._write(memoryview(self._frame.pack()))
            self._region_bytes = _core.FRAME_SIZE

    def _finish(self) -> None:
        assert self._ring is not None
        if self._frame.form == Form.CHECKED and self._raw_bytes == 0:
            raise ValueError("nothing was written, and no region of form CHECKED is empty")
        if not self._raw_total:  # else the write that completed the payload did it
            self._ring.finish()
        while self._drain_one():
            pass
        self._emit_frame()
        if self._start is not None:
            self._fp.seek(self._start)
            write_all(self._fp, memoryview(self._ring.frame.pack()))
            self._fp.seek(self._start + self._region_bytes)

    def _free(self) -> None:
        if self._ring is not None:
            self._ring.free()
            self._ring = None


class RawWriter(_Writer):
    """Payload to ``fp`` as it is: the region of codec ``none``, with the manners of :class:`PayloadWriter`.

    With ``sums``, the attribute of that name gets the XXH3-64 of every CHUNK_SIZE bytes, and of the rest at the end.
    """

    sums: array[int]

    @property
    def region_bytes(self) -> int:
        return self._raw_bytes

    def __init__(self, fp: BinaryFile, *, raw_total: int | None = None, sums: bool = False) -> None:
        super().__init__(fp, raw_total)
        self._hasher = _core.Hasher() if sums else None
        self.sums = array("Q")
        self._unfinished = True

    def _put(self, payload: Any) -> None:
        for start in range(0, len(payload), _STEP_SIZE):
            self._look()
            stop = min(len(payload), start + _STEP_SIZE)
            with _core.view(payload, start, stop) as step:
                write_all(self._fp, step)
            if self._hasher is not None:
                self._sum_up(self._hasher, payload, start, stop)

    def _sum_up(self, hasher: _core.Hasher, payload: Any, start: int, end: int) -> None:
        while start < end:
            room = CHUNK_SIZE - (self._raw_bytes + start) % CHUNK_SIZE
            stop = min(end, start + room)
            hasher.put(payload, start, stop)
            if stop - start == room:
                self.sums.append(hasher.take())
            start = stop

    def _finish(self) -> None:
        if self._hasher is not None and self._raw_bytes % CHUNK_SIZE:
            self.sums.append(self._hasher.take())


class _Reader(Single, Stream):
    """What both readers share: a position in a payload whose size is known before its first byte."""

    fault: CorruptError | None = None
    """What a read has proven wrong."""

    def __init__(self, fp: BinaryFile, region_bytes: int, raw_total: int) -> None:
        super().__init__()
        self._fp = fp
        self._region_bytes = region_bytes
        self._raw_total = raw_total
        self._start = fp.tell() if can_seek(fp) else None  # of the region
        self._position = 0
        if not 0 <= region_bytes < 1 << 64:
            raise ValueError(f"region_bytes is {region_bytes}, outside 0..2**64 - 1")

    @property
    def raw_total(self) -> int:
        """Size of the payload in bytes."""
        return self._raw_total

    @property
    def region_bytes(self) -> int:
        """Size of the region in bytes, as stored."""
        return self._region_bytes

    def _fill(self, room: Any, n: int) -> None:
        """Puts the ``n`` payload bytes from the position on into ``room``."""
        raise NotImplementedError

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
        self._refuse_second()
        self._refuse_if_c_reads()
        with self._turn:
            self._thread = threading.get_ident()
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

    def readinto(self, b: WriteableBuffer, /) -> int:
        """Fills any writable C-contiguous buffer and returns the bytes put there: fewer only at the payload's end.

        Raises CorruptError for proven-wrong bytes, TruncatedError if the file object ends before the region,
        CancelledError after cancel(). While another thread reads, RuntimeError.
        """
        return self._read(b, False)

    def readinto_exactly(self, b: WriteableBuffer, /) -> None:
        """Fills any writable C-contiguous buffer with all that is left of the payload.

        Raises ValueError, before anything is read, if that is not the buffer's size: then it is of another engine, or
        another setting. Else as readinto().
        """
        self._read(b, True)

    def _read(self, b: WriteableBuffer, whole_rest: bool) -> int:
        if self._turn.locked():
            self._refuse_second()
        if self._c_file is not None:
            self._refuse_if_c_reads()
        with self._turn:
            self._thread = threading.get_ident()
            self._check_open()
            with _core.target(b) as room:
                left = max(self._raw_total - self._position, 0)
                if whole_rest and len(room) != left:
                    raise ValueError(f"into is {len(room)} bytes, the payload has {left} left")
                n = min(len(room), left)
                if n == 0:
                    return 0
                try:
                    self._fill(room, n)
                except Ds4kvError as error:
                    self._place(error)
                    if isinstance(error, CorruptError):
                        if isinstance(self._fp, RegularFile):
                            self._fp.check_unchanged()
                        self.fault = error
                    raise
                self._position += n
            return n

    def read(self, size: int | None = -1, /) -> bytes:
        """Up to ``size`` bytes, or all that are left; never more memory than the payload's."""
        left = max(self._raw_total - self._position, 0)
        piece = bytearray(left if size is None or size < 0 else min(size, left))
        n = self.readinto(piece)
        return bytes(memoryview(piece)[:n])

    def readall(self) -> bytes:
        return self.read()

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError("read from a closed stream")
        self._look()

    def _drop(self) -> None:
        """Gives up what is held, if it still is."""

    def close(self) -> None:
        """Ends the threads; the file object stays open. RuntimeError while another thread reads, and it goes on."""
        if self.closed:
            return
        self._refuse_second()
        with self._turn:
            self._thread = threading.get_ident()
            self._drop()
            super().close()

    def abandon(self) -> None:
        """The same, whoever reads: a thread that is in it is cancelled first, and waited for. It tells no error that C
        has met.
        """
        if not self.closed:
            with self._last_turn():
                self._drop()
                self._drop_file()
                io.RawIOBase.close(self)

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        if exc_type is None:
            self.close()
        else:
            self.abandon()

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
    and is cut into chunks; that is for regular files, whose workers read and sum at once: else there is RawReader.

    Raises CorruptError if the frame can't be true of a region of this size, TruncatedError if ``fp`` ends within it.
    """

    _ring: _core.Decompressor | None = None

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
        super().__init__(fp, region_bytes, 0)
        if not 1 <= chunk_size <= MAX_CHUNK_SIZE:
            raise ValueError(f"chunk_size is {chunk_size}, outside 1..{MAX_CHUNK_SIZE}")
        self._form = Form(form)
        self._sums = sums
        self._workers = _workers.resolve(workers)
        self._fd = regular_fd(fp)
        if self._form is Form.RAW and (self._fd is None or self._start is None):
            raise ValueError("form RAW is for regular files: a RawReader takes any file object")
        try:
            self._frame = self._read_frame(chunk_size)
        except Ds4kvError as error:
            self._place(error)
            raise
        self._raw_total = self._frame.raw_total
        self._ring_position: int | None = None  # in the payload; None: not known, and the ring is of no use
        if sums is not None and len(sums) != self.chunk_count:
            raise ValueError(f"{len(sums)} sums for {self.chunk_count} chunks")
        self._head_size = _core.record_head_size(self._form)
        frame_size = 0 if self._form is Form.RAW else _core.FRAME_SIZE
        self._fed = frame_size  # bytes of the region given to the ring, counted from the region's start
        self._at_first_record = True
        self._offsets = array("Q", [frame_size])  # of records in the region, as far as walked

    @property
    def chunk_count(self) -> int:
        """Number of chunks in the region."""
        return self._frame.chunk_count

    def _read_frame(self, chunk_size: int) -> _core.Frame:
        has_frame = self._form is not Form.RAW and self._region_bytes >= _core.FRAME_SIZE
        size = _core.FRAME_SIZE if has_frame else 0
        head = read_exactly(self._fp, size)
        if len(head) < size:
            raise TruncatedError("the input ends within the frame", offset=len(head), field="frame")
        return _core.frame_decode(head, self._region_bytes, chunk_size, self._form)

    def _fill(self, room: Any, n: int) -> None:
        try:
            ring = self._ring_at_position()
            self._ring_position = None  # until it is n further
            if n < self._frame.chunk_size:
                self._pump(ring, room, n)
            else:
                with ring.loan():
                    ring.aim(room, 0, n)
                    self._pump(ring, room, n)
            self._ring_position = self._position + n
        except BaseException as error:
            self._drop()  # a file that seeks can be tried again
            if isinstance(error, OSError) and error.errno is not None and error.filename is None:
                path = path_of(self._fp)
                if path is not None:
                    error.filename = path
            raise
        if self._start is not None and self._ring_position == self._raw_total:
            self._fp.seek(self._start + self._region_bytes)

    def _pump(self, ring: _core.Decompressor, room: Any, n: int) -> None:
        done = 0
        while self._fd is not None and done < n:
            self._await(ring)
            done += ring.take(room, done, n, wait=True)
        while done < n:
            # A file that seeks answers at once, so workers get all they can hold before anything is waited for; what
            # comes through a pipe is passed on first.
            if self._start is not None:
                while self._feed(ring):
                    pass
            took = ring.take(room, done, n, wait=False)
            if took == 0 and not self._feed(ring):
                self._await(ring)
                took = ring.take(room, done, n, wait=True)
            done += took

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
        n = read_into(self._fp, room[:_STEP_SIZE])
        if n == 0:
            ring.finish()
        self._fed += n
        ring.put(n)
        return True

    def _ring_at_position(self) -> _core.Decompressor:
        chunk_size = self._frame.chunk_size
        ahead = -1 if self._ring_position is None else self._position - self._ring_position
        if self._ring is None or not 0 <= ahead <= chunk_size:
            self._drop()
            chunk, ahead = divmod(self._position, chunk_size)
            if self._start is None and not self._at_first_record:
                raise Ds4kvError("an earlier read failed, and the file object can't seek back")
            self._at_first_record = False
            self._fed = self._offset_of(chunk)
            file = None if self._fd is None or self._start is None else (self._fd, self._start)
            self._ring_position = None
            self._ring = _core.Decompressor(
                self._frame, self._region_bytes, chunk, self._fed, self._workers, file, self._sums
            )
        if ahead:
            self._ring_position = None
            with _core.target(bytearray(min(ahead, _SCRATCH_SIZE))) as scratch:
                while ahead:
                    n = min(len(scratch), ahead)
                    self._pump(self._ring, scratch, n)
                    ahead -= n
        self._ring_position = self._position
        return self._ring

    def _offset_of(self, chunk: int) -> int:
        """Where a record begins in the region; walks the record heads that were not walked before."""
        if self._form is Form.RAW:
            return chunk * self._frame.chunk_size
        while len(self._offsets) <= chunk:
            offset = self._offsets[-1]
            self._fp.seek((self._start or 0) + offset)
            head = read_exactly(self._fp, self._head_size)
            if len(head) < self._head_size:
                raise TruncatedError("the input ends within a record head", offset=offset, field="record")
            end = offset + self._head_size + int.from_bytes(head[4:8], "little")
            if end >= self._region_bytes:
                raise CorruptError("a record reaches past the region", offset=offset + 4, field="block_size")
            self._offsets.append(end)
        return self._offsets[chunk]

    def stored_records(self) -> Iterator[bytes]:
        """The records as they are stored, one after the other; in form RAW, the chunks.

        Raises CorruptError or TruncatedError where one can't be.
        """
        for chunk in range(self.chunk_count):
            self._check_open()
            start = self._offset_of(chunk)
            is_last = chunk == self.chunk_count - 1
            end = self._region_bytes if is_last else self._offset_of(chunk + 1)
            self._fp.seek((self._start or 0) + start)
            record = read_exactly(self._fp, end - start)
            if len(record) < end - start:
                raise TruncatedError("the input ends within a record", offset=start + len(record), field="region")
            yield record

    def _drop(self) -> None:
        if self._ring is not None:
            self._ring.free()
            self._ring = None


def region_sums(fp: BinaryFile, region_bytes: int, *, chunk_size: int, form: Form) -> array[int]:
    """The XXH3-64 of each record of the region at a regular file's position; nothing is decoded.

    Raises CorruptError or TruncatedError where a record can't be.
    """
    with PayloadReader(fp, region_bytes, chunk_size=chunk_size, form=form, workers=0) as reader:
        return array("Q", map(_core.hash64, reader.stored_records()))


class RawReader(_Reader):
    """The payload of a region of codec ``none``: ``region_bytes`` bytes from ``fp``'s position on."""

    _is_lost = False  # the file object has moved on, and the position hasn't

    def __init__(self, fp: BinaryFile, region_bytes: int) -> None:
        super().__init__(fp, region_bytes, region_bytes)

    def _fill(self, room: Any, n: int) -> None:
        if self._start is not None:
            self._fp.seek(self._start + self._position)
        elif self._is_lost:
            raise Ds4kvError("an earlier read failed, and the file object can't seek back")
        self._is_lost = True  # until all of it is there
        done = 0
        while True:
            with _core.view(room, done, min(n, done + _STEP_SIZE)) as step:
                took = read_into(self._fp, step)
            if took == 0:
                raise TruncatedError("the input ends within the payload", offset=self._position + done, field="payload")
            done += took
            if done == n:
                break
            self._look()
        self._is_lost = False
