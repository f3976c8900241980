"""What a store does to its directory: list, evict, set aside. All that removes or moves a checkpoint is here.

A file goes for one of three reasons: the budget, or a full disk, has chosen it by its score; it was consumed by its
load; its owner asked. One that is proven corrupt is moved. Nothing else ever costs a file.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import threading

from ds4kv import log, policy
from ds4kv.index import Index
from ds4kv.integrity import Ledger
from ds4kv.lock import locked
from ds4kv.quarantine import set_aside
from ds4kv.rewrite import identity

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ds4kv.index import Entry

    Score = Callable[[Entry, float], float]

__all__ = ["Directory", "unlink"]

_logger = logging.getLogger("ds4kv")


class Directory:
    """A directory of checkpoints with a budget, for all threads."""

    def __init__(self, path: str, *, budget_bytes: int, score: Score | None, clock: Callable[[], float]) -> None:
        self.path = path
        self.budget_bytes = budget_bytes
        self.ledger = Ledger(path)
        self._score = score
        self._clock = clock
        self._index = Index(path)
        self._mutex = threading.Lock()  # of the index; never held while waiting for the directory's lock

    def entries(self) -> list[Entry]:
        """Every checkpoint that is there now, in the directory's order. Raises OSError."""
        with self._mutex:
            return self._index.scan()

    def now(self) -> int:
        """Unix seconds, as headers hold them: whole, and never negative whatever the clock says."""
        return max(int(self._clock()), 0)

    def plan(self, budget_bytes: int, now: float | None = None, protected: str | None = None) -> list[policy.Victim]:
        """What would go, and why."""
        return self._choose(self.entries(), budget_bytes, self.now() if now is None else now, protected)

    def _choose(
        self, entries: list[Entry], budget_bytes: int, now: float, protected: str | None
    ) -> list[policy.Victim]:
        if sum(entry.file_size for entry in entries) <= budget_bytes:
            return []  # the rule, and no header has to be unpacked for it
        return policy.choose_victims(entries, budget_bytes, now, protected, score=self._score)

    def evict(self) -> list[Entry]:
        """Brings the directory within its budget; what was removed.

        The lock is taken only if there is something to do. Raises TimeoutError if it can't be had, and OSError.
        """
        if not self.plan(self.budget_bytes):
            return []
        with locked(self.path):
            return self.evict_locked()

    def evict_locked(self, protected: str | None = None) -> list[Entry]:
        """As :meth:`evict`, for who holds the lock; ``protected`` is a key that goes last."""
        return self._remove_chosen(self.entries(), self.budget_bytes, protected)

    def make_room(self, size: int) -> bool:
        """Removes checkpoints of the lowest score, ``size`` bytes or more of them, for a disk that is full.

        False, and nothing is removed, if all of them together are not as large.
        """
        with locked(self.path):
            entries = self.entries()
            left = sum(entry.file_size for entry in entries) - size
            if left < 0:
                return False
            self._remove_chosen(entries, left, None)
            return True

    def _remove_chosen(self, entries: list[Entry], budget_bytes: int, protected: str | None) -> list[Entry]:
        removed: list[Entry] = []
        now = self.now()
        while victims := self._choose(entries, budget_bytes, now, protected):
            stuck = []
            for victim in victims:
                entry = victim.entry
                try:
                    if self.unlink(entry.path, entry.stamp[:2]):
                        log.evicted(entry.header, file_size=entry.file_size, path=entry.path)
                        removed.append(entry)
                except OSError as error:
                    _logger.warning("kv cache eviction failed %s: %s", entry.path, error)
                    stuck.append(entry)
            if not stuck:
                break
            # What can't be removed takes its part of the budget all the same, and the next ones go in its place.
            gone = {victim.entry.path for victim in victims}
            entries = [entry for entry in entries if entry.path not in gone]
            budget_bytes -= sum(entry.file_size for entry in stuck)
        return removed

    @contextlib.contextmanager
    def at_rest(self) -> Iterator[None]:
        """Nobody who takes the lock rewrites a trailer meanwhile; where it isn't ours to take, nobody is kept away.

        Raises TimeoutError if another one holds it, and OSError.
        """
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(locked(self.path))
            except OSError as error:
                if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                    raise
            yield

    def remove(self, path: str, file: tuple[int, int]) -> bool:
        """Removes a checkpoint, if it is this file still. Raises OSError."""
        with locked(self.path):
            return self.unlink(path, file)

    def unlink(self, path: str, file: tuple[int, int]) -> bool:
        """As :meth:`remove`, for who holds the lock."""
        if not unlink(path, file):
            return False
        self.ledger.remove(os.path.basename(path))
        return True

    def set_aside(self, path: str, is_same: Callable[[os.stat_result], bool]) -> None:
        """Moves a proven-corrupt file to ``quarantine/``; where that can't be done, it is listed no more."""
        try:
            with locked(self.path):
                moved_to = set_aside(path, is_same)
        except OSError as error:
            _logger.warning("kv cache could not move corrupt file %s: %s", path, error)
            with self._mutex:
                self._index.leave_out(path, is_same)
        else:
            if moved_to is not None:
                log.discarded(moved_to)
                self.ledger.remove(os.path.basename(path))


def unlink(path: str, file: tuple[int, int]) -> bool:
    """Removes a file, for who holds the lock; False if it is gone already, or another one has its name."""
    try:
        if identity(os.stat(path)) != file:
            return False
        os.unlink(path)
    except FileNotFoundError:
        return False
    return True
