"""How fast are saves and loads, against LZ4 alone and against raw files?

    python bench/throughput.py reach [--tokens 7200 17000 47000] [--dir DIR] each promise, and what it measures
    python bench/throughput.py small [--dir DIR]                             64 KiB to 4 MiB
    python bench/throughput.py disk  [--tokens 17000] --dir DIR              fsynced saves, cold loads
    python bench/throughput.py layouts [--tokens 17000] [--real FILE]        every layout and level; what proofs cost
    python bench/throughput.py packed [--tokens 17000] [--half FILE]         layout packed: each promise
    python bench/throughput.py sweep [--csv FILE] [--plot FILE] [--dir DIR]  chunk size x workers x layout x payload

README.md beside this file says what is measured and why. DIR is where checkpoints go: a tmpfs measures us, a disk
measures the disk.
"""

from __future__ import annotations

import argparse
import csv
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import bare
import common
import packed
from common import FACTS, MIB, table
from reach import reach, stream_load

import ds4kv
from ds4kv.format.header import CHUNK_SIZE, Form

REAL_SAMPLE_BYTES = 256 * MIB
WORKERS = sorted({0, 1, 2, len(os.sched_getaffinity(0))})  # more than CPUs are as many as CPUs


def small(directory: str, rounds: int) -> None:
    path = os.path.join(directory, "small.kv")
    payload = common.synthetic_payload(1000)
    rows, one = [], bare.Threads(1)
    for size in (64 << 10, 256 << 10, 1 * MIB, 4 * MIB):
        piece = payload[-size:]
        into = common.warm_memory(size)
        ds4kv.dump(path, piece, **FACTS)
        region = common.region_of(path)
        region_into = common.warm_memory(len(region))
        t = common.in_turns(
            {
                "compress": bare.compressor(piece, CHUNK_SIZE, one),
                "write": lambda region=region: common.write_file(path, region),
                "dump": lambda piece=piece: ds4kv.dump(path, piece, **FACTS),
                "decode": bare.decoder(region, Form.PLAIN, into, one),
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
    into = common.warm_memory(len(payload))
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
        into = common.warm_memory(len(payload))
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
    parser.add_argument("what", choices=["reach", "small", "disk", "layouts", "packed", "sweep"])
    parser.add_argument("--tokens", type=int, nargs="+", help="17000 47000 by default, for reach 7200 as well: 123 MB")
    parser.add_argument("--real", type=Path, help="a file of real KV, for layouts and sweep as well")
    parser.add_argument("--half", type=Path, help="a file of real KV in bfloat16, for layouts and packed as well")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--dir", default="/dev/shm" if os.path.isdir("/dev/shm") else tempfile.gettempdir())
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--plot", help="an .svg or .png file; needs matplotlib")
    args = parser.parse_args()
    tokens_of = args.tokens or ([7_200] if args.what == "reach" else []) + [17_000, 47_000]
    print(common.machine(), f"files in {args.dir}", f"median of {args.rounds} rounds", sep="; ")
    with tempfile.TemporaryDirectory(dir=args.dir) as directory:
        if args.what == "small":
            small(directory, args.rounds)
        elif args.what in ("sweep", "layouts"):
            payloads = {f"{tokens} tokens": common.synthetic_payload(tokens) for tokens in tokens_of}
            if args.real:
                payloads["real sample"] = common.file_payload(args.real, REAL_SAMPLE_BYTES)
            if args.what == "layouts":
                import layouts  # here, as it needs xxhash

                if args.half:
                    payloads |= packed.half_payloads(args.half, REAL_SAMPLE_BYTES // 4)
                layouts.compare(directory, payloads, args.rounds)
                for name in list(payloads)[: len(tokens_of)]:
                    layouts.promises(directory, payloads[name], name, args.rounds)
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
            for tokens in tokens_of:
                measure = {"reach": reach, "disk": disk, "packed": packed.promises}[args.what]
                measure(directory, common.synthetic_payload(tokens), f"{tokens} tokens", args.rounds)
            if args.what == "packed" and args.half:
                for name, payload in packed.half_payloads(args.half, REAL_SAMPLE_BYTES).items():
                    packed.promises_of_half(directory, payload, name, args.rounds)


if __name__ == "__main__":
    main()
