"""``ds4kv evict``: brings a directory within a budget, by the rule of the store, and says what goes and why."""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

from ds4kv.cli.arguments import whole_number
from ds4kv.cli.listing import MIB, show_table, tell
from ds4kv.cli.messages import reason
from ds4kv.directory import unlink
from ds4kv.index import Index
from ds4kv.lock import locked
from ds4kv.policy import Victim, choose_victims

__all__ = ["configure", "run"]


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "The exit code is 1 if a file can't be removed."
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
    index, budget_bytes = Index(args.directory), args.budget_mb * MIB
    victims = _choose(index, budget_bytes)
    failed: list[dict[str, str]] = []
    if victims and not args.dry_run:
        with locked(args.directory):
            # What was chosen without the lock may have been loaded or replaced since.
            victims = _remove(_choose(index, budget_bytes), failed)
    rows = [_facts(victim) for victim in victims]
    size = sum(row["file_bytes"] for row in rows)
    if args.json:
        answer = {"dry_run": args.dry_run, "budget_bytes": budget_bytes, "evicted_bytes": size, "evicted": rows}
        print(json.dumps(answer, indent=2))
    else:
        if rows:
            show_table(_COLUMNS, rows)
        verb = "would be evicted" if args.dry_run else "evicted"
        print(f"{len(rows):,} checkpoint{'s' * (len(rows) != 1)} {verb}, {size / MIB:,.1f} MiB")
    tell(failed)
    return 1 if failed else 0


def _choose(index: Index, budget_bytes: int) -> list[Victim]:
    return choose_victims(index.scan(), budget_bytes, int(time.time()))


def _remove(victims: list[Victim], failed: list[dict[str, str]]) -> list[Victim]:
    """Those that were removed; what could not be is added to ``failed``. For who holds the lock."""
    removed = []
    for victim in victims:
        entry = victim.entry
        try:
            if unlink(entry.path, entry.stamp[:2]):
                removed.append(victim)
        except OSError as error:
            failed.append({"path": entry.path, "verdict": "not removed", "why": reason(error)})
    return removed


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
