"""A progress bar on stderr, where that is a terminal and rich is installed; else nothing."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import TypeAlias

from ds4kv.cli.messages import printable

__all__ = ["Advance", "progress"]

Advance: TypeAlias = Callable[[str, int], None]
"""advance(path, n): that file is looked at, and n more bytes are done. For any thread."""


@contextlib.contextmanager
def progress(total: int) -> Iterator[Advance]:
    """A bar over ``total`` bytes."""
    if sys.stderr is None or not sys.stderr.isatty():
        yield _ignore
        return
    try:
        import rich.progress
        from rich.console import Console
    except ModuleNotFoundError:
        yield _ignore
        return
    bar = rich.progress.Progress(
        rich.progress.TextColumn("{task.description}", markup=False),
        rich.progress.BarColumn(),
        rich.progress.TaskProgressColumn(),
        rich.progress.TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        # Results belong above the bar if both go to the terminal; else rich would take them to stderr.
        redirect_stdout=sys.stdout is not None and sys.stdout.isatty(),
    )

    def advance(path: str, n: int) -> None:
        bar.update(task, advance=n, description=printable(os.path.basename(path))[-40:])

    with bar:
        task = bar.add_task("", total=total)
        yield advance


def _ignore(path: str, n: int) -> None:
    pass
