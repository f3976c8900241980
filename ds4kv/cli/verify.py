"""``ds4kv verify``: decodes checkpoints and gives each its verdict.

``ok`` says that a reader gets a whole payload: without a checksum in the file, changed bytes that still decode can't be
seen. ``corrupt`` is proven; ``unsupported`` files may be good; ``unreadable`` ones could not be looked at, because of
the disk or the permissions. The trailer has no rules of its own and is not read. Memory doesn't grow with the payload.
"""

from __future__ import annotations

import argparse
import os
from collections import Counter
from collections.abc import Iterator

import ds4kv
from ds4kv.cli.messages import printable, reason, verdict
from ds4kv.cli.pieces import pieces

__all__ = ["configure", "run"]


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "The exit code is 1 if any file is not ok."
    parser.add_argument(
        "paths", metavar="FILE|DIR", nargs="+", help="a checkpoint, or a directory: all of its *.kv files"
    )


def run(args: argparse.Namespace) -> int:
    counts = Counter({"ok": 0})
    for path, error in _judge_all(args.paths):
        word = "ok" if error is None else verdict(error)
        why = "" if error is None else f": {reason(error)}"
        counts[word] += 1
        print(f"{printable(path)}: {word}{why}", flush=True)
    total = counts.total()
    print(f"{total} file{'s' * (total != 1)}: {', '.join(f'{n} {word}' for word, n in counts.items())}")
    return 0 if counts["ok"] == total else 1


def _judge_all(paths: list[str]) -> Iterator[tuple[str, Exception | None]]:
    for path in paths:
        try:
            files = _files(path)
        except OSError as error:
            yield path, error
            continue
        for file in files:
            yield file, _judge(file)


def _files(path: str) -> list[str]:
    if not os.path.isdir(path):
        return [path]
    return [os.path.join(path, name) for name in sorted(os.listdir(path)) if name.endswith(".kv")]


def _judge(path: str) -> Exception | None:
    try:
        with ds4kv.open(path) as checkpoint:
            for _ in pieces(checkpoint.payload):
                pass
    except (ds4kv.Ds4kvError, OSError, MemoryError) as error:
        return error
    return None
