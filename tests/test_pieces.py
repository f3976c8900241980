"""A payload that is read piece by piece: into several buffers, into one that is used while it fills, by all workers."""

from __future__ import annotations

import errno
import io
import itertools
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import MIB, text_like
from hypothesis import given, settings
from hypothesis import strategies as st

import ds4kv
from ds4kv import CancelledError, CorruptError, PayloadReader, PayloadWriter, RawReader, TruncatedError
from ds4kv.format.header import Form

CHUNK_SIZE = 1000
PAYLOAD = text_like(50_001)
LARGE = text_like(9 * MIB + 1)  # a raw read of so much is shared among workers
FACTS: dict[str, Any] = {"tokens": 1, "ctx_size": 1}
WAYS: dict[str, dict[str, Any]] = {
    "raw": {"codec": "none"},
    "v2": {"chunk_size": CHUNK_SIZE},
    "v2-checked": {"layout": "v2-checked", "chunk_size": 1024},
}


class Pipe(io.RawIOBase):
    """Bytes that come a few at a time, and not twice."""

    def __init__(self, data: bytes) -> None:
        self._data = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def readinto(self, b: Any) -> int:
        return self._data.readinto(memoryview(b)[:777])


def region_of(payload: bytes, **how: Any) -> bytes:
    fp = io.BytesIO()
    with PayloadWriter(fp, **how) as writer:
        writer.write(payload)
    return fp.getvalue()


@pytest.fixture(params=WAYS)
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "a.kv"
    ds4kv.dump(path, LARGE if request.param == "raw" else PAYLOAD, **FACTS, **WAYS[request.param])
    return path


@pytest.fixture
def payload(path: Path) -> bytes:
    return bytes(ds4kv.load(path, workers=0).payload)


# ------------------------------------------------------------------------------ into several buffers


@settings(deadline=None)
@given(
    size=st.integers(0, 20_000),
    cuts=st.lists(st.integers(0, 21_000), max_size=12),
    skipped=st.integers(0, 3_000),
    chunk_size=st.sampled_from([1, 100, 1000, 1 << 20]),
    workers=st.integers(0, 3),
    form=st.sampled_from([Form.PLAIN, Form.CHECKED, Form.PACKED]),
    is_pipe=st.booleans(),
)
def test_parts_are_filled_in_order(
    size: int, cuts: list[int], skipped: int, chunk_size: int, workers: int, form: Form, is_pipe: bool
) -> None:
    size = max(size, 1) // (1 if chunk_size > 1 else 20) or 1
    payload = PAYLOAD[:size]
    region = region_of(payload, chunk_size=chunk_size, form=form)
    fp = Pipe(region) if is_pipe else io.BytesIO(region)
    places = [bytearray(end - start) for start, end in itertools.pairwise(sorted([0, *cuts]))]
    together = sum(map(len, places))
    with PayloadReader(fp, len(region), chunk_size=chunk_size, form=form, workers=workers) as reader:
        before = reader.read(skipped)
        n = reader.readinto_parts(places)
        assert n == min(together, size - len(before))
        assert reader.tell() == len(before) + n
        assert before + b"".join(places)[:n] + reader.read() == payload
    assert b"".join(places)[n:] == bytes(together - n)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_parts_of_a_file(path: Path, payload: bytes, workers: int) -> None:
    with ds4kv.open(path, workers=workers) as checkpoint:
        stream = checkpoint.payload
        places = [bytearray(n) for n in (1, 0, 999, 20_000, len(payload) - 21_000, 10)]
        assert stream.readinto_parts(places) == len(payload)
        assert b"".join(places) == payload + bytes(10)
        stream.seek(5)
        assert stream.readinto_parts([bytearray(3), two := bytearray(1500)]) == 1503
        assert two == payload[8:1508]
        assert stream.read() == payload[1508:]
        assert stream.readinto_parts([bytearray(3)]) == 0
        assert stream.readinto_parts([]) == 0


def test_parts_that_cannot_be_written(path: Path) -> None:
    with ds4kv.open(path) as checkpoint:
        with pytest.raises((TypeError, BufferError)):
            checkpoint.payload.readinto_parts([bytearray(10), bytes(10)])
        assert checkpoint.payload.tell() == 0
        assert checkpoint.payload.readinto_parts([bytearray(10), bytearray(10)]) == 20


def test_a_damaged_chunk_in_parts(tmp_path: Path) -> None:
    path = tmp_path / "a.kv"
    ds4kv.dump(path, PAYLOAD, **FACTS, **WAYS["v2-checked"])
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with ds4kv.open(path) as checkpoint:
        with pytest.raises(CorruptError) as caught:
            checkpoint.payload.readinto_parts([bytearray(20_000), bytearray(30_001)])
        assert caught.value.path == str(path)
        assert checkpoint.payload.fault is caught.value
        assert checkpoint.payload.tell() == 0
        assert checkpoint.payload.readinto_parts([good := bytearray(20_000)]) == 20_000
        assert good == PAYLOAD[:20_000]


# ------------------------------------------------------------------------------ by steps


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("step", [1500, 100_000, 1 << 40])
def test_what_is_told_is_there(path: Path, payload: bytes, workers: int, step: int) -> None:
    with ds4kv.open(path, workers=workers) as checkpoint:
        checkpoint.payload.seek(77)
        rest, room, told = payload[77:], bytearray(len(payload)), 0
        for n in checkpoint.payload.iter_into(room, step=step):
            assert n == min(told + step, len(rest))
            assert room[told:n] == rest[told:n]
            assert checkpoint.payload.tell() == 77 + n
            told = n
        assert told == len(rest)
        assert list(checkpoint.payload.iter_into(room)) == []


@pytest.mark.parametrize("make", [io.BytesIO, Pipe])
def test_steps_from_any_file_object(make: Any) -> None:
    region = region_of(PAYLOAD, chunk_size=CHUNK_SIZE)
    with PayloadReader(make(region), len(region), chunk_size=CHUNK_SIZE, workers=2) as reader:
        room = bytearray(len(PAYLOAD))
        for n in reader.iter_into(room, step=3000):
            assert room[:n] == PAYLOAD[:n]
        assert room == PAYLOAD
    with RawReader(make(PAYLOAD), len(PAYLOAD)) as raw:
        room = bytearray(len(PAYLOAD))
        assert list(raw.iter_into(room, step=len(PAYLOAD))) == [len(PAYLOAD)]
        assert room == PAYLOAD


def begun(stream: Any, room: bytearray) -> Iterator[int]:
    stream.seek(0)
    iterator = stream.iter_into(room, step=10_000)
    assert next(iterator) == 10_000
    return iterator


@pytest.fixture
def room(payload: bytes) -> bytearray:
    return bytearray(len(payload))


def test_any_other_use_ends_an_iteration(path: Path, payload: bytes, room: bytearray) -> None:
    with ds4kv.open(path, workers=2) as checkpoint:
        stream = checkpoint.payload
        for use in (lambda: stream.read(10), lambda: stream.seek(1), lambda: next(stream.iter_into(bytearray(5)))):
            iterator = begun(stream, room)
            use()
            with pytest.raises(RuntimeError, match="used for something else"):
                next(iterator)
        stream.seek(0)
        assert stream.read() == payload  # and no harm is done
        iterator = begun(stream, room)
    with pytest.raises(ValueError, match="closed"):
        next(iterator)


@pytest.mark.parametrize("end", ["close", "drop", "abandon the stream"])
def test_nothing_is_written_after_the_end(path: Path, room: bytearray, end: str) -> None:
    with ds4kv.open(path, workers=2) as checkpoint:
        iterator = begun(checkpoint.payload, room)
        if end == "close":
            iterator.close()
        elif end == "drop":
            del iterator
        else:
            checkpoint.payload.abandon()
        room[:] = bytes(len(room))
        time.sleep(0.05)
        assert room == bytes(len(room))
        if end != "abandon the stream":
            room += b"it is let go"  # a BufferError else


def test_an_iteration_is_cancelled(path: Path, room: bytearray) -> None:
    with ds4kv.open(path, workers=2) as checkpoint:
        iterator = begun(checkpoint.payload, room)
        thread = threading.Thread(target=checkpoint.cancel)
        thread.start()
        thread.join()
        with pytest.raises(CancelledError):
            next(iterator)


def test_an_iteration_meets_damage(tmp_path: Path) -> None:
    path = tmp_path / "a.kv"
    ds4kv.dump(path, PAYLOAD, **FACTS, **WAYS["v2-checked"])
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    room, good = bytearray(len(PAYLOAD)), 0
    with ds4kv.open(path, workers=2) as checkpoint:
        with pytest.raises(CorruptError):
            for good in checkpoint.payload.iter_into(room, step=100):
                assert room[:good] == PAYLOAD[:good]
        assert good > len(PAYLOAD) - 3000
        assert checkpoint.payload.fault is not None


def test_a_step_is_a_byte_at_least(path: Path) -> None:
    with ds4kv.open(path) as checkpoint:
        with pytest.raises(ValueError, match="step is 0"):
            checkpoint.payload.iter_into(bytearray(10), step=0)
        assert list(checkpoint.payload.iter_into(bytearray(10), step=1))[-1] == 10


# ------------------------------------------------------------------------------ raw regions, by all workers


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    path = tmp_path / "raw.kv"
    ds4kv.dump(path, LARGE, text=b"text", codec="none", **FACTS)
    return path


@pytest.mark.parametrize("workers", [0, 1, 2, 8])
def test_raw_reads_of_every_size(raw: Path, workers: int) -> None:
    with ds4kv.open(raw, workers=workers) as checkpoint:
        stream = checkpoint.payload
        for start, size in [(0, len(LARGE)), (1, 4 * MIB), (MIB, 8 * MIB), (3, 5), (9 * MIB, 100)]:
            stream.seek(start)
            assert stream.read(size) == LARGE[start : start + size]
            assert checkpoint.file.fp.tell() == 52 + 4 + stream.tell()  # where who reads on from there expects it
    assert ds4kv.load(raw, workers=workers).payload == LARGE


@pytest.mark.parametrize("workers", [0, 2])
def test_a_raw_file_that_ends_too_early(raw: Path, workers: int) -> None:
    with ds4kv.open(raw, workers=workers) as checkpoint:
        os.truncate(raw, 52 + 4 + 7 * MIB)
        with pytest.raises((TruncatedError, OSError)) as caught:
            checkpoint.payload.read()
        assert isinstance(caught.value, OSError)
        assert caught.value.errno == errno.ESTALE  # somebody writes to it: that proves nothing
    with raw.open("rb") as fp:
        fp.seek(56)
        with RawReader(fp, len(LARGE), workers=workers) as reader, pytest.raises(TruncatedError) as truncated:
            reader.read()
    assert (truncated.value.offset, truncated.value.path) == (56 + 7 * MIB, str(raw))


def test_a_raw_file_that_the_system_cannot_read(raw: Path) -> None:
    with raw.open("rb", buffering=0) as fp, RawReader(fp, len(LARGE), workers=2) as reader:
        kept = os.dup(fp.fileno())
        write_only = os.open(os.devnull, os.O_WRONLY)
        os.dup2(write_only, fp.fileno())
        with pytest.raises(OSError, match="Bad file descriptor") as caught:
            reader.read(8 * MIB)
        assert caught.value.filename == str(raw)
        os.dup2(kept, fp.fileno())
        os.close(kept)
        os.close(write_only)


def test_a_raw_read_is_cancelled(raw: Path) -> None:
    with ds4kv.open(raw, workers=2) as checkpoint:
        checkpoint.cancel()
        with pytest.raises(CancelledError):
            checkpoint.payload.read()
