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
        by_size: dict[int, list[Entry]] = {}
        for entry in entries:
            if entry.text_bytes <= len(text) and accept(entry):
                by_size.setdefault(entry.text_bytes, []).append(entry)
        best: list[Entry] = []
        running = hashlib.sha1(usedforsecurity=False)
        start = 0
        for size in sorted(by_size):
            running.update(text[start:size])
            start = size
            sha = running.hexdigest()
            best = [entry for entry in by_size[size] if entry.sha == sha] or best
        return max(best, key=lambda entry: (entry.tokens, entry.path), default=None)
