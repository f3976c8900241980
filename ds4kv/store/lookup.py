"""The longest stored text that a prompt begins with.

A key is the SHA-1 of a text, so one hash running along the prompt, read off at each length that some text has, answers
for all texts at once. Only the file that it names is opened, to compare the text itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable
from typing import TYPE_CHECKING

from ds4kv.format.naming import sha1_mismatch
from ds4kv.store.directory import Directory
from ds4kv.store.index import Entry

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

__all__ = ["find", "longest_prefix", "what_suits"]


def longest_prefix(entries: Iterable[Entry], prompt: ReadableBuffer, accept: Callable[[Entry], bool]) -> Entry | None:
    """The accepted entry whose key is that of the longest beginning of ``prompt``; None if there is none.

    A key may have two files, its name in upper and in lower case: then it is the one with more tokens, else the one in
    lower case.
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
            # A name is only a claim: a file whose text has another size isn't the one that was looked for.
            found = [entry for entry in (by_sha[sha], *again) if entry.sha == sha and entry.text_bytes == size]
            if found:
                return max(found, key=lambda entry: (entry.tokens, entry.path))
        return None


def find(directory: Directory, prompt: ReadableBuffer, accept: Callable[[Entry], bool]) -> Entry | None:
    """The accepted entry with the longest text that ``prompt`` begins with, by the texts themselves.

    A file whose text can't be read is passed over. Raises OSError if the directory can't be read.
    """
    with memoryview(prompt).cast("B") as whole:
        entries = directory.entries()
        while (entry := longest_prefix(entries, whole, accept)) is not None:
            beginning = bytes(whole[: entry.text_bytes])
            text = directory.text_of(entry)
            # Neither the beginning of the prompt nor what its name says: it is damaged, and the load will say so.
            if text == beginning or (text is not None and sha1_mismatch(entry.path, text) is not None):
                return entry.found_for(beginning)
            passed_over = entry.path
            entries = [other for other in entries if other.path != passed_over]
    return None


def what_suits(
    *,
    ctx_size: int,
    quant_bits: int | None,
    model_id: int | None,
    payload_abi: int | None,
    least_tokens: int = 0,
    but: Collection[str] = (),
) -> Callable[[Entry], bool]:
    """A function that says of an entry whether an engine could load it, by its header alone.

    The engine has a context of ``ctx_size`` tokens, and wants the other numbers in the header; None is any. Entries of
    fewer than ``least_tokens`` tokens don't suit, nor those whose paths are in ``but``.
    """

    def suits(entry: Entry) -> bool:
        return (
            entry.tokens >= least_tokens
            and entry.ctx_size <= ctx_size
            and (quant_bits is None or entry.quant_bits == quant_bits)
            and entry.path not in but
            and (model_id is None or entry.header.model_id == model_id)
            and (payload_abi is None or entry.header.payload_abi == payload_abi)
        )

    return suits
