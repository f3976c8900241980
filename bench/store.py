"""What do finding and saving a checkpoint cost, and how do they grow with the directory and with the prompt?

    python bench/store.py [--entries 10 100 1000 10000] [--prompt-kib 20 200 1000] [--plot FILE] [--dir DIR]

Directories of checkpoints with texts of every length up to the prompt's, a third each raw v1, raw v2 and lz4; one of
them, at half of it, is what the prompt begins with. Files are sparse after the first bytes of the text, but for that
one, whose text a store reads and compares. In turns, by a store that has seen the directory before:

- *find*: the longest text that the prompt begins with;
- *nearest*: the text that has most in common with it, once all are in their order;
- *save*: a checkpoint of 64 KiB under a new text of a quarter of the prompt;

and beside them:

- *scan*: the prompt hashed once, and one scan of the directory with the status of each file, as a find has to where the
  kernel can't tell what changed;
- *as ds4*: every file opened and 52 bytes of it read, and the prompt hashed anew, up to the text's length, for every
  candidate that would be longer than the best so far. The same SHA-1, and Python, for both.

Then a directory that was never seen: a store opened on it, which lists it and looks for what killed processes left, and
the listing alone, beside each file's open, read of 52 bytes, and close.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import struct
import tempfile
import time
from collections.abc import Callable

from common import in_turns, machine, seconds, table

from ds4kv.format.header import CHUNK_SIZE, Codec, Header, Layout
from ds4kv.store.index import Index
from ds4kv.store.store import Store

KIB = 1 << 10
PAYLOAD_BYTES = 1 << 20
PAYLOAD = random.Random(3).randbytes(64 * KIB)
SECONDS_OF_SORTING = 0.2
"""A call of nearest() that takes longer has put texts into their order."""
TICK_SECONDS = 2.2
"""A store looks again at files that changed so shortly before it saw them."""

_HEAD = struct.Struct("<3s5B4I3QI")


def fill(directory: str, entries: int, prompt: bytes, seed: int = 1) -> str:
    """Makes the checkpoints; the name of the one to be found."""
    numbers = random.Random(seed)
    facts = {"tokens": 1000, "ctx_size": 32768, "payload_bytes": PAYLOAD_BYTES}
    kinds = ({"layout": Layout.V1}, {}, {"codec": Codec.LZ4, "chunk_size": CHUNK_SIZE})
    headers = [Header(**facts, **kind).pack() for kind in kinds]
    lengths = [numbers.randint(1, len(prompt)) for _ in range(entries - 1)]
    keys = [(numbers.randbytes(20).hex(), length) for length in lengths]
    half = len(prompt) // 2
    target = hashlib.sha1(prompt[:half]).hexdigest()
    keys.insert(entries // 2, (target, half))
    for i, (sha, text_bytes) in enumerate(keys):
        head = headers[i % len(headers)] + struct.pack("<I", text_bytes)
        fd = os.open(os.path.join(directory, f"{sha}.kv"), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        os.write(fd, head + (prompt[:text_bytes] if sha == target else prompt[: min(text_bytes, 64)]))
        os.truncate(fd, len(head) + text_bytes + PAYLOAD_BYTES)
        os.close(fd)
    return target


def heads(directory: str) -> list[tuple[str, bytes]]:
    """Name and first 52 bytes of each file, the one open, read and close of each."""
    found = []
    for name in os.listdir(directory):
        if not name.endswith(".kv"):
            continue
        fd = os.open(f"{directory}/{name}", os.O_RDONLY)
        found.append((name, os.read(fd, 52)))
        os.close(fd)
    return found


def find_as_ds4(directory: str, prompt: bytes) -> str | None:
    """The reference's way, which remembers nothing."""
    best, best_bytes = None, -1
    with memoryview(prompt) as text:
        for name, head in heads(directory):
            *_, text_bytes = _HEAD.unpack(head)
            if best_bytes < text_bytes <= len(text) and hashlib.sha1(text[:text_bytes]).hexdigest() == name[:40]:
                best, best_bytes = name[:40], text_bytes
    return best


def scan(directory: str, prompt: bytes) -> None:
    """What no find could avoid in a directory that isn't watched."""
    hashlib.sha1(prompt).digest()
    with os.scandir(directory) as names:
        for found in names:
            found.stat()


def must(find: Callable[[], str | None], target: str) -> Callable[[], None]:
    """A case that is wrong if it doesn't find the target."""

    def case() -> None:
        if find() != target:
            raise SystemExit("a case did not find the checkpoint, so these numbers mean nothing")

    return case


def warm(directory: str, prompt: bytes, target: str, rounds: int) -> dict[str, float]:
    """Median seconds of each."""
    store = Store(directory, budget_bytes=1 << 62)
    numbers = random.Random(2)

    def save() -> None:
        text = numbers.randbytes(len(prompt) // 4)
        if store.save_buffer(text, PAYLOAD, tokens=1000, ctx_size=32768) is None:
            raise SystemExit("a save was refused, so these numbers mean nothing")

    def nearest() -> None:
        store.nearest(prompt, ctx_size=32768)

    while seconds(nearest) > SECONDS_OF_SORTING:
        pass

    def find() -> str | None:
        entry = store.find(prompt, ctx_size=32768, quant_bits=2)
        return None if entry is None else entry.sha

    return in_turns(
        {
            "find": must(find, target),
            "nearest": nearest,
            "save": save,
            "scan": lambda: scan(directory, prompt),
            "ds4": must(lambda: find_as_ds4(directory, prompt), target),
        },
        rounds,
    )


def cold(directory: str, rounds: int) -> dict[str, float]:
    """Median seconds to get to know a directory."""
    return in_turns(
        {
            "open": lambda: Store(directory, budget_bytes=1 << 62),
            "list": lambda: Index(directory).scan(),
            "read": lambda: heads(directory),
        },
        rounds,
    )


def ms(seconds: float) -> str:
    return f"{seconds * 1e3:,.3f}" if seconds < 0.01 else f"{seconds * 1e3:,.1f}"


def plot(path: str, measured: dict[tuple[int, int], dict[str, float]]) -> None:
    """Milliseconds against entries, one panel a prompt length, to an image file."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    prompts = sorted({kib for kib, _ in measured})
    figure, panels = pyplot.subplots(1, len(prompts), figsize=(4 * len(prompts), 4), sharey=True, squeeze=False)
    styles = {
        "ds4": ("as ds4", "s-"),
        "find": ("find", "o-"),
        "nearest": ("nearest", "^-"),
        "save": ("save", "d-"),
        "scan": ("scan", "k:"),
    }
    for panel, kib in zip(panels[0], prompts, strict=True):
        rows = sorted((entries, spent) for (size, entries), spent in measured.items() if size == kib)
        for name, (label, style) in styles.items():
            panel.loglog([row[0] for row in rows], [row[1][name] * 1e3 for row in rows], style, label=label)
        panel.set_title(f"prompt of {kib:,} KiB")
        panel.set_xlabel("checkpoints in the directory")
        panel.grid(alpha=0.3)
    panels[0][0].set_ylabel("ms a call")
    panels[0][0].legend()
    figure.text(0.01, 0.01, machine(), fontsize=6)
    figure.tight_layout(rect=(0, 0.02, 1, 1))
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", type=int, nargs="+", default=[10, 100, 1_000, 10_000])
    parser.add_argument("--prompt-kib", type=int, nargs="+", default=[20, 200, 1_000])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--plot", metavar="FILE", help="an .svg or .png of the first table; needs matplotlib")
    parser.add_argument("--dir", default=tempfile.gettempdir())
    args = parser.parse_args()
    print(machine(), end="\n\n")
    measured: dict[tuple[int, int], dict[str, float]] = {}
    opened: dict[int, dict[str, float]] = {}
    for kib in args.prompt_kib:
        prompt = random.Random(kib).randbytes(kib * KIB)
        for entries in args.entries:
            with tempfile.TemporaryDirectory(dir=args.dir) as directory:
                target = fill(directory, entries, prompt)
                time.sleep(TICK_SECONDS)
                measured[kib, entries] = warm(directory, prompt, target, args.rounds)
                if entries not in opened:
                    opened[entries] = cold(directory, args.rounds)
    rows = [
        [
            f"{kib:,} KiB",
            f"{entries:,}",
            ms(spent["find"]),
            ms(spent["nearest"]),
            ms(spent["save"]),
            ms(spent["scan"]),
            ms(spent["ds4"]),
            f"{spent['ds4'] / spent['find']:.1f}x",
        ]
        for (kib, entries), spent in measured.items()
    ]
    print(
        table(["prompt", "entries", "find ms", "nearest ms", "save ms", "scan ms", "as ds4 ms", "faster"], rows),
        end="\n\n",
    )
    rows = [
        [
            f"{entries:,} entries",
            ms(spent["open"]),
            ms(spent["list"]),
            ms(spent["read"]),
            f"{spent['open'] / spent['read']:.2f}",
            f"{spent['list'] / spent['read']:.2f}",
        ]
        for entries, spent in opened.items()
    ]
    print(table(["never seen", "open ms", "list ms", "52 bytes ms", "open / 52 bytes", "list / 52 bytes"], rows))
    if args.plot:
        plot(args.plot, measured)


if __name__ == "__main__":
    main()
