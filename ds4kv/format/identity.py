"""Whose state a checkpoint is: a marked beginning of its text.

An engine gives a name to all that its states depend on: model, weights, KV types, library. The text in the file then is
a mark, that name, and the engine's own text. So the key differs with the name, and no prompt finds what another engine
saved. ds4 never matches such a text, as its prompts are C strings, and the mark begins with a NUL.

The name's size stands before it: no two names and texts give the same bytes.
"""

from __future__ import annotations

__all__ = ["MARK", "MAX_IDENTITY_BYTES", "MAX_MARK_BYTES", "identity_of", "is_of", "mark_of"]

MARK = b"\0ds4kv\0\0"
"""No text of token ids begins with it: as a 32-bit number it would be id 1,935,959,040."""

MAX_IDENTITY_BYTES = 4096

_SIZE_BYTES = 4

MAX_MARK_BYTES = len(MARK) + _SIZE_BYTES + MAX_IDENTITY_BYTES


def mark_of(identity: bytes | str | None) -> bytes:
    """What texts of this identity begin with; b"" for None. A str counts as its UTF-8.

    Raises ValueError for none of 1 to 4096 bytes.
    """
    if identity is None:
        return b""
    name = identity.encode() if isinstance(identity, str) else bytes(identity)
    if not 0 < len(name) <= MAX_IDENTITY_BYTES:
        raise ValueError(
            f"identity is {len(name)} bytes, outside 1..{MAX_IDENTITY_BYTES}: give a digest of what is long"
        )
    return MARK + len(name).to_bytes(_SIZE_BYTES, "little") + name


def is_of(mark: bytes, text: bytes) -> bool:
    """Whether a text, of which this is the beginning, bears this mark; of an empty one, whether it bears none."""
    return text.startswith(mark) if mark else not text.startswith(MARK)


def identity_of(text: bytes) -> bytes | None:
    """The identity that a text, of which this is the beginning, is of; None if it has none that is whole."""
    head = len(MARK) + _SIZE_BYTES
    if not text.startswith(MARK) or len(text) < head:
        return None
    size = int.from_bytes(text[len(MARK) : head], "little")
    name = text[head : head + size]
    return name if 0 < size <= MAX_IDENTITY_BYTES and len(name) == size else None
