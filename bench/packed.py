"""Layout packed: each promise, and what it measures. Run by throughput.py.

Saves are dumps of memory and loads are into warm memory, from the page cache, both with two workers.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import common
import numpy as np
from common import FACTS, table
from reach import settle

import ds4kv

PACKED = {"layout": "packed"}
RUNS = {"layout": "packed", "level": -1}


def half_payloads(path: str | Path, at_least: int) -> dict[str, bytearray]:
    """Real bfloat16 of a file, over and over, and what llama.cpp would have kept of the same numbers: float16, and its
    q8_0, where 32 numbers are 8 bits each and a scale.

    The bits that float16 has and bfloat16 hasn't are drawn, as real ones are noise too.
    """
    bf16 = common.file_payload(path, at_least)
    draw = np.random.default_rng(1)
    bits = np.frombuffer(bf16, np.uint16).astype(np.uint32) << 16
    bits |= draw.integers(0, 1 << 16, bits.size, np.uint32)
    numbers = bits.view(np.float32)[: bits.size // 32 * 32]
    blocks = numbers.reshape(-1, 32)
    scales = np.abs(blocks).max(axis=1) / 127
    whole = np.rint(blocks / np.where(scales == 0, 1, scales)[:, None]).astype(np.int8)
    q8_0 = np.empty((len(blocks), 34), np.uint8)
    q8_0[:, :2] = scales.astype(np.float16).view(np.uint8).reshape(-1, 2)
    q8_0[:, 2:] = whole.view(np.uint8)
    halves = {"real bf16": bf16, "f16": bytearray(numbers.astype(np.float16).tobytes()), "q8_0": bytearray(q8_0)}
    return {**halves, "noise": bytearray(os.urandom(at_least))}


def promises(directory: str, payload: bytearray, name: str, rounds: int) -> None:
    """Prints what each layout takes, and each promise beside what it comes to."""
    paths = {what: os.path.join(directory, f"{what}.kv") for what in ("v2", "raw", "packed", "runs")}
    hows = {"v2": {}, "raw": {"codec": "none"}, "packed": PACKED, "runs": RUNS}
    into = common.warm_memory(len(payload))
    for what, path in paths.items():
        ds4kv.dump(path, payload, workers=2, **hows[what], **FACTS)
    cases: dict[str, Callable[[], object]] = {}
    for what, path in paths.items():
        cases[f"save {what}"] = lambda path=path, how=hows[what]: ds4kv.dump(path, payload, workers=2, **how, **FACTS)
    cases["settle"] = lambda: settle(*paths.values(), into=into)
    for what, path in paths.items():
        cases[f"load {what}"] = lambda path=path: ds4kv.load(path, into=into, workers=2)
    t = common.in_turns(cases, rounds, backed=4 * len(payload))
    ratio = {what: len(payload) / ds4kv.read_header(path).payload_bytes for what, path in paths.items()}
    print(f"\n{name}: {len(payload) / 1e6:.1f} MB; packed {ratio['packed']:.3f}x, at level -1 {ratio['runs']:.3f}x")
    print(table(["case", "ms"], [[case, f"{spent * 1e3:.1f}"] for case, spent in t.items()]))
    rows = [
        ("save v2 / save packed", t["save v2"] / t["save packed"], "at least 2.2"),
        ("load v2 / load packed", t["load v2"] / t["load packed"], "at least 1"),
        ("save at level -1 / save raw", t["save runs"] / t["save raw"], "at most 1"),
        ("load v2 / load at level -1", t["load v2"] / t["load runs"], "at least 1.3"),
        ("ratio at level -1", ratio["runs"], "at least 2.5"),
    ]
    print(table(["promise", "measured", "aim"], [[what, f"{is_:.3f}", aim] for what, is_, aim in rows]))


def promises_of_half(directory: str, payload: bytearray, name: str, rounds: int) -> None:
    """The same of numbers of 16 bits, and of what doesn't get smaller at all."""
    raw, packed = (os.path.join(directory, file) for file in ("raw.kv", "packed.kv"))
    into = common.warm_memory(len(payload))
    cases: dict[str, Callable[[], object]] = {
        "save raw": lambda: ds4kv.dump(raw, payload, codec="none", **FACTS),
        "save packed": lambda: ds4kv.dump(packed, payload, workers=2, **PACKED, **FACTS),
        "settle": lambda: settle(raw, packed, into=into),
        "load raw": lambda: ds4kv.load(raw, into=into, workers=2),
        "load packed": lambda: ds4kv.load(packed, into=into, workers=2),
    }
    t = common.in_turns(cases, rounds, backed=4 * len(payload))
    ratio = len(payload) / ds4kv.read_header(packed).payload_bytes
    print(f"\n{name}: {len(payload) / 1e6:.1f} MB; packed {ratio:.3f}x")
    print(f"save packed / save raw: {t['save packed'] / t['save raw']:.3f} (aim 1.1 where the ratio is 1)")
    print(f"load packed / load raw: {t['load packed'] / t['load raw']:.3f}")
