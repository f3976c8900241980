"""What checkpoints are called in a store: the SHA-1 of their text, and ``.kv``."""

from __future__ import annotations

import os

from ds4kv.core.forks import fork_waits

__all__ = ["KEY_SIZE", "NAME_SIZE", "is_entry_name", "sha1_mismatch"]

KEY_SIZE = 40
NAME_SIZE = KEY_SIZE + len(".kv")

_HEX_DIGITS = frozenset("0123456789abcdefABCDEF")


def is_entry_name(name: str) -> bool:
    """Whether a store takes a file of this name for a checkpoint: 40 hex digits of either case, and ``.kv``."""
    return len(name) == NAME_SIZE and name.endswith(".kv") and _HEX_DIGITS.issuperset(name[:KEY_SIZE])


def sha1_mismatch(path: str, text: bytes) -> str | None:
    """The text's SHA-1 if the file is named by another one, else None."""
    name = os.path.basename(path)
    if not is_entry_name(name):
        return None
    with fork_waits:
        import hashlib  # here, because it costs as much to import as half of this package

    key = hashlib.sha1(text, usedforsecurity=False).hexdigest()
    return key if key != name[:KEY_SIZE].lower() else None
