"""Whose turn it is in an open thing: one thread's at a time. Any thread may cancel it.

A signal handler may raise between two bytecodes. So the turn is a lock of C, held by ``with``: nothing can come between
taking it and the block that gives it back, and no exception leaves a stream locked.
"""

from __future__ import annotations

import os
import threading
import time

from ds4kv.errors import CancelledError

__all__ = ["Turn"]

_OWN_CALL_SECONDS = 0.2


class Turn:
    """Taken in three steps: :meth:`refuse_second`, ``with turn.lock``, and ``thread`` is set to the thread's number."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.thread = 0
        self.process = os.getpid()
        self._is_cancelled = False

    def cancel(self) -> None:
        """Has every later :meth:`look` raise CancelledError. From any thread, and from a signal handler."""
        self._is_cancelled = True

    def look(self) -> None:
        """Between two steps of what may take long."""
        if self._is_cancelled:
            raise CancelledError("another thread has cancelled this")

    def is_mine(self) -> bool:
        """Whether this thread is in a call already."""
        return self.lock.locked() and self.thread == threading.get_ident()

    def refuse_second(self) -> None:
        """RuntimeError if a thread has the turn. Two that both pass here take turns, which does no harm."""
        if not self.lock.locked():
            return
        if os.getpid() == self.process:
            raise RuntimeError("a stream is for one thread at a time, and another thread is using this one")
        self.lock = threading.Lock()  # whoever had it is not in this process

    def last(self) -> threading.Lock:
        """The turn, to be waited for before the end: whoever has it is cancelled, and leaves."""
        if os.getpid() != self.process:  # a fork
            self.lock = threading.Lock()
            return self.lock
        self._is_cancelled = True
        end = time.monotonic() + _OWN_CALL_SECONDS
        while self.is_mine():
            # The call of a signal handler or of the file object, within one that can't leave before this returns; or
            # another thread that has just come, and is about to say so.
            if time.monotonic() > end:
                raise RuntimeError("a stream can't end within a call of its own: it is cancelled, and is to end after")
            time.sleep(0.001)
        return self.lock
