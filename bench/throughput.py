"""How fast are saves and loads, against LZ4 alone and against raw files?

    python bench/throughput.py reach [--tokens 17000 47000] [--dir DIR]      each promise, and what it measures
    python bench/throughput.py small [--dir DIR]                             64 KiB to 4 MiB
    python bench/throughput.py disk  [--tokens 17000] --dir DIR              fsynced saves, cold loads
    python bench/throughput.py layouts [--tokens 17000] [--real FILE]        every layout and level; what proofs cost
    python bench/throughput.py sweep [--csv FILE] [--plot FILE] [--dir DIR]  chunk size x workers x layout x payload

README.md beside this file says what is measured and why. DIR is where checkpoints go: a tmpfs measures us, a disk
measures the disk.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import common
from common import FACTS, MIB, table

import ds4kv

CHUNK_SIZE = 16 * MIB
PIECE = 8 * MIB
REAL_SAMPLE_BYTES = 256 * MIB
WORKERS = sorted({0, 1, 2, len(os.sched_getaffinity(0))})  # more than CPUs are as many as CPUs


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


def stream_load(path: str, into: bytearray, workers: int, piece: int = PIECE) -> None:
    view = memoryview(into)
    with ds4kv.open(path, workers=workers) as checkpoint:
        for start in range(0, len(view), piece):
            checkpoint.payload.readinto(view[start : start + piece])


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


def reach(directory: str, payload: bytearray, name: str, rounds: int) -> None:
    lz4, raw, other = (os.path.join(directory, file) for file in ("lz4.kv", "raw.kv", "other"))
    into = bytearray(len(payload))
    ds4kv.dump(lz4, payload, workers=2, **FACTS)
    ds4kv.dump(raw, payload, codec="none", **FACTS)
    region = common.region_of(lz4)
    few = payload[: 32 * MIB]
    cases: dict[str, Callable[[], object]] = {
        "bare compress 1": lambda: common.bare_compress(payload, CHUNK_SIZE),
        "bare compress 2": lambda: common.bare_compress(payload, CHUNK_SIZE, 2),
        "bare decode 1": lambda: common.bare_decode(region, CHUNK_SIZE, into),
        "bare decode 2": lambda: common.bare_decode(region, CHUNK_SIZE, into, 2),
        "write": lambda: common.write_file(other, region),
        "dump 1": lambda: ds4kv.dump(lz4, payload, workers=1, **FACTS),
        "dump 2": lambda: ds4kv.dump(lz4, payload, workers=2, **FACTS),
        "dump 8": lambda: ds4kv.dump(lz4, payload, workers=8, **FACTS),
        "stream save": lambda: stream_save(lz4, payload, 2),
        "load 1": lambda: ds4kv.load(lz4, into=into, workers=1),
        "load 2": lambda: ds4kv.load(lz4, into=into, workers=2),
        "load 8": lambda: ds4kv.load(lz4, into=into, workers=8),
        "stream load": lambda: stream_load(lz4, into, 2),
        "load fresh": lambda: ds4kv.load(lz4, workers=2),
        "raw dump": lambda: ds4kv.dump(raw, payload, codec="none", **FACTS),
        "raw load": lambda: ds4kv.load(raw, into=into),
        "raw load fresh": lambda: ds4kv.load(raw),
        "few dump": lambda: ds4kv.dump(other, few, workers=2, **FACTS),
        "few by 4 KiB": lambda: buffered_save(other, few, 4096),
        "4 KiB to null": lambda: buffered_writes(Null(), few, 4096),
        "few by 64 B": lambda: buffered_save(other, few, 64),
        "64 B to null": lambda: buffered_writes(Null(), few, 64),
    }
    t = common.in_turns(cases, rounds, backed=3 * len(payload))
    save_bound = (t["bare compress 1"] + t["write"]) / 2
    load_bound = t["bare decode 1"] / 2
    pause = statistics.median(longest_pause(cases["dump 2"]) for _ in range(rounds))
    ratio = len(payload) / len(region)

    print(f"\n{name}: {len(payload) / MIB:.2f} MiB, lz4 ratio {ratio:.3f}")
    rows = [[case, f"{spent * 1e3:.1f}", f"{len(payload) / spent / 1e6:,.0f}"] for case, spent in t.items()]
    print(
        table(["case", "ms", "MB/s of payload"], [row for row in rows if "few" not in row[0] and "null" not in row[0]])
    )
    promises = [
        ("dump 2 / ((bare compress + write) / 2)", t["dump 2"] / save_bound, 1.12),
        ("load 2 / (bare decode / 2)", t["load 2"] / load_bound, 1.15),
        ("load 2 / bare decode by 2", t["load 2"] / t["bare decode 2"], 1.15),
        ("load 2 / raw load", t["load 2"] / t["raw load"], 1.0),
        ("load fresh / raw load fresh", t["load fresh"] / t["raw load fresh"], 1.0),
        ("stream save by 8 MiB / dump 2", t["stream save"] / t["dump 2"], 1.2),
        ("stream load by 8 MiB / load 2", t["stream load"] / t["load 2"], 1.2),
        ("4 KiB writes / (dump + null)", t["few by 4 KiB"] / (t["few dump"] + t["4 KiB to null"]), 1.0),
        ("64 B writes / (dump + null)", t["few by 64 B"] / (t["few dump"] + t["64 B to null"]), 1.0),
        ("dump 1 / dump 2 / 2 (efficiency)", t["dump 1"] / t["dump 2"] / 2, 0.9),
        ("bare compress 1 / 2 / 2 (the machine's)", t["bare compress 1"] / t["bare compress 2"] / 2, 0.9),
        ("load 1 / load 2 / 2 (efficiency)", t["load 1"] / t["load 2"] / 2, 0.9),
        ("bare decode 1 / 2 / 2 (the machine's)", t["bare decode 1"] / t["bare decode 2"] / 2, 0.9),
        ("dump 8 / dump 2", t["dump 8"] / t["dump 2"], 1.05),
        ("load 8 / load 2", t["load 8"] / t["load 2"], 1.05),
        ("longest wait for the GIL in a dump, ms", pause * 1e3, 2.0),
    ]
    print(table(["promise", "measured", "aim"], [[what, f"{is_:.3f}", f"{aim}"] for what, is_, aim in promises]))


def small(directory: str, rounds: int) -> None:
    path = os.path.join(directory, "small.kv")
    payload = common.synthetic_payload(1000)
    rows = []
    for size in (64 << 10, 256 << 10, 1 * MIB, 4 * MIB):
        piece = payload[-size:]
        into = bytearray(size)
        ds4kv.dump(path, piece, **FACTS)
        region = common.region_of(path)
        region_into = bytearray(len(region))
        t = common.in_turns(
            {
                "compress": lambda piece=piece: common.bare_compress(piece, CHUNK_SIZE),
                "write": lambda region=region: common.write_file(path, region),
                "dump": lambda piece=piece: ds4kv.dump(path, piece, **FACTS),
                "decode": lambda region=region, into=into: common.bare_decode(region, CHUNK_SIZE, into),
                "read": lambda region_into=region_into: common.read_file(path, region_into),
                "load": lambda into=into: ds4kv.load(path, into=into),
            },
            rounds * 20,
        )
        over = [t["dump"] - 1.05 * t["compress"], t["load"] - 1.05 * t["decode"]]
        over += [over[0] - t["write"], over[1] - t["read"]]
        rows.append([f"{size >> 10} KiB", *(f"{t[c] * 1e6:.0f}" for c in t), *(f"{spent * 1e6:.0f}" for spent in over)])
    print("microseconds. over: wall - 1.05 x LZ4 alone; beyond: the same less one write or read of the stored bytes")
    print(table(["payload", *t, "dump over", "load over", "dump beyond", "load beyond"], rows))


def evict(path: str) -> None:
    """Has the page cache forget a file."""
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


def disk(directory: str, payload: bytearray, name: str, rounds: int) -> None:
    lz4, raw, other = (os.path.join(directory, file) for file in ("lz4.kv", "raw.kv", "other"))
    into = bytearray(len(payload))
    ds4kv.dump(lz4, payload, workers=2, **FACTS)
    region = common.region_of(lz4)

    saves = common.in_turns(
        {
            "lz4 save, fsync": lambda: ds4kv.dump(lz4, payload, workers=2, fsync=True, **FACTS),
            "raw save, fsync": lambda: ds4kv.dump(raw, payload, codec="none", fsync=True, **FACTS),
            "write of the region, fsync": lambda: common.write_file(other, region, fsync=True),
            "lz4 save": lambda: ds4kv.dump(lz4, payload, workers=2, **FACTS),
        },
        rounds,
        backed=3 * len(payload),
    )
    loads: dict[str, list[float]] = {"lz4 load, cold": [], "raw load, cold": [], "lz4 stream load, cold": []}
    for _ in range(rounds):
        for path, case, load in (
            (lz4, "lz4 load, cold", lambda: ds4kv.load(lz4, into=into, workers=2)),
            (raw, "raw load, cold", lambda: ds4kv.load(raw, into=into)),
            (lz4, "lz4 stream load, cold", lambda: stream_load(lz4, into, 2)),
        ):
            evict(path)
            common.back_memory(3 * len(payload))
            loads[case].append(common.seconds(load))
    t = saves | {case: sorted(times)[len(times) // 2] for case, times in loads.items()}
    print(f"\n{name}: {len(payload) / MIB:.2f} MiB in {directory}")
    print(table(["case", "ms"], [[case, f"{spent * 1e3:.0f}"] for case, spent in t.items()]))
    slower = max(t["lz4 save"], t["write of the region, fsync"])
    print(f"lz4 save, fsync / the larger of save and fsynced write: {t['lz4 save, fsync'] / slower:.3f} (aim 1.15)")
    print(f"lz4 / raw: save, fsync {t['lz4 save, fsync'] / t['raw save, fsync']:.3f}, cold load", end=" ")
    print(f"{t['lz4 load, cold'] / t['raw load, cold']:.3f} (aim below 1)")


def sweep(directory: str, payloads: dict[str, bytearray], rounds: int) -> list[dict[str, object]]:
    path = os.path.join(directory, "sweep.kv")
    rows: list[dict[str, object]] = []
    for name, payload in payloads.items():
        into = bytearray(len(payload))
        cases: dict[str, Callable[[], object]] = {}
        hows = [("v1", 0, 1), ("v2", 0, 1)]
        hows += [("v2", size * MIB, workers) for size in (1, 4, 16, 64) for workers in WORKERS]
        for layout, chunk_size, workers in hows:
            how = {"layout": layout, "codec": "lz4" if chunk_size else "none", "workers": workers}
            if chunk_size:
                how["chunk_size"] = chunk_size
            file = f"{path}.{layout}.{chunk_size}.{workers}"
            cases[f"save {file}"] = lambda file=file, how=how, payload=payload: ds4kv.dump(
                file, payload, **how, **FACTS
            )
            cases[f"load {file}"] = lambda file=file, workers=workers, into=into: ds4kv.load(
                file, workers=workers, into=into
            )
        t = common.in_turns(cases, rounds, backed=4 * len(payload))
        for layout, chunk_size, workers in hows:
            file = f"{path}.{layout}.{chunk_size}.{workers}"
            rows.append(
                {
                    "payload": name,
                    "layout": layout,
                    "codec": "lz4" if chunk_size else "none",
                    "chunk_mib": chunk_size // MIB,
                    "workers": workers,
                    "raw_bytes": len(payload),
                    "file_bytes": os.path.getsize(file),
                    "save_ms": round(t[f"save {file}"] * 1e3, 1),
                    "load_ms": round(t[f"load {file}"] * 1e3, 1),
                }
            )
            os.unlink(file)
    return rows


def plot(rows: list[dict[str, object]], path: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = list(dict.fromkeys(row["payload"] for row in rows))
    figure, axes = pyplot.subplots(2, len(names), figsize=(4.2 * len(names), 6), squeeze=False, sharey="row")
    for column, name in enumerate(names):
        for axis, what in zip(axes[:, column], ("save", "load"), strict=True):
            for workers in WORKERS:
                line = [r for r in rows if r["payload"] == name and r["codec"] == "lz4" and r["workers"] == workers]
                rates = [r["raw_bytes"] / r[f"{what}_ms"] / 1e6 for r in line]
                axis.plot([r["chunk_mib"] for r in line], rates, marker="o", label=f"lz4, {workers} workers")
            raw = next(r for r in rows if r["payload"] == name and r["layout"] == "v2" and r["codec"] == "none")
            axis.axhline(raw["raw_bytes"] / raw[f"{what}_ms"] / 1e6, color="gray", linestyle="--", label="raw")
            axis.set(xscale="log", xticks=[1, 4, 16, 64], xticklabels=["1", "4", "16", "64"], title=f"{what}, {name}")
            axis.set_ylim(bottom=0)
    for axis in axes[:, 0]:
        axis.set_ylabel("GB/s of payload")
    for axis in axes[1]:
        axis.set_xlabel("chunk, MiB")
    axes[0, 0].legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["reach", "small", "disk", "layouts", "sweep"])
    parser.add_argument("--tokens", type=int, nargs="+", default=[17_000, 47_000])
    parser.add_argument("--real", type=Path, help="a file of real KV, for layouts and sweep as well")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--dir", default="/dev/shm" if os.path.isdir("/dev/shm") else tempfile.gettempdir())
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--plot", help="an .svg or .png file; needs matplotlib")
    args = parser.parse_args()
    print(common.machine(), f"files in {args.dir}", f"median of {args.rounds} rounds", sep="; ")
    with tempfile.TemporaryDirectory(dir=args.dir) as directory:
        if args.what == "small":
            small(directory, args.rounds)
        elif args.what in ("sweep", "layouts"):
            payloads = {f"{tokens} tokens": common.synthetic_payload(tokens) for tokens in args.tokens}
            if args.real:
                payloads["real sample"] = common.file_payload(args.real, REAL_SAMPLE_BYTES)
            if args.what == "layouts":
                import layouts  # here, as it needs xxhash

                layouts.compare(directory, payloads, args.rounds)
                for name, payload in payloads.items():
                    layouts.promises(directory, payload, name, args.rounds)
                return
            rows = sweep(directory, payloads, args.rounds)
            print(table(list(rows[0]), [[str(value) for value in row.values()] for row in rows]))
            if args.csv:
                with args.csv.open("w", newline="") as out:
                    writer = csv.DictWriter(out, rows[0], lineterminator="\n")
                    writer.writeheader()
                    writer.writerows(rows)
            if args.plot:
                plot(rows, args.plot)
        else:
            for tokens in args.tokens:
                measure = reach if args.what == "reach" else disk
                measure(directory, common.synthetic_payload(tokens), f"{tokens} tokens", args.rounds)


if __name__ == "__main__":
    main()
