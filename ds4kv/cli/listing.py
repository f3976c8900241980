"""What the subcommands on a directory share: what is in it, and how that is shown.

Nothing here makes, changes or removes a file, so a directory may be looked at while engines use it.
"""

from __future__ import annotations

import codecs
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from ds4kv.cli.messages import printable, reason
from ds4kv.core.region import frame_at
from ds4kv.errors import CorruptError, Ds4kvError
from ds4kv.file.lock import LOCK_NAME
from ds4kv.file.verdict import Verdict
from ds4kv.format.header import Codec, Form
from ds4kv.format.identity import MAX_MARK_BYTES, identity_of, mark_of
from ds4kv.format.layout import PREFIX_SIZE
from ds4kv.format.naming import is_entry_name
from ds4kv.store.entry import Entry, read_entry
from ds4kv.stream.regular import read_at

__all__ = ["MIB", "age", "facts", "not_removed", "other_by", "scan", "show_table", "tell", "text_start"]

MIB = 1 << 20

_TEXT_START_CHARACTERS = 40
_UNITS = ((86400, "d"), (3600, "h"), (60, "m"), (1, "s"))


def scan(directory: str) -> tuple[list[Entry], list[dict[str, str]]]:
    """The checkpoints, and the files that are none: ``path``, ``verdict`` and ``why`` of each; both in order of name.

    What is none by its name has the verdict ``foreign``. Raises OSError if the directory can't be read.
    """
    entries, others = [], []
    with os.scandir(directory) as names:
        files = sorted((found.name, found.path) for found in names if is_entry_name(found.name) or _is_file(found))
    for name, path in files:
        if not is_entry_name(name):
            if name != LOCK_NAME:
                others.append(_other(path, "foreign", "a store's files are named 40 hex digits and .kv"))
            continue
        try:
            entries.append(read_entry(path))
        except FileNotFoundError:
            if os.path.islink(path):
                others.append(_other(path, "unreadable", "a link that leads nowhere"))
            # Else it was evicted since the directory was read.
        except (Ds4kvError, OSError) as error:
            others.append(other_by(error, path))
    return entries, others


def _is_file(found: os.DirEntry[str]) -> bool:
    try:
        return found.is_file()
    except OSError:
        return False  # such as a link that leads to itself


def _other(path: str, word: str, why: str) -> dict[str, str]:
    return {"path": path, "verdict": word, "why": why}


def other_by(error: Exception, path: str) -> dict[str, str]:
    """What :func:`tell` is to say of a file that could not be read, or is none that is."""
    return _other(path, Verdict.of(error), reason(error))


def not_removed(path: str, error: OSError) -> dict[str, str]:
    """What :func:`tell` is to say of a file that could not be removed."""
    return _other(path, "not removed", reason(error))


def tell(others: Sequence[dict[str, str]]) -> None:
    """Says on stderr what is no checkpoint, or not as it should be, and why."""
    for other in others:
        print(f"{printable(other['path'])}: {other['verdict']}: {other['why']}", file=sys.stderr)


def facts(entry: Entry) -> dict[str, Any]:
    """What the table and JSON say of a checkpoint; None is what isn't known. Raises OSError."""
    header = entry.header
    with open(entry.path, "rb", buffering=0) as fp:
        identity, start = text_start(fp.fileno(), entry.text_bytes, _TEXT_START_CHARACTERS)
        raw_total = _raw_total(entry, fp.fileno())
    return {
        "sha": entry.sha,
        "path": entry.path,
        "tokens": entry.tokens,
        "ctx_size": entry.ctx_size,
        "quant_bits": entry.quant_bits,
        "layout": header.layout,
        "codec": header.codec.name.lower(),
        "file_bytes": entry.file_size,
        "ratio": None if raw_total is None else raw_total / header.payload_bytes,
        "hits": header.hits,
        "created_at": header.created_at,
        "last_used": header.last_used,
        "reason": header.reason.word,
        "identity": identity,
        "text_bytes": entry.text_bytes,
        "text_start": start,
    }


def text_start(fd: int, text_bytes: int, characters: int) -> tuple[str | None, str]:
    """The identity of an open checkpoint, in hex if it is no text, and None if it has none; and how its text begins."""
    # No character takes more than four bytes in UTF-8; one that is cut at the end is left out.
    head = read_at(fd, PREFIX_SIZE, min(text_bytes, MAX_MARK_BYTES + 4 * characters))
    identity = identity_of(head)
    shown = head[len(mark_of(identity)) :][: 4 * characters]
    start = codecs.getincrementaldecoder("utf-8")("replace").decode(shown)[:characters]
    return None if identity is None else _words(identity), start


def _words(identity: bytes) -> str:
    try:
        return identity.decode()
    except UnicodeDecodeError:
        return identity.hex()


def _raw_total(entry: Entry, fd: int) -> int | None:
    """The payload's size before compression, by a frame that can be true; None if there is none."""
    header = entry.header
    if header.codec is Codec.NONE:
        return None
    form = header.form or Form.PLAIN  # v2-mid, whose two forms have the same frame
    try:
        start = PREFIX_SIZE + entry.text_bytes
        return frame_at(fd, start, header.payload_bytes, header.chunk_size, form).raw_total
    except CorruptError:
        return None


def age(seconds: int) -> str:
    """How long ago a time in Unix seconds was, in its largest unit; negative for one to come, ``-`` for none, 0."""
    if seconds == 0:
        return "-"
    passed = int(time.time()) - seconds
    size, unit = next((size, unit) for size, unit in _UNITS if abs(passed) >= size or size == 1)
    return f"{'-' * (passed < 0)}{abs(passed) // size}{unit}"


def show_table(columns: Sequence[tuple[str, Callable[[dict[str, Any]], str]]], rows: Sequence[dict[str, Any]]) -> None:
    """Prints the rows under their heading; all columns but the first and the last are numbers or words to the right."""
    cells = [[heading for heading, _ in columns], *([in_words(row) for _, in_words in columns] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        *middle, last = line
        shown = [
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(middle, widths[:-1], strict=True))
        ]
        print("  ".join([*shown, last]))
