"""Streams that a payload is written to, over any binary file object.

They are :class:`io.RawIOBase` objects, so :class:`io.BufferedWriter`, :func:`shutil.copyfileobj` and the like take
them, and C takes them by as_file(). They leave the file object open, positioned at the region's end, and are for one
thread at a time; any thread may cancel() them.

A finished region and a broken one differ in one thing: ``close()`` was reached. ``abandon()``, leaving a ``with`` block
by an exception, and being garbage collected end what threads are at, and write nothing more.

What may take long is done in steps, and between them Python hears signals and cancel().
"""

from __future__ import annotations

import contextlib
import io
import os
import threading
from array import array
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from ds4kv.core import memory
from ds4kv.errors import Ds4kvError
from ds4kv.format.header import CHUNK_SIZE, Codec, Form
from ds4kv.stream.encoder import RecordEncoder
from ds4kv.stream.encoding import Encoding
from ds4kv.stream.fileobj import BinaryFile, name_of
from ds4kv.stream.lifetime import Finishable, Stream
from ds4kv.stream.raw import RawEncoder

if TYPE_CHECKING:
    from ds4kv.core.memory import Readable

__all__ = ["PayloadWriter", "RawWriter"]


class _Writer(Finishable, Stream):
    """What both writers share: counting, and the difference between an end and a finish."""

    encoder: RecordEncoder | RawEncoder  # for the classes of streams, not for who uses one

    def __init__(self, fp: BinaryFile, raw_total: int | None) -> None:
        super().__init__()
        if raw_total is not None and raw_total < 0:
            raise ValueError(f"raw_total is {raw_total}")
        self._fp = fp
        self._raw_total = raw_total
        self._complete = False

    def __repr__(self) -> str:
        state = "complete" if self._complete else "abandoned" if self.closed else "broken" if self.failed else "open"
        written = f"{self.encoder.raw_bytes} bytes written"
        return f"<{type(self).__name__} to {name_of(self._fp)}: {state}, {written}>"

    @property
    def region_bytes(self) -> int:
        """Bytes of the region written so far; after close, its size."""
        return self.encoder.region_bytes

    @property
    def raw_total(self) -> int | None:
        """Size of the payload in bytes, as it was announced; None if it wasn't."""
        return self._raw_total

    @property
    def sums(self) -> array[int]:
        """What was summed up so far, where ``sums`` was given."""
        return self.encoder.sums

    @property
    def is_raw(self) -> bool:
        """Whether the region is the payload as it is."""
        return self.encoder.is_raw

    @property
    def complete(self) -> bool:
        """Whether close() succeeded: the region is whole."""
        return self._complete

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        """Payload bytes written so far."""
        self.c_side.settle()
        return self.encoder.raw_bytes

    def write(self, b: Readable, /) -> int:
        """Takes all of any C-contiguous buffer and returns its size in bytes.

        An exception of the file object, or of a signal handler, passes through; the stream is broken after, and only to
        be abandoned. Raises ValueError if that is more than raw_total announced, CancelledError after cancel().
        """
        self._refuse_others()
        with self.turn.lock:
            self._check_open()
            with memory.source(b) as payload:
                return self._take((payload,), len(payload))

    def writev(self, buffers: Iterable[Readable], /) -> int:
        """Takes all of several buffers, one after the other, and returns their size in bytes together.

        It is faster than as many calls of write(), and nothing is copied that needn't be: workers see all of them at
        once. None may change until it returns. Raises as write(), of all of them together.
        """
        self._refuse_others()
        with self.turn.lock:
            self._check_open()
            with contextlib.ExitStack() as held:
                payloads = [held.enter_context(memory.source(b)) for b in buffers]
                return self._take(payloads, sum(map(len, payloads)))

    def _refuse_others(self) -> None:
        if self.turn.lock.locked():
            self.turn.refuse_second()
        if self.c_side.file is not None:
            self.c_side.settle()

    def _check_open(self) -> None:
        """What a write begins with, for who has the turn."""
        turn = self.turn
        turn.thread = threading.get_ident()
        if self.closed or self._complete:
            raise ValueError("write to a closed stream")
        turn.look()
        if self.failed:
            raise Ds4kvError("the region is broken: an earlier write failed")
        if os.getpid() != turn.process:
            raise RuntimeError("a stream is written by the process that made it, and this is a fork of it")

    def _take(self, payloads: Sequence[Any], size: int) -> int:
        written = self.encoder.raw_bytes
        if self._raw_total is not None and size > self._raw_total - written:
            raise ValueError(f"raw_total is {self._raw_total} bytes; {size} more after {written} are too many")
        self.failed = True  # until all of it is taken
        try:
            if not written:
                self.begin(payloads)
            self.encoder.put(payloads, size)
        except BaseException:
            self.encoder.free()
            raise
        self.failed = False
        return size

    def begin(self, payloads: Sequence[Any]) -> None:
        pass  # for CheckedWriter, which looks at the first bytes before they are put

    def close(self) -> None:
        """Finishes the region; the file object stays open, positioned behind it.

        Raises Ds4kvError if an earlier write failed, ValueError if raw_total announced more than was written,
        CancelledError after cancel(); the stream is ended all the same. While another thread writes, RuntimeError, and
        nothing has happened.
        """
        if self.closed:
            return
        self.turn.refuse_second()
        try:
            self.c_side.settle()
        except BaseException:
            self.abandon()
            raise
        with self.turn.lock:
            self.turn.thread = threading.get_ident()
            try:
                if not self._complete:
                    self._finish_whole()
            finally:
                self._end()

    def _finish_whole(self) -> None:
        self.turn.look()
        if self.failed:
            raise Ds4kvError("the region is broken: an earlier write failed")
        written = self.encoder.raw_bytes
        if self._raw_total not in (None, written):
            raise ValueError(f"raw_total is {self._raw_total} bytes, but {written} were written")
        self.failed = True  # until it is finished
        self.encoder.finish()
        self.failed, self._complete = False, True

    def abandon(self) -> None:
        """Ends the stream without finishing the region, which no reader will take.

        A thread that is in it is cancelled first, and waited for.
        """
        if not self.closed:
            with self.turn.last():
                self._end()

    def _end(self) -> None:
        self.failed = not self._complete
        self.c_side.drop()
        self.encoder.free()
        self.unfinished = False
        io.RawIOBase.close(self)


class PayloadWriter(_Writer):
    """Payload in, a compressed region out to ``fp``, from its current position on.

    ``chunk_size`` is in payload bytes, 1 to 64 MiB, and goes into the file's header; ``workers`` as
    :func:`ds4kv.workers.resolve` has it. By ``nice``, 0 to 19, workers let other threads and processes go first (on
    Linux; elsewhere niceness is not a thread's). Memory is at most 2 x workers + 1 chunks, 2 without workers. The
    region begins with its own size in payload bytes: with ``raw_total`` that is written at once and ``fp`` may be a
    pipe or a socket, without it ``fp`` must seek, as close() goes back to fill it in.

    ``form`` is PLAIN, as layout ``v2`` has it, or CHECKED, as ``v2-checked``: smaller where the payload is of 32-bit
    numbers, and with a checksum of each chunk, at the price of a chunk of memory more for each worker, two at levels 1
    and 2, and no empty payload. PACKED, as ``packed``, is smaller still, of 16-bit numbers too, for the same memory:
    frame and records have sums that hold for this region and their place in it alone, and for ``seal``, a number of 64
    bits that readers find in the frame. With ``sums``, the attribute of that name gets the XXH3-64 of each record; not
    in form PACKED. ``encoding`` takes the place of all keywords that say how, for who has checked them before.

    Raises io.UnsupportedOperation if ``fp`` can't seek, ValueError for an argument outside its range.
    """

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
        seal: int = 0,
        encoding: Encoding | None = None,
    ) -> None:
        super().__init__(fp, raw_total)
        if encoding is None:
            encoding = Encoding.checked(
                form=form, chunk_size=chunk_size, codec=codec, level=level, workers=workers, nice=nice
            )
        self.encoder = RecordEncoder(fp, encoding, raw_total, self.turn, sums=sums, seal=seal)
        self.unfinished = True


class RawWriter(_Writer):
    """Payload to ``fp`` as it is: the region of codec ``none``, with the manners of :class:`PayloadWriter`.

    With ``sums``, the attribute of that name gets the XXH3-64 of every CHUNK_SIZE bytes, and of the rest at the end.
    """

    def __init__(self, fp: BinaryFile, *, raw_total: int | None = None, sums: bool = False) -> None:
        super().__init__(fp, raw_total)
        self.encoder = RawEncoder(fp, self.turn, sums=sums)
        self.unfinished = True
