"""How a payload is encoded: what may be chosen about a region, in one record that is checked once."""

from __future__ import annotations

from typing import NamedTuple, Self

from ds4kv.core import native as _core
from ds4kv.core import workers as _workers
from ds4kv.format.header import CHUNK_SIZE, MAX_CHUNK_SIZE, Codec, Form

__all__ = ["Encoding", "encoder_level"]


def encoder_level(codec: Codec, level: int | None, form: Form = Form.PLAIN) -> int:
    """The core's level for a codec and what the caller asked for; ValueError if they don't go together.

    Codec ``lz4`` without a level, or at 0, is LZ4_compress_default, whose bytes are the reference's. Its levels 1 to 12
    are LZ4HC: denser blocks that every reader of codec ``lz4`` takes. Codec ``lz4hc`` marks the same blocks by the
    number that the format keeps for them, 9 being its default level. In form CHECKED 1 is the default, as ds4 has it.
    There and in form PACKED -1 is the fastest: it looks for runs of one byte alone, and makes blocks that every reader
    of the form takes.
    """
    if codec is Codec.LZ4:
        lowest, default = _LEVELS[form]
    elif codec is Codec.LZ4HC:
        lowest, default = 1, 9
    else:
        raise ValueError("codec none has no blocks: write the payload as it is")
    if level is None:
        return default
    if not lowest <= level <= _core.MAX_LEVEL:
        raise ValueError(f"level is {level}, outside {lowest}..{_core.MAX_LEVEL} of codec {codec.name.lower()}")
    return level


_LEVELS = {Form.PLAIN: (0, 0), Form.CHECKED: (_core.MIN_LEVEL, 1), Form.PACKED: (_core.MIN_LEVEL, 0)}
"""The lowest level of each form that is written, and the one by default."""


class Encoding(NamedTuple):
    """The keyword arguments of :class:`ds4kv.PayloadWriter` that say how, by their names. ``level`` and ``workers`` are
    decided: never None.
    """

    form: Form
    chunk_size: int
    codec: Codec
    level: int
    workers: int
    nice: int

    @classmethod
    def checked(
        cls,
        *,
        form: Form = Form.PLAIN,
        chunk_size: int = CHUNK_SIZE,
        codec: Codec = Codec.LZ4,
        level: int | None = None,
        workers: int | None = None,
        nice: int = 0,
    ) -> Self:
        """Raises ValueError for what is out of its range."""
        if form not in _LEVELS:
            raise ValueError(f"form {Form(form).name} is read, not written")
        if not 1 <= chunk_size <= MAX_CHUNK_SIZE:
            raise ValueError(f"chunk_size is {chunk_size}, outside 1..{MAX_CHUNK_SIZE}")
        if not 0 <= nice <= 19:
            raise ValueError(f"nice is {nice}, outside 0..19")
        form, codec = Form(form), Codec(codec)
        return cls(form, chunk_size, codec, encoder_level(codec, level, form), _workers.resolve(workers), nice)
