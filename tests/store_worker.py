"""An engine on a store, for the tests of processes that are killed and of processes that share a directory.

It saves, loads and evicts at random, and checks every byte that it is given: a payload follows from its text. It needs
nothing but the installed ds4kv. Its journal, on standard output, has a line for what is over (`saved`, `present`,
`hit`, each with the file's name) and one for what is about to be: `remove`, with name and total size of all files.

    python store_worker.py DIRECTORY SEED SECONDS
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import random
import sys
import time

from ds4kv.store.store import Store

BUDGET = 400_000
BLOCKS = [b"<tool_calls>one</tool_calls>", b"<tool_calls>" + b"another, and longer " * 20 + b"</tool_calls>"]
TOOL_MAPS = [
    {},
    {b"call_1": BLOCKS[0]},
    {b"call_2": BLOCKS[0], b"call_34": BLOCKS[1]},
    {b"toolu_" + b"5" * 32: BLOCKS[1]},
]
TEXTS = [b"session %d " % session + b"".join(BLOCKS) + b"turn " * turn for session in range(6) for turn in range(4)]
CTX_SIZE = 4096


@functools.cache
def payload_of(text: bytes) -> bytes:
    seed = hashlib.sha256(text).digest()
    noise = hashlib.shake_128(seed).digest(seed[0] * 150 + 1)
    return noise + seed * (seed[1] * 10) + noise[: seed[2]]


def is_file_name(name: str) -> bool:
    return len(name) == 43 and name.endswith(".kv")


def say(*words: object) -> None:
    os.write(1, " ".join(map(str, words)).encode() + b"\n")


def journal_removals(event: str, args: tuple[object, ...]) -> None:
    """Called by Python before it removes a file, whoever asks for it."""
    if event == "os.remove":
        directory, name = os.path.split(os.fspath(args[0]))
        if is_file_name(name):
            total = 0
            with os.scandir(directory) as found:
                for file in found:
                    if is_file_name(file.name):
                        with contextlib.suppress(FileNotFoundError):
                            total += file.stat().st_size
            say("remove", name, total)


def save(store: Store, rng: random.Random) -> None:
    text = rng.choice(TEXTS)
    payload = payload_of(text)
    with store.save(text, tokens=600, ctx_size=CTX_SIZE, tool_map=rng.choice(TOOL_MAPS)) as saving:
        at = 0
        while at < len(payload):
            size = rng.randint(1, 50_000)
            saving.payload.write(payload[at : at + size])
            at += size
    if saving.entry is not None:
        say("saved" if saving.needed else "present", os.path.basename(saving.entry.path))
    else:  # with room for every file, only what others do can be in the way of it
        assert not saving.needed, saving.refusal
        assert "meanwhile" in saving.refusal or "is being saved by another" in saving.refusal, saving.refusal


def load(store: Store, rng: random.Random) -> None:
    prompt = rng.choice(TEXTS) + b"turn and more"
    entry = store.find(prompt, ctx_size=CTX_SIZE, quant_bits=2)
    if entry is None:
        return
    try:
        checkpoint = store.load(entry)
    except FileNotFoundError:
        return  # the documented miss
    with checkpoint:
        payload = checkpoint.payload.read()
        assert prompt.startswith(checkpoint.text)
        assert checkpoint.text in TEXTS
        assert payload == payload_of(checkpoint.text), entry
        assert checkpoint.tool_map in TOOL_MAPS, checkpoint.tool_map
    say("hit", os.path.basename(entry.path))


def main(directory: str, seed: str, seconds: str) -> None:
    sys.addaudithook(journal_removals)
    rng = random.Random(seed)
    deadline = time.monotonic() + float(seconds)
    layout, codec = rng.choice([("v1", "none"), ("v2", "none"), ("v2", "lz4"), ("packed", "lz4")])
    with Store(directory, budget_bytes=BUDGET, workers=1, layout=layout, codec=codec) as store:
        say("ready")
        while time.monotonic() < deadline:
            match rng.randrange(5):
                case 0 | 1:
                    save(store, rng)
                case 2 | 3:
                    load(store, rng)
                case 4:
                    store.evict()
    say("done")


if __name__ == "__main__":
    main(*sys.argv[1:])
