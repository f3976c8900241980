"""The synthetic payload against a second description of the engine's layout and number formats: `Payload` takes
one apart by arithmetic of its own, and the grids are spelt out code by code."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ds4kv
from ds4kv.cli import synthetic
from ds4kv.cli.synthetic import payload, payload_bytes

LAYERS = range(43)
BY_4 = range(2, 43, 2)
BY_128 = range(3, 43, 2)
MINUS_ZERO = 0x80000000


class Payload:
    """The tensors of a payload, cut out in file order; a state is a pair of kv and score."""

    def __init__(self, tokens: int, **options: int) -> None:
        self._bytes = b"".join(payload(tokens, **options))
        self._at = 0
        self.header = self._take("<u4", 13)
        self.ids = self._take("<u4", tokens)
        self.logits = self._take("<f4", 129280)
        self.row_counts = self._take("<u4", 43)
        self.indexer_row_counts = self._take("<u4", 43)
        self.raw, self.rows, self.state, self.indexer, self.indexer_state = {}, {}, {}, {}, {}
        for layer in LAYERS:
            self.raw[layer] = self._take("<f4", min(128, tokens), 512)
            if layer in BY_4:
                self.rows[layer] = self._take("<f4", tokens // 4, 512)
                self.state[layer] = self._take("<f4", 8, 1024), self._take("<f4", 8, 1024)
                self.indexer[layer] = self._take("<f4", tokens // 4, 128)
                self.indexer_state[layer] = self._take("<f4", 8, 256), self._take("<f4", 8, 256)
            elif layer in BY_128:
                self.rows[layer] = self._take("<f4", tokens // 128, 512)
                self.state[layer] = self._take("<f4", 128, 512), self._take("<f4", 128, 512)
        assert self._at == len(self._bytes)

    def _take(self, dtype: str, *shape: int) -> np.ndarray[Any, Any]:
        count = int(np.prod(shape))
        array = np.frombuffer(self._bytes, dtype, count, self._at).reshape(shape)
        self._at += 4 * count
        return array


# Two are kept, not all: together they would fill half a GiB.
take_apart = lru_cache(maxsize=2)(Payload)


def words(floats: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.ascontiguousarray(floats).view("<u4")


# ------------------------------------------------------------------------------ size and layout


def independent_count(tokens: int, ctx_size: int) -> int:
    raw = min(128, tokens, ctx_size)
    total = 13 * 4 + tokens * 4 + 129280 * 4 + 43 * 4 + 43 * 4
    for layer in LAYERS:
        total += raw * 2048
        if layer in BY_4:
            total += tokens // 4 * 2048 + 2 * 32768 + tokens // 4 * 512 + 2 * 8192
        if layer in BY_128:
            total += tokens // 128 * 2048 + 2 * 262144
    return total


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [(3_500, 72_155_708), (17_000, 257_950_508), (47_000, 670_896_108), (102_400, 1_433_429_388)],
)
def test_size_is_the_published_one(tokens: int, expected: int) -> None:
    assert payload_bytes(tokens, 200_000) == expected


def test_size_is_the_sum_of_the_tensors() -> None:
    lengths = [*range(1, 300), 2047, 2048, 2049, 99_999, 1_000_000]
    for tokens, ctx_size in itertools.product(lengths, [2, 64, 127, 128, 129, 2304, 1 << 20]):
        assert payload_bytes(tokens, ctx_size) == independent_count(tokens, ctx_size), (tokens, ctx_size)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tokens", "ctx_size"),
    [(1, 2), (3, 100), (4, 100), (99, 100), (127, 128), (128, 129), (129, 4096), (1027, 1028), (2051, 100_000)],
)
def test_a_payload_has_the_size_that_was_announced(tokens: int, ctx_size: int) -> None:
    assert sum(piece.nbytes for piece in payload(tokens, ctx_size=ctx_size)) == payload_bytes(tokens, ctx_size)


@pytest.mark.slow
def test_pieces_are_small_views_of_bytes_that_stay() -> None:
    pieces = list(payload(2051))
    assert all(piece.format == "B" and piece.ndim == 1 and piece.nbytes <= 512 << 10 for piece in pieces)
    assert b"".join(pieces) == b"".join(bytes(piece) for piece in payload(2051))


@pytest.mark.parametrize(
    ("tokens", "ctx_size", "prefill_chunk", "raw_capacity", "raw_window", "raw_rows"),
    [
        (3500, 100_000, 2048, 2304, 128, 128),
        (100, 2304, 2048, 2304, 128, 100),
        (200, 2303, 2048, 2303, 128, 128),
        (200, 1000, 1000, 1000, 128, 128),
        (99, 100, 100, 100, 100, 99),
        (1, 2, 2, 2, 2, 1),
    ],
)
def test_header_words(
    tokens: int, ctx_size: int, prefill_chunk: int, raw_capacity: int, raw_window: int, raw_rows: int
) -> None:
    first = next(payload(tokens, ctx_size=ctx_size))
    assert bytes(first[:4]) == b"DSV4"
    shape = np.frombuffer(first, "<u4")[1:].tolist()
    capacity = ctx_size // 4 + 2
    assert shape[:7] == [1, ctx_size, prefill_chunk, raw_capacity, raw_window, capacity, tokens]
    assert shape[7:] == [43, 512, 128, 129280, raw_rows]


def test_row_counts() -> None:
    parts = take_apart(3500)
    assert parts.row_counts.tolist() == [0, 0] + [875, 27] * 20 + [875]
    assert parts.indexer_row_counts.tolist() == [0, 0] + [875, 0] * 20 + [875]


def test_token_ids_are_in_the_vocabulary_and_repeat() -> None:
    ids = take_apart(3500).ids
    assert ids.max() < 129280
    assert 100 < len(np.unique(ids)) < len(ids)


@pytest.mark.parametrize(("tokens", "ctx_size"), [(0, 10), (-1, 10), (10, 10), (11, 10), (100_000, 100_000)])
def test_lengths_that_no_engine_would_load_are_refused_at_once(tokens: int, ctx_size: int) -> None:
    with pytest.raises(ValueError, match="ctx_size"):
        payload(tokens, ctx_size=ctx_size)


# ------------------------------------------------------------------------------ what depends on what


def test_the_same_arguments_make_the_same_payload() -> None:
    assert b"".join(payload(700, seed=5)) == b"".join(payload(700, seed=5))


def test_another_seed_changes_every_tensor() -> None:
    one, two = Payload(700, seed=1), Payload(700, seed=2)
    assert (one.header == two.header).all()
    assert (one.ids != two.ids).any()
    assert (one.logits != two.logits).any()
    for tensors in ("raw", "rows", "indexer"):
        for mine, other in zip(getattr(one, tensors).values(), getattr(two, tensors).values(), strict=True):
            assert (mine != other).any()
    assert (one.state[2][0] != two.state[2][0]).any()


def test_the_context_size_changes_the_header_alone() -> None:
    small, large = b"".join(payload(700, ctx_size=5_000)), b"".join(payload(700, ctx_size=50_000))
    assert small[:52] != large[:52]
    assert small[52:] == large[52:]


def test_rows_of_a_shorter_payload_are_a_prefix() -> None:
    short, long = take_apart(2060), take_apart(3500)
    assert (short.ids == long.ids[:2060]).all()
    for layer in (*BY_4, *BY_128):
        assert (words(short.rows[layer]) == words(long.rows[layer][: len(short.rows[layer])])).all()
    for layer in BY_4:
        assert (words(short.indexer[layer]) == words(long.indexer[layer][: len(short.indexer[layer])])).all()


@pytest.mark.slow
def test_raw_rows_slide_with_the_window() -> None:
    before, after = take_apart(2048), take_apart(2060)
    for layer in LAYERS:
        assert (words(before.raw[layer][12:]) == words(after.raw[layer][:-12])).all()


def test_no_two_layers_and_no_two_pieces_share_their_rows() -> None:
    parts = take_apart(3500)
    rope = np.concatenate([rows[:, 448:] for rows in (*parts.raw.values(), *parts.rows.values())])
    assert len({row.tobytes() for row in rope}) == len(rope)


# ------------------------------------------------------------------------------ number formats


def e4m3() -> list[float]:
    return [code * 2.0**-9 for code in range(8)] + [
        (1 + mantissa / 8) * 2.0**exponent
        for exponent in range(-6, 9)
        for mantissa in range(8)
        if (exponent, mantissa) != (8, 7)
    ]


E2M1 = [0, 0.5, 1, 1.5, 2, 3, 4, 6]


def on_grid(rows: np.ndarray[Any, Any], codes: list[float], group_size: int) -> bool:
    groups = np.abs(rows.reshape(len(rows), -1, group_size)).astype(np.float64)
    scales = 2.0 ** np.ceil(np.log2(groups.max(axis=2, keepdims=True) / codes[-1]))
    return bool(np.isin(groups / scales, codes).all())


def compressed_tensors() -> Iterator[np.ndarray[Any, Any]]:
    yield from take_apart(3500).rows.values()


def test_compressed_rows_are_fp8_but_for_rope() -> None:
    for rows in compressed_tensors():
        assert on_grid(rows[:, :448], e4m3(), 64)
        assert not (words(rows[:, :448]) & 0xFFFFF).any()


def test_raw_rows_are_fp8_in_f16_and_rope_is_f16() -> None:
    for rows in take_apart(3500).raw.values():
        assert (rows == rows.astype(np.float16)).all()
        assert not (words(rows[:, 448:]) & 0x1FFF).any()
        # f16 has no room for the smallest of the FP8 values.
        normal = np.where(np.abs(rows[:, :448]) < 2.0**-14, 0, rows[:, :448])
        assert not (words(normal) & 0xFFFFF).any()


def test_rope_channels_of_compressed_rows_are_full_floats() -> None:
    for rows in compressed_tensors():
        rope = rows[:, 448:]
        assert len(np.unique(words(rope))) > 0.99 * rope.size
        assert (rope != rope.astype(np.float16)).mean() > 0.99


def test_indexer_rows_are_fp4() -> None:
    for rows in take_apart(3500).indexer.values():
        assert on_grid(rows, E2M1, 32)
        assert not (words(rows) & 0x3FFFFF).any()


def test_few_distinct_words_occur() -> None:
    parts = take_apart(3500)
    for layer in BY_4:
        assert 200 < len(np.unique(words(parts.rows[layer][:, :448]))) < 400
        assert 15 <= len(np.unique(words(parts.indexer[layer]))) <= 40


def test_zeros_keep_their_sign() -> None:
    parts = take_apart(3500)
    for rows in (parts.rows[2], parts.indexer[2]):
        assert (words(rows) == MINUS_ZERO).any()
        assert (words(rows) == 0).any()


@pytest.mark.parametrize(("grid", "codes"), [(synthetic._E4M3, e4m3()), (synthetic._E2M1, E2M1)], ids=["e4m3", "e2m1"])
@pytest.mark.parametrize("scale", [2.0**-12, 1.0, 8.0])
def test_rounding_is_to_nearest_and_ties_go_to_the_even_code(
    grid: synthetic._Minifloat, codes: list[float], scale: float
) -> None:
    cases = []
    for code, (low, high) in enumerate(itertools.pairwise(codes)):
        middle = np.float32((low + high) / 2)
        cases += [(low, low), (middle, (low, high)[code % 2])]
        cases += [(np.nextafter(middle, np.float32(0)), low), (np.nextafter(middle, np.float32(1e9)), high)]
    given, expected = np.array(cases, np.float32).T * np.float32(scale)
    # Each case has a group of its own; the largest code beside it sets the scale.
    groups = np.stack([given, -given, np.full_like(given, codes[-1] * scale)], axis=1)
    synthetic._round(groups, grid)
    assert (words(groups[:, 0]) == words(expected)).all()
    assert (words(groups[:, 1]) == words(-expected)).all()
    assert (groups[:, 2] == np.float32(codes[-1] * scale)).all()


def test_the_scale_is_the_smallest_power_of_two_that_fits() -> None:
    fits, too_large = np.float32(448), np.nextafter(np.float32(448), np.float32(1e9))
    groups = np.array([[fits, 2.0**-9], [too_large, 2.0**-9], [0, 0]], np.float32)
    synthetic._round(groups, synthetic._E4M3)
    assert groups.tolist() == [[448, 2.0**-9], [448, 0], [0, 0]]


def test_hadamard_is_the_matrix_product() -> None:
    matrix = np.ones((1, 1))
    while len(matrix) < 128:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    rows = np.random.default_rng(0).standard_normal((7, 128)).astype(np.float32)
    np.testing.assert_allclose(synthetic._hadamard(rows), rows @ matrix / 128**0.5, atol=1e-5)


def test_rope_turns_pairs_by_position_times_frequency() -> None:
    rope = synthetic._rope(compressed=False, tokens_per_row=1)
    rows = np.ones((256, 64), np.float32)
    rope.rotate(rows, 1024)
    angles = np.outer(np.arange(1024, 1280), 10_000.0 ** (-np.arange(32) / 32))
    np.testing.assert_allclose(rows[:, 0::2], np.cos(angles) - np.sin(angles), atol=1e-5)
    np.testing.assert_allclose(rows[:, 1::2], np.cos(angles) + np.sin(angles), atol=1e-5)


def test_rope_of_compressed_rows_is_stretched_where_it_is_slow() -> None:
    rope = synthetic._rope(compressed=True, tokens_per_row=128)
    rows = np.tile(np.array([1, 0], np.float32), (256, 32))
    rope.rotate(rows, 0)
    speeds = np.arctan2(rows[1, 1::2], rows[1, 0::2])
    slow = 128 * 160_000.0 ** (-np.arange(32) / 32)
    np.testing.assert_allclose(speeds[-5:], slow[-5:] / 16, rtol=1e-4)
    # The fastest pair is not stretched: 128 radians are 20 turns and a bit.
    assert speeds[0] == pytest.approx(128 - 20 * 2 * np.pi - 2 * np.pi * (128 % (2 * np.pi) > np.pi), abs=1e-4)


# ------------------------------------------------------------------------------ states


def live(state: tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]) -> list[bool]:
    """Which rows are in use; the others must be the constants of an empty state."""
    kv, score = state
    in_use = np.isfinite(score).all(axis=1)
    assert (words(kv[~in_use]) == 0).all()
    assert (words(score[~in_use]) == 0xFF800000).all()
    assert (kv[in_use] != 0).all()
    return list(in_use)


@pytest.mark.slow
@pytest.mark.parametrize("tokens", [2048, 4096])
def test_states_of_128_are_constant_where_a_prefill_chunk_ends(tokens: int) -> None:
    parts = take_apart(tokens)
    assert not any(any(live(parts.state[layer])) for layer in BY_128)
    for layer in BY_4:
        assert live(parts.state[layer]) == live(parts.indexer_state[layer]) == [True] * 4 + [False] * 4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        (100, range(100)),  # nothing pooled yet
        (700, range(60)),  # 5 x 128 pooled at once
        (2060, range(12)),  # row by row, in a later chunk
        (3500, range(128)),  # the same, all the way round
        (2048 + 256, range(0)),  # a later chunk that 128 divides
    ],
)
def test_live_rows_of_states_of_128(tokens: int, expected: range) -> None:
    parts = take_apart(tokens)
    for layer in BY_128:
        assert live(parts.state[layer]) == [row in expected for row in range(128)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        (2, [False] * 4 + [True] * 2 + [False] * 2),
        (6, [True] * 6 + [False] * 2),
        (3500, [True] * 4 + [False] * 4),
        (2050, [True] * 6 + [False] * 2),
        (2055, [True] * 8),
    ],
)
def test_live_rows_of_states_of_4(tokens: int, expected: list[bool]) -> None:
    parts = take_apart(tokens)
    for layer in BY_4:
        assert live(parts.state[layer]) == expected
        assert live(parts.indexer_state[layer]) == expected


def test_a_row_of_a_state_stays_until_its_next_turn() -> None:
    parts = take_apart(2055)
    for layer in BY_4:
        for tensor in (*parts.state[layer], *parts.indexer_state[layer]):
            assert (tensor[7] == tensor[3]).all()
            assert len(np.unique(tensor, axis=0)) == 7


# ------------------------------------------------------------------------------ compression


def test_lz4_does_as_well_as_on_real_payloads(tmp_path: Path) -> None:
    made = b"".join(payload(3500))
    header = ds4kv.dump(tmp_path / "synthetic.kv", made, tokens=3500, ctx_size=100_000)
    assert len(made) / header.payload_bytes == pytest.approx(1.56, rel=0.03)
