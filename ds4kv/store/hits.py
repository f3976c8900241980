"""Uses of checkpoints that are not in their files yet: the directory's lock wasn't free, and an engine doesn't wait."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

from ds4kv.core.forks import renew_lock
from ds4kv.errors import Ds4kvError
from ds4kv.file.inplace import touch
from ds4kv.file.ledger import Ledger
from ds4kv.file.note import Note
from ds4kv.store import log

__all__ = ["Hits", "whole_seconds"]

File: TypeAlias = tuple[int, int]

_MAX_PENDING = 1000


class _Pending(NamedTuple):
    more: int
    head: bytes
    note: Note | None


class Hits:
    """The uses of one directory's files, for all threads. A forked child begins with none."""

    def __init__(self, ledger: Ledger, clock: Callable[[], float]) -> None:
        self._ledger = ledger
        self._clock = clock
        self._pending: dict[tuple[str, File], _Pending] = {}
        self._pending_of = os.getpid()  # a forked child has a copy of what its parent notes
        self._mutex: threading.Lock
        renew_lock(self, "_mutex")

    def __bool__(self) -> bool:
        return bool(self._pending)

    def add(self, path: str, file: File, *, head: bytes, note: Note | None) -> None:
        """One more use of a file. ``file`` is its device and inode, ``head`` its header and ``note`` what was known of
        it when it was loaded.
        """
        with self._mutex:
            if self._pending_of != os.getpid():
                self._pending, self._pending_of = {}, os.getpid()
            if len(self._pending) < _MAX_PENDING:
                count = self._pending[path, file].more if (path, file) in self._pending else 0
                self._pending[path, file] = _Pending(count + 1, head, note)

    def forget(self, path: str, file: File) -> None:
        """Drops those of a file."""
        with self._mutex:
            self._pending.pop((path, file), None)

    def count(self) -> None:
        """Writes them into the files, for who holds the lock."""
        with self._mutex:
            pending, self._pending = self._pending, {}
        if self._pending_of != os.getpid():
            return
        for (path, file), (count, head, note) in pending.items():
            try:
                # Asked before the hit, which changes the mtime. If nobody wrote to the file since it was noted, the
                # region is the noted one, and need not be read.
                is_original = note is not None and note.has_stamp(os.stat(path))
                if touch(path, last_used=whole_seconds(self._clock()), more_hits=count, file=file, known_head=head):
                    self._ledger.renew(path, note=note, is_original=is_original)
            except FileNotFoundError:
                pass  # evicted while it was loaded
            except (OSError, Ds4kvError) as failure:
                log.trouble("hit not noted", path, failure)


def whole_seconds(now: float) -> int:
    """Unix seconds, as headers hold them: whole, and never negative whatever the clock says."""
    return max(int(now), 0)
