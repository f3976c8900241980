"""Saves beside the engine: a queue, and a thread that does one save after the other and ends when none is left.

The caller does its save itself where no thread can be had, as in an atexit handler, and where it *is* that thread: a
payload function may save too, and would else wait for itself.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeAlias

from ds4kv.store.entry import Entry
from ds4kv.store.save import Save

__all__ = ["Background", "SaveFuture"]

Task: TypeAlias = Callable[[], Save]

_QUEUE_SIZE = 4
"""Saves that may wait for the thread, each with its buffer."""


class SaveFuture(Future[Entry | None]):
    """What becomes of a save: ``result()`` is the checkpoint of its text, or None if the save was refused.

    ``refusal`` says in words why it was refused; it is None before the future is done, and after a save that wasn't.
    """

    refusal: str | None = None

    def __init__(self, directory: str) -> None:
        super().__init__()
        self._directory = directory

    def __repr__(self) -> str:
        return f"<{super().__repr__()[1:-1]} in {self._directory!r}>"

    def refuse(self, why: str) -> None:
        """Ends it without a save."""
        self.refusal = why
        self.set_result(None)


class Background:
    """The saves of one directory that wait, and the thread that does them. Any thread may submit one.

    A forked child begins with an empty queue: what waits at the fork is the parent's to do.
    """

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._is_closed = False
        self._begin()

    def _begin(self) -> None:
        self._owner = os.getpid()
        self._changed = threading.Condition()  # guards what follows
        self._waiting: deque[tuple[Task, SaveFuture]] = deque()
        self._thread: threading.Thread | None = None  # that takes what waits
        self._newest: threading.Thread | None = None  # the same, and after its end too

    def _leave_parent(self) -> None:
        if self._owner != os.getpid():
            self._begin()

    def submit(self, task: Task, *, wait: bool) -> SaveFuture:
        """Puts a save at the queue's end; where it is full, once there is room, or with ``wait`` false not at all.

        Raises RuntimeError after :meth:`close`.
        """
        self._leave_parent()
        future = SaveFuture(self._directory)
        with self._changed:
            is_own_thread = self._thread is threading.current_thread()
            while not is_own_thread and not self._is_closed and len(self._waiting) >= _QUEUE_SIZE:
                if not wait:
                    future.refuse(f"{_QUEUE_SIZE} saves are waiting already")
                    return future
                self._changed.wait()
            if self._is_closed:
                raise RuntimeError(f"the store of {self._directory} is closed")
            if not is_own_thread and (self._thread is not None or self._start()):
                self._waiting.append((task, future))
                self._changed.notify_all()
                return future
        _do(task, future)
        error = future.exception()
        if error is not None and not isinstance(error, Exception):
            raise error  # Ctrl-C, of who does the save himself
        return future

    def _start(self) -> bool:
        if not threading.main_thread().is_alive():
            return False  # the interpreter is ending: what a thread does now may be cut off
        # Not a daemon, whoever starts it: the end of the program waits for it.
        self._thread = threading.Thread(target=self._run, name="ds4kv-save", daemon=False)
        try:
            self._thread.start()
        except RuntimeError:
            self._thread = None
        else:
            self._newest = self._thread
        return self._thread is not None

    def _run(self) -> None:
        while True:
            with self._changed:
                if not self._waiting:
                    self._thread = None
                    self._changed.notify_all()
                    return
                task, future = self._waiting.popleft()
                self._changed.notify_all()
            _do(task, future)

    def close(self) -> None:
        """Waits for every save, but for the one that calls this; no more are taken."""
        self._leave_parent()
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
            while self._thread not in (None, threading.current_thread()):
                self._changed.wait()
            newest = self._newest
        if newest not in (None, threading.current_thread()):
            newest.join()  # it has nothing left to do


def _do(task: Task, future: SaveFuture) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        saving = task()
    except BaseException as error:  # noqa: BLE001, result() raises it
        future.set_exception(error)
    else:
        future.refusal = saving.refusal
        future.set_result(saving.entry)
