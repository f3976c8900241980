"""What a store decides by numbers alone: how long a checkpoint is to be, whether it fits, which ones go.

Pure functions. They open no file and ask no clock, so a decision can be explained, or replayed for another budget or
another day, from the headers alone. Lengths are in tokens, sizes in bytes, times in Unix seconds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol

from ds4kv.format.header import HEADER_SIZE, Header

__all__ = [
    "BOUNDARY_ALIGN_TOKENS",
    "BOUNDARY_TRIM_TOKENS",
    "BUDGET_MB",
    "COLD_MAX_TOKENS",
    "CONTINUED_INTERVAL_TOKENS",
    "HIT_HALF_LIFE",
    "MIN_EFFECTIVE_HITS",
    "MIN_TOKENS",
    "Victim",
    "chat_anchor",
    "choose_victims",
    "continued_target",
    "eviction_score",
    "fits",
    "store_len",
    "with_slack",
]

MIN_TOKENS = 512
COLD_MAX_TOKENS = 30000
CONTINUED_INTERVAL_TOKENS = 10000
BOUNDARY_TRIM_TOKENS = 32
BOUNDARY_ALIGN_TOKENS = 2048
BUDGET_MB = 4096
"""In MiB."""
HIT_HALF_LIFE = 21600
"""Seconds after which a hit counts half."""
MIN_EFFECTIVE_HITS = 0.01

_MAX_U64 = (1 << 64) - 1


def store_len(
    tokens: int, *, min_tokens: int = MIN_TOKENS, trim: int = BOUNDARY_TRIM_TOKENS, align: int = BOUNDARY_ALIGN_TOKENS
) -> int:
    """How many of a prompt's ``tokens`` a cold checkpoint of it covers.

    The last ``trim`` are left out: the next prompt may tokenize that end differently. The rest is cut to a multiple of
    ``align``; 0 cuts nothing. If less than ``min_tokens`` would remain, it is all of them.
    """
    if tokens > min_tokens + trim:
        length = tokens - trim
        if align > 0:
            length -= length % align
        if length >= min_tokens:
            return length
    return tokens


def chat_anchor(tokens: Iterable[int], *, user_id: int, assistant_id: int, min_tokens: int = MIN_TOKENS) -> int | None:
    """Where the part of a chat ends that other chats may share: the length of its cold checkpoint, in tokens.

    It ends where the last user turn begins before the first answer: at the last ``user_id`` before the first
    ``assistant_id``, or the last of all where nothing was answered yet. Use the length as it is, neither trimmed nor
    aligned. None if there is no such turn, if it begins before ``min_tokens``, or if an id is negative, which says that
    the tokenizer has no such token.
    """
    if user_id < 0 or assistant_id < 0:
        return None
    anchor = None
    for position, token in enumerate(tokens):
        if token == assistant_id:
            break
        if token == user_id:
            anchor = position
    return anchor if anchor is not None and anchor >= min_tokens else None


def continued_target(
    live_tokens: int,
    last_stored: int,
    *,
    min_tokens: int = MIN_TOKENS,
    interval: int = CONTINUED_INTERVAL_TOKENS,
    align: int = BOUNDARY_ALIGN_TOKENS,
) -> int:
    """The length at which a session of ``live_tokens`` is to be stored now, or 0 if no store is due.

    One is due at each multiple of ``interval`` that is at least ``min_tokens`` and beyond ``last_stored``; ``interval``
    is rounded up to a multiple of ``align`` first, unless that is 0. ``interval`` 0 is off. A session can't be rewound:
    so the length is ``live_tokens`` or 0, and a multiple that was passed between two calls is not made up for.

    ``last_stored`` is the caller's to keep. A store raises it and never lowers it. A load sets it to the loaded length.
    A prompt that shares nothing with the session sets it to 0.
    """
    if interval <= 0:
        return 0
    step = -(-interval // align) * align if align > 0 else interval
    is_due = live_tokens >= min_tokens and live_tokens % step == 0 and live_tokens > last_stored
    return live_tokens if is_due else 0


def with_slack(file_size: int) -> int:
    """What a file of this size takes of a budget: 1 % more, rounded up."""
    return file_size + -(-file_size // 100)


def fits(*, text_bytes: int, payload_bytes: int, trailer_bytes: int, budget_bytes: int) -> bool:
    """Whether a file of these parts, with its slack, is within the budget; 0 is no budget.

    ``payload_bytes`` is the region as stored. What has no size in 64 bits doesn't fit.
    """
    need = with_slack(HEADER_SIZE + 4 + text_bytes + payload_bytes + trailer_bytes)
    return need <= _MAX_U64 and (budget_bytes == 0 or need <= budget_bytes)


def eviction_score(
    *,
    hits: int,
    tokens: int,
    file_size: int,
    created_at: int,
    last_used: int,
    now: float,
    half_life: float = HIT_HALF_LIFE,
) -> float:
    """What a checkpoint is worth: tokens a byte, times 1 + hits, of which each ``half_life`` seconds leave a half.

    ds4's formula, to the last bit of the double for a whole ``now``: two engines on one directory agree.
    """
    if file_size == 0:
        return 0.0
    used = last_used or created_at
    effective_hits = float(hits) if used else 0.0
    if now > used:
        # exp2 as in C: 2.0 ** -x and 0.5 ** x differ from it in the last bit now and then.
        effective_hits *= math.exp2(-(now - used) / half_life)
        if effective_hits < MIN_EFFECTIVE_HITS:
            effective_hits = 0.0
    return (effective_hits + 1.0) * tokens / file_size


class Evictable(Protocol):
    """A checkpoint of a store, as far as eviction looks at it."""

    @property
    def sha(self) -> str: ...
    @property
    def header(self) -> Header: ...
    @property
    def file_size(self) -> int: ...


class Victim(NamedTuple):
    """A checkpoint that has to go, its score, and why it and no other, in words."""

    entry: Any
    score: float
    reason: str


def choose_victims(
    entries: Iterable[Evictable],
    budget_bytes: int,
    now: float,
    protected: str | None = None,
    *,
    score: Callable[[Any, float], float] | None = None,
) -> list[Victim]:
    """Which checkpoints go, and in which order, until the others take ``budget_bytes`` or less together.

    The lowest score goes first. Of equal scores the one used longer ago goes first, and of those the one that comes
    first in ``entries``. ``score`` is any function of an entry and ``now``, by default :func:`eviction_score`.
    ``budget_bytes`` is taken as it is: 0 leaves nothing.

    ``protected`` is the key of a checkpoint that goes last: one that was just saved has no hits yet, and would else be
    the first to go. One that is larger than the whole budget isn't protected. All others would go for it, and then it
    would still be over the budget. Don't let such a file in: see :func:`fits`.

    Raises ValueError if a score is not a number, which would make the order a matter of chance.
    """
    kept = list(entries)
    if any(entry.sha == protected and entry.file_size > budget_bytes for entry in kept):
        protected = None
    ranked = []
    for place, entry in enumerate(kept):
        value = _score(entry, now) if score is None else score(entry, now)
        if math.isnan(value):
            raise ValueError(f"the score of {entry.sha} is not a number")
        # Two files may have the protected sha, in names of either case. They are equals, whatever their scores.
        is_protected = entry.sha == protected
        ranked.append((is_protected, 0.0 if is_protected else value, entry.header.last_used, place, value))
    ranked.sort()
    total = sum(entry.file_size for entry in kept)
    victims = []
    for rank, (is_protected, _, last_used, place, value) in enumerate(ranked):
        if total <= budget_bytes:
            break
        following = ranked[rank + 1 :][:1]
        if is_protected:
            reason = "protected, but nothing else is left"
        elif not following:
            reason = "nothing else is left"
        elif following[0][:2] != (False, value):
            reason = "lowest score"
        elif following[0][2] != last_used:
            reason = "lowest score, used longer ago than others with it"
        else:
            reason = "lowest score and as long unused as others with it, first in the directory"
        victims.append(Victim(kept[place], value, reason))
        total -= kept[place].file_size
    return victims


def _score(entry: Evictable, now: float) -> float:
    header = entry.header
    return eviction_score(
        hits=header.hits,
        tokens=header.tokens,
        file_size=entry.file_size,
        created_at=header.created_at,
        last_used=header.last_used,
        now=now,
    )
