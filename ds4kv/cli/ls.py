"""``ds4kv ls``: the checkpoints of a directory, a line each, from their headers; the directory stays as it is."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any, TypeAlias

from ds4kv.cli.listing import MIB, age, facts, other_by, scan, show_table, tell
from ds4kv.cli.messages import printable
from ds4kv.store.quarantine import Quarantine

__all__ = ["configure", "run"]

_IDENTITY_CHARACTERS = 24

_Column: TypeAlias = tuple[str, Callable[[dict[str, Any]], str]]

_IDENTITY: _Column = ("identity", lambda row: _shortened(printable(row["identity"] or "-")))
_COLUMNS: tuple[_Column, ...] = (
    ("sha", lambda row: row["sha"][:8]),
    ("tokens", lambda row: f"{row['tokens']:,}"),
    ("layout", lambda row: str(row["layout"])),
    ("codec", lambda row: str(row["codec"])),
    ("MiB", lambda row: f"{row['file_bytes'] / MIB:,.1f}"),
    ("ratio", lambda row: "-" if row["ratio"] is None else f"{row['ratio']:.2f}x"),
    ("hits", lambda row: f"{row['hits']:,}"),
    ("age", lambda row: age(row["last_used"] or row["created_at"])),
    ("reason", lambda row: str(row["reason"])),
    ("text begins", lambda row: repr(row["text_start"])),
)

_ORDERS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "age": lambda row: -(row["last_used"] or row["created_at"]),
    "sha": lambda row: row["sha"],
    "tokens": lambda row: -row["tokens"],
    "text": lambda row: row["text_start"],
    "layout": lambda row: row["layout"],
    "codec": lambda row: row["codec"],
    "size": lambda row: -row["file_bytes"],
    "ratio": lambda row: -(row["ratio"] or 0.0),
    "hits": lambda row: -row["hits"],
    "reason": lambda row: row["reason"],
    "identity": lambda row: row["identity"] or "",
}


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "Files that are no checkpoints are told on stderr; the exit code is 1 if one has a checkpoint's name."
    )
    parser.add_argument("directory", metavar="DIR", help="a directory of checkpoints")
    parser.add_argument(
        "--sort",
        choices=_ORDERS,
        default="age",
        help="numbers come largest first, the age youngest first; %(default)s is the default",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object; null is what isn't known")


def run(args: argparse.Namespace) -> int:
    entries, others = scan(args.directory)
    rows = []
    for entry in entries:
        try:
            rows.append(facts(entry))
        except FileNotFoundError:
            continue  # evicted since it was listed
        except OSError as error:
            others.append(other_by(error, entry.path))
    rows.sort(key=_ORDERS[args.sort])
    aside = _quarantine(args.directory, others)
    if args.json:
        print(json.dumps({"checkpoints": rows, "others": others, "quarantine": aside}, indent=2))
    else:
        if rows:
            *columns, last = _COLUMNS
            has_identity = any(row["identity"] is not None for row in rows)
            show_table([*columns, *[_IDENTITY] * has_identity, last], rows)
        total = sum(row["file_bytes"] for row in rows)
        line = f"{len(rows)} checkpoint{'s' * (len(rows) != 1)}, {total / MIB:,.1f} MiB"
        if n := aside["files"]:
            line += f"; in quarantine {n} file{'s' * (n != 1)}, {aside['file_bytes'] / MIB:,.1f} MiB"
        print(line)
    tell(others)
    return 1 if any(other["verdict"] != "foreign" for other in others) else 0


def _shortened(name: str) -> str:
    return name if len(name) <= _IDENTITY_CHARACTERS else f"{name[: _IDENTITY_CHARACTERS - 3]}..."


def _quarantine(directory: str, others: list[dict[str, str]]) -> dict[str, int]:
    """How many files were set aside there, and their bytes; one that can't be read is added to ``others``."""
    quarantine = Quarantine(directory, max_bytes=0)
    try:
        files = quarantine.files()
    except OSError as error:
        others.append(other_by(error, quarantine.path))
        files = []
    return {"files": len(files), "file_bytes": sum(file.file_size for file in files)}
