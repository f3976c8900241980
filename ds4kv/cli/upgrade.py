"""``ds4kv upgrade``: all checkpoints of a directory in another layout, each in its place, beside a running server.

Damaged files are left alone and told.
"""

from __future__ import annotations

import argparse
import json
import os
from typing import Any

from ds4kv.cli.arguments import UsageError, add_threads, whole_number
from ds4kv.cli.changing import telling_warnings, waiting_for
from ds4kv.cli.messages import printable, reason
from ds4kv.cli.progress import progress
from ds4kv.errors import Ds4kvError
from ds4kv.file.verdict import Verdict
from ds4kv.format.header import MAX_CHUNK_SIZE
from ds4kv.store.upgrade import Outcome, Upgrade

__all__ = ["configure", "run"]

_MIB = 1 << 20


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "Each new file is put on the disk, read back and compared before it takes the old one's name; hits, times, tool"
        " map, owner and mode stay. The exit code is 1 if any file failed."
    )
    parser.add_argument("directory", metavar="DIR", help="a directory of checkpoints")
    parser.add_argument(
        "--layout", choices=["v1", "v2", "v2-checked", "packed"], default="v2-checked", help="%(default)s by default"
    )
    parser.add_argument(
        "--level",
        metavar="N",
        type=whole_number(-1, 12),
        help="0 to 12: higher is smaller and slower to write, but not to read; -1, for v2-checked and"
        " packed: as fast as raw",
    )
    parser.add_argument(
        "--chunk-size",
        metavar="N",
        type=whole_number(1, MAX_CHUNK_SIZE),
        help="payload bytes compressed at a time; files with another chunk size are upgraded, too, which they are not"
        " by default",
    )
    parser.add_argument("--dry-run", action="store_true", help="convert all, write nothing, say what it would give")
    parser.add_argument("--json", action="store_true", help="one JSON object; sizes are in bytes")
    add_threads(parser, "worker threads to read with, and as many to write with")
    parser.add_argument(
        "--nice", metavar="N", type=whole_number(0, 19), default=0, help="let other processes go first, 19 the most"
    )


def run(args: argparse.Namespace) -> int:
    try:
        upgrade = Upgrade(
            args.directory,
            layout=args.layout,
            level=args.level,
            chunk_size=args.chunk_size,
            workers=args.threads,
            dry_run=args.dry_run,
            on_wait=waiting_for(args.directory),
        )
    except ValueError as error:
        raise UsageError(str(error)) from error
    if args.nice:
        os.nice(args.nice)  # threads that are started from now on have it too
    outcomes = []
    with progress(sum(map(_size, os.scandir(args.directory)))) as advance, telling_warnings():
        for outcome in upgrade.run():
            outcomes.append(outcome)
            advance(outcome.path, outcome.before)
            if not args.json and outcome.action != "current":
                print(_in_words(outcome, args.dry_run), flush=True)
    if args.json:
        print(json.dumps(_facts(args, outcomes), indent=2))
    else:
        _sum_up(args, outcomes)
    return 1 if any(outcome.action == "failed" for outcome in outcomes) else 0


def _size(found: os.DirEntry[str]) -> int:
    try:
        return found.stat().st_size if found.is_file() else 0
    except OSError:
        return 0  # gone since, or a link that leads to itself


def _in_words(outcome: Outcome, dry_run: bool) -> str:
    path = printable(outcome.path)
    if outcome.error is not None:
        # Of an OSError nothing says whether it was met in reading or in writing.
        known = f"{Verdict.of(outcome.error)}: " if isinstance(outcome.error, Ds4kvError) else ""
        return f"{path}: failed: {known}{reason(outcome.error)}"
    if outcome.action != "upgraded":
        return f"{path}: {outcome.action}: {outcome.why}"
    would = "would become" if dry_run else "became"
    return f"{path}: {outcome.before:,} bytes {would} {outcome.after:,}, {_won(outcome.before, outcome.after)}"


def _won(before: int, after: int) -> str:
    return f"{before - after:,} won" if after <= before else f"{after - before:,} more"


def _facts(args: argparse.Namespace, outcomes: list[Outcome]) -> dict[str, Any]:
    return {
        "directory": args.directory,
        "layout": args.layout,
        "dry_run": args.dry_run,
        "before": sum(outcome.before for outcome in outcomes),
        "after": sum(outcome.after for outcome in outcomes),
        "files": [
            {
                "path": outcome.path,
                "action": outcome.action,
                "before": outcome.before,
                "after": outcome.after,
                "why": outcome.why if outcome.error is None else reason(outcome.error),
            }
            for outcome in outcomes
        ],
    }


def _sum_up(args: argparse.Namespace, outcomes: list[Outcome]) -> None:
    before = sum(outcome.before for outcome in outcomes)
    after = sum(outcome.after for outcome in outcomes)
    counts = [
        f"{n} {action}"
        for action in ("upgraded", "current", "kept", "skipped", "failed")
        if (n := sum(outcome.action == action for outcome in outcomes)) or action == "upgraded"
    ]
    dry = "dry run: " if args.dry_run else ""
    s = "s" * (len(outcomes) != 1)
    print(
        f"{dry}{len(outcomes)} checkpoint{s}: {', '.join(counts)}; {before / _MIB:,.1f} MiB before,"
        f" {after / _MIB:,.1f} MiB after, {_won(before, after)}"
    )
