"""The store's decisions, held against numbers worked out by hand and against slow restatements."""

from __future__ import annotations

import ctypes
import ctypes.util
import math
import random
from collections import namedtuple
from decimal import Decimal, localcontext

import pytest
from helpers import MIB
from hypothesis import example, given
from hypothesis import strategies as st

from ds4kv import Header
from ds4kv.store import policy
from ds4kv.store.policy import (
    chat_anchor,
    choose_victims,
    continued_target,
    eviction_score,
    fits,
    store_len,
    with_slack,
)

U32, U64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)
NOW = 1_780_000_000
SIX_HOURS = 21600

Entry = namedtuple("Entry", "sha header file_size")


def entry(
    sha: str, size: int, *, tokens: int = 1000, hits: int = 0, last_used: int = NOW, created_at: int = NOW
) -> Entry:
    header = Header(tokens=tokens, ctx_size=32768, hits=hits, last_used=last_used, created_at=created_at)
    return Entry(sha, header, size)


# Lengths


@pytest.mark.parametrize(
    ("tokens", "length"),
    [
        (11011, 10240),
        (1695, 1695),
        (0, 0),
        (512, 512),
        (544, 544),
        (545, 545),  # 513 to store, which align cuts to 0
        (2079, 2079),  # 2047 to store, the same
        (2080, 2048),
        (4127, 2048),
        (4128, 4096),
    ],
)
def test_store_len(tokens: int, length: int) -> None:
    assert store_len(tokens) == length


@pytest.mark.parametrize(
    ("options", "length"),
    [
        ({"align": 0}, 979),
        ({"trim": 0}, 1011),
        ({"trim": 0, "align": 1000}, 1000),
        ({"align": 256}, 768),
        ({"align": 256, "min_tokens": 768}, 768),
        ({"align": 256, "min_tokens": 769}, 1011),
        ({"trim": 499, "align": 0}, 1011),  # 512 to store, but 1011 is not more than 512 + 499
        ({"trim": 498, "align": 0}, 513),
    ],
)
def test_options_of_store_len(options: dict[str, int], length: int) -> None:
    assert store_len(1011, **options) == length


USER, ASSISTANT = 7, 8


def chat(*turns: int) -> list[int]:
    """A prompt of tokens 0 but for the markers: the user's at these positions, the assistant's at the negative ones."""
    tokens = [0] * 3000
    for turn in turns:
        tokens[abs(turn)] = USER if turn > 0 else ASSISTANT
    return tokens


@pytest.mark.parametrize(
    ("turns", "anchor"),
    [
        ((600, -700), 600),
        ((600, 650, -700), 650),
        ((600, -700, 800, -900), 600),
        ((512, -700), 512),
        ((511, -700), None),
        ((100, -700, 800, -900), None),
        ((-700, 800), None),
        ((-700,), None),
        ((600, 800), 800),
        ((), None),
    ],
)
def test_chat_anchor(turns: tuple[int, ...], anchor: int | None) -> None:
    assert chat_anchor(chat(*turns), user_id=USER, assistant_id=ASSISTANT) == anchor


@pytest.mark.parametrize(("user_id", "assistant_id"), [(-1, 7), (5, -1), (-1, -1)])
def test_a_tokenizer_without_such_a_token_has_no_anchor(user_id: int, assistant_id: int) -> None:
    tokens = [5, -1, 7, 5]  # an engine's own marks may be negative as well
    assert chat_anchor(tokens, user_id=user_id, assistant_id=assistant_id, min_tokens=0) is None
    assert chat_anchor(tokens, user_id=5, assistant_id=7, min_tokens=0) == 0


def test_chat_anchor_at_the_start() -> None:
    tokens = [USER, 1, ASSISTANT]
    assert chat_anchor(tokens, user_id=USER, assistant_id=ASSISTANT, min_tokens=0) == 0
    assert chat_anchor(iter(tokens), user_id=USER, assistant_id=ASSISTANT, min_tokens=1) is None


@pytest.mark.parametrize(
    ("live", "last", "target"),
    [
        (10240, 0, 10240),  # 10000 rounded up to a multiple of 2048
        (10000, 0, 0),
        (10239, 0, 0),
        (10241, 0, 0),
        (20480, 10240, 20480),
        (20480, 20480, 0),
        (20480, 20479, 20480),
        (20480, 30720, 0),
        (0, 0, 0),
    ],
)
def test_continued_target(live: int, last: int, target: int) -> None:
    assert continued_target(live, last) == target


@pytest.mark.parametrize(
    ("live", "options", "target"),
    [
        (10240, {"interval": 0}, 0),
        (10240, {"interval": -1}, 0),
        (10000, {"align": 0}, 10000),
        (10240, {"align": 0}, 0),
        (2048, {"interval": 1}, 2048),
        (2048, {"interval": 2048}, 2048),
        (2048, {"interval": 2049}, 0),
        (500, {"interval": 100, "align": 0}, 0),
        (600, {"interval": 100, "align": 0}, 600),
        (500, {"interval": 100, "align": 0, "min_tokens": 500}, 500),
    ],
)
def test_options_of_continued_target(live: int, options: dict[str, int], target: int) -> None:
    assert continued_target(live, 0, **options) == target


def test_continued_stores_of_a_session_that_grows() -> None:
    stored, last = [], 0
    for live in range(45_000):
        if target := continued_target(live, last):
            stored.append(target)
            last = target
    assert stored == [10240, 20480, 30720, 40960]


# The budget


@pytest.mark.parametrize(
    ("file_size", "budget", "expected"),
    [
        (100, 101, True),
        (100, 100, False),
        (101, 103, True),  # a hundredth of 101 is 2, rounded up
        (101, 102, False),
        (10_000, 10_100, True),
        (10_000, 10_099, False),
        (10_001, 10_102, True),
        (10_001, 10_101, False),
        (1 << 40, 0, True),
        (52, 53, True),
        (52, 52, False),
    ],
)
def test_fits(file_size: int, budget: int, expected: bool) -> None:
    left = file_size - 52
    for parts in ((left, 0, 0), (0, left, 0), (0, 0, left), (left // 3, left // 3, left - left // 3 * 2)):
        text_bytes, payload_bytes, trailer_bytes = parts
        fit = fits(text_bytes=text_bytes, payload_bytes=payload_bytes, trailer_bytes=trailer_bytes, budget_bytes=budget)
        assert fit is expected


def test_what_overflows_64_bits_does_not_fit() -> None:
    largest = 2**64 - 1
    for payload, trailer, budget in ((largest, 0, 0), (largest - 52, 1, largest), (2**63, 2**63, 2**70)):
        assert not fits(text_bytes=0, payload_bytes=payload, trailer_bytes=trailer, budget_bytes=budget)
    assert fits(text_bytes=0, payload_bytes=2**63, trailer_bytes=0, budget_bytes=largest)


@given(U64)
def test_slack_is_the_least_that_is_a_hundredth(size: int) -> None:
    slack = with_slack(size) - size
    assert 100 * (slack - 1) < size <= 100 * slack


# The score


def libm_exp2(x: float) -> float:
    exp2 = ctypes.CDLL(ctypes.util.find_library("m")).exp2
    exp2.restype, exp2.argtypes = ctypes.c_double, [ctypes.c_double]
    return float(exp2(x))


def slow_score(hits: int, tokens: int, size: int, created_at: int, last_used: int, now: int) -> float:
    """The formula step by step in C's doubles."""
    double = ctypes.c_double
    used = last_used if last_used != 0 else created_at
    h = 0.0
    if used != 0:
        h = double(hits).value
        if now > used:
            h = double(h * libm_exp2(-(double(now - used).value / 21600.0))).value
            if h < 0.01:
                h = 0.0
    return 0.0 if size == 0 else double(double((h + 1.0) * double(tokens).value).value / double(size).value).value


TIMES = st.one_of(st.just(0), st.integers(NOW - 10 * SIX_HOURS, NOW + SIX_HOURS), U64)


@given(U32, st.integers(1, 2**32 - 1), U64, TIMES, TIMES, TIMES)
@example(4, 2048, 30 * MIB, NOW, NOW - SIX_HOURS, NOW)
@example(1, 1, 1, 0, 1, 2**64 - 1)
@example(2**32 - 1, 2**32 - 1, 2**64 - 1, 2**64 - 1, 0, 2**64 - 1)
def test_score_to_the_last_bit(hits: int, tokens: int, size: int, created_at: int, last_used: int, now: int) -> None:
    score = eviction_score(
        hits=hits, tokens=tokens, file_size=size, created_at=created_at, last_used=last_used, now=now
    )
    assert score.hex() == slow_score(hits, tokens, size, created_at, last_used, now).hex()


@given(U32, st.integers(1, 2**32 - 1), st.integers(1, 2**40), st.integers(0, 20 * SIX_HOURS))
def test_score_is_the_formula(hits: int, tokens: int, size: int, age: int) -> None:
    """Against 40 digits: a mistake that the restatement above shared would show here."""
    score = eviction_score(hits=hits, tokens=tokens, file_size=size, created_at=1, last_used=NOW, now=NOW + age)
    with localcontext() as context:
        context.prec = 40
        h = hits * Decimal(2) ** (Decimal(-age) / SIX_HOURS)
        if age and abs(h - Decimal("0.01")) < Decimal("1e-12"):
            return  # too near to the edge for doubles to agree with it
        exact = ((0 if age and h < Decimal("0.01") else h) + 1) * tokens / size
    assert math.isclose(score, exact, rel_tol=1e-14)


@pytest.mark.parametrize(
    ("fields", "score"),
    [
        ({}, 0.5),
        ({"hits": 3}, 2.0),
        ({"hits": 4, "last_used": NOW - SIX_HOURS}, 1.5),  # 4 hits half a life ago are 2
        ({"hits": 4, "last_used": NOW - 2 * SIX_HOURS}, 1.0),
        ({"hits": 4, "last_used": NOW + SIX_HOURS}, 2.5),  # from the future: no decay
        ({"hits": 4, "last_used": 0, "created_at": NOW - SIX_HOURS}, 1.5),
        ({"hits": 4, "last_used": 0, "created_at": 0}, 0.5),
        ({"hits": 1, "last_used": NOW - 6 * SIX_HOURS}, (1 + 1 / 64) / 2),
        ({"hits": 1, "last_used": NOW - 7 * SIX_HOURS}, 0.5),  # 1 / 128 is below 0.01
        ({"file_size": 0}, 0.0),
    ],
)
def test_scores_by_hand(fields: dict[str, int], score: float) -> None:
    given_ = {"hits": 0, "tokens": 1000, "file_size": 2000, "created_at": NOW, "last_used": NOW, "now": NOW}
    assert eviction_score(**given_ | fields) == score


def test_half_life() -> None:
    fields = {"hits": 1, "tokens": 1, "file_size": 1, "created_at": 1, "last_used": NOW, "now": NOW + 100}
    assert eviction_score(**fields, half_life=100) == 1.5
    assert eviction_score(**fields, half_life=50) == 1.25


# Who goes


def slow_victims(entries: list[Entry], budget: int, now: int, protected: str | None) -> list[Entry]:
    """Remove the worst, look again."""
    for candidate in entries:
        if candidate.sha == protected and candidate.file_size > budget:
            protected = None
            break
    left, gone = list(entries), []
    while left and sum(candidate.file_size for candidate in left) > budget:
        worst, worst_score = left[0], None
        for candidate in left:
            h = candidate.header
            score = slow_score(h.hits, h.tokens, candidate.file_size, h.created_at, h.last_used, now)
            if candidate.sha == protected:
                score = 1.7976931348623157e308
            if (
                worst_score is None
                or score < worst_score
                or (score == worst_score and h.last_used < worst.header.last_used)
            ):
                worst, worst_score = candidate, score
        left.remove(worst)
        gone.append(worst)
    return gone


def random_entries(rng: random.Random) -> list[Entry]:
    """Few values, so that many tie; and now and then two files of one sha, as names of either case are."""
    return [
        entry(
            f"{rng.randrange(6):040x}",
            rng.choice([0, 100, 200, 200, 1000, 5000]),
            tokens=rng.choice([100, 200, 1000]),
            hits=rng.choice([0, 0, 1, 5]),
            last_used=rng.choice([0, NOW - SIX_HOURS, NOW - 1, NOW, NOW + 5]) + (place if rng.random() < 0.1 else 0),
            created_at=rng.choice([0, NOW - SIX_HOURS]),
        )
        for place in range(rng.randrange(9))
    ]


@given(st.integers(0, 2**32))
def test_victims_are_those_of_the_slow_loop(seed: int) -> None:
    rng = random.Random(seed)
    entries = random_entries(rng)
    # remove() in the slow loop goes by equality; positions make equal entries different.
    entries = [e._replace(header=e.header._replace(ctx_size=place)) for place, e in enumerate(entries)]
    budget = rng.choice([0, 100, 500, 1000, 3000, 5000, 20000])
    protected = rng.choice([None, f"{rng.randrange(6):040x}"])
    victims = choose_victims(entries, budget, NOW, protected)
    assert [victim.entry for victim in victims] == slow_victims(entries, budget, NOW, protected)


def gone(entries: list[Entry], budget: int, protected: str | None = None) -> list[tuple[str, str]]:
    return [(victim.entry.sha, victim.reason) for victim in choose_victims(entries, budget, NOW, protected)]


def test_the_lowest_score_goes_first_and_only_as_many_as_needed() -> None:
    entries = [entry("a", 100, tokens=300), entry("b", 100, tokens=100), entry("c", 100, tokens=200)]
    assert gone(entries, 300) == []
    assert gone(entries, 299) == [("b", "lowest score")]
    assert gone(entries, 199) == [("b", "lowest score"), ("c", "lowest score")]
    assert gone(entries, 99) == [("b", "lowest score"), ("c", "lowest score"), ("a", "nothing else is left")]
    assert gone([], 0) == []
    assert [victim.score for victim in choose_victims(entries, 199, NOW)] == [1.0, 2.0]


def test_of_equal_scores_the_longer_unused_goes_and_then_the_first_of_the_directory() -> None:
    entries = [entry("c", 100), entry("b", 100), entry("a", 100, last_used=NOW - 1), entry("d", 100, tokens=9000)]
    assert gone(entries, 100) == [
        ("a", "lowest score, used longer ago than others with it"),
        ("c", "lowest score and as long unused as others with it, first in the directory"),
        ("b", "lowest score"),
    ]


def test_last_use_is_compared_as_it_stands() -> None:
    # Not used since it was created: that counts for the score, and as 0 here.
    entries = [entry("used", 100, last_used=5), entry("unused", 100, last_used=0, created_at=9)]
    assert [sha for sha, _ in gone(entries, 100)] == ["unused"]


def test_the_protected_one_stays() -> None:
    entries = [entry("new", 500, tokens=1), entry("old", 500, tokens=9000)]
    assert gone(entries, 500) == [("new", "lowest score")]
    assert gone(entries, 500, "new") == [("old", "lowest score")]


def test_one_larger_than_the_budget_is_not_protected() -> None:
    entries = [entry("new", 501, tokens=1), entry("old", 500, tokens=9000)]
    assert gone(entries, 500, "new") == [("new", "lowest score")]
    entries = [entry("new", 501, tokens=9999), entry("old", 500, tokens=1)]
    assert gone(entries, 500, "new") == [("old", "lowest score"), ("new", "nothing else is left")]


def test_two_files_of_one_protected_sha() -> None:
    entries = [entry("new", 300), entry("new", 300, tokens=9000, last_used=NOW - 1), entry("old", 300, hits=9)]
    victims = choose_victims(entries, 500, NOW, "new")
    assert [victim.entry for victim in victims] == [entries[2], entries[1]]  # equals: not the score decides
    assert victims[1].reason == "protected, but nothing else is left"


def test_any_score() -> None:
    entries = [entry("a", 100, tokens=1), entry("b", 100, tokens=2), entry("c", 100, tokens=3)]
    clocks = []

    def score(candidate: Entry, now: float) -> float:
        clocks.append(now)
        return math.inf if candidate.sha == "c" else -candidate.header.tokens

    victims = choose_victims(entries, 100, NOW + 0.5, "b", score=score)
    assert [(victim.entry.sha, victim.score) for victim in victims] == [("a", -1), ("c", math.inf)]
    assert clocks == [NOW + 0.5] * 3


def test_a_score_that_is_no_number() -> None:
    entries = [entry("a", 100), entry("b", 100)]
    with pytest.raises(ValueError, match="score of a is not a number"):
        choose_victims(entries, 0, NOW, score=lambda candidate, now: math.nan)
    assert len(choose_victims(entries, 0, NOW, score=lambda candidate, now: math.inf)) == 2


def test_constants() -> None:
    assert (policy.MIN_TOKENS, policy.COLD_MAX_TOKENS, policy.CONTINUED_INTERVAL_TOKENS) == (512, 30000, 10000)
    assert (policy.BOUNDARY_TRIM_TOKENS, policy.BOUNDARY_ALIGN_TOKENS, policy.BUDGET_MB) == (32, 2048, 4096)
