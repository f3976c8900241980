"""What layouts and levels make of payloads, what they cost, and what proofs cost. Run by throughput.py.

Saves are dumps of memory and loads are into warm memory, from the page cache, both with two workers.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import bare
import common
import numpy as np
import xxhash
from common import FACTS, table

import ds4kv
from ds4kv.format.header import CHECKED_CHUNK_SIZE, Form

HOWS = {
    "v1": {"layout": "v1"},
    "v2": {"layout": "v2"},
    "v2, level 1": {"layout": "v2", "level": 1},
    "v2, level 9": {"layout": "v2", "level": 9},
    "v2, level 12": {"layout": "v2", "level": 12},
    "v2-checked, level -1": {"layout": "v2-checked", "level": -1},
    "v2-checked, level 0": {"layout": "v2-checked", "level": 0},
    "v2-checked": {"layout": "v2-checked"},
    "v2-checked, level 9": {"layout": "v2-checked", "level": 9},
    "v2-checked, level 12": {"layout": "v2-checked", "level": 12},
    "packed, level -1": {"layout": "packed", "level": -1},
    "packed": {"layout": "packed"},
    "packed, level 1": {"layout": "packed", "level": 1},
    "packed, level 9": {"layout": "packed", "level": 9},
}
SLOW = 9  # levels from here on are saved in one round: seconds, which need no median


def compare(directory: str, payloads: dict[str, bytearray], rounds: int) -> None:
    """Prints size, save and load of each layout, a table in Markdown."""
    print("| payload | layout | ratio | save, MB/s | load, MB/s |")
    print("|---|---|---:|---:|---:|")
    for name, payload in payloads.items():
        into = common.warm_memory(len(payload))
        cases: dict[str, Callable[[], object]] = {}
        slow: dict[str, float] = {}
        for how, options in HOWS.items():
            path = os.path.join(directory, how)

            def save(path: str = path, options: dict[str, object] = options, payload: bytearray = payload) -> None:
                ds4kv.dump(path, payload, workers=2, **options, **FACTS)

            if options.get("level", 0) >= SLOW:
                slow[f"save {how}"] = common.seconds(save)
            else:
                cases[f"save {how}"] = save
            cases[f"load {how}"] = lambda path=path, into=into: ds4kv.load(path, into=into, workers=2)
        t = slow | common.in_turns(cases, rounds, backed=4 * len(payload))
        for how in HOWS:
            path = os.path.join(directory, how)
            ratio = len(payload) / ds4kv.read_header(path).payload_bytes
            rates = [f"{len(payload) / t[f'{what} {how}'] / 1e6:,.0f}" for what in ("save", "load")]
            print(f"| {name} | {how} | {ratio:.3f} | {' | '.join(rates)} |")
            os.unlink(path)


def promises(directory: str, payload: bytearray, name: str, rounds: int) -> None:
    """Prints what checked files and noted ones cost, beside what they can't do without."""
    plain, checked, raw = (os.path.join(directory, file) for file in ("plain.kv", "checked.kv", "raw.kv"))
    store = os.path.join(directory, "store")
    into = common.warm_memory(len(payload))
    ds4kv.dump(checked, payload, workers=2, layout="v2-checked", level=0, **FACTS)
    ds4kv.dump(raw, payload, layout="v1", **FACTS)
    blocks = common.region_of(checked)
    with ds4kv.Store(store, budget_mb=1 << 20, min_tokens=1) as noting:
        entry = noting.save_buffer(name.encode(), payload, **FACTS)
    assert entry is not None

    sources, targets = (
        [
            np.frombuffer(memory, np.uint8)[start : start + CHECKED_CHUNK_SIZE]
            for start in range(0, len(payload), CHECKED_CHUNK_SIZE)
        ]
        for memory in (payload, into)
    )
    pool = ThreadPoolExecutor(2)

    cases: dict[str, Callable[[], object]] = {
        "dump v2": lambda: ds4kv.dump(plain, payload, workers=2, **FACTS),
        "dump checked": lambda: ds4kv.dump(checked, payload, workers=2, layout="v2-checked", level=0, **FACTS),
        "load checked": lambda: ds4kv.load(checked, into=into, workers=2),
        "load raw": lambda: ds4kv.load(raw, into=into),
        "bare decode 1": bare.decoder(blocks, Form.CHECKED, into, bare.Threads(1)),
        "bare copy 1": lambda: list(map(np.copyto, targets, sources)),
        "bare xxh32 1": lambda: list(map(xxhash.xxh32_intdigest, sources)),
        "bare decode 2": bare.decoder(blocks, Form.CHECKED, into, bare.Threads(2)),
        "bare copy 2": lambda: list(pool.map(np.copyto, targets, sources)),
        "bare xxh32 2": lambda: list(pool.map(xxhash.xxh32_intdigest, sources)),
        "load v2": lambda: ds4kv.load(entry.path, into=into, workers=2, verify=False),
        "load v2, held against its sums": lambda: ds4kv.load(entry.path, into=into, workers=2),
    }
    t = common.in_turns(cases, rounds, backed=3 * len(payload))
    pool.shutdown()
    alone, together = (sum(t[f"bare {what} {n}"] for what in ("decode", "copy", "xxh32")) for n in (1, 2))
    ratio = len(payload) / ds4kv.read_header(checked).payload_bytes
    print(f"\n{name}: v2-checked at level 0, ratio {ratio:.3f} (aim 2.05)")
    print(table(["case", "ms"], [[case, f"{spent * 1e3:.1f}"] for case, spent in t.items()]))
    rows = [
        ("dump v2 / dump v2-checked", t["dump v2"] / t["dump checked"], "at least 1.5"),
        ("load v2-checked / (bare decode + copy + XXH32, by 1) x 2", 2 * t["load checked"] / alone, "at most 1.15"),
        ("load v2-checked / (bare decode + copy + XXH32, by 2)", t["load checked"] / together, "at most 1.15"),
        ("load v2-checked / load raw", t["load checked"] / t["load raw"], "at most 1"),
        ("load v2 with sums / without", t["load v2, held against its sums"] / t["load v2"], "at most 1.1"),
    ]
    print(table(["promise", "measured", "aim"], [[what, f"{is_:.3f}", aim] for what, is_, aim in rows]))
