"""How much memory do saves and loads take beyond the payload, and does it grow with it?

    python bench/memory.py [--mib 64 640 4096] [--workers 1 2] [--dir DIR]

Each row is a process of its own. A stream writes a checkpoint by pieces of 8 MiB and reads it back into one of them; a
one-shot is dump() of a buffer and load(into=) it. Extra memory is the kernel's peak (VmHWM) over what the process had
before, which is the caller's own buffer and a little checkpoint saved and loaded. Payloads are synthetic KV, repeated,
and random bytes, whose blocks are as large as blocks get. The bounds are 2 x workers x 16 MiB + 16 MiB for streams, and
workers x (the largest block of 16 MiB) + 16 MiB for one-shots.
"""

from __future__ import annotations

import argparse
import itertools
import os
import subprocess
import sys
import tempfile

MIB = 1 << 20
PIECE = 8 * MIB
LARGEST_BLOCK = 16 * MIB + 16 * MIB // 255 + 16
FACTS = {"tokens": 1, "ctx_size": 1}


def peak() -> int:
    """The largest resident size that this process ever had, in bytes."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1024


def piece_of(kind: str) -> bytearray:
    from ds4kv.cli import synthetic

    if kind == "random":
        return bytearray(os.urandom(PIECE))
    return bytearray(b"".join(itertools.islice(synthetic.payload(1000), 64)))[-PIECE:]


def measure(directory: str, lane: str, kind: str, mib: int, workers: int) -> None:
    """Prints the extra memory of the save, and of save and load, in bytes."""
    import ds4kv

    path = os.path.join(directory, "memory.kv")
    piece = piece_of(kind)
    count = mib * MIB // PIECE
    payload = piece if lane == "stream" else bytearray(PIECE * count)
    for start in range(0, len(payload), PIECE):
        payload[start : start + PIECE] = piece
    little = bytearray(1000)
    ds4kv.dump(path, little, workers=workers, **FACTS)
    ds4kv.load(path, into=little, workers=workers)
    before = peak()
    if lane == "one-shot":
        ds4kv.dump(path, payload, workers=workers, **FACTS)
        saved = peak()
        ds4kv.load(path, into=payload, workers=workers)
    else:
        with ds4kv.create(path, workers=workers, **FACTS) as checkpoint:
            for _ in range(count):
                checkpoint.payload.write(piece)
        saved = peak()
        with ds4kv.open(path, workers=workers) as checkpoint:
            while checkpoint.payload.readinto(piece):
                pass
    print(saved - before, peak() - before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, nargs="+", default=[64, 640, 4096], help="sizes of payloads")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--dir", default=tempfile.gettempdir())
    parser.add_argument("--measure", nargs=4, help=argparse.SUPPRESS)  # lane, kind, MiB, workers: one row
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.dir) as directory:
        if args.measure:
            lane, kind, mib, workers = args.measure
            measure(directory, lane, kind, int(mib), int(workers))
            return
        print("lane      payload  workers    MiB  save MiB  save + load MiB  bound MiB")
        for lane, kind, workers, mib in itertools.product(
            ["stream", "one-shot"], ["kv", "random"], args.workers, args.mib
        ):
            command = [sys.executable, __file__, "--dir", directory, "--measure", lane, kind, str(mib), str(workers)]
            row = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            save, both = (int(word) / MIB for word in row.split())
            bound = 16 + (2 * workers * 16 if lane == "stream" else workers * LARGEST_BLOCK / MIB)
            print(f"{lane:8}  {kind:7}  {workers:7}  {mib:5}  {save:8.1f}  {both:15.1f}  {bound:9.1f}", flush=True)


if __name__ == "__main__":
    main()
