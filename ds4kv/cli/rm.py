"""``ds4kv rm``: removes checkpoints by the beginning of their SHA-1.

It goes by file names, so damaged checkpoints can be removed as well. All that was asked for is looked up before the
first file goes.
"""

from __future__ import annotations

import argparse
import contextlib
import os

import ds4kv
from ds4kv.cli.arguments import UsageError
from ds4kv.cli.changing import telling_warnings, waiting_for
from ds4kv.cli.listing import MIB, not_removed, tell
from ds4kv.cli.messages import printable
from ds4kv.format.naming import is_entry_name
from ds4kv.store.directory import Directory

__all__ = ["configure", "run"]

_SHA_DIGITS = 40


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "Nothing is removed if one of them is unknown or could mean several checkpoints. If one can't be removed the"
        " others go all the same, and the exit code is 1."
    )
    parser.add_argument("directory", metavar="DIR", help="a directory of checkpoints")
    parser.add_argument("shas", metavar="SHA", nargs="+", help="how the SHA-1 of a checkpoint begins, in hex digits")


def run(args: argparse.Namespace) -> int:
    for sha in args.shas:
        if not 1 <= len(sha) <= _SHA_DIGITS or not set(sha) <= set("0123456789abcdefABCDEF"):
            raise UsageError(f"{sha!r} is not how a SHA-1 begins: 1 to {_SHA_DIGITS} hex digits")
    paths = _look_up(args.directory, args.shas)
    code = 0
    with contextlib.closing(Directory(args.directory)) as directory, telling_warnings():
        for path in paths:
            try:
                size = os.lstat(path).st_size
                is_removed = directory.remove(path, on_wait=waiting_for(args.directory))
            except FileNotFoundError:
                is_removed = False
            except TimeoutError:
                raise  # the next one would wait as long for the lock
            except OSError as error:
                tell([not_removed(path, error)])
                code = 1
                continue
            print(
                f"removed {printable(path)}, {size / MIB:,.1f} MiB" if is_removed else f"{printable(path)} was gone",
                flush=True,
            )
    return code


def _look_up(directory: str, shas: list[str]) -> list[str]:
    """The paths of all files with these keys; two spellings of one name are one key."""
    by_key: dict[str, list[str]] = {}
    for name in sorted(os.listdir(directory)):
        if is_entry_name(name):
            by_key.setdefault(name[:_SHA_DIGITS].lower(), []).append(os.path.join(directory, name))
    chosen: dict[str, list[str]] = {}
    for sha in shas:
        keys = [key for key in by_key if key.startswith(sha.lower())]
        if not keys:
            raise ds4kv.Ds4kvError(f"no checkpoint {sha} in {printable(directory)}")
        if len(keys) > 1:
            raise ds4kv.Ds4kvError(
                f"{sha} could be any of {len(keys)} checkpoints: {', '.join(keys[:4])}{', ...' * (len(keys) > 4)}"
            )
        chosen[keys[0]] = by_key[keys[0]]
    return [path for paths in chosen.values() for path in paths]
