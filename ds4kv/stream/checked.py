"""The payload's stream for layout v2-checked, which may turn out to write the payload as it is.

That layout isn't used where it would save less than 1/64 of the payload. To compress all of it first and find that out
in the end costs a second pass; a few samples tell in the beginning.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from ds4kv.core import native as _core
from ds4kv.stream.encoding import Encoding
from ds4kv.stream.fileobj import BinaryFile
from ds4kv.stream.raw import RawEncoder
from ds4kv.stream.writer import PayloadWriter

__all__ = ["CheckedWriter"]

_NEIGHBOURS = 4
"""Buffers that are looked at in a row, at the beginning, in the middle and at the end: keys and values often alternate,
and one kind may compress where the other doesn't.
"""


class CheckedWriter(PayloadWriter):
    """A :class:`PayloadWriter` of form CHECKED. If half of the first write or more is buffers of a chunk at least, and
    samples of them say that little can be saved, nothing is compressed, and ``is_raw`` is true: better than to find
    that out in the end.
    """

    def __init__(self, fp: BinaryFile, encoding: Encoding, *, raw_total: int | None, sums: bool) -> None:
        super().__init__(fp, encoding=encoding, raw_total=raw_total, sums=sums)
        self._chunk_size, self._level = encoding.chunk_size, encoding.level
        self._make_raw = functools.partial(RawEncoder, fp, self.turn, sums=sums)

    def begin(self, payloads: Sequence[Any]) -> None:
        large = [payload for payload in payloads if len(payload) >= self._chunk_size]
        if 2 * sum(map(len, large)) < sum(map(len, payloads)):
            return
        if len(large) > 3 * _NEIGHBOURS:
            middle = len(large) // 2
            large = [*large[:_NEIGHBOURS], *large[middle : middle + _NEIGHBOURS], *large[-_NEIGHBOURS:]]
        if large and all(_core.is_hopeless(payload, self._chunk_size, self._level) for payload in large):
            self.encoder.free()
            self.encoder = self._make_raw()
