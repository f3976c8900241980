"""``ds4kv sessions``: the conversations that ds4-agent saved in a directory, the one used last first."""

from __future__ import annotations

import argparse
import os

from ds4kv.cli.listing import MIB, age, show_table
from ds4kv.sessions import Sessions

__all__ = ["configure", "run"]


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", metavar="DIR", help="ds4-agent's own is ~/.ds4/kvcache")


def run(args: argparse.Namespace) -> int:
    os.stat(args.directory)  # Sessions would make it
    rows = [{"entry": session.entry, "title": session.title} for session in Sessions(args.directory).list()]
    if rows:
        show_table(_COLUMNS, rows)
    print(f"{len(rows):,} session{'s' * (len(rows) != 1)}")
    return 0


_COLUMNS = (
    ("sha", lambda row: row["entry"].sha[:8]),
    ("age", lambda row: age(row["entry"].header.last_used)),
    ("tokens", lambda row: f"{row['entry'].tokens:,}"),
    ("MiB", lambda row: f"{row['entry'].file_size / MIB:,.1f}"),
    ("title", lambda row: repr(row["title"])),
)
