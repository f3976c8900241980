"""ds4-server's options for its disk cache, in an engine's own argparse parser.

:func:`add_cli_arguments` adds them, and :func:`store_options` turns what was parsed into the arguments of a store. A
value that can't be meant ends the program as argparse does: one line on stderr with option and value, exit status 2.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from typing import Any

from ds4kv.core.workers import MAX_WORKERS, THREADS_VARIABLE, compression_is_off, resolve
from ds4kv.format.toolmap import MAX_IDS
from ds4kv.store import policy

__all__ = ["add_cli_arguments", "store_options"]

_MAX_INT = (1 << 31) - 1
# What ds4-server's strtol takes in base 10. int() also takes underscores, other blanks, and digits of other scripts.
_WHOLE = re.compile(r"[ \t\n\v\f\r]*([+-]?)0*([0-9]{1,10})")

_NUMBERS = (  # option, its least value, its default, and what it is for
    ("--kv-disk-space-mb", 1, policy.BUDGET_MB, "budget in MiB"),
    ("--kv-cache-min-tokens", 1, policy.MIN_TOKENS, "shortest checkpoint that is saved or loaded"),
    ("--kv-cache-cold-max-tokens", 0, policy.COLD_MAX_TOKENS, "longest prompt that is saved cold; 0: none is"),
    (
        "--kv-cache-continued-interval-tokens",
        0,
        policy.CONTINUED_INTERVAL_TOKENS,
        "save a growing session every N tokens; 0: don't",
    ),
    ("--kv-cache-boundary-trim-tokens", 0, policy.BOUNDARY_TRIM_TOKENS, "leave out a prompt's last N tokens"),
    ("--kv-cache-boundary-align-tokens", 0, policy.BOUNDARY_ALIGN_TOKENS, "save at multiples of N tokens; 0: anywhere"),
)


def add_cli_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options to ``parser``, in a group of their own.

    The store is off without ``--kv-disk-dir``. ``--disable-exact-dsml-tool-replay`` and ``--tool-memory-max-ids`` are
    the engine's to heed, in ``disable_exact_dsml_tool_replay`` and ``tool_memory_max_ids`` of the namespace: the first
    says to give no tool map to a store and ask it for none, the second how many ids to remember.

    The default number of threads is the environment's, looked up here.
    """
    group = parser.add_argument_group("KV disk cache")
    add = group.add_argument
    add("--kv-disk-dir", metavar="DIR", help="keep checkpoints in this directory; off by default")
    for option, least, default, meaning in _NUMBERS:
        add(option, metavar="N", type=_whole_number(least), default=default, help=f"{meaning} (%(default)s)")
    add(
        "--kv-cache-reject-different-quant",
        action="store_true",
        help="load no checkpoint of a model quantized otherwise",
    )
    add(
        "--kv-cache-compression-threads",
        metavar="N",
        type=_threads,
        default=0 if compression_is_off() else resolve(None),
        help=f"threads that compress, at most {MAX_WORKERS}; 0: don't compress"
        f" (%(default)s; {THREADS_VARIABLE} sets the default)",
    )
    add(
        "--disable-exact-dsml-tool-replay",
        action="store_true",
        help="neither store nor load the text of tool calls",
    )
    add(
        "--tool-memory-max-ids",
        metavar="N",
        type=_whole_number(1),
        default=MAX_IDS,
        help="how many tool call ids to remember (%(default)s)",
    )
    _add_check(parser)


def store_options(namespace: argparse.Namespace) -> dict[str, Any]:
    """The keyword arguments of a store, from what a parser with :func:`add_cli_arguments` has parsed.

    ``directory`` is None if no ``--kv-disk-dir`` was given: the store is off.
    """
    threads = namespace.kv_cache_compression_threads
    return {
        "directory": namespace.kv_disk_dir,
        "budget_mb": namespace.kv_disk_space_mb,
        "min_tokens": namespace.kv_cache_min_tokens,
        "cold_max_tokens": namespace.kv_cache_cold_max_tokens,
        "continued_interval_tokens": namespace.kv_cache_continued_interval_tokens,
        "boundary_trim_tokens": namespace.kv_cache_boundary_trim_tokens,
        "boundary_align_tokens": namespace.kv_cache_boundary_align_tokens,
        "reject_different_quant": namespace.kv_cache_reject_different_quant,
        "workers": threads,
        "codec": "lz4" if threads else "none",
    }


def _add_check(parser: argparse.ArgumentParser) -> None:
    """Has the parser refuse options that contradict each other.

    argparse judges options one by one, and has no hook for all of them together. So its parse_known_args is wrapped:
    every way to parse goes through that, subparsers too.
    """
    parse = parser.parse_known_args

    def parse_and_check(
        args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[argparse.Namespace, list[str]]:
        parsed, rest = parse(args, namespace)
        cold_max, least = parsed.kv_cache_cold_max_tokens, parsed.kv_cache_min_tokens
        if 0 < cold_max < least:
            parser.error(
                f"argument --kv-cache-cold-max-tokens: {cold_max} is neither 0"
                f" nor at least --kv-cache-min-tokens, which is {least}"
            )
        return parsed, rest

    parser.parse_known_args = parse_and_check  # type: ignore[method-assign,assignment]


def _threads(text: str) -> int:
    return min(_whole_number(0)(text), MAX_WORKERS)


def _whole_number(low: int) -> Callable[[str], int]:
    """The type of an option whose value is a C int of at least ``low``."""

    def parse(text: str) -> int:
        match = _WHOLE.fullmatch(text)
        if match and low <= (value := int(match[1] + match[2])) <= _MAX_INT:
            return value
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {low} to {_MAX_INT}")

    return parse
