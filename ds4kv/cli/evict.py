"""``ds4kv evict``: brings a directory within a budget, by the rule of the store, and says what goes and why."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
from typing import Any

from ds4kv.cli.arguments import whole_number
from ds4kv.cli.changing import telling_warnings, waiting_for
from ds4kv.cli.listing import MIB, show_table
from ds4kv.cli.messages import reason
from ds4kv.store.directory import Directory, Eviction
from ds4kv.store.policy import Victim

__all__ = ["configure", "run"]


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "The checkpoint of the lowest score goes first: its tokens a byte, times 1 + its hits, of which every 6 hours"
        " leave a half; so long and small ones that are used stay. If a file can't be removed others go in its place,"
        " and the exit code is 1."
    )
    parser.add_argument("directory", metavar="DIR", help="a directory of checkpoints")
    parser.add_argument(
        "--budget-mb",
        metavar="N",
        type=whole_number(1, (1 << 31) - 1),
        required=True,
        help="what all checkpoints together may take, in MiB",
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would go, and remove nothing")
    parser.add_argument("--json", action="store_true", help="one JSON object")


def run(args: argparse.Namespace) -> int:
    os.stat(args.directory)  # to a store, a directory that isn't there is an empty one
    budget_bytes = args.budget_mb * MIB
    directory = Directory(args.directory, budget_bytes=budget_bytes, is_read_only=args.dry_run)
    with contextlib.closing(directory), telling_warnings():
        if args.dry_run:
            eviction = Eviction(directory.plan(budget_bytes), [])
        else:
            eviction = directory.evict(on_wait=waiting_for(args.directory))
    rows = [_facts(victim) for victim in eviction.removed]
    size = sum(row["file_bytes"] for row in rows)
    if args.json:
        answer = {
            "dry_run": args.dry_run,
            "budget_bytes": budget_bytes,
            "evicted_bytes": size,
            "evicted": rows,
            "failed": [{"path": victim.entry.path, "why": reason(error)} for victim, error in eviction.failed],
        }
        print(json.dumps(answer, indent=2))
    else:
        if rows:
            show_table(_COLUMNS, rows)
        verb = "would be evicted" if args.dry_run else "evicted"
        print(f"{len(rows):,} checkpoint{'s' * (len(rows) != 1)} {verb}, {size / MIB:,.1f} MiB")
    return 1 if eviction.failed else 0


def _facts(victim: Victim) -> dict[str, Any]:
    entry = victim.entry
    return {
        "sha": entry.sha,
        "path": entry.path,
        "tokens": entry.tokens,
        "file_bytes": entry.file_size,
        "hits": entry.header.hits,
        "score": victim.score,
        "why": victim.reason,
    }


_COLUMNS = (
    ("sha", lambda row: row["sha"][:8]),
    ("tokens", lambda row: f"{row['tokens']:,}"),
    ("MiB", lambda row: f"{row['file_bytes'] / MIB:,.1f}"),
    ("hits", lambda row: f"{row['hits']:,}"),
    ("score", lambda row: f"{row['score']:.3g}"),
    ("why", lambda row: str(row["why"])),
)
