"""Arguments as ds4kv reads them: argparse whose complaints are one line."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, NoReturn

from ds4kv.core.workers import MAX_WORKERS

__all__ = ["Parser", "UsageError", "add_threads", "whole_number"]


class UsageError(Exception):
    """The command was used in a way that can't be meant; the message is for the user."""


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises UsageError, and takes no abbreviations that a later option could break."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (try: {self.prog} --help)")


def whole_number(low: int, high: int) -> Callable[[str], int]:
    """The type of an argument that is a whole number from ``low`` to ``high``."""

    def parse(text: str) -> int:
        digits = text.removeprefix("-") if low < 0 else text
        if digits.isascii() and digits.isdigit() and low <= int(text) <= high:
            return int(text)
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {low} to {high}")

    return parse


def add_threads(parser: argparse.ArgumentParser, what: str = "worker threads") -> None:
    """Declares ``--threads``; ``what`` says which ones."""
    parser.add_argument(
        "--threads",
        metavar="N",
        type=whole_number(0, MAX_WORKERS),
        help=f"{what}; by default one for each CPU, at most 8",
    )
