"""From a payload to the bytes of a compressed region: records from the core's ring, written to a file object.

An encoder is the inner half of a writer. It makes the bytes. The stream around it sees to the rest: one thread at a
time, no more than was announced, nothing after an error.
"""

from __future__ import annotations

import io
from array import array
from collections.abc import Sequence
from typing import Any

from ds4kv.core import native as _core
from ds4kv.core.turn import Turn
from ds4kv.format.header import Form
from ds4kv.stream.encoding import Encoding
from ds4kv.stream.fileobj import BinaryFile, appends, can_seek, write_all, write_steps

__all__ = ["RecordEncoder"]

_MAX_CHUNK_COUNT = (1 << 32) - 1


class RecordEncoder:
    """What a writer puts payload into: ``raw_bytes`` of it so far, and ``region_bytes`` are written. ``sums`` are the
    XXH3-64 of the records, where they are wanted.
    """

    raw_bytes = 0
    region_bytes = 0
    is_raw = False  # whether the region is the payload as it is
    _ring: _core.Compressor | None = None

    def __init__(
        self, fp: BinaryFile, encoding: Encoding, raw_total: int | None, turn: Turn, *, sums: bool, seal: int = 0
    ) -> None:
        form, chunk_size, _, level, workers, nice = encoding
        if form is Form.PACKED and sums:
            raise ValueError("sums are for forms that have none: each record of form PACKED has its own")
        if form is not Form.PACKED and seal:
            raise ValueError(f"seal is {seal:#x}, and form {form.name} has no room for it")
        if form is Form.CHECKED and raw_total == 0:
            raise ValueError("raw_total is 0, and no region of form CHECKED is empty")
        if (raw_total or 0) > _MAX_CHUNK_COUNT * chunk_size:
            raise ValueError(f"{raw_total} bytes are more than {_MAX_CHUNK_COUNT} chunks of {chunk_size}")
        if raw_total is None and (not can_seek(fp) or appends(fp)):
            raise io.UnsupportedOperation("the file object can't go back: give raw_total, the payload's size")
        self._fp = fp
        self._raw_total = raw_total
        self._look = turn.look
        self._start = fp.tell() if raw_total is None else None
        # A lent chunk must be compressed before write() returns. The chunks at the end of a large write are copied
        # instead, as many as may be under way, so that there is nothing left to wait for.
        self._copied_at_end = (workers + 1) * chunk_size
        self._frame = _core.Frame(raw_total or 0, -(-(raw_total or 0) // chunk_size), chunk_size, form, seal)
        self._with_sums = sums
        self.sums = array("Q")
        self._ring = _core.Compressor(raw_total, chunk_size, form, level, workers, nice=nice, sums=sums, seal=seal)

    def put(self, payloads: Sequence[Any], size: int) -> None:
        """Takes all of several of :func:`ds4kv.core.memory.source`, ``size`` bytes together.

        They are lent at once: workers go from one to the next, and nobody waits at the end of each.
        """
        assert self._ring is not None
        if size == 0:
            return
        completes = self._raw_total is not None and self.raw_bytes + size == self._raw_total
        lent = size if completes else size - self._copied_at_end
        if lent <= 0:
            for payload in payloads:
                self._put_part(payload, 0, len(payload), lent=False)
        else:
            with self._ring.loan():
                for payload in payloads:
                    stop = min(len(payload), max(lent, 0))
                    self._put_part(payload, 0, stop, lent=True)
                    self._put_part(payload, stop, len(payload), lent=False)
                    lent -= len(payload)
                if completes:
                    self._ring.finish()
                while self._ring.lent():
                    self._drain_one()
        self.raw_bytes += size

    def _put_part(self, payload: Any, start: int, stop: int, *, lent: bool) -> None:
        assert self._ring is not None
        while start < stop:
            start += self._ring.put(payload, start, stop, lent=lent)
            if start < stop:
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
        for piece in (record, self._ring.stored()):
            if piece is not None:
                with piece:  # whoever keeps it finds it released, and not memory that is something else by now
                    write_steps(self._fp, piece, self._look)
                    self.region_bytes += len(piece)
        return True

    def _emit_frame(self) -> None:
        if self.region_bytes == 0:
            assert self._ring is not None
            frame = self._frame._replace(first_sum=self._ring.frame.first_sum)  # which a first record has
            write_all(self._fp, memoryview(frame.pack()))
            self.region_bytes = _core.frame_size(frame.form)

    def finish(self) -> None:
        """Writes what is left of the region."""
        assert self._ring is not None
        if self._frame.form == Form.CHECKED and self.raw_bytes == 0:
            raise ValueError("nothing was written, and no region of form CHECKED is empty")
        if not self._raw_total:  # else the write that completed the payload did it
            self._ring.finish()
        while self._drain_one():
            pass
        self._emit_frame()
        if self._start is not None:
            self._fp.seek(self._start)
            write_all(self._fp, memoryview(self._ring.frame.pack()))
            self._fp.seek(self._start + self.region_bytes)

    def free(self) -> None:
        """Gives up what is held, if it still is."""
        if self._ring is not None:
            self._ring.free()
            self._ring = None
