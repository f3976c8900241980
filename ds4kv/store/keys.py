"""Entries by their keys: what is of one key, and which are of beginnings of a prompt.

A key is the SHA-1 of a text, so one hash running along the prompt, read off at each length that some text has, answers
for all texts at once. No file is read for it.
"""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Iterable

from ds4kv.store.entry import Entry

__all__ = ["Keys"]


class Keys:
    """Entries, of which two may have one key: its name in upper and in lower case. For one thread at a time."""

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        self._first: dict[str, Entry] = {}
        self._more: dict[str, list[Entry]] = {}  # of a key that has another entry already
        self._sizes: list[int] = []  # of texts, sorted, each once
        self._counts: dict[int, int] = {}  # how many texts have a size
        for entry in entries:
            self._keep(entry)
        self._sizes = sorted(self._counts)

    def _keep(self, entry: Entry) -> None:
        if self._first.setdefault(entry.sha, entry) is not entry:
            self._more.setdefault(entry.sha, []).append(entry)
        self._counts[entry.text_bytes] = self._counts.get(entry.text_bytes, 0) + 1

    def add(self, entry: Entry) -> None:
        """Adds an entry whose path isn't here."""
        self._keep(entry)
        if self._counts[entry.text_bytes] == 1:
            bisect.insort(self._sizes, entry.text_bytes)

    def remove(self, entry: Entry) -> None:
        """Forgets an entry that is here."""
        left = [other for other in self.of(entry.sha) if other.path != entry.path]
        self._more.pop(entry.sha, None)
        del self._first[entry.sha]
        if left:
            self._first[entry.sha] = left[0]
        if left[1:]:
            self._more[entry.sha] = left[1:]
        self._counts[entry.text_bytes] -= 1
        if self._counts[entry.text_bytes] == 0:
            del self._counts[entry.text_bytes]
            del self._sizes[bisect.bisect_left(self._sizes, entry.text_bytes)]

    def of(self, sha: str) -> list[Entry]:
        """All entries of a key."""
        first = self._first.get(sha)
        return [] if first is None else [first, *self._more.get(sha, ())]

    def prefixes(self, text: bytes) -> list[Entry]:
        """Those whose key is that of a beginning of ``text``, the longest first.

        Of one key it is first the one with more tokens, else the one in lower case.
        """
        found: list[Entry] = []
        running = hashlib.sha1(usedforsecurity=False)
        update, digest, first = running.update, running.hexdigest, self._first
        start = 0
        for size in self._sizes:
            if size > len(text):
                break
            update(text[start:size])
            start = size
            if (sha := digest()) in first:
                # A name is only a claim: a file whose text has another size isn't the one that was looked for.
                here = [entry for entry in self.of(sha) if entry.text_bytes == size]
                found += sorted(here, key=lambda entry: (entry.tokens, entry.path))
        return found[::-1]
