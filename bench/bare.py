"""What no save and no load can do without, its buffers ready: LZ4 alone, and a file's bytes, by so many threads.

LZ4 is the repository's own ``vendor/lz4/lz4.c``, compiled here with nothing of ds4kv around it. Threads are Python's,
started before; lz4 and the kernel's reads run without the GIL.
"""

from __future__ import annotations

import ctypes
import functools
import os
import subprocess
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ds4kv.core import native as _core
from ds4kv.format.header import Form

LZ4_C = Path(__file__).parent.parent / "vendor/lz4/lz4.c"
PIECE = 4 << 20
"""Bytes of one read."""


class Threads:
    """So many threads; one is the caller's own."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._pool = ThreadPoolExecutor(count) if count > 1 else None

    def run(self, n: int, work: Callable[[int, int], None]) -> None:
        """Calls ``work(i, thread)`` for i from 0 to n - 1, each thread with what comes next."""
        numbers = iter(range(n))

        def turn(thread: int) -> None:
            for i in numbers:
                work(i, thread)

        if self._pool is None:
            turn(0)
        else:
            list(self._pool.map(turn, range(self.count)))


def compressor(payload: bytearray, chunk_size: int, threads: Threads) -> Callable[[], None]:
    """Compresses chunks where they lie; each thread has a buffer, which takes one block after the other."""
    lz4, source = _lz4(), _address(payload)
    sizes = [min(chunk_size, len(payload) - start) for start in range(0, len(payload), chunk_size)]
    bound = lz4.LZ4_compressBound(chunk_size)
    rooms = [bytearray(bound) for _ in range(threads.count)]
    targets = [_address(room) for room in rooms]

    def work(i: int, thread: int) -> None:
        assert lz4.LZ4_compress_default(source + i * chunk_size, targets[thread], sizes[i], bound) > 0

    return lambda: _run(threads, len(sizes), work, payload, rooms)


def decoder(region: bytearray, form: Form, into: memoryview, threads: Threads) -> Callable[[], None]:
    """Decodes a compressed region's blocks into memory that is warm. In form CHECKED they hold byte streams."""
    lz4, source, target = _lz4(), _address(region), _address(into)
    head_size = _core.record_head_size(form)
    blocks, at, done = [], _core.frame_size(form), 0
    while at < len(region):
        raw_size, block_size = (int.from_bytes(region[at + i : at + i + 4], "little") for i in (0, 4))
        at += head_size + block_size
        blocks.append((source + at - block_size, target + done, block_size, raw_size))
        done += raw_size
    assert done == len(into)

    def work(i: int, _: int) -> None:
        assert lz4.LZ4_decompress_safe(*blocks[i]) == blocks[i][3]

    return lambda: _run(threads, len(blocks), work, region, into)


def reader(path: str, n: int, into: memoryview, threads: Threads) -> Callable[[], None]:
    """Reads a file's first ``n`` bytes into memory that is warm, by pieces of 4 MiB."""
    room = memoryview(into)[:n]

    def read() -> None:
        fd = os.open(path, os.O_RDONLY)

        def work(i: int, _: int) -> None:
            start, piece = i * PIECE, room[i * PIECE : (i + 1) * PIECE]
            while piece:
                took = os.preadv(fd, [piece], start)
                assert took > 0
                start, piece = start + took, piece[took:]

        threads.run(-(-len(room) // PIECE), work)
        os.close(fd)

    return read


def _run(threads: Threads, n: int, work: Callable[[int, int], None], *alive: object) -> None:
    """``alive`` is the memory that ``work`` has the addresses of."""
    threads.run(n, work)


def _address(memory: bytearray | memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


@functools.cache
def _lz4() -> ctypes.CDLL:
    if not LZ4_C.exists():
        raise SystemExit(f"{LZ4_C} is missing: python vendor/lz4/fetch.py brings it")
    with tempfile.TemporaryDirectory() as directory:
        library = os.path.join(directory, "lz4.so")
        flags = ["-O3", "-std=c11", "-shared", "-fPIC"]
        subprocess.run([os.environ.get("CC", "cc"), *flags, "-o", library, str(LZ4_C)], check=True)
        lz4 = ctypes.CDLL(library)
    lz4.LZ4_compress_default.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_int]
    lz4.LZ4_decompress_safe.argtypes = lz4.LZ4_compress_default.argtypes
    return lz4
