"""The numbers of ``ds4kv ab`` for people: a progress bar on stderr, a table and a conclusion on stdout."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple, Self

import rich.progress
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ds4kv.cli.machine import Machine
from ds4kv.cli.measure import CHECKED, LZ4, RAW, Measurement, Way
from ds4kv.cli.messages import printable

__all__ = ["progress", "show"]

_REFRESH_SECONDS = 0.1


@contextlib.contextmanager
def progress(steps: int) -> Iterator[Callable[[str, int], None]]:
    """A progress bar over so many steps; call what it gives with what is measured and the steps just done."""
    console = Console(stderr=True)
    bar = rich.progress.Progress(
        rich.progress.TextColumn("measuring {task.description}", markup=False),
        rich.progress.BarColumn(),
        rich.progress.TaskProgressColumn(),
        rich.progress.TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
        auto_refresh=False,  # by a thread, that is, which would take time from what is measured
    )
    refreshed = 0.0

    def advance(name: str, n: int) -> None:
        nonlocal refreshed
        bar.update(task, advance=n, description=name)
        if time.monotonic() - refreshed > _REFRESH_SECONDS:
            refreshed = time.monotonic()
            bar.refresh()

    with bar:
        task = bar.add_task("", total=steps)
        yield advance


def show(measurements: list[Measurement], machine: Machine, rounds: int) -> None:
    """Prints the table, what it is about, and what follows from it."""
    console = Console(highlight=False)
    console.print(_table(measurements))
    console.print(Text(_circumstances(machine, rounds), style="dim"))
    console.print()
    console.print(Text(_conclusion(measurements), style="bold"))


def _table(measurements: list[Measurement]) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column("payload", overflow="fold")
    table.add_column("stored\nas", no_wrap=True)
    for heading in ("on disk\nMB", "ratio\n", "save\nms", "\nMB/s", "load\nms", "\nMB/s"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("verified", no_wrap=True)
    for measurement in measurements:
        is_raw = measurement.way is RAW
        table.add_row(
            Text(printable(os.path.basename(measurement.payload))) if is_raw else "",
            measurement.way.name,
            _digits(measurement.file_bytes / 1e6, 4),
            f"{measurement.ratio:.2f}x",
            _digits(measurement.save_seconds * 1e3),
            _digits(measurement.save_rate / 1e6),
            _digits(measurement.load_seconds * 1e3),
            _digits(measurement.load_rate / 1e6),
            Text("yes", style="green") if measurement.verified else Text("NO", style="bold red"),
        )
    return table


def _digits(value: float, significant: int = 3) -> str:
    """No more decimals than make so many digits; three are what a measurement is good for."""
    return f"{value:,.{max(significant - len(str(int(value))), 0)}f}"


def _circumstances(machine: Machine, rounds: int) -> str:
    kind = f" ({machine.file_system})" if machine.file_system else ""
    return (
        f"{_plural(machine.cpus, 'CPU')}, {_plural(machine.workers, 'worker thread')}; median of"
        f" {_plural(rounds, 'round')}. Files in {printable(machine.directory)}{kind}, not fsynced, and loaded from the"
        " page cache. 1 MB is 1,000,000 bytes; MB/s are of payload."
    )


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"


class _Sum(NamedTuple):
    file_bytes: int
    save_seconds: float
    load_seconds: float

    @classmethod
    def over(cls, measurements: list[Measurement], way: Way) -> Self:
        these = [measurement for measurement in measurements if measurement.way is way]
        return cls(
            sum(measurement.file_bytes for measurement in these),
            sum(measurement.save_seconds for measurement in these),
            sum(measurement.load_seconds for measurement in these),
        )


def _conclusion(measurements: list[Measurement]) -> str:
    if not all(measurement.verified for measurement in measurements):
        return "What was loaded is NOT what was saved, so these numbers mean nothing."
    raw = _Sum.over(measurements, RAW)
    ways = [way for way in (LZ4, CHECKED) if any(measurement.way is way for measurement in measurements)]
    return " ".join(_comparison(way, _Sum.over(measurements, way), raw) for way in ways)


def _comparison(way: Way, stored: _Sum, raw: _Sum) -> str:
    room = raw.file_bytes / stored.file_bytes
    sentences = [
        f"With {way.name}, {room:.2f}x as many checkpoints fit on the same disk; a save takes"
        f" {stored.save_seconds / raw.save_seconds:.2f}x and a load {stored.load_seconds / raw.load_seconds:.2f}x"
        " the time of a raw one."
    ]
    slower = stored.load_seconds - raw.load_seconds
    if room > 1 and slower > 0:
        # At this speed, the bytes that are left out take as long to read as decoding takes longer.
        even = (raw.file_bytes - stored.file_bytes) / slower
        sentences.append(
            f"By these numbers, {way.name} loads faster from any disk that reads less than {_digits(even / 1e6)} MB/s."
        )
    return " ".join(sentences)
