"""``ds4kv sessions``: the conversations that ds4-agent saved in a directory, the one used last first.

The directory stays as it is. A server's checkpoints are listed too, by how their text begins if it has no user
turn.
"""

from __future__ import annotations

import argparse
from typing import Any

from ds4kv.cli.listing import MIB, age, other_by, scan, show_table, tell, text_start
from ds4kv.cli.messages import printable
from ds4kv.format.header import Reason
from ds4kv.store.entry import Entry
from ds4kv.store.sessions import read_title
from ds4kv.stream.regular import RegularFile

__all__ = ["configure", "run"]

_TEXT_START_CHARACTERS = 40


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "The title is how the first user turn begins, or the text where it has none. Damaged files are told on stderr,"
        " and the exit code is 1 if there are any."
    )
    parser.add_argument("directory", metavar="DIR", help="ds4-agent's own is ~/.ds4/kvcache")


def run(args: argparse.Namespace) -> int:
    entries, others = scan(args.directory)
    others = [other for other in others if other["verdict"] != "foreign"]
    rows = []
    for entry in sorted(entries, key=lambda entry: entry.header.last_used, reverse=True):
        try:
            rows.append({"entry": entry, "title": _title(entry)})
        except FileNotFoundError:
            continue  # replaced by a longer one since it was listed
        except OSError as error:
            others.append(other_by(error, entry.path))
    if rows:
        show_table(_COLUMNS, rows)
    count = sum(_is_session(row) for row in rows)
    line = f"{count:,} session{'s' * (count != 1)}"
    if n := len(rows) - count:
        line += f", and {n:,} other checkpoint{'s' * (n != 1)}: ds4kv ls {printable(args.directory)} says more of them"
    print(line)
    tell(others)
    return 1 if others else 0


def _title(entry: Entry) -> str:
    """How its first user turn begins, quoted; or how its text does, after a word that says so."""
    if title := read_title(entry):
        return repr(title)
    with RegularFile(entry.path) as fp:
        _, start = text_start(fp.fileno(), entry.text_bytes, _TEXT_START_CHARACTERS)
    return f"no user turn, text begins {start!r}" if start else "no text"


def _is_session(row: dict[str, Any]) -> bool:
    return bool(row["entry"].header.reason is Reason.AGENT_SESSION)


_COLUMNS = (
    ("sha", lambda row: row["entry"].sha[:8]),
    ("age", lambda row: age(row["entry"].header.last_used)),
    ("tokens", lambda row: f"{row['entry'].tokens:,}"),
    ("MiB", lambda row: f"{row['entry'].file_size / MIB:,.1f}"),
    ("title", lambda row: row["title"]),
)
