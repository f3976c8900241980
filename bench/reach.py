"""Each promise, and what it measures. Run by throughput.py.

Saves are dumps of memory, and loads are into warm memory from the page cache, unless they say otherwise.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import statistics
import threading
import time
from collections.abc import Callable

import bare
import common
from common import FACTS, MIB, table

import ds4kv
from ds4kv.format.header import CHUNK_SIZE, Form

PIECE = 8 * MIB
LARGE_PIECE = 64 * MIB
PARTS = 100
RUNS = {"layout": "v2-checked", "level": -1}
LOADS = [("", "load", "load 2"), ("level -1 ", "runs load", "runs load"), ("raw ", "raw load", "raw load")]
PIECES = [("", "stream load", "load 2"), *LOADS[1:]]
"""What to call it, the name of its cases in pieces or parts, and that of the case that loads the whole."""


class Null(io.RawIOBase):
    """Takes everything and keeps nothing."""

    def writable(self) -> bool:
        return True

    def write(self, b: memoryview) -> int:
        return len(b)


def stream_save(path: str, payload: bytearray, workers: int, piece: int = PIECE) -> None:
    view = memoryview(payload)
    with ds4kv.create(path, workers=workers, **FACTS) as checkpoint:
        for start in range(0, len(view), piece):
            checkpoint.payload.write(view[start : start + piece])


def stream_load(path: str, into: memoryview, workers: int, piece: int = PIECE) -> None:
    view = memoryview(into)
    with ds4kv.open(path, workers=workers) as checkpoint:
        for start in range(0, len(view), piece):
            checkpoint.payload.readinto(view[start : start + piece])


def iter_load(path: str, into: memoryview, workers: int) -> None:
    with ds4kv.open(path, workers=workers) as checkpoint:
        for _ in checkpoint.payload.iter_into(into):
            pass


def parts_of(payload: bytearray, count: int) -> list[memoryview]:
    """It all in so many parts, each in memory of its own; where they end has nothing to do with chunks."""
    view = memoryview(payload)
    ends = [len(view) * i // count for i in range(count + 1)]
    parts = [common.warm_memory(end - start) for start, end in itertools.pairwise(ends)]
    for part, start in zip(parts, ends[:-1], strict=True):
        part[:] = view[start : start + len(part)]
    return parts


def buffered_writes(raw: io.RawIOBase, payload: bytearray, size: int) -> None:
    """Many small writes through a buffer of the default size, which stays open."""
    view = memoryview(payload)
    fp = io.BufferedWriter(raw)
    for start in range(0, len(view), size):
        fp.write(view[start : start + size])
    fp.flush()
    fp.detach()


def buffered_save(path: str, payload: bytearray, size: int) -> None:
    with ds4kv.create(path, workers=2, **FACTS) as checkpoint:
        buffered_writes(checkpoint.payload, payload, size)


def longest_pause(work: Callable[[], object]) -> float:
    """The longest that another Python thread, which asks for it all the time, had to wait for the GIL, in seconds.

    It has real-time priority where that is allowed: else it would wait for a CPU as well, behind two busy workers.
    """
    longest, stop, nap = 0.0, threading.Event(), 0.0002

    def watch() -> None:
        nonlocal longest
        with contextlib.suppress(PermissionError):
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
        last = time.perf_counter()
        while not stop.is_set():
            time.sleep(nap)
            now = time.perf_counter()
            longest, last = max(longest, now - last - nap), now

    watcher = threading.Thread(target=watch)
    watcher.start()
    work()
    stop.set()
    watcher.join()
    return longest


def settle(*paths: str, into: memoryview) -> None:
    """Reads files that were just written, twice: the kernel's books of their pages change with each of the first reads,
    and who came first would pay for who comes next.
    """
    for path in 2 * paths:
        common.read_file(path, into)


def reach(directory: str, payload: bytearray, name: str, rounds: int) -> None:
    """Prints what everything takes, and each promise beside what it comes to."""
    lz4, raw, runs, other = (os.path.join(directory, file) for file in ("lz4.kv", "raw.kv", "runs.kv", "other"))
    into = common.warm_memory(len(payload))
    ds4kv.dump(lz4, payload, workers=2, **FACTS)
    ds4kv.dump(raw, payload, codec="none", **FACTS)
    ds4kv.dump(runs, payload, workers=2, **RUNS, **FACTS)
    region = common.region_of(lz4)
    few = payload[: 32 * MIB]
    sources, targets = parts_of(payload, PARTS), parts_of(payload, PARTS)
    one, two = bare.Threads(1), bare.Threads(2)
    cases: dict[str, Callable[[], object]] = {
        "bare compress 1": bare.compressor(payload, CHUNK_SIZE, one),
        "bare compress 2": bare.compressor(payload, CHUNK_SIZE, two),
        "bare decode 1": bare.decoder(region, Form.PLAIN, into, one),
        "bare decode 2": bare.decoder(region, Form.PLAIN, into, two),
        "write": lambda: common.write_file(other, region),
        "few dump": lambda: ds4kv.dump(other, few, workers=2, **FACTS),
        "few by 4 KiB": lambda: buffered_save(other, few, 4096),
        "4 KiB to null": lambda: buffered_writes(Null(), few, 4096),
        "few by 64 B": lambda: buffered_save(other, few, 64),
        "64 B to null": lambda: buffered_writes(Null(), few, 64),
        "dump 1": lambda: ds4kv.dump(lz4, payload, workers=1, **FACTS),
        "dump 2": lambda: ds4kv.dump(lz4, payload, workers=2, **FACTS),
        "dump 8": lambda: ds4kv.dump(lz4, payload, workers=8, **FACTS),
        "dump 100 parts": lambda: ds4kv.dump(lz4, sources, workers=2, **FACTS),
        "stream save": lambda: stream_save(lz4, payload, 2),
        "runs dump": lambda: ds4kv.dump(runs, payload, workers=2, **RUNS, **FACTS),
        "raw dump": lambda: ds4kv.dump(raw, payload, codec="none", **FACTS),
        "settle": lambda: settle(lz4, raw, runs, into=into),
        "read": bare.reader(lz4, len(region), into, one),
        "load 1": lambda: ds4kv.load(lz4, into=into, workers=1),
        "load 2": lambda: ds4kv.load(lz4, into=into, workers=2),
        "load 8": lambda: ds4kv.load(lz4, into=into, workers=8),
        "load 100 parts": lambda: ds4kv.load(lz4, into=targets, workers=2),
        "stream load": lambda: stream_load(lz4, into, 2),
        "stream load 64": lambda: stream_load(lz4, into, 2, LARGE_PIECE),
        "iter_into": lambda: iter_load(lz4, into, 2),
        "load fresh": lambda: ds4kv.load(lz4, workers=2),
        "runs load": lambda: ds4kv.load(runs, into=into, workers=2),
        "runs load 64": lambda: stream_load(runs, into, 2, LARGE_PIECE),
        "runs load 100 parts": lambda: ds4kv.load(runs, into=targets, workers=2),
        "raw load": lambda: ds4kv.load(raw, into=into, workers=2),
        "raw load 64": lambda: stream_load(raw, into, 2, LARGE_PIECE),
        "raw load 100 parts": lambda: ds4kv.load(raw, into=targets, workers=2),
        "raw read 1": lambda: common.read_file(raw, into),
        "raw load fresh": lambda: ds4kv.load(raw),
    }
    t = common.in_turns(cases, rounds, backed=3 * len(payload))
    save_bound = (t["bare compress 1"] + t["write"]) / 2
    pause = statistics.median(longest_pause(cases["dump 2"]) for _ in range(rounds))

    print(f"\n{name}: {len(payload) / MIB:.2f} MiB, lz4 ratio {len(payload) / len(region):.3f}")
    rows = [[case, f"{spent * 1e3:.1f}", f"{len(payload) / spent / 1e6:,.0f}"] for case, spent in t.items()]
    print(
        table(
            ["case", "ms", "MB/s of payload"],
            [row for row in rows if not {"few", "null", "settle"} & {*row[0].split()}],
        )
    )
    ratio = len(payload) / ds4kv.read_header(runs).payload_bytes
    promises = [
        ("dump 2 / bare compress by 2", t["dump 2"] / t["bare compress 2"], 1.25),
        ("dump 2 / ((bare compress + write) / 2)", t["dump 2"] / save_bound, 1.12),
        ("load 2 / bare decode by 2", t["load 2"] / t["bare decode 2"], 1.25),
        ("load 2 / (bare decode by 2 + read / 2)", t["load 2"] / (t["bare decode 2"] + t["read"] / 2), 1.1),
        ("ratio of level -1, at least", ratio, 1.7),
        ("dump at level -1 / raw dump", t["runs dump"] / t["raw dump"], 1.0),
        ("load of level -1 / one thread's read of raw", t["runs load"] / t["raw read 1"], 1.0),
        ("raw load / one thread's read", t["raw load"] / t["raw read 1"], 0.75),
        ("load 2 / raw load", t["load 2"] / t["raw load"], 1.0),
        ("load fresh / raw load fresh", t["load fresh"] / t["raw load fresh"], 1.0),
        ("stream save by 8 MiB / dump 2", t["stream save"] / t["dump 2"], 1.2),
        ("stream load by 8 MiB / load 2", t["stream load"] / t["load 2"], 1.2),
        *((f"{what}load by 64 MiB / whole", t[f"{stream} 64"] / t[whole], 1.15) for what, stream, whole in PIECES),
        ("iter_into / load 2", t["iter_into"] / t["load 2"], 1.1),
        ("dump of 100 parts / whole", t["dump 100 parts"] / t["dump 2"], 1.1),
        *(
            (f"{what}load into 100 parts / whole", t[f"{whole} 100 parts"] / t[load], 1.1)
            for what, whole, load in LOADS
        ),
        ("4 KiB writes / (dump + null)", t["few by 4 KiB"] / (t["few dump"] + t["4 KiB to null"]), 1.0),
        ("64 B writes / (dump + null)", t["few by 64 B"] / (t["few dump"] + t["64 B to null"]), 1.0),
        ("dump 1 / dump 2 / 2 (efficiency)", t["dump 1"] / t["dump 2"] / 2, 0.9),
        ("bare compress 1 / 2 / 2 (the machine's)", t["bare compress 1"] / t["bare compress 2"] / 2, 0.9),
        ("load 1 / load 2 / 2 (efficiency)", t["load 1"] / t["load 2"] / 2, 0.9),
        ("bare decode 1 / 2 / 2 (the machine's)", t["bare decode 1"] / t["bare decode 2"] / 2, 0.9),
        ("dump 8 / dump 2", t["dump 8"] / t["dump 2"], 1.05),
        ("load 8 / load 2", t["load 8"] / t["load 2"], 1.05),
        ("longest wait for the GIL in a dump, ms", pause * 1e3, 5.0),
    ]
    print(table(["promise", "measured", "aim"], [[what, f"{is_:.3f}", f"{aim}"] for what, is_, aim in promises]))
