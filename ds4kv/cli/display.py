"""The numbers of ``ds4kv ab`` for people: a progress bar on stderr, a table and a conclusion on stdout."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Self

import rich.progress
from rich.console import Console
from rich.text import Text

from ds4kv.cli.machine import Machine
from ds4kv.cli.measure import WAYS, Measurement, Way
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
    for line in _table(measurements):
        console.print(line)
    console.print()
    console.print(Text(_circumstances(machine, rounds), style="dim"))
    for paragraph in _conclusion(measurements):
        console.print()
        console.print(Text(paragraph, style="bold"))


_HEADINGS = (
    ("stored", "on disk", "ratio", "save", "", "", "load", "", "", "same"),
    ("as", "MB", "", "ms", "min-max", "GB/s", "ms", "min-max", "GB/s", "bytes"),
)


def _table(measurements: list[Measurement]) -> Iterator[Text]:
    """A line for each payload, and under it one for each way."""
    rows = [_cells(measurement) for measurement in measurements]
    widths = [max(len(row[i]) for row in (*_HEADINGS, *rows)) for i in range(len(_HEADINGS[0]))]
    for heading in _HEADINGS:
        yield Text(_line(heading, widths), style="bold")
    yield Text("\u2500" * len(_line(_HEADINGS[1], widths)))
    shown = None
    for measurement, row in zip(measurements, rows, strict=True):
        if measurement.payload != shown:
            shown = measurement.payload
            size = _digits(measurement.raw_bytes / 1e6, 4)
            yield Text(f"{printable(os.path.basename(shown))}, {size} MB")
        line = Text(_line(row, widths))
        if not measurement.verified:
            line.stylize("bold red")
        yield line


def _cells(measurement: Measurement) -> tuple[str, ...]:
    cells = [measurement.way.name, _digits(measurement.file_bytes / 1e6, 4), f"{measurement.ratio:.2f}x"]
    for times, rate in ((measurement.save, measurement.save_rate), (measurement.load, measurement.load_rate)):
        median, least, most = (_digits(seconds * 1e3) for seconds in times)
        cells += [median, f"{least}-{most}", _digits(rate / 1e9)]
    return (*cells, "yes" if measurement.verified else "NO")


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    """The first cell to the left, the others to the right."""
    first, *others = zip(cells, widths, strict=True)
    return "  ".join([f"  {first[0]:<{first[1]}}", *(f"{cell:>{width}}" for cell, width in others)])


def _digits(value: float, significant: int = 3) -> str:
    """No more decimals than make so many digits; three are what a measurement is good for."""
    return f"{value:.{max(significant - len(str(int(value))), 0)}f}"


def _circumstances(machine: Machine, rounds: int) -> str:
    kind = f" ({machine.file_system})" if machine.file_system else ""
    return (
        f"{_plural(machine.cpus, 'CPU')}, {_plural(machine.workers, 'worker thread')}; median, least and most of"
        f" {_plural(rounds, 'round')}. Files in {printable(machine.directory)}{kind}, not fsynced, and loaded from the"
        " page cache. 1 MB is 1,000,000 bytes; GB/s are of payload. runs and checked are layout v2-checked at levels -1"
        " and 0, planes and packed are layout packed at the same, lz4 is v2."
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
            sum(measurement.save.median for measurement in these),
            sum(measurement.load.median for measurement in these),
        )


def _conclusion(measurements: list[Measurement]) -> list[str]:
    if not all(measurement.verified for measurement in measurements):
        return ["What was loaded is NOT what was saved, so these numbers mean nothing."]
    raw, *others = (_Sum.over(measurements, way) for way in WAYS)
    return [_comparison(way, stored, raw) for way, stored in zip(WAYS[1:], others, strict=True)]


def _comparison(way: Way, stored: _Sum, raw: _Sum) -> str:
    room = raw.file_bytes / stored.file_bytes
    told = (
        f"With {way.name}, {room:.2f}x as many checkpoints fit on the same disk; a save takes"
        f" {stored.save_seconds / raw.save_seconds:.2f}x and a load {stored.load_seconds / raw.load_seconds:.2f}x"
        " the time of a raw one."
    )
    slower = stored.load_seconds - raw.load_seconds
    if room > 1 and slower > 0:
        # At this speed, the bytes that are left out take as long to read as decoding takes longer.
        even = (raw.file_bytes - stored.file_bytes) / slower
        told += f" From any disk that reads less than {_digits(even / 1e9)} GB/s it loads faster."
    return told
