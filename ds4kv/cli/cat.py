"""``ds4kv cat``: the payload or the text of one checkpoint to stdout, byte for byte.

A terminal gets no payload, which is binary, and of a text no control characters: they could do anything to it.
"""

from __future__ import annotations

import argparse
import codecs
import contextlib
import sys
from collections.abc import Iterable, Iterator

import ds4kv
from ds4kv.cli.arguments import UsageError
from ds4kv.cli.messages import printable, reason
from ds4kv.cli.pieces import pieces

__all__ = ["configure", "run"]

_PIECE_SIZE = 1 << 16


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="a checkpoint")
    parser.add_argument(
        "--text",
        action="store_true",
        help="the rendered prompt instead of the payload; on a terminal its control characters are escaped",
    )
    parser.add_argument("--force", action="store_true", help="write to a terminal too, byte for byte")


def run(args: argparse.Namespace) -> int:
    is_guarded = sys.stdout.isatty() and not args.force
    if is_guarded and not args.text:
        raise UsageError(
            f"the payload of {printable(args.file)} is binary, and this is a terminal: write > FILE, or --force"
        )
    with ds4kv.open(args.file) as checkpoint:
        if not args.text:
            _write(pieces(checkpoint.payload), checkpoint.payload.raw_total)
        elif is_guarded:
            _show(checkpoint.text)
        else:
            _write([memoryview(checkpoint.text)], checkpoint.text_bytes)
    return 0


def _write(parts: Iterable[memoryview], size: int) -> None:
    """Writes ``size`` bytes in all. Raises OSError, which names stdout if it is that which fails."""
    for part in parts:
        with _naming_stdout(size):
            sys.stdout.buffer.write(part)
    with _naming_stdout(size):
        sys.stdout.buffer.flush()


@contextlib.contextmanager
def _naming_stdout(size: int) -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise  # whoever reads it has seen enough
    except OSError as error:
        raise OSError(error.errno, f"{reason(error)}: {size:,} bytes were to be written", "stdout") from error


def _show(text: bytes) -> None:
    """Prints a text whose lines and tabs are the only things in it that move the cursor."""
    decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")
    for start in range(0, len(text), _PIECE_SIZE):
        part = decoder.decode(text[start : start + _PIECE_SIZE], start + _PIECE_SIZE >= len(text))
        sys.stdout.write("".join(map(_escaped, part)))


def _escaped(character: str) -> str:
    if character.isprintable() or character in "\n\t":
        return character
    return character.encode("unicode_escape").decode("ascii")
