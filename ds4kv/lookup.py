"""The longest stored text that a prompt begins with.

A key is the SHA-1 of a text, so one hash running along the prompt, read off at each length that some text has, answers
for all texts at once, and no file is opened.
"""

from __future__ import annotations

import hashlib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from _typeshed import ReadableBuffer

    from ds4kv.index import Entry

__all__ = ["longest_prefix"]


def longest_prefix(entries: Iterable[Entry], prompt: ReadableBuffer, accept: Callable[[Entry], bool]) -> Entry | None:
    """The accepted entry with the longest text that is a prefix of ``prompt``; of two spellings of one key the one with
    more tokens, then the one in lower case. None if there is none.
    """
    with memoryview(prompt).cast("B") as text:
        by_sha: dict[str, Entry] = {}
        again: list[Entry] = []  # those of a key that has another entry already
        for entry in entries:
            if entry.text_bytes <= len(text) and accept(entry) and by_sha.setdefault(entry.sha, entry) is not entry:
                again.append(entry)
        matches = []
        running = hashlib.sha1(usedforsecurity=False)
        start = 0
        for size in sorted({entry.text_bytes for entry in (*by_sha.values(), *again)}):
            running.update(text[start:size])
            start = size
            sha = running.hexdigest()
            if sha in by_sha:
                matches.append((size, sha))
        for size, sha in reversed(matches):
            # A name is only a claim: this is also to have a text of that size.
            found = [entry for entry in (by_sha[sha], *again) if entry.sha == sha and entry.text_bytes == size]
            if found:
                return max(found, key=lambda entry: (entry.tokens, entry.path))
        return None
