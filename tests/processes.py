"""Child processes for tests: their pipes are drained, they have a deadline, and none outlives its test.

``subprocess.run`` with ``timeout=DEADLINE`` is as good where nothing is done while the child runs. test_hygiene.py
holds that there is no third way.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any

DEADLINE = 40.0
"""Seconds; less than pytest-timeout gives a test, so that a child which hangs is named."""


class Child:
    """A started process: what it prints is read as it comes, by threads, so that it never waits for a full pipe."""

    def __init__(self, process: subprocess.Popen[bytes], deadline: float) -> None:
        self.process = process
        self.pid = process.pid
        self._end = time.monotonic() + deadline
        self._lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()  # b"" is the end
        self._errors: list[bytes] = []
        pipes = ((process.stdout, self._lines.put), (process.stderr, self._errors.append))
        self._drains = [
            threading.Thread(target=_drain, args=(pipe, put), daemon=True) for pipe, put in pipes if pipe is not None
        ]
        for drain in self._drains:
            drain.start()

    def line(self) -> bytes:
        """The next line of its standard output; b"" at the end."""
        try:
            return self._lines.get(timeout=max(self._end - time.monotonic(), 0.0))
        except queue.Empty:
            raise AssertionError(f"{self.process.args!r} printed nothing more in time") from None

    def is_running(self) -> bool:
        """Whether it has not ended; an AssertionError once its time is over."""
        if self.process.poll() is not None:
            return False
        assert time.monotonic() < self._end, f"{self.process.args!r} did not end in time"
        return True

    def finish(self) -> tuple[bytes, bytes]:
        """Waits for its end; the rest of its standard output, and all of its standard error."""
        self.process.wait(max(self._end - time.monotonic(), 0.0))
        out = b"" if self.process.stdout is None else b"".join(iter(self.line, b""))
        self._join(max(self._end - time.monotonic(), 0.0))
        return out, b"".join(self._errors)

    def close(self) -> None:
        """Ends it, if it has not ended."""
        self.process.kill()
        self.process.wait()
        if self.process.stdin is not None:
            self.process.stdin.close()
        self._join(1.0)

    def _join(self, seconds: float) -> None:
        """A child of the child may have the pipes too, and outlive it."""
        for drain in self._drains:
            drain.join(seconds)

    @property
    def returncode(self) -> int | None:
        return self.process.returncode


def _drain(pipe: IO[bytes], put: Any) -> None:
    with pipe:
        for line in pipe:
            put(line)
    put(b"")


@contextlib.contextmanager
def started(command: Sequence[Any], *, deadline: float = DEADLINE, **options: Any) -> Iterator[Child]:
    """A child for a block, which it doesn't outlive; ``options`` are those of subprocess.Popen."""
    with _hearing_ctrl_c():
        process = subprocess.Popen(command, **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options})
    child = Child(process, deadline)
    try:
        yield child
    finally:
        child.close()


@contextlib.contextmanager
def _hearing_ctrl_c() -> Iterator[None]:
    """A shell that runs the tests in the background has them ignore Ctrl-C, and children would inherit that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class Fork:
    """A forked child."""

    def __init__(self, pid: int, deadline: float) -> None:
        self.pid = pid
        self._end = time.monotonic() + deadline
        self._status: int | None = None

    def finish(self) -> int:
        """Waits for its end; its exit status, or minus the number of the signal that ended it."""
        while self._status is None:
            found, status = os.waitpid(self.pid, os.WNOHANG)
            if found:
                self._status = os.waitstatus_to_exitcode(status)
                break
            assert time.monotonic() < self._end, "a forked child did not end in time"
            time.sleep(0.001)
        return self._status

    def kill(self) -> None:
        """Ends it at once; nothing happens to one that was waited for."""
        if self._status is None:
            os.kill(self.pid, signal.SIGKILL)
            self._status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


@contextlib.contextmanager
def forked(work: Callable[[], object], *, deadline: float = DEADLINE) -> Iterator[Fork]:
    """A forked child for a block, which it doesn't outlive. Its exit status is 0, or 1 where ``work`` raises."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads, pytest-timeout's among them
        pid = os.fork()
    if pid == 0:
        status = 1
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.alarm(round(deadline) + 1)  # should the tests be killed before they can kill it
            work()
            status = 0
        except BaseException:  # noqa: BLE001 - nothing of a forked child may reach the tests
            traceback.print_exc()
        finally:
            os._exit(status)
    child = Fork(pid, deadline)
    try:
        yield child
    finally:
        child.kill()


def status_of_fork(work: Callable[[], object]) -> int:
    """The exit status of a forked child that does ``work``."""
    with forked(work) as child:
        return child.finish()
