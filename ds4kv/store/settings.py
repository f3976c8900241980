"""How a store writes its files: what all its saves have in common, checked once."""

from __future__ import annotations

from collections import namedtuple

from ds4kv.core import workers as _workers
from ds4kv.file.writer import codec_for
from ds4kv.format.header import CHUNK_SIZE, Codec, Header, Layout
from ds4kv.store import policy
from ds4kv.stream.streams import encoder_level

__all__ = ["Settings", "budget_of", "not_negative"]


class Settings(namedtuple("Settings", "template workers level nice fsync mode evicts_when_full")):
    """As :class:`ds4kv.Store` has them. ``template`` is a header with what those of all new files have in common."""

    __slots__ = ()
    template: Header
    workers: int
    level: int | None
    nice: int
    fsync: bool
    mode: int | None
    evicts_when_full: bool

    @classmethod
    def checked(
        cls,
        *,
        layout: str,
        codec: str | None,
        level: int | None,
        workers: int | None,
        nice: int,
        fsync: bool,
        mode: int | None,
        on_full: str,
    ) -> Settings:
        """Raises ValueError for what is out of its range."""
        if on_full not in ("raise", "evict"):
            raise ValueError(f"on_full is {on_full!r}, not 'raise' or 'evict'")
        template = _template(Layout(layout), codec)
        if level is not None:
            encoder_level(template.codec, level)
        if mode is not None and not 0 <= mode <= 0o777:
            raise ValueError(f"mode is {mode:#o}, outside 0..0o777")
        if not 0 <= nice <= 19:
            raise ValueError(f"nice is {nice}, outside 0..19")
        return cls(template, _workers.resolve(workers), level, nice, fsync, mode, on_full == "evict")


def _template(layout: Layout, codec: str | None) -> Header:
    if layout is Layout.V2_MID:
        raise ValueError("layout v2-mid is read, not written: use v2-checked")
    kept = codec_for(layout, codec)
    return Header(tokens=1, ctx_size=0, layout=layout, codec=kept, chunk_size=0 if kept is Codec.NONE else CHUNK_SIZE)


def budget_of(budget_mb: int, budget_bytes: int | None) -> int:
    """The budget in bytes, by the one that is given; 0 is the default. Raises ValueError."""
    budget = not_negative("budget_mb", budget_mb) << 20
    if budget_bytes is not None:
        budget = not_negative("budget_bytes", budget_bytes)
    return budget or policy.BUDGET_MB << 20


def not_negative(name: str, value: int) -> int:
    """The value. Raises ValueError if it is less than 0."""
    if value < 0:
        raise ValueError(f"{name} is {value}, which is negative")
    return value
