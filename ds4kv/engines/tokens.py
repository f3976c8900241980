"""Checkpoints by token ids, for engines that know their prompts as such.

The text of a checkpoint is then its ids, 4 bytes each, little-endian. A beginning of ids is a beginning of bytes, so a
store finds one by the other. What ids mean is the model's to say: such a store has an identity.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Collection, Iterable

from ds4kv.store.entry import Entry
from ds4kv.store.store import Store

__all__ = ["TOKEN_BYTES", "ids_of", "key_of", "longest", "nearest"]

TOKEN_BYTES = 4


def key_of(ids: Iterable[int]) -> bytes:
    """The text of these token ids. Raises OverflowError for one that isn't of 32 bits without a sign."""
    words = array("I", ids)
    if sys.byteorder == "big":
        words.byteswap()
    return words.tobytes()


def ids_of(text: bytes) -> list[int]:
    """The token ids of such a text. Raises ValueError if its size is no multiple of 4."""
    words = array("I", text)
    if sys.byteorder == "big":
        words.byteswap()
    return words.tolist()


def longest(store: Store, ids: Iterable[int], *, ctx_size: int, exclude: Collection[Entry] = ()) -> Entry | None:
    """The checkpoint of the most tokens that ``ids`` begin with, or None: for states that can't be cut back.

    ``ctx_size`` is the engine's, in tokens; ``exclude`` are those that it could not use. Raises OSError.
    """
    return store.find(key_of(ids), ctx_size=ctx_size, exclude=exclude)


def nearest(
    store: Store, ids: Iterable[int], *, ctx_size: int, exclude: Collection[Entry] = ()
) -> tuple[Entry, int] | None:
    """The checkpoint that has the most tokens in common with the beginning of ``ids``, and how many; or None.

    For states that can be cut back to what is common. Else as :func:`longest`.
    """
    found = store.nearest(key_of(ids), ctx_size=ctx_size, exclude=exclude)
    if found is None or found[1] < TOKEN_BYTES:
        return None
    entry, common_bytes = found
    return entry, common_bytes // TOKEN_BYTES
