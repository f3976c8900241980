"""A signal handler raises: its exception comes through as itself, and nothing stays behind that can't be ended."""

from __future__ import annotations

import contextlib
import dis
import gc
import io
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from helpers import thread_count
from processes import started

import ds4kv
from ds4kv import PayloadReader, PayloadWriter, RawReader, RawWriter

PACKAGE = os.path.dirname(ds4kv.__file__)
GARBAGE_SAYS_SO = pytest.mark.filterwarnings("ignore::ResourceWarning")
PAYLOAD = random.Random(3).randbytes(40) * 100
CHUNK_SIZE = 1500

needs_tasks = pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="counts threads by /proc")


class Interrupt(BaseException):
    """What a signal handler raises."""


# ---- at every bytecode ----

_LOOKS = {"CALL", "CALL_KW", "CALL_FUNCTION_EX", "JUMP_BACKWARD", "RESUME"}
"""Where CPython looks for signals: at the end of these."""


class Interrupter:
    """Raises in the package's code, at the ``n``-th place where CPython looks for signals."""

    def __init__(self, n: int) -> None:
        self.left = n
        self.raised = False
        self._codes: dict[Any, tuple[dict[int, str], list[Any]]] = {}
        self._last: dict[FrameType, int] = {}

    def _handler(self, code: Any, offset: int) -> object:
        for entry in self._codes[code][1]:
            if entry.start <= offset < entry.end:
                return entry.target
        return None

    def __call__(self, frame: FrameType, event: str, _arg: object) -> Any:
        code = frame.f_code
        if not code.co_filename.startswith(PACKAGE):
            return None
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        if code not in self._codes:
            names = {instruction.offset: instruction.opname for instruction in dis.get_instructions(code)}
            self._codes[code] = (names, dis._parse_exception_table(code))  # type: ignore[attr-defined]
        if event == "opcode":
            before, self._last[frame] = self._last.get(frame), frame.f_lasti
            # The exception would be raised at the end of the instruction before, and is raised at the start of this
            # one. Where these two are not within the same try or with, it would not be the same.
            if (
                before is not None
                and self._codes[code][0].get(before) in _LOOKS
                and self._handler(code, before) == self._handler(code, frame.f_lasti)
            ):
                self.left -= 1
                if self.left < 0:
                    self.raised = True
                    raise Interrupt
        return self


def interrupt(n: int, action: Callable[[], object]) -> bool:
    """Whether the action has so many places; then it was left there by the exception itself."""
    tracer = Interrupter(n)
    before = sys.gettrace()
    sys.settrace(tracer)
    try:
        action()
    except Interrupt:
        return True
    finally:
        sys.settrace(before)
    assert not tracer.raised, "the exception was lost"
    return False


def write_all_of_it(writer: PayloadWriter | RawWriter) -> None:
    with writer:
        writer.write(PAYLOAD[:50])
        writer.write(PAYLOAD[50:2000])
        writer.writev([PAYLOAD[2000:2100], PAYLOAD[2100:]])


MAKERS: dict[str, Callable[[Any], PayloadWriter | RawWriter]] = {
    "payload": lambda fp: PayloadWriter(fp, chunk_size=CHUNK_SIZE, workers=2),
    "lent whole": lambda fp: PayloadWriter(fp, chunk_size=CHUNK_SIZE, workers=1, raw_total=len(PAYLOAD), sums=True),
    "lz4hc": lambda fp: PayloadWriter(fp, chunk_size=CHUNK_SIZE, workers=1, level=9),
    "raw": lambda fp: RawWriter(fp, sums=True),
}


@pytest.mark.slow
@needs_tasks
@GARBAGE_SAYS_SO
@pytest.mark.parametrize("kind", MAKERS)
def test_a_writer_is_interrupted_everywhere(kind: str) -> None:
    threads = thread_count()
    n = 0
    while True:
        fp = io.BytesIO()
        writer = MAKERS[kind](fp)
        if not interrupt(n, lambda writer=writer: write_all_of_it(writer)):
            break
        n += 1
        assert not writer.turn.lock.locked()
        if not writer.closed:
            with contextlib.suppress(ValueError, ds4kv.Ds4kvError):  # for what was interrupted is broken
                writer.write(b"")
        writer.abandon()
        assert writer.closed
        if writer.complete and kind != "raw":
            fp.seek(0)
            with PayloadReader(fp, len(fp.getvalue()), chunk_size=CHUNK_SIZE) as reader:
                assert reader.read() == PAYLOAD
        del writer
    assert n > 50, "control: it is no test of one place"
    wait_for_threads(threads)


def wait_for_threads(count: int) -> None:
    """Of LZ4HC, a worker ends when its chunk does."""
    end = time.monotonic() + 20
    while thread_count() > count:
        assert time.monotonic() < end
        time.sleep(0.01)


def region(path: Path) -> Path:
    with open(path, "wb") as fp, PayloadWriter(fp, chunk_size=CHUNK_SIZE) as writer:
        writer.write(PAYLOAD)
    return path


@pytest.mark.slow
@needs_tasks
@pytest.mark.parametrize(("kind", "workers"), [("file", 0), ("file", 2), ("memory", 2), ("raw", 0)])
def test_a_reader_is_interrupted_everywhere_and_can_be_tried_again(tmp_path: Path, kind: str, workers: int) -> None:
    path = region(tmp_path / "region")
    size = path.stat().st_size
    threads = thread_count()
    n = 0

    def read_all_of_it(reader: PayloadReader | RawReader) -> None:
        with reader:
            reader.readinto(bytearray(50))
            reader.readinto(bytearray(2000))
            reader.seek(3000)
            assert reader.read() == PAYLOAD[3000:]

    while True:
        fp = io.FileIO(path) if kind == "file" else io.BytesIO(path.read_bytes())
        if kind == "raw":
            reader: PayloadReader | RawReader = RawReader(io.BytesIO(PAYLOAD), len(PAYLOAD))
        else:
            reader = PayloadReader(fp, size, chunk_size=CHUNK_SIZE, workers=workers)
        if not interrupt(n, lambda reader=reader: read_all_of_it(reader)):
            break
        n += 1
        assert not reader.turn.lock.locked()
        if not reader.closed:
            position = reader.tell()
            assert reader.read() == PAYLOAD[position:]
        reader.abandon()
        assert reader.closed
        fp.close()
        wait_for_threads(threads)  # one that was joined may be listed for a moment more
    fp.close()
    assert n > 50


@pytest.mark.slow
@GARBAGE_SAYS_SO
def test_a_constructor_is_interrupted_everywhere(tmp_path: Path) -> None:
    path = region(tmp_path / "region")
    descriptors = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0

    def make() -> None:
        with open(path, "rb") as fp:
            PayloadReader(fp, path.stat().st_size, chunk_size=CHUNK_SIZE, workers=1).as_file()
        PayloadWriter(io.BytesIO(), chunk_size=10).as_file()

    n = 0
    while interrupt(n, make):
        n += 1
    assert n > 10
    gc.collect()
    if descriptors:
        assert len(os.listdir("/proc/self/fd")) == descriptors


@GARBAGE_SAYS_SO
def test_what_c_calls_is_interrupted_everywhere() -> None:
    """C gets an errno, and Python the exception at the next use."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    libc.fwrite.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_void_p]
    n = 0
    while True:
        fp = io.BytesIO()
        writer = RawWriter(fp)
        file = writer.as_file()

        def use(writer: RawWriter = writer, file: int = file) -> None:
            libc.fwrite(bytes(3 << 20), 1, 3 << 20, file)
            writer.flush()

        if not interrupt(n, use):
            break
        n += 1
        with contextlib.suppress(ds4kv.Ds4kvError):
            writer.close()
        assert writer.closed
        assert not writer.complete or fp.getvalue() == bytes(3 << 20)
    writer.abandon()
    assert n > 10


# ---- real signals, at any moment ----


@pytest.mark.slow
@GARBAGE_SAYS_SO
@pytest.mark.parametrize("kind", MAKERS)
def test_a_signal_at_any_moment(kind: str) -> None:
    armed = False

    def handle(_number: int, _frame: object) -> None:
        nonlocal armed
        if armed:
            armed = False
            raise Interrupt

    draw = random.Random(5)
    before = signal.signal(signal.SIGALRM, handle)
    seen = tries = 0
    try:
        # On a busy machine a signal may come late.
        while tries < 400 or (seen <= 10 and tries < 40_000):
            tries += 1
            writer = MAKERS[kind](io.BytesIO())
            signal.setitimer(signal.ITIMER_REAL, draw.uniform(1e-6, 1e-3))
            try:
                armed = True
                write_all_of_it(writer)
            except Interrupt:
                seen += 1
            finally:
                armed = False
            assert not writer.turn.lock.locked()
            writer.abandon()
            assert writer.closed
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert seen > 10
    gc.collect()


# ---- Ctrl-C while C works ----

LZ4HC = """
import io, random, sys, ds4kv
payload = bytes(random.Random(1).choices(b"acgt", k=1 << 18)) * 64  # takes 10 s at least
print("ready", flush=True)
with ds4kv.PayloadWriter(io.BytesIO(), chunk_size=16 << 20, level=12, workers=1, raw_total={total}) as writer:
    writer.write(payload)
"""


@pytest.mark.slow
@pytest.mark.parametrize("total", [None, 16 << 20])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_chunk_of_lz4hc_does_not_hold_a_signal_back(total: int | None, number: int) -> None:
    code = LZ4HC.format(total=total)
    if number == signal.SIGTERM:
        code = "import signal, sys\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(9))\n" + code
    else:
        code = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n" + code
    with started([sys.executable, "-c", code]) as child:
        assert child.line() == b"ready\n"
        time.sleep(0.5)
        assert child.is_running(), "control: it takes much longer by itself"
        start = time.monotonic()
        os.kill(child.pid, number)
        _, errors = child.finish()
        seconds = time.monotonic() - start
    assert child.returncode == (9 if number == signal.SIGTERM else -signal.SIGINT), errors.decode()
    assert (b"KeyboardInterrupt" in errors) == (number == signal.SIGINT)
    assert seconds < 1.5
