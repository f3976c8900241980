"""How open things end: what a ``with`` block does, what garbage collection does, what any thread may do to a stream.

Only ``close()`` is the good end. An exception that leaves the block, garbage collection and
``abandon()`` give up what isn't finished.
"""

from __future__ import annotations

import warnings
from types import TracebackType
from typing import NoReturn, Protocol, Self, SupportsIndex

from ds4kv.core.c_file import CSide, CStream
from ds4kv.core.turn import Turn

__all__ = ["Finishable", "Scoped", "Single", "Stream"]


class _Ending(Protocol):
    """What the classes below end; they can't define it themselves, as streams have a close() of io's, too."""

    def close(self) -> None: ...

    def abandon(self) -> None: ...


class Single:
    """What holds threads, or a file that isn't published, is one thing: a copy would share and free them."""

    def __reduce_ex__(self, protocol: SupportsIndex, /) -> NoReturn:
        raise TypeError(f"a {type(self).__name__} can't be copied or pickled")


class Scoped(Single):
    """What a ``with`` block ends: by close() if it is left well, else by abandon()."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self: _Ending, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        if exc_type is None:
            self.close()
        else:
            self.abandon()


class Finishable(Scoped):
    """What is finished by close(), and abandoned by every end but that."""

    unfinished = False  # whether it is to be ended still: from the end of the constructor on

    def __del__(self) -> None:
        if self.unfinished:
            try:
                warnings.warn(f"{self!r} was neither closed nor abandoned", ResourceWarning, source=self, stacklevel=2)
            finally:  # a warning may be an error
                self.abandon()

    def abandon(self) -> None:
        raise NotImplementedError


class Stream(CStream):
    """A stream for one thread at a time, which any thread may cancel. ``turn`` is a part for the classes of streams, as
    ``c_side`` is.
    """

    def __init__(self) -> None:
        self.turn = Turn()
        self.c_side = CSide(self, self.turn)

    def cancel(self) -> None:
        """Ends what another thread is doing with this stream, which raises CancelledError there within 50 ms. So does
        every later use but abandon() and, of a reader, close(). What is closed stays as it is.

        From any thread, and from a signal handler. What is waited for is a call of the file object, and with no workers
        a chunk, which at the levels of LZ4HC takes seconds.
        """
        if not self.closed:
            self.turn.cancel()
