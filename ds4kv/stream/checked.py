"""The payload's stream for layout v2-checked, which may turn out to write the payload as it is.

That layout isn't used where it would save less than 1/64 of the payload. To compress all of it first and find that out
in the end costs a second pass; a few samples tell in the beginning.
"""

from __future__ import annotations

import functools
from typing import Any

from ds4kv.core import native as _core
from ds4kv.stream.encoding import Encoding
from ds4kv.stream.fileobj import BinaryFile
from ds4kv.stream.raw import RawEncoder
from ds4kv.stream.writer import PayloadWriter

__all__ = ["CheckedWriter"]


class CheckedWriter(PayloadWriter):
    """A :class:`PayloadWriter` of form CHECKED. If the first write has a chunk at least, and samples of it say that
    little can be saved, nothing is compressed, and ``is_raw`` is true: better than to find that out in the end.
    """

    def __init__(self, fp: BinaryFile, encoding: Encoding, *, raw_total: int | None, sums: bool) -> None:
        super().__init__(fp, encoding=encoding, raw_total=raw_total, sums=sums)
        self._chunk_size, self._level = encoding.chunk_size, encoding.level
        self._make_raw = functools.partial(RawEncoder, fp, self.turn, sums=sums)

    def begin(self, payload: Any) -> None:
        if len(payload) >= self._chunk_size and _core.is_hopeless(payload, self._chunk_size, self._level):
            self.encoder.free()
            self.encoder = self._make_raw()
