"""``ds4kv quarantine``: the files that a store has set aside as damaged, and removing them.

They count for no budget. A store keeps the newest 64 of them, within a tenth of its budget.
"""

from __future__ import annotations

import argparse
import json
import os
from typing import Any

from ds4kv.cli.changing import telling_warnings, waiting_for
from ds4kv.cli.listing import MIB, age, not_removed, show_table, tell
from ds4kv.cli.messages import printable
from ds4kv.errors import Ds4kvError
from ds4kv.file.lock import locked
from ds4kv.store.quarantine import Quarantine, Quarantined

__all__ = ["configure", "run"]


def configure(parser: argparse.ArgumentParser) -> None:
    parser.usage = "%(prog)s [-h] DIR [--clear [NAME ...]] [--json]"  # DIR first, or --clear takes it for a name
    parser.epilog = (
        "ds4kv salvage saves the good beginning of one of these files. Damage that was proven by a store's notes alone"
        " is not seen by ds4kv verify here, as the notes are gone. Without --clear nothing is changed. The exit code"
        " is 1 if a file can't be removed; the others go all the same."
    )
    parser.add_argument("directory", metavar="DIR", help="a directory of checkpoints, of which this is the quarantine")
    parser.add_argument(
        "--clear",
        metavar="NAME",
        nargs="*",
        help="remove the files for good: those of these names, as they are listed; all if there are none",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object")


def run(args: argparse.Namespace) -> int:
    os.stat(args.directory)  # what isn't there has no quarantine, but it may be a name with a slip in it
    is_cleared, names = args.clear is not None, args.clear or []
    quarantine = Quarantine(args.directory, max_bytes=0)
    failed: list[dict[str, str]] = []
    files = _chosen(quarantine, names)
    if is_cleared and files:
        with telling_warnings(), locked(args.directory, on_wait=waiting_for(args.directory)):
            files = _clear(quarantine, files, failed)
    rows = [_facts(file) for file in files]
    size = sum(row["file_bytes"] for row in rows)
    if args.json:
        answer = {"directory": quarantine.path, "cleared": is_cleared, "file_bytes": size, "files": rows}
        print(json.dumps({**answer, "failed": failed}, indent=2))
    else:
        if rows:
            show_table(_COLUMNS, rows)
        verb = "removed" if is_cleared else "in quarantine"
        print(f"{len(rows):,} file{'s' * (len(rows) != 1)} {verb}, {size / MIB:,.1f} MiB")
    tell(failed)
    return 1 if failed else 0


def _chosen(quarantine: Quarantine, names: list[str]) -> list[Quarantined]:
    files = quarantine.files()
    missing = set(names) - {file.name for file in files}
    if missing:
        raise Ds4kvError(f"no file {printable(min(missing))} in {printable(quarantine.path)}")
    return [file for file in files if not names or file.name in names]


def _clear(quarantine: Quarantine, files: list[Quarantined], failed: list[dict[str, str]]) -> list[Quarantined]:
    """Removes these; what was removed. What could not be is added to ``failed``. For who holds the lock."""
    removed = []
    for file in files:
        try:
            removed += quarantine.clear({file.name})
        except OSError as error:
            failed.append(not_removed(file.path, error))
    return removed


def _facts(file: Quarantined) -> dict[str, Any]:
    return {"name": file.name, "path": file.path, "file_bytes": file.file_size, "since": int(file.since)}


_COLUMNS = (
    ("MiB", lambda row: f"{row['file_bytes'] / MIB:,.1f}"),
    ("age", lambda row: age(row["since"])),
    ("name", lambda row: printable(row["name"])),
)
