"""Loads beside the engine: each on a thread of its own, that ends with it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING

from ds4kv.errors import CancelledError
from ds4kv.file.api import Checkpoint, read_whole
from ds4kv.store.load import LoadingCheckpoint

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ds4kv.core.memory import Writeable

    Into = Writeable | Sequence[Writeable]

__all__ = ["LoadFuture"]


class LoadFuture(Future[Checkpoint]):
    """What becomes of a load: ``result()`` is the whole checkpoint, or raises what the load did.

    Made by :meth:`ds4kv.Store.load_async`. ``cancel()`` ends it at any time: a load that has begun ends within 50 ms,
    and its result is a :class:`ds4kv.CancelledError`. A forked child has no part in its parent's loads.
    """

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path
        self._loading: LoadingCheckpoint | None = None
        self._is_unwanted = False
        self._is_decided = False
        self._mutex = threading.Lock()  # of these three

    def __repr__(self) -> str:
        return f"<{super().__repr__()[1:-1]} of {self._path!r}>"

    def begin(self, open_it: Callable[[], LoadingCheckpoint], into: Into | None) -> None:
        """Loads what ``open_it`` opens, on a new thread; where none can be had, now."""
        run = threading.Thread(target=self._run, args=(open_it, into), name="ds4kv-load", daemon=False)
        try:
            if not threading.main_thread().is_alive():
                raise RuntimeError("the interpreter is ending: what a thread does now may be cut off")
            run.start()
        except RuntimeError:
            self._run(open_it, into)

    def _run(self, open_it: Callable[[], LoadingCheckpoint], into: Into | None) -> None:
        if not self.set_running_or_notify_cancel():
            return
        try:
            with open_it() as loading:
                with self._mutex:
                    self._loading = loading
                    if self._is_unwanted:  # since before there was something to cancel
                        loading.cancel()
                checkpoint = read_whole(loading, into)
                self._decide()
        except BaseException as error:  # noqa: BLE001, result() raises it
            self._loading = None
            self.set_exception(error)
        else:
            self.set_result(checkpoint)

    def _decide(self) -> None:
        """From here on it is too late to cancel it. Raises CancelledError if that was done."""
        with self._mutex:
            self._is_decided, self._loading = True, None
        if self._is_unwanted:
            raise CancelledError("another thread has cancelled this")

    def cancel(self) -> bool:
        """Ends the load. False if it is too late."""
        if super().cancel():
            return True
        with self._mutex:
            if not self._is_decided and not self.done():
                self._is_unwanted = True
                if self._loading is not None:
                    self._loading.cancel()
        return self._is_unwanted
