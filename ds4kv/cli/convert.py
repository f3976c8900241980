"""``ds4kv convert``: one checkpoint again, in another layout or codec.

Everything but the way the payload is stored stays: the payload itself, text, trailer, and all that the header says. One
pass, in memory that doesn't grow with the payload. The target appears when it is whole and on the disk, so it may be
the source.
"""

from __future__ import annotations

import argparse
import contextlib
import os

import ds4kv
from ds4kv.cli.arguments import UsageError, add_threads, whole_number
from ds4kv.cli.messages import printable
from ds4kv.cli.pieces import pieces
from ds4kv.file.ledger import Ledger
from ds4kv.file.writer import encoding_for
from ds4kv.format.header import (
    CHECKED_CHUNK_SIZE,
    CHUNK_SIZE,
    MAX_CHUNK_SIZE,
    Codec,
    Header,
    Layout,
    default_chunk_size,
)

__all__ = ["configure", "run"]


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SRC", help="a checkpoint")
    parser.add_argument("target", metavar="DST", help="the file to write; it may be SRC")
    parser.add_argument(
        "--layout", choices=["v1", "v2", "v2-checked", "packed"], default="v2", help="layout of DST, v2 by default"
    )
    parser.add_argument(
        "--codec",
        choices=[codec.name.lower() for codec in Codec],
        help="codec of DST, lz4 by default; layout v1 has none",
    )
    parser.add_argument(
        "--level",
        metavar="N",
        type=int,
        help="0 to 12: higher is smaller and slower to write, but not to read; -1, for v2-checked and packed: as fast"
        " as raw; by default 1 for v2-checked, else 0",
    )
    parser.add_argument(
        "--chunk-size",
        metavar="N",
        type=whole_number(1, MAX_CHUNK_SIZE),
        help=f"payload bytes compressed at a time, {CHUNK_SIZE} by default; for v2-checked and packed a power of two,"
        f" by default {CHECKED_CHUNK_SIZE}",
    )
    add_threads(parser, "worker threads to read with, and as many to write with")


def run(args: argparse.Namespace) -> int:
    if os.path.isdir(args.target):
        raise UsageError(f"{printable(args.target)} is a directory: name the file to write")
    directory, name = os.path.split(args.target)
    with (
        ds4kv.open(args.source, workers=args.threads) as source,
        contextlib.closing(Ledger(directory)) as ledger,
    ):
        # What a store has noted of the old file isn't true of the new one, which is noted if what it is made of was.
        is_noted = source.note is not None and ledger.get(name) is not None
        with _create(args, source, ledger if is_noted else None) as target:
            for piece in pieces(source.payload):
                target.payload.write(piece)
            target.trailer = source.trailer
        if not is_noted:
            ledger.remove(name)
        file_size = os.stat(args.target).st_size
        header = target.header
        # Layout v2-checked leaves a payload that it can't shrink as it is.
        why = "" if header.layout == args.layout else f", as {args.layout} would save too little"
        print(
            f"{printable(args.target)}: {header.layout} {header.codec.name.lower()}, {file_size:,} bytes{why};"
            f" {printable(args.source)} had {source.file_size:,}"
        )
    return 0


def _create(args: argparse.Namespace, source: ds4kv.CheckpointReader, ledger: Ledger | None) -> ds4kv.CheckpointWriter:
    try:
        header = _header(args, source.header)
        return ds4kv.CheckpointWriter(
            args.target,
            header,
            source.text,
            b"",
            encoding_for(header, level=args.level, workers=args.threads, nice=0),
            raw_total=source.payload.raw_total,
            fsync=True,  # the source may be deleted next, or be replaced by this
            ledger=ledger,
        )
    except ValueError as error:
        raise UsageError(f"{printable(args.source)} can't be written like that: {error}") from error


def _header(args: argparse.Namespace, header: Header) -> Header:
    """The source's header with another layout and codec; UsageError or ValueError if there is no such file."""
    default = Codec.NONE if args.layout == Layout.V1 else Codec.LZ4
    codec = default if args.codec is None else Codec[args.codec.upper()]
    if codec is Codec.NONE:
        for option, value in (("--level", args.level), ("--chunk-size", args.chunk_size)):
            if value is not None:
                raise UsageError(f"{option} is for compressed payloads, and codec none keeps them raw")
    chunk_size = 0 if codec is Codec.NONE else args.chunk_size or default_chunk_size(args.layout)
    return Header(**header._asdict() | {"layout": args.layout, "codec": codec, "chunk_size": chunk_size})
