"""What a store does to its directory: list, evict, set aside, count hits. All that removes a checkpoint is here.

A file is removed for one of three reasons: its score was the lowest, and the budget or a full disk wanted room; its
load consumed it; its owner asked. One that is proven corrupt is moved to the quarantine. Nothing else costs a file.

Danger: a file may be replaced between the look at it and its end. So who removes or moves one says which file it saw
(device and inode, for a corrupt one also size and mtime), and another one of that name stays.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from ds4kv.core.forks import renew_lock
from ds4kv.file.inplace import identity
from ds4kv.file.ledger import Ledger
from ds4kv.file.lock import OnWait, locked, tried
from ds4kv.file.note import Note
from ds4kv.store import log, policy
from ds4kv.store.entry import Entry, read_text, stamp
from ds4kv.store.hits import Hits, whole_seconds
from ds4kv.store.index import Index, News
from ds4kv.store.quarantine import Quarantine
from ds4kv.store.settings import Score

__all__ = ["Directory", "Eviction"]

_QUARANTINE_SHARE = 10  # of the budget, a tenth
_MAX_UNREADABLE = 1000


class Eviction(NamedTuple):
    """Each :class:`ds4kv.Victim` that is gone, in their order, and those that could not be, with the OSError."""

    removed: list[policy.Victim]
    failed: list[tuple[policy.Victim, OSError]]


class Directory:
    """A directory of checkpoints with a budget in bytes. Any thread may use it, and a forked child goes on with it.

    Where it ``is_read_only``, hits aren't counted and corrupt files aren't moved. Whoever would remove something asks
    :meth:`refuse_if_read_only` before.
    """

    def __init__(
        self,
        path: str,
        *,
        budget_bytes: int = policy.BUDGET_MB << 20,
        score: Score | None = None,
        clock: Callable[[], float] = time.time,
        is_read_only: bool = False,
    ) -> None:
        self.path = path
        self.budget_bytes = budget_bytes
        self.is_read_only = is_read_only
        self.ledger = Ledger(path)
        self.quarantine = Quarantine(path, max_bytes=budget_bytes // _QUARANTINE_SHARE)
        self._score = score
        self._clock = clock
        self._index = Index(path)
        self._hits = Hits(self.ledger, clock)
        self._unreadable: set[tuple[int, int]] = set()  # of which the log has told
        self._mutex: threading.Lock  # of the index; never held while waiting for the directory's lock
        renew_lock(self, "_mutex")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.path!r})"

    def refuse_if_read_only(self) -> None:
        """Raises PermissionError where nothing is to be changed."""
        if self.is_read_only:
            raise PermissionError(errno.EPERM, "the store was opened to read only", self.path)

    def make(self, mode: int | None) -> None:
        """Makes the directory where there is none, for its owner alone, and for whom files of ``mode`` are for.

        Raises OSError.
        """
        if os.path.isdir(self.path):
            return
        wanted = 0o700
        if mode is not None:  # whoever may read the files may enter and list the directory
            wanted |= mode | (mode & 0o444) >> 2
        try:
            os.makedirs(self.path, mode=wanted, exist_ok=True)
            if mode is not None:
                os.chmod(self.path, wanted)
        except OSError as error:
            log.mkdir_failed(self.path, error)
            raise

    def entries(self) -> list[Entry]:
        """Every checkpoint that is there now, in the directory's order; none where there is no directory (any more).

        Raises OSError.
        """
        with self._looking() as index:
            return index.entries()

    def of(self, sha: str) -> tuple[list[Entry], set[str]]:
        """The checkpoints of a key, in either case, and the names of all that is being written. Raises OSError."""
        with self._looking() as index:
            return index.of(sha), set(index.temporaries)

    def prefixes(self, text: bytes) -> list[Entry]:
        """Those whose key is that of a beginning of ``text``, the longest first. Raises OSError."""
        with self._looking() as index:
            return index.prefixes(text)

    def news(self, since: int) -> News:
        """What came, changed and went since those news, see :meth:`Index.news`. Raises OSError."""
        with self._looking() as index:
            return index.news(since)

    @contextlib.contextmanager
    def _looking(self) -> Iterator[Index]:
        with self._mutex:
            with contextlib.suppress(FileNotFoundError):
                self._index.look()
            yield self._index

    def text_of(self, entry: Entry) -> bytes | None:
        """The text of a file; None if it is gone, or can't be read now, which is logged once a file."""
        try:
            return read_text(entry)
        except OSError as error:
            file = entry.file
            if file not in self._unreadable and len(self._unreadable) < _MAX_UNREADABLE:
                self._unreadable.add(file)
                log.trouble("text not read", entry.path, error)
            return None

    def now(self) -> int:
        """Unix seconds, as headers hold them."""
        return whole_seconds(self._clock())

    # What goes

    def plan(self, budget_bytes: int, now: float | None = None, protected: str | None = None) -> list[policy.Victim]:
        """What would go, and why."""
        entries = self._entries_over(budget_bytes)
        return self._choose(entries, budget_bytes, self.now() if now is None else now, protected)

    def _entries_over(self, budget_bytes: int) -> list[Entry]:
        """All checkpoints, or none where they keep to the budget, as nearly always: then not one is looked at."""
        with self._looking() as index:
            return index.entries() if index.total_bytes > budget_bytes else []

    def _choose(
        self, entries: list[Entry], budget_bytes: int, now: float, protected: str | None
    ) -> list[policy.Victim]:
        if sum(entry.file_size for entry in entries) <= budget_bytes:
            return []  # scores would unpack every header
        return policy.choose_victims(entries, budget_bytes, now, protected, score=self._score)

    def evict(self, on_wait: OnWait | None = None) -> Eviction:
        """Brings the directory within its budget.

        The lock is taken only if there is something to do. Raises TimeoutError if it can't be had, and OSError.
        """
        if not self.plan(self.budget_bytes):
            return Eviction([], [])
        with locked(self.path, on_wait=on_wait):
            return self.evict_locked()

    def evict_locked(self, protected: str | None = None) -> Eviction:
        """As :meth:`evict`, for who holds the lock; ``protected`` is a key that goes last."""
        return self._remove_chosen(self._entries_over(self.budget_bytes), self.budget_bytes, protected)

    def make_room(self, size: int, *, need: int, most: int | None = None) -> int:
        """For a save on a full disk: removes checkpoints of the lowest scores, ``size`` bytes of them or more.

        ``need`` is all that the save has still to write, and ``size`` what it writes at once. Nothing is removed if
        ``need`` would not fit even with every checkpoint gone, or if more than ``most`` bytes would go. Returns the
        bytes that were removed. Raises TimeoutError if the lock can't be had, and OSError.
        """
        with locked(self.path):
            entries = self.entries()
            total = sum(entry.file_size for entry in entries)
            free = _free_bytes(self.path)
            if free >= size:
                free = 0  # the write failed all the same: a quota allows less, or there are no inodes left
            if size > total or need > total + free:
                return 0
            if most is not None:
                chosen = self._choose(entries, total - size, self.now(), None)
                if sum(victim.entry.file_size for victim in chosen) > most:
                    return 0
            removed = self._remove_chosen(entries, total - size, None).removed
            return sum(victim.entry.file_size for victim in removed)

    def _remove_chosen(self, entries: list[Entry], budget_bytes: int, protected: str | None) -> Eviction:
        eviction = Eviction([], [])
        now = self.now()
        while victims := self._choose(entries, budget_bytes, now, protected):
            stuck = []
            for victim in victims:
                entry = victim.entry
                try:
                    if self.unlink(entry.path, entry.file):
                        log.evicted(entry.header, file_size=entry.file_size, path=entry.path)
                        eviction.removed.append(victim)
                except OSError as error:
                    log.trouble("eviction failed", entry.path, error.strerror or error)
                    eviction.failed.append((victim, error))
                    stuck.append(entry)
            if not stuck:
                break
            # What can't be removed still takes its part of the budget: the next ones go in its place.
            gone = {victim.entry.path for victim in victims}
            entries = [entry for entry in entries if entry.path not in gone]
            budget_bytes -= sum(entry.file_size for entry in stuck)
        return eviction

    def remove(self, path: str, file: tuple[int, int] | None = None, on_wait: OnWait | None = None) -> bool:
        """Removes a file. With ``file``, its device and inode, another one that has the name now stays.

        False if it was gone. Raises TimeoutError if the lock can't be had, and OSError.
        """
        try:
            with locked(self.path, on_wait=on_wait):
                return self.unlink(path, file)
        except FileNotFoundError:
            return False  # the directory itself is gone

    def unlink(self, path: str, file: tuple[int, int] | None = None) -> bool:
        """As :meth:`remove`, for who holds the lock."""
        try:
            if file is not None and identity(os.stat(path)) != file:
                return False
            os.unlink(path)
        except FileNotFoundError:
            return False
        self.ledger.remove(os.path.basename(path))
        return True

    # What is no good

    def set_aside(self, path: str, was: tuple[int, int, int, int]) -> None:
        """Moves a file to the quarantine: its bytes were proven wrong while ``was`` were its device, inode, size and
        mtime. If they are others now, the proof is about another file or another state of it, and it stays.

        Where it can't be moved now, it is listed no more until it changes.
        """

        def is_same(status: os.stat_result) -> bool:
            return stamp(status)[:4] == was

        why: object = "the store is read only"
        try:
            if not self.is_read_only:
                with tried(self.path) as is_free:
                    if is_free:
                        self._move(path, is_same)
                        return
                why = "someone else has the lock"
        except OSError as error:
            why = error
        log.trouble("could not move corrupt file", path, why)
        with self._mutex:
            self._index.leave_out(path, is_same)

    def _move(self, path: str, is_same: Callable[[os.stat_result], bool]) -> None:
        try:
            if not is_same(os.stat(path)):
                return
        except FileNotFoundError:
            return
        log.discarded(self.quarantine.take(path))
        self.ledger.remove(os.path.basename(path))

    # Hits

    def note_hit(
        self, path: str, file: tuple[int, int], *, head: bytes, note: Note | None, consume: bool = False
    ) -> bool:
        """Counts a use of a file, or with ``consume`` removes it; whether it was removed. ``file`` is its device and
        inode, ``head`` its header and ``note`` what was known of it when it was loaded.

        The lock is tried once: an engine doesn't wait for this. While someone else has it, the use is kept, and counted
        with the next one, with a save, or by :meth:`close`. No failure is an error: the engine has its state.
        """
        if self.is_read_only:
            return False
        self._hits.add(path, file, head=head, note=note)
        try:
            with tried(self.path) as is_free:
                if is_free and consume:
                    self._hits.forget(path, file)
                    return self.unlink(path, file)
                if is_free:
                    self._hits.count()
        except FileNotFoundError:
            pass  # the directory itself is gone
        except OSError as error:
            log.trouble("hit not noted", path, error)
        return False

    def count_hits(self) -> None:
        """Writes what is kept of hits into the files, for who holds the lock."""
        self._hits.count()

    def close(self) -> None:
        """Counts the hits that are left, if the lock is free, and closes the ledger and the watch."""
        if self._hits:
            try:
                with tried(self.path) as is_free:
                    if is_free:
                        self._hits.count()
            except OSError as error:
                log.trouble("hits not noted in", self.path, error)
        self.ledger.close()
        with self._mutex:
            self._index.close()


def _free_bytes(path: str) -> int:
    """What the disk has free for this user, in bytes; a quota isn't counted."""
    free = os.statvfs(path)
    return free.f_bavail * free.f_frsize
