"""One thread that does one thing after the other, so that a save doesn't stall the engine."""

from __future__ import annotations

import os
import threading
from concurrent.futures import Future, ThreadPoolExecutor

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    T = TypeVar("T")

__all__ = ["Background"]


class Background:
    """A thread, started when it is first needed, and a queue of ``queue_size`` tasks before it."""

    def __init__(self, *, queue_size: int) -> None:
        self._owner = os.getpid()
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="ds4kv-save")
        self._room = threading.BoundedSemaphore(queue_size)

    @property
    def is_inherited(self) -> bool:
        """Whether this is a fork, which has no such thread."""
        return self._owner != os.getpid()

    def submit(self, task: Callable[[], T]) -> Future[T]:
        """Puts the task at the queue's end, once there is room for it. Raises RuntimeError after close()."""
        self._room.acquire()
        try:
            future = self._executor.submit(task)
        except BaseException:
            self._room.release()
            raise
        future.add_done_callback(lambda _: self._room.release())
        return future

    def close(self) -> None:
        """Waits for every task."""
        self._executor.shutdown()
