"""Payload streams over regular files, which the workers read themselves."""

from __future__ import annotations

import errno
import gzip
import io
import os
import re
import threading
from pathlib import Path

import numpy as np
import pytest
from helpers import thread_count
from hypothesis import given, settings
from hypothesis import strategies as st

import ds4kv
from ds4kv import PayloadReader, PayloadWriter, TruncatedError
from ds4kv.core import native
from ds4kv.stream.regular import regular_fd

PAYLOAD = (np.random.default_rng(7).integers(0, 9, 30_000, dtype=np.uint32) << 20).tobytes()
CHUNK_SIZE = 7_000
BEFORE, BEHIND = b"before it", b"behind it"


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a region between other bytes."""
    path = tmp_path_factory.mktemp("files") / "region"
    with path.open("wb") as fp:
        fp.write(BEFORE)
        with PayloadWriter(fp, chunk_size=CHUNK_SIZE) as writer:
            writer.write(PAYLOAD)
        fp.write(BEHIND)
    return path


def region_bytes(path: Path) -> int:
    return path.stat().st_size - len(BEFORE) - len(BEHIND)


def reader(fp: io.BufferedIOBase | io.RawIOBase, path: Path, workers: int = 2) -> PayloadReader:
    fp.seek(len(BEFORE))
    return PayloadReader(fp, region_bytes(path), chunk_size=CHUNK_SIZE, workers=workers)


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("buffering", [-1, 0])
def test_the_file_is_left_behind_the_region(path: Path, workers: int, buffering: int) -> None:
    with path.open("rb", buffering=buffering) as fp, reader(fp, path, workers) as payload:
        assert regular_fd(fp) == fp.fileno()
        assert payload.read(10) == PAYLOAD[:10]
        assert payload.read() == PAYLOAD[10:]
        assert fp.read() == BEHIND


@settings(deadline=None, max_examples=50)
@given(
    workers=st.sampled_from([0, 1, 2]),
    steps=st.lists(st.tuples(st.integers(0, len(PAYLOAD)), st.integers(0, 3 * CHUNK_SIZE)), max_size=8),
)
def test_any_piece_in_any_order(path: Path, workers: int, steps: list[tuple[int, int]]) -> None:
    with path.open("rb") as fp, reader(fp, path, workers) as payload:
        for position, size in steps:
            payload.seek(position)
            assert payload.read(size) == PAYLOAD[position : position + size]


def test_others_may_move_the_file(path: Path) -> None:
    with path.open("rb") as fp, reader(fp, path) as one, reader(fp, path) as two:
        for start in range(0, len(PAYLOAD), 5_000):
            assert one.read(5_000) == PAYLOAD[start : start + 5_000]
            fp.seek(3)
            assert two.read(5_000) == PAYLOAD[start : start + 5_000]


def test_a_file_object_that_unpacks_is_read_by_its_own_read(path: Path, tmp_path: Path) -> None:
    packed = tmp_path / "region.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    with gzip.open(packed) as fp, reader(fp, path) as payload:
        assert isinstance(fp.fileno(), int)
        assert regular_fd(fp) is None
        assert payload.read() == PAYLOAD


def test_a_subclass_may_read_otherwise(path: Path) -> None:
    class Counting(io.FileIO):
        reads = 0

        def readinto(self, b: object) -> int:
            self.reads += 1
            return super().readinto(b)

    with Counting(path) as fp, reader(fp, path) as payload:
        assert payload.read() == PAYLOAD
        assert fp.reads > 0


def test_a_pipe_is_no_regular_file() -> None:
    read_end, write_end = os.pipe()
    with open(read_end, "rb") as fp, open(write_end, "wb"):
        assert regular_fd(fp) is None


@pytest.mark.parametrize("workers", [0, 2])
def test_a_file_cut_short_under_way(path: Path, tmp_path: Path, workers: int) -> None:
    copy = tmp_path / "copy"
    copy.write_bytes(path.read_bytes())
    end = len(BEFORE) + region_bytes(path) - 5
    with copy.open("rb") as fp, reader(fp, path, workers) as payload:
        assert payload.read(100) == PAYLOAD[:100]
        os.truncate(copy, end)
        with pytest.raises(TruncatedError) as caught:
            payload.read()
        assert (caught.value.path, caught.value.offset, caught.value.field) == (str(copy), end, "region")
        copy.write_bytes(path.read_bytes())
        assert payload.read() == PAYLOAD[100:]


def test_a_read_that_the_system_refuses_is_an_os_error(path: Path) -> None:
    """And one that names the file. The control is the same stream, once the descriptor can be read again."""
    with path.open("rb", buffering=0) as fp, reader(fp, path) as payload:
        kept = os.dup(fp.fileno())
        write_only = os.open(os.devnull, os.O_WRONLY)
        os.dup2(write_only, fp.fileno())
        with pytest.raises(OSError, match="Bad file descriptor") as caught:
            payload.read()
        assert (caught.value.errno, caught.value.filename) == (errno.EBADF, str(path))
        os.dup2(kept, fp.fileno())
        assert payload.read() == PAYLOAD
        os.close(kept)
        os.close(write_only)


def niceness() -> list[int]:
    """Of this process's other threads, without those that wait for somebody's next load or save."""
    native.trim()
    others = [int(tid) for tid in os.listdir("/proc/self/task") if int(tid) != threading.get_native_id()]
    return [os.getpriority(os.PRIO_PROCESS, tid) for tid in others]


@pytest.mark.parametrize("nice", [0, 3, 19])
def test_workers_are_so_much_nicer(nice: int) -> None:
    mine = os.getpriority(os.PRIO_PROCESS, 0)
    before = niceness()
    seen: list[list[int]] = []

    class Looking(io.BytesIO):
        def write(self, b: memoryview) -> int:
            seen.append(niceness())
            return super().write(b)

    fp = Looking()
    with PayloadWriter(fp, chunk_size=1_000, workers=2, nice=nice) as writer:
        writer.write(PAYLOAD)
    started = max(seen, key=len)
    assert len(started) > len(before)
    assert started.count(min(mine + nice, 19)) > before.count(min(mine + nice, 19))
    assert os.getpriority(os.PRIO_PROCESS, 0) == mine


@pytest.mark.parametrize("nice", [-1, 20])
def test_niceness_out_of_range(nice: int, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(f"nice is {nice}, outside 0..19")):
        PayloadWriter(io.BytesIO(), nice=nice)
    with pytest.raises(ValueError, match=re.escape(f"nice is {nice}, outside 0..19")):
        ds4kv.dump(tmp_path / "a.kv", PAYLOAD, tokens=1, ctx_size=1, nice=nice)
    assert os.listdir(tmp_path) == []
    assert ds4kv.dump(tmp_path / "a.kv", PAYLOAD, tokens=1, ctx_size=1, nice=19).tokens == 1


def test_no_more_threads_than_cpus() -> None:
    before = most = thread_count()

    class Looking(io.BytesIO):
        def write(self, b: memoryview) -> int:
            nonlocal most
            most = max(most, len(os.listdir("/proc/self/task")))
            return super().write(b)

    with PayloadWriter(Looking(), chunk_size=100, workers=64) as writer:
        writer.write(PAYLOAD)
    assert before < most <= before + len(os.sched_getaffinity(0))
