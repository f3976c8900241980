"""What ``ds4kv ab`` measures on: synthetic payloads, those of checkpoints, or the bytes of any file.

The size of each is known before any of it is in memory, so that what doesn't fit is refused at once.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator

import ds4kv
from ds4kv.cli.pieces import pieces

__all__ = ["MAX_TOKENS", "Input", "of_file", "synthetic"]

MAX_TOKENS = 99_999
_CTX_SIZE = MAX_TOKENS + 1


@dataclasses.dataclass(frozen=True)
class Input:
    """A payload that isn't in memory yet; ``pieces`` gives it bit by bit, each piece valid until the next."""

    name: str
    raw_bytes: int
    pieces: Callable[[], Iterator[memoryview]]

    def read(self, advance: Callable[[int], None]) -> bytearray:
        """All of it, telling ``advance`` about every piece; Ds4kvError if it isn't as large as it was."""
        payload = bytearray(self.raw_bytes)
        room = memoryview(payload)
        arrived = 0
        for piece in self.pieces():
            if len(piece) <= len(room):
                room[: len(piece)] = piece
                room = room[len(piece) :]
            arrived += len(piece)
            advance(len(piece))
        if arrived != self.raw_bytes:
            raise ds4kv.Ds4kvError("its size changed while it was read", path=self.name)
        return payload


def synthetic(tokens: int) -> Input:
    """A payload as DeepSeek V4 saves it after so many tokens; needs numpy."""
    from ds4kv.cli.synthetic import payload, payload_bytes

    return Input(
        name=f"{tokens} tokens",
        raw_bytes=payload_bytes(tokens, _CTX_SIZE),
        pieces=lambda: payload(tokens, ctx_size=_CTX_SIZE),
    )


def of_file(path: str) -> Input:
    """The payload of a checkpoint, which is a file named ``*.kv``; of any other file, all that it holds."""
    if path.endswith(".kv"):
        with ds4kv.open(path) as checkpoint:
            return Input(path, checkpoint.payload.raw_total, lambda: _checkpoint_pieces(path))
    with open(path, "rb", buffering=0) as fp:
        return Input(path, os.fstat(fp.fileno()).st_size, lambda: _file_pieces(path))


def _checkpoint_pieces(path: str) -> Iterator[memoryview]:
    with ds4kv.open(path) as checkpoint:
        yield from pieces(checkpoint.payload)


def _file_pieces(path: str) -> Iterator[memoryview]:
    with open(path, "rb", buffering=0) as fp:
        yield from pieces(fp)
