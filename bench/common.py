"""What the benchmarks share: payloads, turns, medians, tables.

Machines are shared and noisy, so every number is a median of rounds in which all cases take turns, and what is reported
is a ratio to another case of the same rounds.
"""

from __future__ import annotations

import mmap
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from ds4kv.cli import synthetic

MIB = 1 << 20
CTX_SIZE = 100_000
FACTS = {"tokens": 1, "ctx_size": CTX_SIZE}


def synthetic_payload(tokens: int) -> bytearray:
    """The payload of so many tokens, in memory."""
    payload = bytearray(synthetic.payload_bytes(tokens, CTX_SIZE))
    room = memoryview(payload)
    for piece in synthetic.payload(tokens, ctx_size=CTX_SIZE):
        room[: len(piece)] = piece
        room = room[len(piece) :]
    return payload


def file_payload(path: str | Path, at_least: int) -> bytearray:
    """A file's bytes, repeated until there are enough of them. Nothing repeats within LZ4's window of 64 KiB."""
    data = Path(path).read_bytes()
    return bytearray(data * -(-at_least // len(data)))


def seconds(case: Callable[[], object]) -> float:
    start = time.perf_counter()
    case()
    return time.perf_counter() - start


def warm_memory(size: int) -> memoryview:
    """Memory to load into, that has been touched.

    It begins with a page. The kernel copies a file's pages at 2 GB/s, not 7 to 10, on some processors where the target
    is 1 to 31 bytes behind the source by the last 12 bits of their addresses: a bytearray is, by 16, where a file's
    first byte goes to its first byte. That would be a chance of who is measured.
    """
    memory = memoryview(mmap.mmap(-1, max(size, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))[:size]
    for page in range(0, size, mmap.PAGESIZE):
        memory[page] = 1
    return memory


def back_memory(size: int) -> None:
    """Has the machine hold so much free memory in hand.

    A virtual machine may have given free memory back to its host; what a case then pays to get it again, seconds for a
    GiB, is the host's doing and falls on whoever comes first.
    """
    with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory.madvise(mmap.MADV_HUGEPAGE)
        for page in range(0, size, mmap.PAGESIZE):
            memory[page] = 1


def rounds_of(cases: dict[str, Callable[[], object]], rounds: int, backed: int = 0) -> dict[str, list[float]]:
    """Seconds of each case in each round, after one that doesn't count; ``backed`` bytes of memory are in hand."""
    times: dict[str, list[float]] = {name: [] for name in cases}
    for turn in range(rounds + 1):
        for name, case in cases.items():
            if backed:
                back_memory(backed)
            spent = seconds(case)
            if turn:
                times[name].append(spent)
    return times


def in_turns(cases: dict[str, Callable[[], object]], rounds: int, backed: int = 0) -> dict[str, float]:
    """Median seconds of each case, as :func:`rounds_of`."""
    return {name: statistics.median(spent) for name, spent in rounds_of(cases, rounds, backed).items()}


def write_file(path: str, data: bytearray | memoryview, fsync: bool = False) -> None:
    """One write() of it all to a new file, which replaces the old one: what no save of these bytes can avoid."""
    fd = os.open(f"{path}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        if fsync:
            os.fsync(fd)
    finally:
        os.close(fd)
    os.replace(f"{path}.new", path)


def read_file(path: str, into: memoryview) -> None:
    """A file's first bytes, as many as there are and is room for: what no load can avoid."""
    with open(path, "rb", buffering=0) as fp:
        while into and (n := fp.readinto(into)):
            into = into[n:]


def region_of(path: str) -> bytearray:
    """The region of a checkpoint without text or trailer."""
    region = bytearray(os.path.getsize(path) - 52)
    with open(path, "rb") as fp:
        fp.seek(52)
        assert fp.readinto(region) == len(region)
    return region


def machine() -> str:
    """The machine in a line, for whoever reads the numbers."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "CPU")
    return (
        f"{model}, {len(os.sched_getaffinity(0))} CPUs, Linux {platform.release()}, Python {platform.python_version()}"
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns set apart by two spaces, the first one to the left."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in [head, *rows]
    ]
    return "\n".join(lines)
