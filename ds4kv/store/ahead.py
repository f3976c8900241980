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
    from _typeshed import WriteableBuffer

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

    def __repr__(self) -> str:
        return f"<{super().__repr__()[1:-1]} of {self._path!r}>"

    def begin(self, open_it: Callable[[], LoadingCheckpoint], into: WriteableBuffer | None) -> None:
        """Loads what ``open_it`` opens, on a new thread; where none can be had, now."""
        run = threading.Thread(target=self._run, args=(open_it, into), name="ds4kv-load", daemon=False)
        try:
            if not threading.main_thread().is_alive():
                raise RuntimeError("the interpreter is ending: what a thread does now may be cut off")
            run.start()
        except RuntimeError:
            self._run(open_it, into)

    def _run(self, open_it: Callable[[], LoadingCheckpoint], into: WriteableBuffer | None) -> None:
        if not self.set_running_or_notify_cancel():
            return
        try:
            with open_it() as loading:
                self._loading = loading
                if self._is_unwanted:  # since before there was something to cancel
                    loading.cancel()
                checkpoint = read_whole(loading, into)
        except BaseException as error:  # noqa: BLE001, result() raises it
            self.set_exception(error)
        else:
            self.set_result(checkpoint)
        finally:
            self._loading = None

    def cancel(self) -> bool:
        """Ends the load. False if it is done already."""
        if super().cancel():
            return True
        self._is_unwanted = True
        loading = self._loading
        if loading is not None:
            loading.cancel()
        return not self.done() or isinstance(self.exception(), CancelledError)
