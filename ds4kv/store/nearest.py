"""The checkpoint whose text has most in common with a prompt, whole or not.

Which it is needs the texts in their order. They are read once, when this is first asked, and those that come later as
they come; see :mod:`ds4kv.store.sorted_texts` for what is kept of them.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Protocol

from ds4kv.core.forks import renew_lock
from ds4kv.core.region import PREFIX_SIZE
from ds4kv.format.identity import MARK
from ds4kv.store.entry import Entry
from ds4kv.store.index import News
from ds4kv.store.sorted_texts import SortedTexts
from ds4kv.stream.regular import read_at

__all__ = ["Nearest", "Source"]

_MOST_COMPARED = 64
"""Of entries with as much in common, so many are compared by their tokens."""


class Source(Protocol):
    """Where entries come from."""

    def news(self, since: int, /) -> News: ...


class _GoneError(Exception):
    """A text can't be read any more."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


class Nearest:
    """The texts of one directory and one identity, which begin with ``mark``; for all threads.

    With an empty mark they are those of no identity. An exception may come at any moment, from a signal, and a fork of
    another thread's: what was not whole then is made anew.
    """

    def __init__(self, source: Source, mark: bytes) -> None:
        self._source = source
        self._mark = mark
        self._mutex: threading.Lock
        renew_lock(self, "_mutex")
        self._begin()

    def _begin(self) -> None:
        self._is_whole = False  # what follows is of one moment
        self._number = 0
        self._entries: dict[str, Entry] = {}  # that are in their order
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
            found = self._search(prompt, accept)
            self._is_whole = True
            return found

    def _catch_up(self, news: News) -> None:
        gone = self._entries.keys() - news.entries.keys() if news.is_all else ()
        for name in gone:
            self._remove(name)
        for name, entry in news.entries.items():
            known = self._entries.get(name)
            if known is not None and (entry is None or entry.file != known.file):
                self._remove(name)
            if entry is not None and name in self._entries:
                self._entries[name] = entry  # a hit, mostly: the text is the same
            elif entry is not None:
                self._add(name, entry)
        self._number = news.number

    def _add(self, name: str, entry: Entry) -> None:
        self._entries[name] = entry
        try:
            head = self._read(name, 0, max(len(self._mark), len(MARK)))
            is_ours = head.startswith(self._mark) if self._mark else not head.startswith(MARK)
            if not is_ours:
                del self._entries[name]  # of another identity
                return
            text = self._read(name, 0, entry.text_bytes)
        except _GoneError:
            del self._entries[name]
            return
        while True:
            try:
                return self._texts.add(name, text)
            except _GoneError as error:
                self._remove(error.name)

    def _remove(self, name: str) -> None:
        del self._entries[name]
        self._texts.remove(name)

    def _search(self, prompt: bytes, accept: Callable[[Entry], bool]) -> tuple[Entry, int] | None:
        while True:
            try:
                return self._best(prompt, accept)
            except _GoneError as error:
                self._remove(error.name)

    def _best(self, prompt: bytes, accept: Callable[[Entry], bool]) -> tuple[Entry, int] | None:
        best: Entry | None = None
        most = seen = 0
        for common, name in self._texts.nearest(prompt):
            if common <= len(self._mark) or (best is not None and common < most):
                break
            entry = self._entries[name]
            if not accept(entry):
                continue
            if entry.text_bytes == common:
                return entry, common
            if best is None or entry.tokens < best.tokens:
                best, most = entry, common
            seen += 1
            if seen == _MOST_COMPARED:
                break
        if best is None:
            return None
        return best, most

    def _read(self, name: str, start: int, size: int) -> bytes:
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
