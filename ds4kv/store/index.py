"""What a directory of checkpoints holds, and how that changes.

Where the kernel tells which names change, only those are looked at again. Else an :class:`Index` looks at the status of
every file, and reads one again only when its stamp changed: device, inode, size, and the times of its last change.
Whatever wrote the file, this process, another one or ds4 itself, is noticed by either.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

from ds4kv.core.watch import Watch
from ds4kv.format.naming import is_entry_name
from ds4kv.store.entry import Entry, Stamp, look_at, stamp
from ds4kv.store.keys import Keys

__all__ = ["Index", "News"]

# A clock ticks every few milliseconds, on some file systems every two seconds. A file that was changed within that time
# before it was read may have changed again since, with the same stamp.
_COARSEST_TICK_NS = 2_000_000_000

_FULL_LOOK_SECONDS = 60
"""So often all is looked at, watched or not: for what a kernel doesn't tell, such as a write to a mapped file."""

_LOOKS_BEFORE_WATCH = 2
"""For who opens a store, looks once and closes it, a watch doesn't pay: its end takes 10 to 20 ms."""

_MAX_NEWS = 10_000


class News(NamedTuple):
    """Checkpoints by their names that came, changed, or went, which is None; if it ``is_all``, then those
    that are there. ``number`` is to ask with the next time.
    """

    number: int
    entries: Mapping[str, Entry | None]
    is_all: bool


class Index:
    """The checkpoints of one directory, for one thread at a time.

    An exception may come at any moment, from a signal, and a fork of another thread's. So what was begun and not ended
    is done anew, and a forked child begins anew.
    """

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.temporaries: set[str] = set()
        """Names of files that are being written, or were when their writer was killed, as the last look saw them."""
        self._begin()

    def _begin(self) -> None:
        self._owner = os.getpid()
        self._watch: Watch | None = None
        self._place: tuple[int, int] | None = None  # which directory is watched: device and inode
        self._is_whole = False  # what follows is of one moment
        self._looks = 0  # at all of it
        self._looked_at = 0.0  # the last time, by the monotonic clock
        # By name. Not one object a file that holds all this: ten thousand more make the garbage collector work longer
        # than the whole scan.
        self._entries: dict[str, Entry] = {}
        self._refused: dict[str, Stamp] = {}
        self._unsettled: set[str] = set()
        self._left_out: dict[str, Stamp] = {}
        self._unwatched: set[str] = set()  # those that no watch tells of: links, and what could not be read
        self._keys = Keys()
        self.total_bytes = 0
        """Of all checkpoints together."""
        self._news: list[str] = []  # names that came, changed or went
        self._news_before = 1  # the number of the first one in the list

    def scan(self) -> list[Entry]:
        """Every checkpoint that is there now, in the directory's order.

        A file that can't be read or isn't a checkpoint of a layout that is read is left out. Two spellings of one key
        are two entries. Raises OSError if the directory can't be read.
        """
        self.look()
        return self.entries()

    def entries(self) -> list[Entry]:
        """Those that the last look saw, in the directory's order: of equals, ds4 takes the first. Raises OSError."""
        return [self._entries[name] for name in self._names() if name in self._entries]

    def _names(self) -> list[str]:
        try:
            return os.listdir(self.directory) if self._entries else []
        except FileNotFoundError:
            return []  # all is gone since

    def of(self, sha: str) -> list[Entry]:
        """Those of one key, as the last look saw them, in the directory's order. Raises OSError."""
        found = {os.path.basename(entry.path): entry for entry in self._keys.of(sha)}
        return list(found.values()) if len(found) < 2 else [found[name] for name in self._names() if name in found]

    def prefixes(self, text: bytes) -> list[Entry]:
        """Those whose key is that of a beginning of ``text``, the longest first, as the last look saw them."""
        return self._keys.prefixes(text)

    def news(self, since: int) -> News:
        """What came, changed and went since a :class:`News` with the number ``since``; 0 is for who had none yet."""
        now = self._news_before + len(self._news)
        if not self._news_before <= since <= now:
            return News(now, dict(self._entries), is_all=True)
        changed = {name: self._entries.get(name) for name in self._news[since - self._news_before :]}
        return News(now, changed, is_all=False)

    def look(self) -> None:
        """Sees what has changed. Raises OSError if the directory can't be read; where it isn't there, all is gone."""
        if self._owner != os.getpid():
            number = self._news_before + len(self._news)
            self._begin()
            self._news_before = number + 1  # those of before are not to be asked for
        try:
            status = os.stat(self.directory)
        except FileNotFoundError:
            self._replace({})
            raise
        is_whole, self._is_whole = self._is_whole, False
        names = None
        if is_whole and time.monotonic() - self._looked_at < _FULL_LOOK_SECONDS:
            names = self._watched_changes(status)
        if names is None:
            self._look_at_all(is_whole)
        else:
            for name in names | self._unwatched:
                self._look_at(name)
        self._is_whole = True

    def _look_at(self, name: str) -> None:
        """One name, which may have come, changed or gone."""
        path = os.path.join(self.directory, name)
        if not is_entry_name(name):
            if ".tmp." in name:
                (self.temporaries.add if os.path.lexists(path) else self.temporaries.discard)(name)
            return
        entry = None
        is_watched = True
        self._refused.pop(name, None)
        try:
            entry, status, _ = look_at(path)
            is_watched = status.st_nlink == 1 and not os.path.islink(path)
            if self._left_out.get(name) == stamp(status):
                entry = None
            if entry is None:
                self._refused[name] = stamp(status)
        except OSError:  # gone since, or not to be read now: no verdict, so it is tried again
            is_watched = not os.path.lexists(path)
        (self._unwatched.discard if is_watched else self._unwatched.add)(name)
        self._set(name, entry)

    def _set(self, name: str, entry: Entry | None) -> None:
        known = self._entries.get(name)
        if entry == known:
            return
        if known is not None:
            del self._entries[name]
            self._keys.remove(known)
            self.total_bytes -= known.file_size
        if entry is not None:
            self._entries[name] = entry
            self._keys.add(entry)
            self.total_bytes += entry.file_size
        self._tell(name)

    def _tell(self, name: str) -> None:
        self._news.append(name)
        if len(self._news) > _MAX_NEWS:
            self._forget_news()

    def _forget_news(self) -> None:
        self._news_before += len(self._news) + 1
        self._news = []

    def _look_at_all(self, is_whole: bool) -> None:
        """Each name in the directory, by its status. A watch is begun before, unless this is one of the first looks."""
        if self._looks >= _LOOKS_BEFORE_WATCH:
            self._begin_watch()
        self._looks += 1
        looked_at = time.monotonic()
        known_entries = self._entries
        entries: dict[str, Entry] = {}
        refused: dict[str, Stamp] = {}
        unsettled: set[str] = set()
        unwatched: set[str] = set()
        temporaries: set[str] = set()
        # What is older when the scan begins has a stamp that no later change gets; by the clock that makes stamps.
        settled_ns = time.time_ns() - _COARSEST_TICK_NS
        with os.scandir(self.directory) as names:
            for found in names:
                name = found.name
                known = known_entries.get(name)
                if known is None and not is_entry_name(name):
                    if ".tmp." in name:
                        temporaries.add(name)
                    continue
                try:
                    if found.is_symlink():
                        unwatched.add(name)
                    if name not in self._unsettled:
                        if known is not None and known.has_stamp(status := found.stat()):
                            entries[name] = known
                            if status.st_nlink > 1:
                                unwatched.add(name)
                            continue
                        if name in self._refused and self._refused[name] == stamp(found.stat()):
                            refused[name] = self._refused[name]
                            continue
                    if not found.is_file():
                        continue
                    entry, status, _ = look_at(found.path)
                except OSError:
                    unwatched.add(name)  # gone since, or not to be read now: no verdict, so it is tried again
                    continue
                if entry is None or self._left_out.get(name) == stamp(status):
                    refused[name] = stamp(status)
                else:
                    entries[name] = entry
                if status.st_nlink > 1:
                    unwatched.add(name)
                if max(status.st_mtime_ns, status.st_ctime_ns) >= settled_ns:
                    unsettled.add(name)
        if not is_whole:
            self._forget_news()
        if not is_whole or entries != known_entries:
            self._replace(entries)
        self._left_out = {name: was for name, was in self._left_out.items() if refused.get(name) == was}
        self._refused, self._unsettled, self._unwatched = refused, unsettled, unwatched
        self.temporaries, self._looked_at = temporaries, looked_at

    def _replace(self, entries: dict[str, Entry]) -> None:
        known = self._entries
        for name in known.keys() | entries.keys():
            if known.get(name) != entries.get(name):
                self._tell(name)
        self._entries = entries
        self._keys = Keys(entries.values())
        self.total_bytes = sum(entry.file_size for entry in entries.values())

    def _watched_changes(self, status: os.stat_result) -> set[str] | None:
        """What the watch tells of the directory that has this status; None without one."""
        if self._watch is None or self._place != (status.st_dev, status.st_ino):
            return None
        return self._watch.changed()

    def _begin_watch(self) -> None:
        status = os.stat(self.directory)
        if self._watched_changes(status) is not None:
            return  # the watch goes on, and what it has told until now is looked at with all else
        self.close()
        with contextlib.suppress(OSError):
            watch = Watch(self.directory)
            again = os.stat(self.directory)
            if (again.st_dev, again.st_ino) == (status.st_dev, status.st_ino):  # else it may be of another directory
                self._watch, self._place = watch, (status.st_dev, status.st_ino)

    def leave_out(self, path: str, is_same: Callable[[os.stat_result], bool]) -> None:
        """Doesn't list a file any more, until it changes: it was proven corrupt, and stands where it can't be moved."""
        try:
            status = os.stat(path)
        except OSError:
            return  # gone, or the next scan's to find out
        if is_same(status):
            name = os.path.basename(path)
            is_whole, self._is_whole = self._is_whole, False
            self._set(name, None)
            self._unsettled.discard(name)
            self._refused[name] = self._left_out[name] = stamp(status)
            self._is_whole = is_whole

    def close(self) -> None:
        """Ends the watch; the next look begins another."""
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.close()
