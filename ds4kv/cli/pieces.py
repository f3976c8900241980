"""A payload of any length, read piece by piece through one small buffer."""

from __future__ import annotations

import io
from collections.abc import Iterator

__all__ = ["pieces"]

# Chunks are decoded ahead of the reads whatever their size, so a larger buffer makes nothing faster.
_BUFFER_SIZE = 1 << 20


def pieces(stream: io.RawIOBase) -> Iterator[memoryview]:
    """The rest of a stream, piece after piece; each is valid until the next."""
    buffer = memoryview(bytearray(_BUFFER_SIZE))
    while n := stream.readinto(buffer):
        yield buffer[:n]
