"""``ds4kv salvage``: the good leading chunks of a damaged checkpoint as a checkpoint of their own, and what is lost.

The damaged file is only read. Where nothing is good nothing is written.
"""

from __future__ import annotations

import argparse
import json
import os
import sys

import ds4kv
from ds4kv.cli.arguments import UsageError, add_threads
from ds4kv.cli.messages import printable
from ds4kv.file.salvage import Damage, Wreck
from ds4kv.file.writer import encoding_for
from ds4kv.format.header import Header, Layout, default_chunk_size

__all__ = ["configure", "run"]


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "OUT has the header, text and trailer of FILE: its tokens are still those of the whole state, and its payload"
        " is shorter. So it is for engines that can use, or crop to, the beginning of a state; others refuse it. Of"
        " payloads stored without checksums, changed bytes that still decode are taken for good. The exit code is 0 if"
        " something was saved, 1 if nothing was."
    )
    parser.add_argument("file", metavar="FILE", help="a damaged checkpoint, which stays as it is")
    parser.add_argument("out", metavar="OUT", help="the file to write, another one than FILE")
    parser.add_argument("--json", action="store_true", help="one JSON object; null is what isn't known")
    add_threads(parser, "worker threads to read with, and as many to write with")


_UNSEEN = "without checksums or sums, changed bytes that still decode can't be seen"


def run(args: argparse.Namespace) -> int:
    if os.path.isdir(args.out):
        raise UsageError(f"{printable(args.out)} is a directory: name the file to write")
    with Wreck(args.file, workers=args.threads) as wreck:
        if os.path.exists(args.out) and os.path.samefile(args.file, args.out):
            raise UsageError(f"{printable(args.out)} is the damaged file itself: name another one to write")
        with _create(args, wreck) as target:
            saved_bytes, damage = wreck.examine(sink=target.payload.write)
            is_written = saved_bytes > 0 or wreck.raw_total == 0
            if is_written:
                target.trailer = wreck.trailer
            else:
                target.abandon()
        if args.json:
            facts = {
                "path": args.file,
                "out": args.out if is_written else None,
                "saved_bytes": saved_bytes,
                "raw_total": wreck.raw_total,
                "damage": [each._asdict() for each in damage],
            }
            print(json.dumps(facts, indent=2))
        else:
            _tell(args, wreck, saved_bytes, damage)
    if not is_written:
        print(f"ds4kv: error: {printable(args.file)}: nothing could be saved", file=sys.stderr)
    return 0 if is_written else 1


def _create(args: argparse.Namespace, wreck: Wreck) -> ds4kv.CheckpointWriter:
    try:
        header = _writable(wreck.whole_header)
        return ds4kv.CheckpointWriter(
            args.out,
            header,
            wreck.text,
            b"",
            encoding_for(header, level=None, workers=args.threads, nice=0),
            raw_total=None,
            fsync=True,
        )
    except ValueError as error:
        raise UsageError(f"{printable(args.out)} can't be written: {error}") from error


def _writable(header: Header) -> Header:
    """The same in a layout that is written; in ``v2-checked`` and ``packed`` in chunks of the size that is best."""
    layout, chunk_size = header.layout, header.chunk_size
    if layout is Layout.V2_MID:
        layout = Layout.V2_CHECKED if header.model_id or header.payload_abi else Layout.V2
    if layout in (Layout.V2_CHECKED, Layout.PACKED):
        chunk_size = default_chunk_size(layout)
    return Header(**header._asdict() | {"layout": layout, "chunk_size": chunk_size})


def _tell(args: argparse.Namespace, wreck: Wreck, saved_bytes: int, damage: tuple[Damage, ...]) -> None:
    of = "" if wreck.raw_total is None else f" of {wreck.raw_total:,}"
    state = "" if saved_bytes or wreck.raw_total == 0 else "not written: "
    print(f"{printable(args.out)}: {state}{saved_bytes:,}{of} bytes of payload saved")
    lost_bytes = sum((stop or start) - start for start, stop, *_ in damage)
    behind = 0 if wreck.raw_total is None else wreck.raw_total - saved_bytes - lost_bytes
    for number, (start, stop, offset, why) in enumerate(damage, 1):
        if start == stop:
            lost = "no payload lost"
        elif stop is None:
            lost = f"lost: all from byte {start:,} on"
        else:
            lost = f"lost: bytes {start:,} to {stop - 1:,}, {stop - start:,} bytes"
        rest = f"; not saved: {behind:,} good bytes behind it" if behind and number == len(damage) else ""
        print(f"{lost}: {why} (byte {offset}){rest}")
    if wreck.header.layout is Layout.PACKED and not wreck.is_as_sealed and not state:
        print(f"{printable(args.out)} is sealed anew, with header and text as they were found: nothing proves those")
    if not damage:
        print("nothing is lost: no damage was found" if wreck.is_proven else f"no damage was found; {_UNSEEN}")
