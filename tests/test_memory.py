"""Memory of streams: 2 x workers x chunk + 16 MiB at most over what was there, and the same for a longer payload.

The payload comes in pieces and goes in pieces, so that nothing but the streams holds any of it. The peak is the
kernel's (VmHWM), of a process of its own.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from helpers import MIB
from processes import DEADLINE

CHUNK = 4 * MIB

CODE = """
import sys
import numpy as np
import ds4kv

def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1024

path, total, workers, chunk, kind = sys.argv[1], *map(int, sys.argv[2:5]), sys.argv[5]
rng = np.random.default_rng(1)
piece = rng.integers(0, 256, 1 << 20, np.uint8) if kind == "noise" else rng.integers(0, 12, 1 << 18, np.uint32) << 20
room = np.zeros(1 << 20, np.uint8)
ds4kv.dump(path, piece, tokens=1, ctx_size=1, workers=0)  # what a first call loads and keeps
ds4kv.load(path, into=room)
before = peak()
with ds4kv.create(path, tokens=1, ctx_size=1, workers=workers, chunk_size=chunk) as checkpoint:
    for _ in range(total >> 20):
        checkpoint.payload.write(piece)
saved = peak()
with ds4kv.open(path, workers=workers) as checkpoint:
    while checkpoint.payload.readinto(room):
        pass
print(saved - before, peak() - before)
"""


def peaks(path: Path, total: int, workers: int, kind: str) -> tuple[int, int]:
    args = [sys.executable, "-c", CODE, str(path), str(total), str(workers), str(CHUNK), kind]
    saved, loaded = subprocess.run(args, check=True, capture_output=True, text=True, timeout=DEADLINE).stdout.split()
    return int(saved), int(loaded)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["text", "noise"])
@pytest.mark.parametrize("workers", [1, 2, 8])
def test_peak_memory_of_streams(tmp_path: Path, workers: int, kind: str) -> None:
    short = peaks(tmp_path / "a.kv", 96 * MIB, workers, kind)
    long = peaks(tmp_path / "a.kv", 288 * MIB, workers, kind)
    limit = 2 * workers * CHUNK + 16 * MIB
    assert max(*short, *long) <= limit
    assert max(*long) <= max(*short) + 4 * MIB
