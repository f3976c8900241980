"""The longest stored text that a prompt begins with.

Keys tell which files may have such a text, see :mod:`ds4kv.store.keys`. Only those are opened, the longest first, to
compare the text itself.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

from ds4kv.format.naming import sha1_mismatch
from ds4kv.store.directory import Directory
from ds4kv.store.entry import Entry
from ds4kv.store.keys import Keys

__all__ = ["find", "longest_prefix", "what_suits"]


def longest_prefix(entries: Iterable[Entry], prompt: bytes, accept: Callable[[Entry], bool]) -> Entry | None:
    """The accepted entry whose key is that of the longest beginning of ``prompt``; None if there is none.

    A key may have two files, its name in upper and in lower case: then it is the one with more tokens, else the one in
    lower case.
    """
    return next(filter(accept, Keys(entries).prefixes(prompt)), None)


def find(directory: Directory, prompt: bytes, accept: Callable[[Entry], bool], *, mark_bytes: int) -> Entry | None:
    """The accepted entry with the longest text that ``prompt`` begins with, by the texts themselves.

    The first ``mark_bytes`` of the prompt are the store's own. A file whose text can't be read is passed over. Raises
    OSError if the directory can't be read.
    """
    for entry in directory.prefixes(prompt):
        if entry.text_bytes < mark_bytes or not accept(entry):
            continue
        beginning = prompt[: entry.text_bytes]
        text = directory.text_of(entry)
        # Neither the beginning of the prompt nor what its name says: it is damaged, and the load will say so.
        if text == beginning or (text is not None and sha1_mismatch(entry.path, text) is not None):
            return entry.found_for(beginning, mark_bytes=mark_bytes)
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
