"""``ds4kv info``: what one checkpoint says of itself.

Header, text and frame are read and held against the file's size; chunks are not decoded, which is ``ds4kv verify``. Of
a damaged file this shows what could be read before the damage.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
from collections.abc import Callable
from typing import Any

import ds4kv
from ds4kv.cli.listing import text_start
from ds4kv.cli.messages import printable, reason
from ds4kv.file.verdict import Verdict
from ds4kv.format import layout
from ds4kv.format.header import Codec, Ext, Form, Header, Layout
from ds4kv.stream.regular import RegularFile

__all__ = ["configure", "run"]

_TEXT_START_CHARACTERS = 60


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "Chunks are not decoded: ds4kv verify does that."
    parser.add_argument("file", metavar="FILE", help="a checkpoint")
    parser.add_argument("--json", action="store_true", help="one JSON object; null is what the file lacks")


def run(args: argparse.Namespace) -> int:
    facts: dict[str, Any] = dict.fromkeys(_ROWS)
    error = _gather(args.file, facts)
    if args.json:
        problem = None if error is None else {"verdict": Verdict.of(error), "why": reason(error)}
        print(json.dumps({**facts, "error": problem}, indent=2))
    else:
        width = max(len(label) for label, _ in _ROWS.values())
        for name, (label, in_words) in _ROWS.items():
            if facts[name] is not None:
                print(f"{label:{width}}  {in_words(facts[name])}")
    if error is not None:
        raise error
    return 0


def _gather(path: str, facts: dict[str, Any]) -> ds4kv.Ds4kvError | None:
    """Fills in the facts, up to the error that it returns."""
    try:
        _gather_prefix(path, facts)
        # Nothing is decoded, so threads would have nothing to do.
        with ds4kv.open(path, workers=0) as checkpoint:
            _gather_payload(checkpoint, facts)
    except ds4kv.Ds4kvError as error:
        error.path = path
        return error
    return None


def _gather_prefix(path: str, facts: dict[str, Any]) -> None:
    """What stands before the payload: known even where the rest of the file is missing."""
    with RegularFile(path) as fp:
        facts.update(path=path, file_bytes=os.fstat(fp.fileno()).st_size)
        header, text_bytes = layout.examine(fp.fileno(), facts["file_bytes"], may_be_damaged=True)
        facts.update(_header_facts(header), text_bytes=text_bytes)
        facts["identity"], facts["text_start"] = text_start(fp.fileno(), text_bytes, _TEXT_START_CHARACTERS)


def _header_facts(header: Header) -> dict[str, Any]:
    facts = {
        "layout": header.layout,
        "codec": header.codec.name.lower(),
        "checksums": header.form in (Form.CHECKED, Form.PACKED),
        "quant_bits": header.quant_bits,
        "tokens": header.tokens,
        "ctx_size": header.ctx_size,
        "reason": header.reason.word,
        "reason_code": header.reason_code,
        "ext_flags": header.ext_flags,
        "hits": header.hits,
        "created_at": header.created_at,
        "last_used": header.last_used,
        "payload_bytes": header.payload_bytes,
    }
    if header.layout is not Layout.V2:
        facts |= {"model_id": header.model_id, "payload_abi": header.payload_abi}
    if header.codec is not Codec.NONE:
        facts["chunk_size"] = header.chunk_size
    return facts


def _gather_payload(checkpoint: ds4kv.CheckpointReader, facts: dict[str, Any]) -> None:
    raw_total, region_bytes = checkpoint.payload.raw_total, checkpoint.payload.region_bytes
    facts.update(raw_total=raw_total, trailer_bytes=checkpoint.trailer_bytes)
    if checkpoint.form is not Form.RAW and isinstance(checkpoint.payload, ds4kv.PayloadReader):
        facts.update(chunk_count=checkpoint.payload.chunk_count, ratio=raw_total / region_bytes)


def _time(seconds: int) -> str:
    try:
        return f"{datetime.datetime.fromtimestamp(seconds, datetime.UTC):%Y-%m-%d %H:%M:%S} UTC"
    except (ValueError, OverflowError, OSError):  # 64 bits of seconds reach far beyond the year 9999
        return f"{seconds} seconds after 1970"


def _extensions(flags: int) -> str:
    words = [flag.name.lower().replace("_", "-") for flag in Ext if flags & flag and flag.name]
    unknown = flags & ~sum(Ext)
    words += [f"unknown {unknown:#04x}"] if unknown else []
    return ", ".join(words) or "none"


_count = "{:,}".format
_bytes = "{:,} bytes".format

# What there is to say, in this order: the name in JSON, the label, and how to put the value in words.
_ROWS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "path": ("file", printable),
    "file_bytes": ("file size", _bytes),
    "layout": ("layout", str),
    "codec": ("codec", str),
    "checksums": ("checksums", lambda has: "yes" if has else "no"),
    "chunk_size": ("chunk size", _bytes),
    "chunk_count": ("chunks", _count),
    "raw_total": ("payload", _bytes),
    "payload_bytes": ("payload as stored", _bytes),
    "ratio": ("ratio", "{:.2f}x".format),
    "tokens": ("tokens", _count),
    "ctx_size": ("context size", "{:,} tokens".format),
    "quant_bits": ("quantization", "{} bits".format),
    "model_id": ("model id", str),
    "payload_abi": ("payload ABI", str),
    "reason": ("reason", str),
    "reason_code": ("reason code", str),
    "ext_flags": ("extensions", _extensions),
    "hits": ("hits", _count),
    "created_at": ("created", _time),
    "last_used": ("last used", _time),
    "identity": ("identity", printable),
    "text_bytes": ("text size", _bytes),
    "text_start": ("text begins", repr),
    "trailer_bytes": ("trailer size", _bytes),
}
