"""``ds4kv cat``: the payload or the text of one checkpoint to stdout, byte for byte."""

from __future__ import annotations

import argparse
import sys

import ds4kv
from ds4kv.cli.pieces import pieces

__all__ = ["configure", "run"]


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="a checkpoint")
    parser.add_argument("--text", action="store_true", help="the rendered prompt instead of the payload")


def run(args: argparse.Namespace) -> int:
    with ds4kv.open(args.file) as checkpoint:
        if args.text:
            sys.stdout.buffer.write(checkpoint.text)
        else:
            for piece in pieces(checkpoint.payload):
                sys.stdout.buffer.write(piece)
    return 0
