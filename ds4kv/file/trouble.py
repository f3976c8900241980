"""Trouble that ends nothing: the operator is told by a warning of the standard library's logger ``ds4kv``.

``logging`` takes as long to import as the rest of ds4kv: so it is imported with the first word, and who opens a file
and has no trouble doesn't pay for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ds4kv.core.forks import fork_waits

if TYPE_CHECKING:
    import logging

__all__ = ["logger", "printable", "trouble", "trouble_once"]

_MAX_TOLD = 1000

_told: set[tuple[str, str]] = set()


def logger() -> logging.Logger:
    """Where everything is logged."""
    with fork_waits:
        import logging
    return logging.getLogger("ds4kv")


def printable(text: str) -> str:
    """A path or text as it is, or quoted if it could move the cursor, break the line or fake another one."""
    return text if text.isprintable() else repr(text)


def trouble(what: str, path: str, why: object) -> None:
    """Something went wrong that costs no checkpoint and no state: what, with which file or directory, and why.

    None of ds4-server's lines: what goes wrong there is another thing.
    """
    logger().warning("kv cache %s %s: %s", what, printable(path), printable(str(why)))


def trouble_once(what: str, path: str, why: object) -> None:
    """As :func:`trouble`, but what was said of a path is not said again."""
    if (what, path) not in _told:
        if len(_told) >= _MAX_TOLD:
            _told.clear()  # rather a second word than a list without end
        _told.add((what, path))
        trouble(what, path, why)
