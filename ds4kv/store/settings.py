"""How a store was opened: its keyword arguments as one record, checked once, and handed to all its parts.

The record is also what a copy of a store is opened by, in this process or another.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, Self

from ds4kv.core import workers as _workers
from ds4kv.file.writer import codec_for, encoding_for
from ds4kv.format.header import Codec, Header, Layout, default_chunk_size
from ds4kv.format.identity import mark_of
from ds4kv.store import policy
from ds4kv.store.entry import Entry
from ds4kv.stream.encoding import Encoding

__all__ = ["Score", "Settings"]


class Score(Protocol):
    """What a checkpoint is worth at a time in Unix seconds: the least worth is evicted first."""

    def __call__(self, entry: Entry, now: float, /) -> float: ...


class Settings(NamedTuple):
    """The keyword arguments of :class:`ds4kv.Store`, by their names. What they leave open is decided here:
    ``budget_bytes`` has the MiB of ``budget_mb``, ``workers`` and ``codec`` are never None.
    """

    budget_bytes: int
    min_tokens: int
    cold_max_tokens: int
    continued_interval_tokens: int
    boundary_trim_tokens: int
    boundary_align_tokens: int
    reject_different_quant: bool
    workers: int
    layout: Layout
    codec: Codec
    level: int | None
    chunk_size: int | None
    consume: bool
    on_full: str
    score: Score | None
    clock: Callable[[], float]
    nice: int
    fsync: bool
    mode: int | None
    read_only: bool
    evict_on_open: bool
    identity: bytes | str | None

    @classmethod
    def checked(
        cls,
        *,
        budget_mb: int,
        budget_bytes: int | None,
        workers: int | None,
        layout: str,
        codec: str | Codec | None,
        **others: Any,
    ) -> Self:
        """Raises ValueError for what is out of its range, and TypeError for an argument too many or too few."""
        lengths = {name: value for name, value in others.items() if name.endswith("_tokens")}
        for name, value in {"budget_mb": budget_mb, "budget_bytes": budget_bytes or 0, **lengths}.items():
            if value < 0:
                raise ValueError(f"{name} is {value}, which is negative")
        kept = Layout(layout)
        settings = cls(
            budget_bytes=(budget_mb << 20 if budget_bytes is None else budget_bytes) or policy.BUDGET_MB << 20,
            workers=_workers.resolve(workers),
            layout=kept,
            codec=codec_for(kept, codec),
            **others,
        )
        if settings.on_full not in ("raise", "evict"):
            raise ValueError(f"on_full is {settings.on_full!r}, not 'raise' or 'evict'")
        _ = settings.encoding, mark_of(settings.identity)  # which check what they are made of
        if settings.mode is not None and not 0 <= settings.mode <= 0o777:
            raise ValueError(f"mode is {settings.mode:#o}, outside 0..0o777")
        if not 0 <= settings.nice <= 19:
            raise ValueError(f"nice is {settings.nice}, outside 0..19")
        return settings

    @property
    def new_chunk_size(self) -> int:
        """Payload bytes of a chunk, where payloads are compressed."""
        return default_chunk_size(self.layout) if self.chunk_size is None else self.chunk_size

    @property
    def template(self) -> Header:
        """A header with what those of all new files have in common."""
        chunk_size = 0 if self.codec is Codec.NONE else self.new_chunk_size
        return Header(tokens=1, ctx_size=0, layout=self.layout, codec=self.codec, chunk_size=chunk_size)

    @property
    def encoding(self) -> Encoding | None:
        """How payloads are encoded; None: they are stored as they are."""
        return encoding_for(self.template, level=self.level, workers=self.workers, nice=self.nice)

    @property
    def evicts_when_full(self) -> bool:
        return self.on_full == "evict"

    @property
    def consume_above(self) -> int | None:
        """Checkpoints of more tokens than this are removed once they were loaded; None: none is."""
        return self.cold_max_tokens if self.consume and self.cold_max_tokens else None

    def quant_wanted(self, quant_bits: int | None) -> int | None:
        """The quantization that an engine of ``quant_bits`` needs of a checkpoint; None: any will do."""
        return quant_bits if self.reject_different_quant else None
