"""A scenario: what users do to checkpoints, on a small directory of its own, while one call fails.

It has ``prepare``, which makes the directory; ``run``, in which the fault comes; and ``check``, in another process,
which looks at what is left. ``run`` asserts every byte that it is given and lets errors through: OSError and
MemoryError are documented, and nothing else is. ``check`` begins with :func:`whole`, which opens the directory as the
next process does, and holds all of it against what must be there and what may be.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection
from pathlib import Path

from faults.shim import Fault

import ds4kv
from ds4kv.file.note import Verdict
from ds4kv.format.toolmap import unpack_tool_map
from ds4kv.store.store import Store

HUGE = 1 << 40
BLOCK = b"<tool_calls>one</tool_calls>"
OTHER = b"<tool_calls>" + b"another, and longer " * 20 + b"</tool_calls>"
MAPS: list[dict[bytes, bytes]] = [{}, {b"call_1": BLOCK}, {b"call_2": BLOCK, b"call_34": OTHER}]
A, C = b"A" + BLOCK + OTHER, b"C" + BLOCK + OTHER
B = A + b" and B"
NEW = B + b" and new"


def payload_of(text: bytes) -> bytes:
    """Floats, of which v2-checked saves something; 30 KB and more, so several chunks of 4 KiB."""
    seed = hashlib.sha256(text).digest()
    noise = hashlib.shake_128(seed).digest(3000)
    return b"".join(bytes([byte, 0, seed[0], 63]) for byte in noise) * 2 + noise + seed * 200 + seed[:5]


def name_of(text: bytes) -> str:
    return f"{hashlib.sha1(text).hexdigest()}.kv"


def store_of(directory: Path, **options: object) -> Store:
    return Store(directory, **{"budget_bytes": HUGE, "workers": 1, "min_tokens": 0} | options)


def save(store: Store, text: bytes, **options: object) -> ds4kv.Entry | None:
    return store.save_buffer(text, payload_of(text), **{"tokens": 600, "ctx_size": 1000, "tool_map": MAPS[1]} | options)


def in_pieces(path: Path, text: bytes, layout: str) -> None:
    """A file of many chunks, which takes threads to read and to write."""
    options = {} if layout == "v1" else {"chunk_size": 4096}
    ds4kv.dump(path, payload_of(text), text=text, tokens=600, ctx_size=1000, layout=layout, workers=2, **options)


def whole(directory: Path, must: Collection[bytes], may: Collection[bytes] = ()) -> dict[bytes, ds4kv.Checkpoint]:
    """Opens the directory as the next process does. What is there by text, each proven whole."""
    found: dict[bytes, ds4kv.Checkpoint] = {}
    with store_of(directory) as store:
        left = [name for name in os.listdir(directory) if ".tmp." in name and is_stores_own(name)]
        assert not left, f"temporaries left: {left}"
        entries = store.entries()
        files = [name for name in os.listdir(directory) if is_stores_own(name)]
        assert len(entries) == len(files), f"condemned: of {files} only {entries} are listed"
        for entry in entries:
            verdict = store.verify(entry)
            assert verdict is not Verdict.DAMAGED, f"condemned: {entry.path} is {verdict}"
            checkpoint = ds4kv.load(entry.path, workers=1)
            text = checkpoint.text
            assert checkpoint.payload == payload_of(text), f"wrong bytes: {entry.path}"
            assert text not in found, f"wrong: two files of {text[:20]!r}"
            if checkpoint.header.ext_flags & 1:
                assert unpack_tool_map(checkpoint.trailer) in MAPS, f"wrong tool map: {entry.path}"
            found[text] = checkpoint
    aside = directory / "quarantine"
    moved = os.listdir(aside) if aside.exists() else []
    assert not moved, f"condemned: {moved} was moved"
    missing = [text[:20] for text in must if text not in found]
    assert not missing, f"lost: {missing}"
    strange = [text[:20] for text in found if text not in must and text not in may]
    assert not strange, f"wrong: nobody saved {strange}, or it was to go"
    return found


def is_stores_own(name: str) -> bool:
    return len(name) >= 43 and name[40:43] == ".kv"


class Scenario:
    """A store with three checkpoints, all noted, or their own proof: two that it saved, and one of many
    chunks, in one of the layouts.
    """

    name = ""
    layout = "v2"
    also: tuple[str, ...] = ("v1", "v2", "v2-checked", "packed")

    def __init__(self, layout: str = "v2") -> None:
        self.layout = layout

    def __str__(self) -> str:
        return f"{self.name} {self.layout}" if len(self.also) > 1 else self.name

    def store(self, directory: Path, **options: object) -> Store:
        return store_of(directory, layout=self.layout, **options)

    def prepare(self, directory: Path) -> None:
        in_pieces(directory / name_of(B), B, self.layout)
        with self.store(directory) as store:
            save(store, A)
            store.rebuild_integrity()
            save(store, C)

    def run(self, directory: Path) -> None:
        raise NotImplementedError

    def check(self, directory: Path, *, failed: bool, fault: Fault | None) -> None:
        whole(directory, {A, B, C})
