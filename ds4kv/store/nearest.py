"""The checkpoint whose text has most in common with a prompt, whole or not.

Texts in their order answer that at once, see :mod:`ds4kv.store.sorted_texts`. But to put ten thousand into their order
takes seconds, and an engine that starts has a prompt to answer. So each call puts some in their order, for a quarter of
a second, and compares the prompt to those that are not, one by one.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

from ds4kv.core.forks import renew_lock
from ds4kv.core.region import PREFIX_SIZE
from ds4kv.format.identity import MARK, is_of
from ds4kv.store.entry import Entry
from ds4kv.store.index import News
from ds4kv.store.sorted_texts import SortedTexts, compare
from ds4kv.stream.regular import read_at

__all__ = ["Nearest", "Source"]

_MOST_COMPARED = 64
"""Of entries in their order with as much in common, so many are compared by their tokens."""

_SECONDS_TO_SORT = 0.25


class Source(Protocol):
    """Where entries come from."""

    def news(self, since: int, /) -> News: ...


class _GoneError(Exception):
    """A text can't be read any more."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


class _Texts:
    """The texts of entries, by names. An object of its own: who drops a store has its descriptors back at once, and not
    when the garbage collector finds a circle.
    """

    def __init__(self, entries: Mapping[str, Entry]) -> None:
        self._entries = entries

    def read(self, name: str, start: int, size: int) -> bytes:
        """A piece of a text. Raises _GoneError."""
        entry = self._entries[name]
        size = min(size, entry.text_bytes - start)
        try:
            fd = os.open(entry.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            try:
                return read_at(fd, PREFIX_SIZE + start, size)
            finally:
                os.close(fd)
        except OSError as error:
            raise _GoneError(name) from error


class _Found(NamedTuple):
    """One of the entries that suit; the larger is the better."""

    common: int
    is_whole: bool
    fewer_tokens: int
    name: str


class Nearest:
    """The texts of one directory and one identity, which begin with ``mark``; for all threads.

    With an empty mark they are those of no identity. With ``sorts`` false none is put into its order: for who asks but
    once. An exception may come at any moment, from a signal, and a fork of another thread's: what was not whole then is
    made anew.
    """

    def __init__(self, source: Source, mark: bytes, *, sorts: bool = True) -> None:
        self._source = source
        self._mark = mark
        self._seconds = _SECONDS_TO_SORT if sorts else 0.0
        self._mutex: threading.Lock
        renew_lock(self, "_mutex")
        self._begin()

    def _begin(self) -> None:
        self._is_whole = False  # what follows is of one moment
        self._number = 0
        self._entries: dict[str, Entry] = {}
        self._waiting: dict[str, None] = {}  # names of those that are not in their order yet
        self._read = _Texts(self._entries).read
        self._texts = SortedTexts(self._read)

    def find(self, prompt: bytes, accept: Callable[[Entry], bool]) -> tuple[Entry, int] | None:
        """The accepted entry, and how many bytes of ``prompt``, which begins with the mark, its text begins with.

        Of those with as many: one whose text ends there, else the one of the fewest tokens, of 64 at least. None if
        there is nothing in common behind the mark. Raises OSError if the directory can't be read.
        """
        with self._mutex:
            if not self._is_whole:
                self._begin()
            self._is_whole = False
            self._catch_up(self._source.news(self._number))
            end = time.monotonic() + self._seconds
            while self._waiting and time.monotonic() < end:
                self._sort(next(iter(self._waiting)))
            found = self._best(prompt, accept)
            self._is_whole = True
            return None if found is None else (self._entries[found.name], found.common)

    def _catch_up(self, news: News) -> None:
        for name in self._entries.keys() - news.entries.keys() if news.is_all else ():
            self._remove(name)
        for name, entry in news.entries.items():
            known = self._entries.get(name)
            if known is not None and (entry is None or entry.file != known.file):
                self._remove(name)
            if entry is not None:
                if name not in self._entries:
                    self._waiting[name] = None
                self._entries[name] = entry  # of one that is there it is a hit, mostly: the text is the same
        self._number = news.number

    def _remove(self, name: str) -> None:
        del self._entries[name]
        if name in self._waiting:
            del self._waiting[name]
        else:
            self._texts.remove(name)

    def _sort(self, name: str) -> None:
        """Puts one that waits into its order, or forgets it: it is another identity's, or gone."""
        try:
            text = self._read(name, 0, self._entries[name].text_bytes) if self._is_ours(name) else None
        except _GoneError:
            text = None
        if text is None:
            self._remove(name)
            return
        while True:
            try:
                self._texts.add(name, text)
                del self._waiting[name]
                return
            except _GoneError as error:
                self._remove(error.name)

    def _is_ours(self, name: str) -> bool:
        return is_of(self._mark, self._read(name, 0, len(self._mark or MARK)))

    def _best(self, prompt: bytes, accept: Callable[[Entry], bool]) -> _Found | None:
        while True:
            try:
                best = self._best_sorted(prompt, accept)
                for name in self._waiting:
                    if accept(self._entries[name]):
                        best = self._better(best, name, prompt)
                return best
            except _GoneError as error:
                self._remove(error.name)

    def _best_sorted(self, prompt: bytes, accept: Callable[[Entry], bool]) -> _Found | None:
        best: _Found | None = None
        seen = 0
        for common, name in self._texts.nearest(prompt):
            if common <= len(self._mark) or (best is not None and common < best.common) or seen == _MOST_COMPARED:
                break
            if accept(self._entries[name]):
                found = self._found(common, name)
                best = max(best or found, found)
                seen += 1
                if found.is_whole:
                    break
        return best

    def _found(self, common: int, name: str) -> _Found:
        entry = self._entries[name]
        return _Found(common, entry.text_bytes == common, -entry.tokens, name)

    def _better(self, best: _Found | None, name: str, prompt: bytes) -> _Found | None:
        """Of the best one and this one, whose text is compared from its beginning on."""
        most = len(self._mark) + 1 if best is None else best.common
        if self._entries[name].text_bytes < most or self._read(name, most - 1, 1) != prompt[most - 1 : most]:
            return best  # as of nearly all
        common, _ = compare(self._read, name, prompt)
        if common < most or not self._is_ours(name):
            return best
        found = self._found(common, name)
        return max(best or found, found)
