"""How do saves and loads grow with the threads, and what bounds them?

    python bench/scale.py [--threads 1 2 4 8 16] [--tokens 17000 47000] [--csv FILE] [--plot FILE] [--dir DIR]

Each form is saved by dump() and loaded by load(into=), by so many workers, and beside them, in the same rounds and by
as many threads, what they are to be compared with, and can't do without:

- *v2 by 8 MiB*: a stream that is written and read by such pieces, as ds4 itself does;
- *bare*: the same payload compressed in chunks of 16 MiB by LZ4 alone, and decoded, its buffers ready;
- *bytes*: the form's own bytes written to a new file by one write(), and read by pread in pieces of 4 MiB.

A machine has no more workers than CPUs, so threads are at most twice as many: beyond its CPUs only *bare* and *bytes*
have them. README.md beside this file has the method.
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bare
import common
import reach
from common import FACTS, MIB

import ds4kv
from ds4kv.format.header import CHUNK_SIZE, Form

HOWS: dict[str, dict[str, Any]] = {
    "raw": {"layout": "v1"},
    "v2-checked -1": {"layout": "v2-checked", "level": -1},
    "v2-checked 0": {"layout": "v2-checked", "level": 0},
    "v2-checked 1": {"layout": "v2-checked", "level": 1},
    "packed -1": {"layout": "packed", "level": -1},
    "packed 0": {"layout": "packed"},
    "v2": {"layout": "v2"},
}
STREAM = "v2 by 8 MiB"
BARE = "LZ4 alone"
ROWS = (*HOWS, STREAM, BARE)
CPUS = len(os.sched_getaffinity(0))


def measure(directory: str, payload: bytearray, name: str, threads: int, rounds: int) -> list[dict[str, object]]:
    """A row for each form, and one for LZ4 alone, at so many threads."""
    into = common.warm_memory(len(payload))
    ours, cases = bare.Threads(threads), dict[str, Callable[[], object]]()
    files = {how: os.path.join(directory, f"{how}.kv") for how in HOWS}
    for how, path in files.items():

        def save(path: str = path, options: dict[str, Any] = HOWS[how]) -> None:
            ds4kv.dump(path, payload, workers=threads, **options, **FACTS)

        def load(path: str = path) -> None:
            ds4kv.load(path, into=into, workers=threads)

        save()
        load()
        assert into == payload, how
        into[:] = bytes(len(into))
        stored = os.path.getsize(path)
        cases[f"save {how}"] = save
        cases[f"load {how}"] = load
        cases[f"write {how}"] = lambda n=stored: common.write_file(
            os.path.join(directory, "written"), memoryview(payload)[:n]
        )
        cases[f"read {how}"] = bare.reader(path, stored, into, ours)
    region = common.region_of(files["v2"])
    cases[f"save {STREAM}"] = lambda: reach.stream_save(files["v2"], payload, threads)
    cases[f"load {STREAM}"] = lambda: reach.stream_load(files["v2"], into, threads)
    cases[f"save {BARE}"] = bare.compressor(payload, CHUNK_SIZE, ours)
    cases[f"load {BARE}"] = bare.decoder(region, Form.PLAIN, into, ours)

    # A file is there twice while it is replaced.
    backed = 2 * len(payload) + (2 * min(threads, CPUS) + 1) * CHUNK_SIZE
    times = common.rounds_of(cases, rounds, backed)
    rows = []
    for what in ROWS:
        row: dict[str, object] = {
            "payload": name,
            "raw_bytes": len(payload),
            "threads": threads,
            "stored_as": what,
            "stored_bytes": os.path.getsize(files.get(what, files["v2"])),
        }
        for verb in ("save", "load", "write", "read"):
            spent = times.get(f"{verb} {what}")
            for column, of in ((f"{verb}_ms", statistics.median), (f"{verb}_ms_min", min), (f"{verb}_ms_max", max)):
                row[column] = round(of(spent) * 1e3, 3) if spent else ""
        rows.append(row)
    return rows


def show(rows: list[dict[str, Any]]) -> str:
    """The rows of one payload and number of threads, in GB/s of payload, and how they compare with what bounds them."""
    alone = rows[-1]
    lines = []
    for row in rows:
        cells = [row["stored_as"], f"{row['raw_bytes'] / row['stored_bytes']:.3f}"]
        for verb, bytes_ in (("save", "write"), ("load", "read")):
            spread = " - ".join(f"{row[f'{verb}_ms{end}']:.1f}" for end in ("_min", "_max"))
            cells += [f"{row[f'{verb}_ms']:.1f}", spread, f"{row['raw_bytes'] / row[f'{verb}_ms'] / 1e6:.2f}"]
            cells.append("" if row["stored_as"] == "raw" else f"{row[f'{verb}_ms'] / alone[f'{verb}_ms']:.2f}")
            cells.append(f"{row[f'{verb}_ms'] / row[f'{bytes_}_ms']:.2f}" if row[f"{bytes_}_ms"] else "")
        lines.append(cells)
    head = ["stored as", "ratio"]
    for verb, bytes_ in (("save", "write"), ("load", "read")):
        head += [f"{verb} ms", "min - max", "GB/s", "/ bare", f"/ {bytes_}"]
    return common.table(head, lines)


def plot(rows: list[dict[str, Any]], path: str) -> None:
    """GB/s of payload against threads: saves above, loads below, a column a payload."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = list(dict.fromkeys(row["payload"] for row in rows))
    figure, axes = pyplot.subplots(2, len(names), figsize=(4.2 * len(names), 6.6), squeeze=False, sharey="row")
    for column, name in enumerate(names):
        for axis, (verb, bytes_) in zip(axes[:, column], (("save", "write"), ("load", "read")), strict=True):
            for what in ROWS:
                line = [row for row in rows if (row["payload"], row["stored_as"]) == (name, what)]
                style = {"linestyle": "--", "color": "gray"} if what == BARE else {"marker": "o", "markersize": 4}
                _draw(axis, line, f"{verb}_ms", label=what, **style)
            raw = [row for row in rows if (row["payload"], row["stored_as"]) == (name, "raw")]
            _draw(axis, raw, f"{bytes_}_ms", label=f"{bytes_} of raw", linestyle=":", color="black")
            ticks = sorted({row["threads"] for row in rows})
            axis.set(xscale="log", xticks=ticks, xticklabels=list(map(str, ticks)), title=f"{verb}, {name}")
            axis.minorticks_off()
            axis.grid(alpha=0.3)
    for axis in axes[:, 0]:
        axis.set_ylim(bottom=0)
        axis.set_ylabel("GB/s of payload")
        axis.legend(fontsize="x-small")
    for axis in axes[1]:
        axis.set_xlabel("threads")
    figure.text(0.01, 0.01, common.machine(), fontsize=6)
    figure.tight_layout(rect=(0, 0.02, 1, 1))
    figure.savefig(path)


def _draw(axis: Any, rows: list[dict[str, Any]], column: str, **style: Any) -> None:
    axis.plot([row["threads"] for row in rows], [row["raw_bytes"] / row[column] / 1e6 for row in rows], **style)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = [n for n in (1, 2, 4, 8, 16) if n <= 2 * CPUS]
    parser.add_argument("--threads", type=int, nargs="+", default=default, help=f"up to {2 * CPUS} here")
    parser.add_argument("--tokens", type=int, nargs="+", default=[17_000, 47_000])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--dir", default="/dev/shm" if os.path.isdir("/dev/shm") else tempfile.gettempdir())
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--plot", help="an .svg or .png file; needs matplotlib")
    args = parser.parse_args()
    if not all(1 <= n <= 2 * CPUS for n in args.threads):
        parser.error(f"threads are 1 to {2 * CPUS} on {CPUS} CPUs")
    print(common.machine(), f"files in {args.dir}", f"median of {args.rounds} rounds", sep="; ", flush=True)
    rows: list[dict[str, object]] = []
    for tokens in args.tokens:
        payload, name = common.synthetic_payload(tokens), f"{tokens} tokens"
        for threads in args.threads:
            with tempfile.TemporaryDirectory(dir=args.dir) as directory:
                these = measure(directory, payload, name, threads, args.rounds)
            print(f"\n{name}, {len(payload) / MIB:.2f} MiB, threads: {threads}\n{show(these)}", flush=True)
            rows += these
    if args.csv:
        with args.csv.open("w", newline="") as out:
            writer = csv.DictWriter(out, rows[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    if args.plot:
        plot(rows, args.plot)


if __name__ == "__main__":
    main()
