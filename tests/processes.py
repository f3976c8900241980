"""Child processes for tests: their pipes are drained, they have a deadline, and none outlives its test."""

from __future__ import annotations

import contextlib
import queue
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
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
        assert process.stdout is not None and process.stderr is not None
        self._drains = [
            threading.Thread(target=_drain, args=(process.stdout, self._lines.put), daemon=True),
            threading.Thread(target=_drain, args=(process.stderr, self._errors.append), daemon=True),
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
        out = b"".join(iter(self.line, b""))
        for drain in self._drains:
            drain.join()
        return out, b"".join(self._errors)

    @property
    def returncode(self) -> int | None:
        return self.process.returncode


def _drain(pipe: IO[bytes], put: Any) -> None:
    for line in pipe:
        put(line)
    put(b"")


@contextlib.contextmanager
def started(command: Sequence[Any], *, deadline: float = DEADLINE, **options: Any) -> Iterator[Child]:
    """A child for a block, which it doesn't outlive; ``options`` are those of subprocess.Popen."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options) as process:
        try:
            yield Child(process, deadline)
        finally:
            process.kill()  # nothing happens to one that has ended
