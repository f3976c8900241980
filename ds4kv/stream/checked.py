"""The payload's stream for layout v2-checked, which may turn out to write the payload as it is.

That layout isn't used where it would save less than 1/64 of the payload. To compress all of it first and find that out
in the end costs a second pass; a few samples tell in the beginning.
"""

from __future__ import annotations

from typing import Any

from ds4kv.core import native as _core
from ds4kv.format.header import CHUNK_SIZE, Form
from ds4kv.stream.fileobj import BinaryFile
from ds4kv.stream.raw import RawEncoder
from ds4kv.stream.writer import PayloadWriter

__all__ = ["CheckedWriter"]


class CheckedWriter(PayloadWriter):
    """A :class:`PayloadWriter` of form CHECKED. If the first write has a chunk at least, and samples of it say that
    little can be saved, nothing is compressed, and ``is_raw`` is true: better than to find that out in the end.
    """

    def __init__(self, fp: BinaryFile, *, chunk_size: int = CHUNK_SIZE, sums: bool = False, **options: Any) -> None:
        super().__init__(fp, chunk_size=chunk_size, sums=sums, **options | {"form": Form.CHECKED})
        self._chunk_size = chunk_size
        self._raw = RawEncoder(fp, self.turn, sums=sums)

    def begin(self, payload: Any) -> None:
        if len(payload) >= self._chunk_size and _core.is_hopeless(payload, self._chunk_size):
            self.encoder.free()
            self.encoder = self._raw
