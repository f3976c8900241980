"""``ds4kv find``: which checkpoint an engine would load for a prompt, or what is in the way of one.

On a miss the stored text that has most in common with the prompt is compared to it: mostly a template that renders a
date, or a tool list in another order. Files are only read.
"""

from __future__ import annotations

import argparse
import codecs
import json
from pathlib import Path
from typing import Any, NamedTuple

from ds4kv.cli.arguments import UsageError, whole_number
from ds4kv.cli.listing import facts, scan, tell
from ds4kv.cli.messages import printable
from ds4kv.format.identity import MARK, is_of, mark_of
from ds4kv.format.layout import PREFIX_SIZE
from ds4kv.store import policy
from ds4kv.store.entry import Entry, read_text
from ds4kv.store.index import News
from ds4kv.store.lookup import longest_prefix
from ds4kv.store.nearest import Nearest
from ds4kv.stream.regular import read_at

__all__ = ["configure", "run"]

_MAX_U32 = (1 << 32) - 1
_CONTEXT_BYTES = 32
_CONTINUATION_BYTES = bytes(range(0x80, 0xC0))
"""Of UTF-8: those that don't begin a character."""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "The exit code is 1 if nothing is found."
    parser.add_argument("directory", metavar="DIR", help="a directory of checkpoints")
    parser.add_argument("--prompt-file", metavar="FILE", required=True, help="the rendered prompt, byte for byte")
    parser.add_argument(
        "--ctx-size",
        metavar="N",
        type=whole_number(1, _MAX_U32),
        default=_MAX_U32,
        help="the engine's context in tokens: none saved by a larger one; default: any",
    )
    parser.add_argument(
        "--quant-bits", metavar="N", type=int, choices=(2, 4), help="2 or 4: none of the other; default: both"
    )
    parser.add_argument(
        "--min-tokens",
        metavar="N",
        type=whole_number(1, _MAX_U32),
        default=policy.MIN_TOKENS,
        help="none that is shorter; default: %(default)s",
    )
    parser.add_argument("--identity", metavar="NAME", help="of the engine's store, if it has one, as ls shows it")
    parser.add_argument("--json", action="store_true", help="one JSON object; null is what there isn't")


def run(args: argparse.Namespace) -> int:
    prompt = Path(args.prompt_file).read_bytes()
    try:
        mark = mark_of(args.identity)
    except ValueError as error:
        raise UsageError(str(error)) from error
    entries, others = scan(args.directory)
    tell([other for other in others if other["verdict"] != "foreign"])
    found = _find(entries, mark + prompt, args)
    nearest = None if found is not None else _nearest(entries, mark, prompt, args)
    if args.json:
        answer = {"prompt_bytes": len(prompt), "found": None if found is None else facts(found), "nearest": nearest}
        print(json.dumps(answer, indent=2))
    elif found is not None:
        print(
            f"{printable(found.path)}: {found.tokens:,} tokens, the first {found.text_bytes - len(mark):,}"
            f" of the prompt's {len(prompt):,} bytes"
        )
    else:
        print(f"nothing found among {len(entries):,} checkpoint{'s' * (len(entries) != 1)}")
        if nearest is not None:
            _explain(nearest, len(prompt))
    return 1 if found is None else 0


def _find(entries: list[Entry], prompt: bytes, args: argparse.Namespace) -> Entry | None:
    """What a store finds and loads: one whose text is not what its name says is passed over."""
    mislabelled: set[str] = set()
    while True:
        found = longest_prefix(
            entries, prompt, lambda entry: entry.path not in mislabelled and not _refusals(entry, args)
        )
        if found is None or read_text(found) == prompt[: found.text_bytes]:
            return found
        mislabelled.add(found.path)
        tell([{"path": found.path, "verdict": "corrupt", "why": "its name is not the SHA-1 of its text"}])


def _refusals(entry: Entry, args: argparse.Namespace) -> list[str]:
    """Why this checkpoint isn't for this engine, whatever the prompt."""
    why = []
    if entry.tokens < args.min_tokens:
        why.append(f"it has {entry.tokens:,} tokens, fewer than {args.min_tokens:,} (--min-tokens)")
    if entry.ctx_size > args.ctx_size:
        why.append(f"its context is {entry.ctx_size:,} tokens, more than {args.ctx_size:,} (--ctx-size)")
    if args.quant_bits is not None and entry.quant_bits != args.quant_bits:
        why.append(f"its quantization is {entry.quant_bits} bits, not {args.quant_bits} (--quant-bits)")
    return why


class _Listed(NamedTuple):
    """What was listed, for :class:`ds4kv.store.nearest.Nearest`."""

    entries: list[Entry]

    def news(self, since: int, /) -> News:
        return News(1, {entry.path: entry for entry in self.entries}, is_all=True)


def _nearest(entries: list[Entry], mark: bytes, prompt: bytes, args: argparse.Namespace) -> dict[str, Any] | None:
    """The checkpoint whose text has the longest beginning in common with the prompt, and what is in its way.

    Where none has a byte in common, the one with the most tokens.
    """
    found = Nearest(_Listed(entries), mark, sorts=False).find(mark + prompt, lambda entry: True)
    if found is None:
        ours = [entry for entry in entries if is_of(mark, _read(entry.path, 0, len(mark or MARK)))]
        if not ours:
            return None
        found = max(ours, key=lambda entry: entry.tokens), len(mark)
    entry, common = found
    return {
        **facts(entry),
        "common_bytes": common - len(mark),
        "refused": _refusals(entry, args),
        "differs": None if common == entry.text_bytes else _difference(entry, mark, prompt, common - len(mark)),
    }


def _difference(entry: Entry, mark: bytes, prompt: bytes, at: int) -> dict[str, Any]:
    """How text and prompt go on where they part, both in whole characters: that may be a little before ``at``."""
    start = len(mark) + at
    stored = _read(entry.path, start, min(_CONTEXT_BYTES, entry.text_bytes - start))
    ours = prompt[at : at + _CONTEXT_BYTES]
    shared = prompt[max(at - _CONTEXT_BYTES, 0) : at]
    is_inside = any(piece[0] in _CONTINUATION_BYTES for piece in (stored, ours) if piece)
    if is_inside and (begun := len(shared.rstrip(_CONTINUATION_BYTES))):
        shared, head = shared[: begun - 1], shared[begun - 1 :]
        stored, ours = head + stored, head + ours
    return {
        "at": at,
        "after": _words(shared.lstrip(_CONTINUATION_BYTES)),
        "stored": _words(stored),
        "prompt": _words(ours),
    }


def _read(path: str, start: int, size: int) -> bytes:
    """A piece of a file's text."""
    with open(path, "rb", buffering=0) as fp:
        return read_at(fp.fileno(), PREFIX_SIZE + start, size)


def _words(text: bytes) -> str:
    """The text, without a character that is cut at the end."""
    return codecs.getincrementaldecoder("utf-8")("replace").decode(text)


def _explain(nearest: dict[str, Any], prompt_bytes: int) -> None:
    differs, common = nearest["differs"], nearest["common_bytes"]
    print(
        f"nearest: {printable(nearest['path'])}, {nearest['tokens']:,} tokens, {nearest['text_bytes']:,} bytes of text"
    )
    if differs is None:
        print("  the prompt begins with its text")
    elif common == prompt_bytes:
        print(f"  its text begins with the whole prompt of {prompt_bytes:,} bytes and goes on: {differs['stored']!r}")
    else:
        print(f"  differs at byte {common:,}, after {differs['after']!r}")
        print(f"  stored: {differs['stored']!r}")
        print(f"  prompt: {differs['prompt']!r}")
    for why in nearest["refused"]:
        print(f"  refused: {why}")
