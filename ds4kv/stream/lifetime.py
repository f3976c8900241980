"""Whose an open thing is, and how it ends: by one thread, which may be cancelled by any other.

A signal handler may raise between two bytecodes. So the turn is a lock of C, held by ``with``: nothing can come between
the two, and no exception leaves a stream locked.
"""

from __future__ import annotations

import os
import threading
import time
import warnings

from ds4kv.core.c_file import CStream
from ds4kv.errors import CancelledError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import NoReturn, Self, SupportsIndex

__all__ = ["Finishable", "Single", "Stream"]

_OWN_CALL_SECONDS = 0.2


class Single:
    """What holds threads, or a file that isn't published, is one thing: a copy would share and free them."""

    def __reduce_ex__(self, protocol: SupportsIndex, /) -> NoReturn:
        raise TypeError(f"a {type(self).__name__} can't be copied or pickled")


class Finishable(Single):
    """What is finished by close() and by leaving a ``with`` block well, and abandoned by every other end."""

    _unfinished = False  # from the end of the constructor on

    def close(self) -> None:
        raise NotImplementedError

    def abandon(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        if exc_type is None:
            self.close()
        else:
            self.abandon()

    def __del__(self) -> None:
        if self._unfinished:
            try:
                warnings.warn(f"{self!r} was neither closed nor abandoned", ResourceWarning, source=self, stacklevel=2)
            finally:  # a warning may be an error
                self.abandon()


class Stream(CStream):
    """A stream for one thread at a time, which any thread may cancel."""

    def __init__(self) -> None:
        self._turn = threading.Lock()  # ``with self._turn``, after _refuse_second()
        self._thread = 0  # that has the turn
        self._process = os.getpid()
        self._is_cancelled = False

    def cancel(self) -> None:
        """Ends what another thread is doing with this stream, which raises CancelledError there within 50 ms. So does
        every later use but abandon() and, of a reader, close(). What is closed stays as it is.

        From any thread, and from a signal handler. What is waited for is a call of the file object, and with no workers
        a chunk, which at the levels of LZ4HC takes seconds.
        """
        if not self.closed:
            self._is_cancelled = True

    def _look(self) -> None:
        """Between two steps of what may take long."""
        if self._is_cancelled:
            raise CancelledError("another thread has cancelled this")

    def _refuse_second(self) -> None:
        # Two threads that both pass here take turns, which does no harm.
        if not self._turn.locked():
            return
        if os.getpid() != self._process:
            self._turn = threading.Lock()  # a fork: whoever had it is not in this process
        else:
            raise RuntimeError("a stream is for one thread at a time, and another thread is using this one")

    def _last_turn(self) -> threading.Lock:
        """The turn, to be waited for before the end: whoever has it is cancelled, and leaves."""
        if os.getpid() != self._process:
            self._turn = threading.Lock()
            return self._turn
        self._is_cancelled = True
        end = time.monotonic() + _OWN_CALL_SECONDS
        while self._has_turn():
            # The call of a signal handler or of the file object, within one that can't leave before this returns; or
            # another thread that has just come, and is about to say so.
            if time.monotonic() > end:
                raise RuntimeError("a stream can't end within a call of its own: it is cancelled, and is to end after")
            time.sleep(0.001)
        return self._turn

    def _has_turn(self) -> bool:
        """Whether this thread is in a call already."""
        return self._turn.locked() and self._thread == threading.get_ident()

    def _settle_file(self) -> bool:
        if self._c_file is None or self._c_file.is_calling or self._has_turn():
            return False
        self._refuse_second()  # what C has written would be refused, too late for C
        return super()._settle_file()
