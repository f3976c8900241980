"""A synthetic DeepSeek V4 payload: what the engine saves, without the engine.

Benchmarks and tests need payloads of any length, and a real one takes a large GPU and the weights of the model.
``payload()`` streams one that has the real layout to the byte ("DSV4" version 1, everything little-endian), as a
GPU saves it after the prefill of a prompt:

    13 words of shape | token ids | next-token logits | row counts of each layer | layer 0 .. layer 42

    layer = raw rows                                     every layer: the last 128 tokens
            compressed rows, kv state, score state       layers 2..42
            indexer rows, kv state, score state          even layers 2..42

It compresses like the real thing because it is made like the real thing. Rows are drawn as Gaussian channels
(``_rows``), then take the steps the engine takes with its own values: RMS norm, RoPE, Hadamard, rounding to FP8,
FP4 or f16. These few-bit grids are what makes a payload compressible. Two constants, WEIGHT_SPREAD and
OFFSET_SPREAD, are fitted to published LZ4 ratios; without them a payload compresses some 4 % too well.

Rows come in pieces of 256, each with a seed of its own, so that the rows of a short payload are a prefix of
those of a longer one, as they are when a conversation grows. Memory stays at a few MiB whatever the length.

``tokens``, ``ctx_size`` and ``seed`` determine the bytes. Only the last bit of a sum may depend on the CPU and on
the version of NumPy, so compare payloads made on one machine.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from enum import IntEnum
from functools import cache
from statistics import NormalDist
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ds4kv.cli.engine_math import E2M1, PIECE_ROWS, ROPE_DIM, Floats, Rope, hadamard, rope, round_all_but_rope, round_to

__all__ = ["payload", "payload_bytes"]

Words: TypeAlias = NDArray[np.uint32]

# The model. Layers 0 and 1 keep raw rows only. From layer 2 on, one compressed row stands for 4 tokens on even
# layers and for 128 on odd ones; the layers that compress by 4 also have an indexer.
VOCAB_SIZE = 129280
LAYER_RATIOS = (0, 0, *(128 if layer % 2 else 4 for layer in range(2, 43)))
LAYER_COUNT = len(LAYER_RATIOS)
HEAD_DIM = 512
INDEXER_DIM = 128
RAW_WINDOW = 128

# The engine reads a prompt in prefill chunks of this many tokens; where they end decides what a state holds.
PREFILL_CHUNK = 2048

HEADER_WORDS = 13
WORD_BYTES = 4

# How rows are drawn, see _rows(). WEIGHT_SPREAD is in natural logarithm, the others in units of the standard
# deviation of a channel.
WEIGHT_SPREAD = 1.6
OFFSET_SPREAD = 2.7
SEGMENT_SPREAD = 0.3
SEGMENT_ROWS = 64

PIECE_IDS = 1 << 17


class _Tensor(IntEnum):
    """What a stream of random numbers is for: part of its seed, so the values must stay."""

    TOKEN_IDS = 0
    LOGITS = 1
    RAW = 2
    COMPRESSED = 3
    STATE = 4
    INDEXER = 5
    INDEXER_STATE = 6


def payload_bytes(tokens: int, ctx_size: int) -> int:
    """Returns the size of the payload of ``tokens`` tokens saved from a context of ``ctx_size``."""
    raw_rows = min(RAW_WINDOW, ctx_size, tokens)
    words = HEADER_WORDS + tokens + VOCAB_SIZE + 2 * LAYER_COUNT + LAYER_COUNT * raw_rows * HEAD_DIM
    for ratio in LAYER_RATIOS:
        if ratio:
            words += tokens // ratio * HEAD_DIM + 2 * math.prod(_state_shape(ratio, HEAD_DIM))
        if ratio == 4:
            words += tokens // ratio * INDEXER_DIM + 2 * math.prod(_state_shape(ratio, INDEXER_DIM))
    return words * WORD_BYTES


def payload(tokens: int, *, ctx_size: int = 100_000, seed: int = 1) -> Iterator[memoryview]:
    """Returns an iterator over the payload of ``tokens`` tokens saved from a context of ``ctx_size``.

    It yields views of at most 512 KiB; each has memory of its own and stays as it is. Raises ValueError for a
    payload no engine would load: ``tokens`` must be at least 1 and below ``ctx_size``.
    """
    if not 0 < tokens < ctx_size:
        raise ValueError(f"tokens must be at least 1 and below ctx_size ({ctx_size}), not {tokens}")
    return map(_view_bytes, _pieces(tokens, ctx_size, seed))


def _view_bytes(piece: Floats | Words) -> memoryview:
    little_endian = piece.astype(piece.dtype.newbyteorder("<"), copy=False)
    return little_endian.reshape(-1).view(np.uint8).data


def _pieces(tokens: int, ctx_size: int, seed: int) -> Iterator[Floats | Words]:
    yield _header(tokens, ctx_size)
    yield from _token_ids(tokens, seed)
    yield _logits(tokens, seed)
    yield np.array([tokens // ratio if ratio else 0 for ratio in LAYER_RATIOS], np.uint32)
    yield np.array([tokens // ratio if ratio == 4 else 0 for ratio in LAYER_RATIOS], np.uint32)
    for layer, ratio in enumerate(LAYER_RATIOS):
        yield from _raw_rows(tokens, layer, seed)
        if ratio:
            yield from _compressed_rows(tokens, layer, seed)
            yield from _states(tokens, ratio, HEAD_DIM, _bits(seed, _Tensor.STATE, layer, tokens))
        if ratio == 4:
            yield from _indexer_rows(tokens, layer, seed)
            yield from _states(tokens, ratio, INDEXER_DIM, _bits(seed, _Tensor.INDEXER_STATE, layer, tokens))


def _header(tokens: int, ctx_size: int) -> Words:
    prefill_chunk = min(PREFILL_CHUNK, ctx_size)
    raw_window = min(RAW_WINDOW, ctx_size)
    # The ring of raw rows a GPU allocates: a prefill chunk and the window before it, in steps of 256 rows.
    raw_capacity = min(ctx_size, -(-(RAW_WINDOW + prefill_chunk) // 256) * 256)
    compressed_capacity = ctx_size // 4 + 2
    return np.array(
        [
            int.from_bytes(b"DSV4", "little"),
            1,
            ctx_size,
            prefill_chunk,
            raw_capacity,
            raw_window,
            compressed_capacity,
            tokens,
            LAYER_COUNT,
            HEAD_DIM,
            INDEXER_DIM,
            VOCAB_SIZE,
            min(raw_window, tokens),
        ],
        np.uint32,
    )


def _token_ids(tokens: int, seed: int) -> Iterator[Words]:
    for first in range(0, tokens, PIECE_IDS):
        uniform = _bits(seed, _Tensor.TOKEN_IDS, first).random_raw(PIECE_IDS)[: tokens - first] / 2.0**64
        # Uniform in the logarithm, as Zipf's law has it: a text repeats few words and uses many of them once.
        yield (VOCAB_SIZE**uniform).astype(np.uint32) - 1


def _logits(tokens: int, seed: int) -> Floats:
    return 2.5 * _fine_normal(_bits(seed, _Tensor.LOGITS, tokens), (VOCAB_SIZE,)) - 5


def _raw_rows(tokens: int, layer: int, seed: int) -> Iterator[Floats]:
    rotation = rope(compressed=LAYER_RATIOS[layer] > 0, tokens_per_row=1)
    first = max(tokens - RAW_WINDOW, 0)
    for rows in _rows(first, tokens, HEAD_DIM, rotation, (seed, _Tensor.RAW, layer)):
        round_all_but_rope(rows)
        yield rows.astype(np.float16).astype(np.float32)


def _compressed_rows(tokens: int, layer: int, seed: int) -> Iterator[Floats]:
    ratio = LAYER_RATIOS[layer]
    rotation = rope(compressed=True, tokens_per_row=ratio)
    for rows in _rows(0, tokens // ratio, HEAD_DIM, rotation, (seed, _Tensor.COMPRESSED, layer)):
        round_all_but_rope(rows)
        yield rows


def _indexer_rows(tokens: int, layer: int, seed: int) -> Iterator[Floats]:
    ratio = LAYER_RATIOS[layer]
    rotation = rope(compressed=True, tokens_per_row=ratio)
    for rows in _rows(0, tokens // ratio, INDEXER_DIM, rotation, (seed, _Tensor.INDEXER, layer)):
        mixed = hadamard(rows)
        round_to(mixed.reshape(len(mixed), -1, E2M1.group_size), E2M1)
        yield mixed


def _states(tokens: int, ratio: int, dim: int, bits: np.random.SFC64) -> Iterator[Floats]:
    """Yields the kv and the score state: projections of the tokens that the next compressed row will pool.

    They are not rounded to any grid, so a live row does not compress. An unused row is constant.
    """
    held = np.array(_held_positions(tokens, ratio))
    for unused in (0.0, -math.inf):
        drawn = _fine_normal(bits, _state_shape(ratio, dim))
        # Rows that hold the same position are the same row.
        state = drawn[held % len(drawn)]
        state[held < 0] = unused
        yield state


def _state_shape(ratio: int, dim: int) -> tuple[int, int]:
    # Pooling over 4 tokens overlaps the window before, which keeps rows and channels of its own.
    windows = 2 if ratio == 4 else 1
    return windows * ratio, windows * dim


def _held_positions(tokens: int, ratio: int) -> list[int]:
    """Returns the position of the token that each row of a state holds after a prefill, -1 for an unused row."""
    start = (tokens - 1) // PREFILL_CHUNK * PREFILL_CHUNK
    pooled = tokens - tokens % ratio
    # The first prefill chunk, and a later one that the ratio divides, is pooled at once and leaves only what
    # remains over. Another later one fills row after row, and a row keeps what it holds until its next turn.
    row_by_row = start > 0 and (tokens - start) % ratio > 0
    current = [-1] * ratio
    for position in range(start if row_by_row else pooled, tokens):
        current[position % ratio] = position
    if ratio != 4:
        return current
    previous = list(range(pooled - ratio, pooled)) if pooled else [-1] * ratio
    return previous + current


def _rows(first: int, end: int, dim: int, rotation: Rope, key: tuple[int, ...]) -> Iterator[Floats]:
    """Yields rows ``first`` to ``end - 1`` of one tensor in pieces: normed and rotated, not yet rounded to a grid.

    A channel is Gaussian noise around an offset of its own, with a part of the noise held for a segment of rows
    at a time, as neighbouring tokens resemble each other. The norm scales each row, a weight each channel.
    """
    profile = _bits(*key)
    offsets = OFFSET_SPREAD * _normal(profile, (dim,))
    weights = math.sqrt(dim) * np.exp(WEIGHT_SPREAD * _normal(profile, (dim,)))
    noise_spread = math.sqrt(1 - SEGMENT_SPREAD**2)
    for start in range(first - first % PIECE_ROWS, end, PIECE_ROWS):
        bits = _bits(*key, start)
        segments = SEGMENT_SPREAD * _normal(bits, (PIECE_ROWS // SEGMENT_ROWS, 1, dim))
        rows = _normal(bits, (PIECE_ROWS, dim))
        # The noise stays at spread 1, which saves a pass: the norm makes the common factor vanish.
        rows.reshape(-1, SEGMENT_ROWS, dim)[...] += (offsets + segments) / noise_spread
        norms = np.sqrt(np.einsum("ij,ij->i", rows, rows))
        rows *= weights
        rows /= norms[:, np.newaxis]
        rotation.rotate(rows[:, -ROPE_DIM:], start)
        yield rows[max(first - start, 0) : end - start]


def _bits(seed: int, *key: int) -> np.random.SFC64:
    """Returns the source of random bits for one use; every key has a stream of its own."""
    return np.random.SFC64(np.random.SeedSequence(seed, spawn_key=key))


def _normal(bits: np.random.SFC64, shape: tuple[int, ...]) -> Floats:
    """Draws normal values of 65536 levels: plenty for what is rounded to a few bits, and five times as fast."""
    levels = bits.random_raw(math.prod(shape) // 4).view(np.uint16)
    return _quantiles().take(levels).reshape(shape)


def _fine_normal(bits: np.random.SFC64, shape: tuple[int, ...]) -> Floats:
    """Draws normal values too many to repeat within reach of LZ4, for what is not rounded."""
    # The squares add up to 1. Equal parts would cancel too often: levels come in pairs, plus and minus.
    return 0.8 * _normal(bits, shape) + 0.6 * _normal(bits, shape)


@cache
def _quantiles() -> Floats:
    quantile = NormalDist().inv_cdf
    return np.array([quantile((level + 0.5) / 65536) for level in range(65536)], np.float32)
