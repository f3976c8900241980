"""How does ds4kv compare with other ways to keep the same bytes?

    python bench/peers.py [--tokens 17000] [--dir DIR] [--rounds 7] [--csv FILE]

Every peer saves the same payload from memory to a file in the same directory and loads it back into memory, in turns,
on two threads where it has threads. A peer that is not installed is skipped by name: `pip install '.[bench]'` and the
`lz4` command bring them all. "ds4kv = 1" is a peer's time over ours: above 1, the peer is slower.
"""

from __future__ import annotations

import argparse
import csv
import os
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import common
from common import FACTS, MIB, table

import ds4kv

CHUNK_SIZE = 16 * MIB
WORKERS = 2


class Peer(NamedTuple):
    save: Callable[[str, bytearray], object]
    load: Callable[[str, bytearray], object]


def ours(**how: object) -> Peer:
    return Peer(
        lambda path, payload: ds4kv.dump(path, payload, workers=WORKERS, **how, **FACTS),
        lambda path, into: ds4kv.load(path, into=into, workers=WORKERS),
    )


def pieces(data: bytearray) -> list[memoryview]:
    view = memoryview(data)
    return [view[start : start + CHUNK_SIZE] for start in range(0, len(view), CHUNK_SIZE)]


def python_lz4() -> Peer:
    """The same file as ours, by forty lines of Python over python-lz4 and a thread pool."""
    import lz4.block

    def compress(piece: memoryview) -> bytes:
        return lz4.block.compress(piece, store_size=False)

    def save(path: str, payload: bytearray) -> None:
        with ThreadPoolExecutor(WORKERS) as pool, open(path, "wb", buffering=0) as fp:
            chunks = pieces(payload)
            fp.write(ds4kv.Header(codec=ds4kv.Codec.LZ4, chunk_size=CHUNK_SIZE, **FACTS).pack() + bytes(4))
            fp.write(struct.pack("<QI", len(payload), len(chunks)))
            for piece, block in zip(chunks, pool.map(compress, chunks), strict=True):
                fp.write(struct.pack("<II", len(piece), len(block)))
                fp.write(block)

    def load(path: str, into: memoryview) -> None:
        with ThreadPoolExecutor(WORKERS) as pool, open(path, "rb", buffering=0) as fp:
            fp.seek(52)
            _, count = struct.unpack("<QI", fp.read(12))
            rooms = pieces(into)

            def records() -> Iterator[tuple[int, int, bytes]]:
                for i in range(count):
                    raw_size, block_size = struct.unpack("<II", fp.read(8))
                    yield i, raw_size, fp.read(block_size)

            def decode(record: tuple[int, int, bytes]) -> None:
                i, raw_size, block = record
                rooms[i][:] = lz4.block.decompress(block, uncompressed_size=raw_size)

            list(pool.map(decode, records()))

    return Peer(save, load)


def numcodecs_lz4() -> Peer:
    import numcodecs

    codec = numcodecs.LZ4()

    def save(path: str, payload: bytearray) -> None:
        common.write_file(path, codec.encode(payload))

    def load(path: str, into: memoryview) -> None:
        codec.decode(Path(path).read_bytes(), out=into)

    return Peer(save, load)


def blosc2_lz4(shuffle: bool) -> Peer:
    import blosc2

    blosc2.set_nthreads(WORKERS)
    how = {
        "codec": blosc2.Codec.LZ4,
        "clevel": 5,
        "typesize": 4,
        "nthreads": WORKERS,
        "filters": [blosc2.Filter.SHUFFLE if shuffle else blosc2.Filter.NOFILTER],
    }

    def save(path: str, payload: bytearray) -> None:
        common.write_file(path, blosc2.compress2(payload, **how))

    def load(path: str, into: memoryview) -> None:
        blosc2.decompress2(Path(path).read_bytes(), dst=into, nthreads=WORKERS)

    return Peer(save, load)


def zstandard_1() -> Peer:
    import zstandard

    def save(path: str, payload: bytearray) -> None:
        common.write_file(path, zstandard.ZstdCompressor(level=1, threads=WORKERS).compress(payload))

    def load(path: str, into: memoryview) -> None:
        with open(path, "rb") as fp, zstandard.ZstdDecompressor().stream_reader(fp) as reader:
            view = memoryview(into)
            while view:
                view = view[reader.readinto(view) :]

    return Peer(save, load)


def lz4_command() -> Peer:
    """The command reads and writes files, so its load ends in a file too, which is then read."""
    command = shutil.which("lz4")
    if command is None:
        raise ModuleNotFoundError("the lz4 command")
    shown = subprocess.run([command, "--help"], capture_output=True, text=True, check=False)
    threads = [f"-T{WORKERS}"] if "-T#" in shown.stdout + shown.stderr else []

    def save(path: str, payload: bytearray) -> None:
        run = [command, "-1", "-B7", "--no-frame-crc", *threads, "-f", "-qq", "-", path]
        subprocess.run(run, input=payload, check=True, stderr=subprocess.DEVNULL)  # it chatters in spite of -qq

    def load(path: str, into: memoryview) -> None:
        with subprocess.Popen([command, "-d", "-c", "-qq", path], stdout=subprocess.PIPE, bufsize=0) as process:
            view = memoryview(into)
            while view:
                view = view[process.stdout.readinto(view) :]

    return Peer(save, load)


def raw_file() -> Peer:
    return Peer(common.write_file, common.read_file)


PEERS: dict[str, Callable[[], Peer]] = {
    "ds4kv v2 lz4": lambda: ours(),
    "ds4kv v2 none": lambda: ours(codec="none"),
    "ds4kv v2 lz4, level 9": lambda: ours(level=9),
    "ds4kv v2-checked, level -1": lambda: ours(layout="v2-checked", level=-1),
    "ds4kv v2-checked, level 0": lambda: ours(layout="v2-checked", level=0),
    "ds4kv packed, level -1": lambda: ours(layout="packed", level=-1),
    "ds4kv packed": lambda: ours(layout="packed"),
    "raw file": raw_file,
    "python-lz4, 40 lines": python_lz4,
    "lz4 command": lz4_command,
    "numcodecs LZ4": numcodecs_lz4,
    "blosc2 lz4": lambda: blosc2_lz4(shuffle=False),
    "blosc2 shuffle lz4": lambda: blosc2_lz4(shuffle=True),
    "zstandard -1": zstandard_1,
}
SLOW = {"ds4kv v2 lz4, level 9"}  # seconds a payload: once is enough


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=17_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--dir", default="/dev/shm" if os.path.isdir("/dev/shm") else tempfile.gettempdir())
    parser.add_argument("--csv", type=Path)
    args = parser.parse_args()
    payload = common.synthetic_payload(args.tokens)
    into = common.warm_memory(len(payload))
    print(common.machine(), f"files in {args.dir}", f"median of {args.rounds} rounds", sep="; ")
    with tempfile.TemporaryDirectory(dir=args.dir) as directory:
        cases: dict[str, Callable[[], object]] = {}
        slow: dict[str, Callable[[], object]] = {}
        paths = {}
        for name, make in PEERS.items():
            try:
                peer = make()
            except ModuleNotFoundError as error:
                print(f"skipped: {name} ({error})")
                continue
            path = paths[name] = os.path.join(directory, name.replace(" ", "_"))
            group = slow if name in SLOW else cases
            group[f"save {name}"] = lambda peer=peer, path=path: peer.save(path, payload)
            group[f"load {name}"] = lambda peer=peer, path=path: peer.load(path, into)
            peer.save(path, payload)
            into[:] = bytes(len(into))
            peer.load(path, into)
            if into != payload:
                raise SystemExit(f"{name} did not give back what it was given")
        t = common.in_turns(cases, args.rounds, backed=2 * len(payload)) | common.in_turns(slow, 1)
        rows = [
            {
                "peer": name,
                "ratio": round(len(payload) / os.path.getsize(path), 3),
                "save_ms": round(t[f"save {name}"] * 1e3, 1),
                "save_vs_ds4kv": round(t[f"save {name}"] / t["save ds4kv v2 lz4"], 2),
                "load_ms": round(t[f"load {name}"] * 1e3, 1),
                "load_vs_ds4kv": round(t[f"load {name}"] / t["load ds4kv v2 lz4"], 2),
            }
            for name, path in paths.items()
        ]
    head = ["peer", "ratio", "save ms", "ds4kv = 1", "load ms", "ds4kv = 1"]
    print(table(head, [[str(value) for value in row.values()] for row in rows]))
    if args.csv:
        with args.csv.open("w", newline="") as out:
            writer = csv.DictWriter(out, rows[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
