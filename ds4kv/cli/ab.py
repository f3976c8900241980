"""``ds4kv ab``: what compression costs and gives on this machine: raw checkpoints against compressed ones.

Without files it makes its own payloads, of the size and the compressibility of real ones. Everything that is loaded is
compared with what was saved; a difference is exit code 1. Memory is twice the largest payload, and files are removed as
soon as they are measured.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import errno
import functools
import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import ds4kv
from ds4kv.cli import inputs
from ds4kv.cli.arguments import UsageError, add_threads, whole_number
from ds4kv.cli.inputs import Input
from ds4kv.cli.machine import Machine
from ds4kv.cli.measure import WAYS, Measurement, Times, measure, most_file_bytes
from ds4kv.cli.messages import printable

__all__ = ["configure", "run"]

_TOKENS = (3500, 17000, 47000)
_ROUNDS = 5


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "files",
        metavar="FILE",
        nargs="*",
        help="measure the payload of this checkpoint (*.kv) or all of this other file, not synthetic payloads",
    )
    parser.add_argument(
        "--tokens",
        metavar="N",
        nargs="+",
        type=whole_number(1, inputs.MAX_TOKENS),
        help=f"lengths of the synthetic payloads, {' '.join(map(str, _TOKENS))} by default",
    )
    add_threads(parser)
    parser.add_argument(
        "--rounds",
        metavar="N",
        type=whole_number(1, 1000),
        default=_ROUNDS,
        help="how often each is measured, the median counts; %(default)s by default",
    )
    parser.add_argument("--checked", action="store_true", help="has no effect: layout v2-checked is always measured")
    parser.add_argument(
        "--dir",
        metavar="DIR",
        help="where checkpoints are written and removed again; the system's temporary directory by default",
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON instead of the table")
    form.add_argument("--csv", action="store_true", help="print CSV instead of the table")


def run(args: argparse.Namespace) -> int:
    if args.files and args.tokens:
        raise UsageError("give files or --tokens, not both")
    payloads = [inputs.of_file(path) for path in args.files]
    payloads = payloads or [inputs.synthetic(tokens) for tokens in args.tokens or _TOKENS]
    machine = Machine.look(args.dir or tempfile.gettempdir(), args.threads)
    _refuse_what_cannot_be(payloads, machine.directory)
    if args.json or args.csv:
        measurements = _measure_all(payloads, machine, args.rounds, advance=lambda name, n: None)
        rows = [_row(measurement) for measurement in measurements]
        if args.json:
            about = {"ds4kv": ds4kv.__version__, "rounds": args.rounds, **dataclasses.asdict(machine)}
            print(json.dumps({**about, "results": rows}, indent=2))
        else:
            table = csv.DictWriter(sys.stdout, rows[0], lineterminator="\n")
            table.writeheader()
            table.writerows(rows)
    else:
        # Brings in rich, which only this needs.
        from ds4kv.cli import display

        steps = sum(payload.raw_bytes for payload in payloads) * (1 + len(WAYS) * args.rounds)
        with display.progress(steps) as advance:
            measurements = _measure_all(payloads, machine, args.rounds, advance)
        display.show(measurements, machine, args.rounds)
    return _judge(measurements)


def _refuse_what_cannot_be(payloads: list[Input], directory: str) -> None:
    for payload in payloads:
        if payload.raw_bytes == 0:
            raise UsageError(f"{printable(payload.name)} holds no payload: there is nothing to measure")
    needed = max(most_file_bytes(payload.raw_bytes) for payload in payloads)
    free = shutil.disk_usage(directory).free
    if free < needed:
        why = f"{free / 1e6:,.1f} MB are free, {needed / 1e6:,.1f} MB are needed: give another place with --dir"
        raise OSError(errno.ENOSPC, why, directory)


def _measure_all(
    payloads: list[Input], machine: Machine, rounds: int, advance: Callable[[str, int], None]
) -> list[Measurement]:
    measurements = []
    with tempfile.TemporaryDirectory(prefix="ds4kv-ab-", dir=machine.directory) as directory:
        for payload in payloads:
            advance_this = functools.partial(advance, payload.name)
            # The payload is held by measure() alone, so that it is gone when the next one is read.
            measurements += measure(
                payload.name,
                payload.read(advance_this),
                directory,
                rounds=rounds,
                workers=machine.workers,
                advance=advance_this,
            )
    return measurements


def _row(measurement: Measurement) -> dict[str, Any]:
    return {
        "payload": measurement.payload,
        "layout": measurement.way.layout,
        "codec": measurement.way.codec,
        "level": measurement.way.level,
        "raw_bytes": measurement.raw_bytes,
        "file_bytes": measurement.file_bytes,
        "ratio": round(measurement.ratio, 4),
        **_milliseconds("save", measurement.save),
        "save_mb_per_s": round(measurement.save_rate / 1e6, 1),
        **_milliseconds("load", measurement.load),
        "load_mb_per_s": round(measurement.load_rate / 1e6, 1),
        "verified": measurement.verified,
    }


def _milliseconds(verb: str, times: Times) -> dict[str, float]:
    values = {f"{verb}_ms": times.median, f"{verb}_ms_min": times.least, f"{verb}_ms_max": times.most}
    return {name: round(seconds * 1e3, 3) for name, seconds in values.items()}


def _judge(measurements: list[Measurement]) -> int:
    wrong = [measurement for measurement in measurements if not measurement.verified]
    for measurement in wrong:
        print(
            f"ds4kv: error: {printable(measurement.payload)}: what was loaded from {measurement.way.name}"
            f" (layout {measurement.way.layout}, codec {measurement.way.codec}) is NOT what was saved",
            file=sys.stderr,
        )
    return 1 if wrong else 0
