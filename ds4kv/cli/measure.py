"""One payload saved and loaded in several ways, in turns: the numbers of ``ds4kv ab``.

A save is :func:`ds4kv.dump` of memory that holds the payload, a load :func:`ds4kv.load` into memory that is warm. The
ways take turns round after round, so that a busy moment of the machine meets both, and what counts is the median. There
is one file at a time, without fsync: a save ends in the page cache, and a load begins there.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import ds4kv

__all__ = ["CHECKED", "LZ4", "RAW", "Measurement", "Way", "measure", "most_file_bytes"]


class Way(NamedTuple):
    """How a payload is stored: a name for people, and what :func:`ds4kv.dump` is told."""

    name: str
    layout: str
    codec: str
    level: int | None = None


RAW = Way("raw", "v2", "none")
LZ4 = Way("lz4", "v2", "lz4")
CHECKED = Way("checked", "v2-checked", "lz4", 0)

# The memory to load into is filled with this before each load, so that a byte which the load leaves out is found.
_BLANK = bytes([0xA5]) * (1 << 20)


@dataclasses.dataclass(frozen=True)
class Measurement:
    """One payload stored in one way. Rates are in payload bytes, however many go to the file."""

    payload: str
    way: Way
    raw_bytes: int
    file_bytes: int
    save_seconds: float
    load_seconds: float
    verified: bool

    @property
    def ratio(self) -> float:
        """Bytes of payload for each byte of file."""
        return self.raw_bytes / self.file_bytes

    @property
    def save_rate(self) -> float:
        """Payload bytes saved in a second."""
        return self.raw_bytes / self.save_seconds

    @property
    def load_rate(self) -> float:
        """Payload bytes loaded in a second."""
        return self.raw_bytes / self.load_seconds


def most_file_bytes(raw_bytes: int) -> int:
    """No file of :func:`measure` is larger: LZ4 adds 1 byte in 255 to what it can't compress, and chunks have heads."""
    return raw_bytes + raw_bytes // 255 + (1 << 16)


def measure(
    name: str,
    payload: bytearray,
    directory: str,
    *,
    ways: Sequence[Way],
    rounds: int,
    workers: int,
    advance: Callable[[int], None],
) -> list[Measurement]:
    """Measures a payload by files in a directory, telling ``advance`` its size after each save and load."""
    loaded = bytearray(len(payload))
    trials: dict[Way, list[_Trial]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way in ways:
            # A directory each, so that the disk never holds two of them.
            with tempfile.TemporaryDirectory(dir=directory) as place:
                trials[way].append(_try(payload, loaded, os.path.join(place, "ab.kv"), way, workers))
            advance(len(payload))
    return [
        Measurement(
            payload=name,
            way=way,
            raw_bytes=len(payload),
            file_bytes=trials[way][0].file_bytes,
            save_seconds=statistics.median(trial.save_seconds for trial in trials[way]),
            load_seconds=statistics.median(trial.load_seconds for trial in trials[way]),
            verified=all(trial.verified for trial in trials[way]),
        )
        for way in ways
    ]


@dataclasses.dataclass(frozen=True)
class _Trial:
    file_bytes: int
    save_seconds: float
    load_seconds: float
    verified: bool


def _try(payload: bytearray, loaded: bytearray, path: str, way: Way, workers: int) -> _Trial:
    how: dict[str, Any] = {"layout": way.layout, "codec": way.codec, "level": way.level}
    _blank(loaded)
    start = time.perf_counter()
    # What the header says doesn't matter here, but no checkpoint is of 0 tokens.
    ds4kv.dump(path, payload, tokens=1, ctx_size=1, workers=workers, **how)
    saved = time.perf_counter()
    file_bytes = os.stat(path).st_size
    before_load = time.perf_counter()
    ds4kv.load(path, into=loaded, workers=workers)
    end = time.perf_counter()
    return _Trial(file_bytes, saved - start, end - before_load, loaded == payload)


def _blank(memory: bytearray) -> None:
    room = memoryview(memory)
    for start in range(0, len(room), len(_BLANK)):
        piece = room[start : start + len(_BLANK)]
        piece[:] = _BLANK[: len(piece)]
