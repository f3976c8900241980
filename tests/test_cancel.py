"""One thread cancels, closes or leaves what another is in the midst of."""

from __future__ import annotations

import ctypes
import errno
import functools
import io
import os
import pickle
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from processes import status_of_fork

import ds4kv
from ds4kv import CancelledError, PayloadReader, PayloadWriter, RawReader, RawWriter

MiB = 1 << 20
FACTS: dict[str, Any] = {"text": b"a", "tokens": 1, "ctx_size": 2}
LETTERS = bytes(random.Random(1).choices(b"acgt", k=1 << 18))
"""Of which LZ4HC compresses 1 MiB in half a second."""
IN_TIME = 0.05
PATIENCE = 20.0


class SlowFile(io.BytesIO):
    """Takes its time for each call, and says when the first has come."""

    def __init__(self, data: bytes = b"", seconds: float = 0.01) -> None:
        super().__init__(data)
        self.entered = threading.Event()
        self.seconds = seconds

    def _wait(self) -> None:
        self.entered.set()
        time.sleep(self.seconds)

    def write(self, b: Any, /) -> int:
        self._wait()
        return super().write(b)

    def readinto(self, b: Any, /) -> int:
        self._wait()
        return super().readinto(b)


class Thread(threading.Thread):
    """What it raised, and when it ended."""

    error: BaseException | None = None
    ended = 0.0

    def __init__(self, action: Callable[[], object]) -> None:
        super().__init__()
        self._action = action
        self.start()

    def run(self) -> None:
        try:
            self._action()
        except BaseException as error:  # noqa: BLE001
            self.error = error
        self.ended = time.monotonic()

    def finish(self) -> BaseException | None:
        self.join(PATIENCE)
        assert not self.is_alive()
        return self.error


def lz4hc_write(fp: SlowFile) -> tuple[PayloadWriter, Callable[[], object]]:
    writer = PayloadWriter(fp, chunk_size=8 * MiB, level=12, workers=1)
    return writer, lambda: (fp.entered.set(), writer.write(LETTERS * 256))


def lz4hc_close(fp: SlowFile) -> tuple[PayloadWriter, Callable[[], object]]:
    writer = PayloadWriter(fp, chunk_size=8 * MiB, level=12, workers=1)
    writer.write(LETTERS * 32)
    return writer, lambda: (fp.entered.set(), writer.close())


def many_records(fp: SlowFile) -> tuple[PayloadWriter, Callable[[], object]]:
    writer = PayloadWriter(fp, chunk_size=1000, workers=2)
    return writer, lambda: writer.write(bytes(10 * MiB))


def one_large_record(fp: SlowFile) -> tuple[PayloadWriter, Callable[[], object]]:
    fp.seconds = 0.03
    writer = PayloadWriter(fp, chunk_size=16 * MiB, workers=1, raw_total=100 * MiB)
    payload = os.urandom(2 * MiB) * 50
    return writer, lambda: writer.write(payload)


def raw_write(fp: SlowFile) -> tuple[RawWriter, Callable[[], object]]:
    fp.seconds = 0.03
    writer = RawWriter(fp, sums=True)
    return writer, lambda: writer.write(bytes(400 * MiB))


def raw_read(fp: SlowFile) -> tuple[RawReader, Callable[[], object]]:
    fp.seconds = 0.03
    fp.write(bytes(100 * MiB))
    fp.entered.clear()
    fp.seek(0)
    reader = RawReader(fp, 100 * MiB)
    return reader, reader.read


def read_through_a_file_object(fp: SlowFile) -> tuple[PayloadReader, Callable[[], object]]:
    region = io.BytesIO()
    with PayloadWriter(region, chunk_size=1000) as writer:
        writer.write(os.urandom(MiB))
    slow = SlowFile(region.getvalue())
    reader = PayloadReader(slow, len(region.getvalue()), chunk_size=1000, workers=2)
    fp.entered = slow.entered
    slow.entered.clear()
    return reader, reader.read


@functools.cache
def of_small_chunks() -> bytes:
    region = io.BytesIO()
    with PayloadWriter(region, chunk_size=1, workers=0) as writer:
        writer.write(bytes(100_000))
    return region.getvalue()


def read_many_chunks(fp: SlowFile) -> tuple[PayloadReader, Callable[[], object]]:
    path = fp.path  # type: ignore[attr-defined]
    path.write_bytes(of_small_chunks())
    file = open(path, "rb", buffering=0)  # noqa: SIM115
    fp.opened = file  # type: ignore[attr-defined]
    reader = PayloadReader(file, path.stat().st_size, chunk_size=1, workers=1)
    return reader, lambda: (fp.entered.set(), reader.read())


ACTIONS = [
    lz4hc_write,
    lz4hc_close,
    many_records,
    one_large_record,
    raw_write,
    raw_read,
    read_through_a_file_object,
    read_many_chunks,
]


@pytest.mark.slow
@pytest.mark.parametrize("action", ACTIONS)
def test_who_is_inside_leaves_in_time(action: Callable[[SlowFile], Any], tmp_path: Path) -> None:
    best = PATIENCE
    for _ in range(10):  # a busy machine may be late
        fp = SlowFile()
        fp.path = tmp_path / "region"
        stream, use = action(fp)
        thread = Thread(use)
        assert fp.entered.wait(PATIENCE)
        time.sleep(0.02)
        assert thread.is_alive(), "control: it takes longer by itself"
        start = time.monotonic()
        stream.cancel()
        assert isinstance(thread.finish(), CancelledError)
        stream.cancel()
        assert_cancelled_for_good(stream)
        if hasattr(fp, "opened"):
            fp.opened.close()
        best = min(best, thread.ended - start)
        if best < IN_TIME:
            break
    assert best < IN_TIME


def assert_cancelled_for_good(stream: Any) -> None:
    """Until its end, which is quick, and tells nobody that it went well."""
    if stream.closed:  # a writer's close() is its end, however it goes
        assert not stream.complete
    elif stream.writable():
        with pytest.raises(CancelledError):
            stream.write(b"x")
        with pytest.raises(CancelledError):
            stream.close()
        assert not stream.complete
    else:
        for use in (lambda: stream.readinto(bytearray(1)), lambda: stream.readinto_exactly(bytearray(1)), stream.read):
            with pytest.raises(CancelledError):
                use()
        with pytest.raises(CancelledError):
            stream.seek(0)
        assert stream.fault is None
        stream.close()
    assert stream.closed
    stream.cancel()


def test_what_is_closed_stays_as_it_is() -> None:
    fp = io.BytesIO()
    writer = PayloadWriter(fp, chunk_size=10)
    writer.write(b"text")
    writer.close()
    writer.cancel()
    writer.close()
    assert writer.complete
    with pytest.raises(ValueError, match="closed"):
        writer.write(b"x")


def test_it_condemns_nothing() -> None:
    error = CancelledError("why", path="a.kv")
    assert isinstance(error, ds4kv.Ds4kvError)
    assert not isinstance(error, (ds4kv.CorruptError, OSError, ValueError))
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is CancelledError
    assert str(copy) == str(error) == "a.kv: why"


def test_c_gets_an_errno() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.fwrite.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_void_p]
    fp = SlowFile()
    writer = PayloadWriter(fp, chunk_size=1000, workers=1)
    file = writer.as_file()
    numbers: list[int] = []

    def write() -> None:
        assert libc.fwrite(bytes(20 * MiB), 1, 20 * MiB, file) < 20 * MiB
        numbers.append(ctypes.get_errno())

    thread = Thread(write)
    assert fp.entered.wait(PATIENCE)
    writer.cancel()
    assert thread.finish() is None
    assert numbers == [errno.ECANCELED]
    with pytest.raises(CancelledError):
        writer.flush()
    with pytest.raises(CancelledError):
        writer.close()


# ---- another thread closes ----


@pytest.fixture(params=["v1", "v2", "v2-checked"])
def checkpoint(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "a.kv"
    ds4kv.dump(
        path,
        os.urandom(300_000) + bytes(700_000),
        text=b"a",
        tokens=1,
        ctx_size=2,
        layout=request.param,
        chunk_size=4096,
    )
    return path


class Held:
    """A thread is in the midst of reading a checkpoint's payload, until it is told to go on."""

    def __init__(self, reader: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.inside, self.go_on = threading.Event(), threading.Event()
        self.into = bytearray(reader.payload.raw_total)
        fill = reader.payload.decoder.fill

        def held(*arguments: Any) -> None:
            self.inside.set()
            while not self.go_on.wait(0.01):
                reader.payload.turn.look()
            fill(*arguments)

        monkeypatch.setattr(reader.payload.decoder, "fill", held)
        self.thread = Thread(lambda: reader.payload.readinto_exactly(self.into))
        assert self.inside.wait(PATIENCE)


def test_close_while_another_reads_closes_nothing(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = ds4kv.load(checkpoint).payload
    reader = ds4kv.open(checkpoint, workers=1)
    held = Held(reader, monkeypatch)
    for close in (reader.close, reader.payload.close, lambda: reader.__exit__(None, None, None)):
        with pytest.raises(RuntimeError, match="one thread at a time"):
            close()
    other = checkpoint.parent / "other"
    other.write_bytes(bytes(2 * MiB))
    with open(other, "rb"):  # would get the descriptor's number, if that were free
        held.go_on.set()
        assert held.thread.finish() is None
    assert held.into == expected
    reader.close()
    assert reader.payload.closed


def test_leaving_by_an_exception_cancels_and_waits(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = None
    with pytest.raises(KeyError, match="the block's own"), ds4kv.open(checkpoint, workers=1) as reader:
        held = Held(reader, monkeypatch)
        raise KeyError("the block's own")
    assert held is not None
    assert isinstance(held.thread.finish(), CancelledError)
    assert reader.payload.closed
    assert held.into == bytes(len(held.into)), "nothing is written there after"


def test_a_checkpoint_is_cancelled_by_its_reader(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ds4kv.open(checkpoint, workers=1) as reader:
        held = Held(reader, monkeypatch)
        reader.cancel()
        error = held.thread.finish()
        assert isinstance(error, CancelledError)
        assert error.path == str(checkpoint)
    held.go_on.set()
    assert ds4kv.load(checkpoint).payload, "the file is as good as before"


def test_a_payload_reader_is_left_by_an_exception(tmp_path: Path) -> None:
    fp = SlowFile()
    with pytest.raises(KeyError), raw_read(fp)[0] as reader:
        thread = Thread(reader.read)
        assert fp.entered.wait(PATIENCE)
        raise KeyError
    assert isinstance(thread.finish(), CancelledError)
    assert reader.closed


@pytest.mark.parametrize("how", ["abandon", "leave"])
def test_a_writer_is_abandoned_while_another_thread_writes(how: str) -> None:
    fp = SlowFile()
    writer, use = many_records(fp)
    thread = Thread(use)
    assert fp.entered.wait(PATIENCE)
    with pytest.raises(RuntimeError, match="one thread at a time"):
        writer.close()
    assert thread.is_alive()
    if how == "abandon":
        writer.abandon()
    else:
        with pytest.raises(KeyError), writer:
            raise KeyError
    assert writer.closed
    size = len(fp.getvalue())
    assert isinstance(thread.finish(), CancelledError)
    assert len(fp.getvalue()) == size, "the thread had left before"


def test_a_stream_does_not_wait_for_itself() -> None:
    """Its file object ends it, or a signal handler."""

    class Ends(io.BytesIO):
        def write(self, b: Any, /) -> int:
            writer.abandon()
            return super().write(b)

    writer = PayloadWriter(Ends(), chunk_size=10, workers=1)
    with pytest.raises(RuntimeError, match="within a call of its own"):
        writer.write(bytes(1000))
    writer.abandon()
    assert writer.closed


@pytest.mark.parametrize("layout", ["v1", "v2", "v2-checked", "packed"])
def test_a_save_that_is_cancelled_publishes_nothing(layout: str, tmp_path: Path) -> None:
    path = tmp_path / "a.kv"
    path.write_bytes(b"what was there")
    with (
        pytest.raises(CancelledError),
        ds4kv.create(path, **FACTS, layout=layout) as checkpoint,
    ):
        checkpoint.payload.write(bytes(100_000))
        Thread(checkpoint.cancel).finish()
    assert path.read_bytes() == b"what was there"
    assert os.listdir(tmp_path) == ["a.kv"]


def test_a_save_as_it_is_is_cancelled_too(tmp_path: Path) -> None:
    """Layout v2-checked writes what LZ4 can do nothing with by another stream."""
    payload = os.urandom(32 * MiB)
    with (
        pytest.raises(CancelledError),
        ds4kv.create(tmp_path / "a.kv", **FACTS, layout="v2-checked") as checkpoint,
    ):
        checkpoint.payload.write(payload)
        assert checkpoint.payload.is_raw  # type: ignore[union-attr]
        checkpoint.cancel()
        checkpoint.payload.write(payload)
    assert os.listdir(tmp_path) == []


def test_a_forked_child_ends_what_another_thread_was_in() -> None:
    fp = SlowFile(seconds=0.05)
    writer, use = many_records(fp)
    thread = Thread(use)
    assert fp.entered.wait(PATIENCE)

    def end_it() -> None:
        writer.abandon()
        assert writer.closed

    try:
        assert status_of_fork(end_it) == 0
    finally:
        writer.abandon()
        thread.finish()
