"""What the subcommands share that change a directory: what they say while they wait, and what the library logs."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Iterator

from ds4kv.cli.messages import printable
from ds4kv.file.lock import LOCK_NAME
from ds4kv.file.trouble import logger

__all__ = ["telling_warnings", "waiting_for"]


def waiting_for(directory: str) -> Callable[[str], None]:
    """Says on stderr who has the directory's lock: for whoever is about to wait for it."""

    def tell(holder: str) -> None:
        path = printable(os.path.join(directory, LOCK_NAME))
        print(f"ds4kv: waiting for process {holder}, which holds {path}", file=sys.stderr, flush=True)

    return tell


class _ToStderr(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        print(f"ds4kv: {printable(record.getMessage())}", file=sys.stderr)


@contextlib.contextmanager
def telling_warnings() -> Iterator[None]:
    """Has the warnings that the library logs on stderr, a line each, within the block."""
    handler = _ToStderr(logging.WARNING)
    logger().addHandler(handler)
    try:
        yield
    finally:
        logger().removeHandler(handler)
