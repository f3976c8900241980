"""How much memory does a streamed save and load take, and does it grow with the payload?

    python bench/memory.py [--tokens 17000 47000] [--workers 2] [--dir DIR]

Each row is a process of its own. It writes a synthetic payload piece by piece to a checkpoint and reads it back into a
buffer of 1 MiB; extra memory is the kernel's peak (VmHWM) over what the process had before, which has already saved and
loaded a little checkpoint and made the generator's tables. The bound is 2 x workers x 16 MiB + 16 MiB.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile

MIB = 1 << 20


def peak() -> int:
    """The largest resident size that this process ever had, in bytes."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1024


def measure(directory: str, tokens: int, workers: int) -> None:
    """Prints payload bytes and the extra memory of the save and of save and load."""
    import ds4kv
    from ds4kv import synthetic

    path = os.path.join(directory, "memory.kv")
    room = bytearray(MIB)
    ds4kv.dump(path, room, tokens=1, ctx_size=1, workers=workers)
    ds4kv.load(path, into=room, workers=workers)
    for _ in synthetic.payload(300):
        pass
    before = peak()
    with ds4kv.create(path, tokens=tokens, ctx_size=100_000, workers=workers) as checkpoint:
        for piece in synthetic.payload(tokens):
            checkpoint.payload.write(piece)
    saved = peak()
    with ds4kv.open(path, workers=workers) as checkpoint:
        while checkpoint.payload.readinto(room):
            pass
        print(checkpoint.payload.raw_total, saved - before, peak() - before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[17_000, 47_000])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 8])
    parser.add_argument("--dir", default=tempfile.gettempdir())
    parser.add_argument("--measure", type=int, nargs=2, help=argparse.SUPPRESS)  # tokens and workers: one row
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.dir) as directory:
        if args.measure:
            measure(directory, *args.measure)
            return
        print("workers  payload MiB  save MiB  save + load MiB  bound MiB")
        for workers in args.workers:
            for tokens in args.tokens:
                command = [sys.executable, __file__, "--dir", directory, "--measure", str(tokens), str(workers)]
                row = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                raw, save, both = (int(word) / MIB for word in row.split())
                bound = 2 * workers * 16 + 16
                print(f"{workers:7}  {raw:11.2f}  {save:8.1f}  {both:15.1f}  {bound:9}")


if __name__ == "__main__":
    main()
