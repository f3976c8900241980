"""One payload saved and loaded in several ways, in turns: the numbers of ``ds4kv ab``.

A save is :func:`ds4kv.dump` of memory that holds the payload, a load :func:`ds4kv.load` into memory that is warm. The
ways take turns round after round, so that a busy moment of the machine meets all, and what counts is the median. There
is one file at a time, without fsync: a save ends in the page cache, and a load begins there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import mmap
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Self

import ds4kv
from ds4kv.format.header import CHUNK_SIZE

__all__ = ["WAYS", "Measurement", "Times", "Way", "measure", "most_file_bytes"]


class Way(NamedTuple):
    """How a payload is stored: a name for people, and what :func:`ds4kv.dump` is told."""

    name: str
    layout: str
    codec: str
    level: int | None = None


# The fastest first. What all are compared with is the first.
WAYS = (
    Way("raw", "v2", "none"),
    Way("runs", "v2-checked", "lz4", -1),
    Way("planes", "packed", "lz4", -1),
    Way("packed", "packed", "lz4", 0),
    Way("checked", "v2-checked", "lz4", 0),
    Way("lz4", "v2", "lz4", 0),
)

# The memory to load into is filled with this before each load, so that a byte which the load leaves out is found.
_BLANK = bytes([0xA5]) * (1 << 20)


class Times(NamedTuple):
    """How long the rounds took, in seconds."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, rounds: Sequence[float]) -> Self:
        return cls(statistics.median(rounds), min(rounds), max(rounds))


@dataclasses.dataclass(frozen=True)
class Measurement:
    """One payload stored in one way. Rates are in payload bytes, however many go to the file."""

    payload: str
    way: Way
    raw_bytes: int
    file_bytes: int
    save: Times
    load: Times
    verified: bool

    @property
    def ratio(self) -> float:
        """Bytes of payload for each byte of file."""
        return self.raw_bytes / self.file_bytes

    @property
    def save_rate(self) -> float:
        """Payload bytes saved in a second."""
        return self.raw_bytes / self.save.median

    @property
    def load_rate(self) -> float:
        """Payload bytes loaded in a second."""
        return self.raw_bytes / self.load.median


def most_file_bytes(raw_bytes: int) -> int:
    """No file of :func:`measure` is larger: LZ4 adds 1 byte in 255 to what it can't compress, and chunks have heads."""
    return raw_bytes + raw_bytes // 255 + (1 << 16)


def measure(
    name: str,
    payload: bytearray,
    directory: str,
    *,
    rounds: int,
    workers: int,
    advance: Callable[[int], None],
) -> list[Measurement]:
    """Measures a payload by files in a directory, telling ``advance`` its size after each save and load."""
    loaded = bytearray(len(payload))
    trials: dict[Way, list[_Trial]] = {way: [] for way in WAYS}
    for _ in range(rounds):
        for way in WAYS:
            # A directory each, so that the disk never holds two of them.
            with tempfile.TemporaryDirectory(dir=directory) as place:
                path = os.path.join(place, "ab.kv")
                _back_file(payload, trials[way][0].file_bytes if trials[way] else len(payload), place)
                trials[way].append(_try(payload, loaded, path, way, workers))
            advance(len(payload))
    return [
        Measurement(
            payload=name,
            way=way,
            raw_bytes=len(payload),
            file_bytes=trials[way][0].file_bytes,
            save=Times.of([trial.save_seconds for trial in trials[way]]),
            load=Times.of([trial.load_seconds for trial in trials[way]]),
            verified=all(trial.verified for trial in trials[way]),
        )
        for way in WAYS
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
    _back_memory(len(payload), workers)
    start = time.perf_counter()
    # What the header says doesn't matter here, but no checkpoint is of 0 tokens.
    ds4kv.dump(path, payload, tokens=1, ctx_size=1, workers=workers, **how)
    saved = time.perf_counter()
    file_bytes = os.stat(path).st_size
    _back_memory(len(payload), workers)
    before_load = time.perf_counter()
    ds4kv.load(path, into=loaded, workers=workers)
    end = time.perf_counter()
    return _Trial(file_bytes, saved - start, end - before_load, loaded == payload)


# A virtual machine gives free memory back to its host, and pays for it when it wants it again: half a second for a GiB.
# Whoever comes first would pay. So before each save and load as much is taken and given back as it needs: pages for the
# file, by a file, and memory for the chunks that are under way.


def _back_file(payload: bytearray, file_bytes: int, directory: str) -> None:
    # It is only help: what is wrong with the disk, the save will tell.
    with contextlib.suppress(OSError), tempfile.TemporaryFile(buffering=0, dir=directory) as fp:
        room = memoryview(payload)[:file_bytes]
        while room:
            room = room[fp.write(room[: len(_BLANK)]) :]


def _back_memory(raw_bytes: int, workers: int) -> None:
    size = min(raw_bytes, (2 * workers + 1) * CHUNK_SIZE)
    with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        for page in range(0, size, mmap.PAGESIZE):
            memory[page] = 1


def _blank(memory: bytearray) -> None:
    room = memoryview(memory)
    for start in range(0, len(room), len(_BLANK)):
        piece = room[start : start + len(_BLANK)]
        piece[:] = _BLANK[: len(piece)]
