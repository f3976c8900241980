"""The arithmetic of the engine that rows of a synthetic payload go through: RoPE, Hadamard, rounding to few bits.

:mod:`ds4kv.cli.synthetic` draws the rows. These steps are written for speed, as benchmarks wait for them;
tests/test_synthetic.py holds each against its plain definition.
"""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "E2M1",
    "E4M3",
    "PIECE_ROWS",
    "ROPE_DIM",
    "Floats",
    "Minifloat",
    "Rope",
    "hadamard",
    "rope",
    "round_all_but_rope",
    "round_to",
]

Floats: TypeAlias = NDArray[np.float32]

ROPE_DIM = 64
PIECE_ROWS = 256  # rows that are made, and turned, at a time

_SIGN_BIT = np.int32(-(1 << 31))
_EXPONENT_BITS = np.int32(0x7F800000)


class Minifloat(NamedTuple):
    """A float format of a few bits; a group of values shares one power of two as its scale."""

    mantissa_bits: int
    min_exponent: int
    largest: float
    group_size: int


E4M3 = Minifloat(mantissa_bits=3, min_exponent=-6, largest=448.0, group_size=64)
E2M1 = Minifloat(mantissa_bits=1, min_exponent=0, largest=6.0, group_size=32)


class Rope:
    """Rotary position embedding: a pair of channels is a complex number, turned in proportion to position."""

    def __init__(self, frequencies: NDArray[np.float64], tokens_per_row: int) -> None:
        self._speeds = 1j * frequencies * tokens_per_row
        self._turns = np.exp(np.outer(np.arange(PIECE_ROWS), self._speeds)).astype(np.complex64)

    def rotate(self, channels: Floats, first: int) -> None:
        """Turns the channels of consecutive rows; the first of them is row ``first`` of the tensor."""
        pairs = channels.view(np.complex64)
        pairs *= self._turns * np.exp(first * self._speeds).astype(np.complex64)


@cache
def rope(*, compressed: bool, tokens_per_row: int) -> Rope:
    base = 160_000.0 if compressed else 10_000.0
    frequencies = base ** (-np.arange(0, ROPE_DIM, 2) / ROPE_DIM)
    if compressed:
        frequencies *= _yarn(base)
    return Rope(frequencies, tokens_per_row)


def _yarn(base: float) -> NDArray[np.float64]:
    """Returns the factors by which YaRN slows the pairs down to make a 16 times longer context fit.

    Pairs that turn more than 32 times over the context of the training stay, those that turn less than once
    are slowed 16 times, and there is a ramp between them.
    """
    stretch, trained_ctx, fast_turns, slow_turns = 16, 65536, 32, 1

    def pair_that_turns(turns: int) -> float:
        return ROPE_DIM / 2 * math.log(trained_ctx / (2 * math.pi * turns), base)

    low = math.floor(pair_that_turns(fast_turns))
    high = math.ceil(pair_that_turns(slow_turns))
    ramp = np.clip((np.arange(ROPE_DIM // 2) - low) / (high - low), 0, 1)
    factors: NDArray[np.float64] = 1 - ramp + ramp / stretch
    return factors


def hadamard(rows: Floats) -> Floats:
    """Returns the orthonormal Walsh-Hadamard transform of each row.

    Butterflies over whole channels, not a matrix product: the threads of a BLAS fight for the cores with the
    compressor that the payload is made for, and then take four times as long.
    """
    dim = rows.shape[1]
    channels = np.ascontiguousarray(rows.T)
    # Each round transforms the highest bit of the channel number and makes it the lowest.
    for _ in range(dim.bit_length() - 1):
        low, high = channels[: dim // 2], channels[dim // 2 :]
        channels = np.stack((low + high, low - high), axis=1).reshape(dim, -1)
    return np.multiply(channels.T, np.float32(dim**-0.5), order="C")


def round_all_but_rope(rows: Floats) -> None:
    groups = rows.reshape(len(rows), -1, E4M3.group_size)
    round_to(groups[:, : -ROPE_DIM // E4M3.group_size], E4M3)


def round_to(groups: Floats, grid: Minifloat) -> None:
    """Rounds groups, the last axis, to the grid in place: to nearest, ties to even, the sign of a zero kept."""
    magnitudes = np.abs(groups)
    bits = magnitudes.view(np.int32)
    # Floats that are not negative are in the order of their bits, and integers have the faster maximum.
    amax = bits.max(axis=-1, keepdims=True).view(np.float32)
    fraction, exponent = np.frexp(np.maximum(amax, np.float32(1e-4)) / np.float32(grid.largest))
    scale_exponent = exponent - (fraction == 0.5)
    # The power of two below a value, or the smallest normal one, is 2**mantissa_bits grid steps. Adding so many
    # of it that a step becomes the last bit of the sum leaves the rounding to the FPU.
    anchors = (bits & _EXPONENT_BITS).view(np.float32)
    np.maximum(anchors, np.ldexp(np.float32(1), scale_exponent + grid.min_exponent), out=anchors)
    anchors *= np.float32(2.0 ** (23 - grid.mantissa_bits))
    magnitudes += anchors
    magnitudes -= anchors
    words = groups.view(np.int32)
    words &= _SIGN_BIT
    words |= bits
