"""Scenarios: what users do to checkpoints, each on a small directory of its own, while one call fails.

A scenario has ``prepare``, which makes the directory; ``run``, in which the fault comes; and ``check``, in another
process, which looks at what is left. ``run`` asserts every byte that it is given and lets errors through: OSError and
MemoryError are documented, and nothing else is. ``check`` begins with :func:`whole`, which opens the directory as the
next process does, and holds all of it against what must be there and what may be. To add one, write the class and put
it into SCENARIOS; points.py finds out by itself which calls it makes, and in how many ways each can fail.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import hashlib
import io
import os
import shutil
import subprocess
from collections.abc import Collection, Mapping
from pathlib import Path

from faults.shim import Fault, compiler

import ds4kv
import ds4kv.cli
from ds4kv.integrity import DIRECTORY_NAME, Verdict
from ds4kv.sessions import Sessions
from ds4kv.store import Store
from ds4kv.upgrade import Upgrade

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


def whole(
    directory: Path,
    must: Collection[bytes],
    may: Collection[bytes] = (),
    *,
    payloads: Mapping[bytes, bytes] | None = None,
) -> dict[bytes, ds4kv.Checkpoint]:
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
            expected = payload_of(text) if payloads is None or text not in payloads else payloads[text]
            assert checkpoint.payload == expected, f"wrong bytes: {entry.path}"
            assert text not in found, f"wrong: two files of {text[:20]!r}"
            if checkpoint.header.ext_flags & 1:
                assert ds4kv.trailer.unpack_tool_map(checkpoint.trailer) in MAPS, f"wrong tool map: {entry.path}"
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
    """A store with three checkpoints, all noted: two that it saved, and one of many chunks, in one of three layouts."""

    name = ""
    layout = "v2"
    also: tuple[str, ...] = ("v1", "v2", "v2-checked")

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


class Saving(Scenario):
    name = "save"
    fsync = False

    def run(self, directory: Path) -> None:
        with self.store(directory, fsync=self.fsync) as store:
            entry = save(store, NEW)
            assert entry is not None and entry.text_bytes == len(NEW)

    def check(self, directory: Path, *, failed: bool, fault: Fault | None) -> None:
        whole(directory, {A, B, C} if failed else {A, B, C, NEW}, {NEW})


class SavingDurably(Saving):
    name = "save with fsync"
    also = ("v2",)
    fsync = True


class SavingInTheBackground(Saving):
    name = "save in the background"
    also = ("v2",)

    def run(self, directory: Path) -> None:
        with self.store(directory) as store:
            entry = store.save_async(NEW, payload_of(NEW), tokens=600, ctx_size=1000).result(timeout=60)
            assert entry is not None


class SavingAgain(Scenario):
    """The text is there: its tool map alone is written, in place."""

    name = "tool map"

    def run(self, directory: Path) -> None:
        with self.store(directory) as store:
            assert save(store, A, tool_map=MAPS[2]) is not None
            assert store.import_tool_maps([b"call_34"]) == {b"call_34": OTHER}

    def check(self, directory: Path, *, failed: bool, fault: Fault | None) -> None:
        found = whole(directory, {A, B, C})
        tool_map = ds4kv.trailer.unpack_tool_map(found[A].trailer)
        assert tool_map == MAPS[2] or (failed and tool_map in MAPS), f"wrong tool map: {tool_map}"


class Loading(Scenario):
    name = "load"

    def run(self, directory: Path) -> None:
        with self.store(directory) as store:
            for prompt in (NEW, C):
                entry = store.find(prompt, ctx_size=2000, quant_bits=2)
                if entry is None:  # nothing else is there that could be missed
                    raise OSError("a miss")
                with store.load(entry) as checkpoint:
                    assert prompt.startswith(checkpoint.text), "wrong text"
                    assert checkpoint.payload.read() == payload_of(checkpoint.text), "wrong bytes"
                    assert checkpoint.tool_map in MAPS, "wrong tool map"


class Consuming(Scenario):
    name = "load and consume"
    also = ("v2",)

    def run(self, directory: Path) -> None:
        with self.store(directory, consume=True, cold_max_tokens=500) as store:
            entry = store.find(C, ctx_size=2000, quant_bits=2)
            if entry is None:
                raise OSError("a miss")
            with store.load(entry) as checkpoint:
                assert checkpoint.payload.read() == payload_of(C), "wrong bytes"

    def check(self, directory: Path, *, failed: bool, fault: Fault | None) -> None:
        whole(directory, {A, B}, {C})


class Finding(Scenario):
    name = "find and verify"

    def run(self, directory: Path) -> None:
        with self.store(directory) as store:
            entry = store.find(NEW, ctx_size=2000, quant_bits=2)
            assert entry is None or entry.text_bytes in (len(A), len(B)), "wrong text"
            for each in store.entries():
                assert store.verify(each) is not Verdict.DAMAGED, f"condemned: {each.path}"


class Evicting(Scenario):
    """One file of three has to go, and one is used more than the others."""

    name = "evict"
    also = ("v2",)

    def prepare(self, directory: Path) -> None:
        super().prepare(directory)
        os.utime(directory)
        with self.store(directory) as store:
            entry = store.find(C, ctx_size=2000, quant_bits=2)
            assert entry is not None
            with store.load(entry) as checkpoint:
                checkpoint.payload.read()

    def run(self, directory: Path) -> None:
        size = sum(path.stat().st_size for path in directory.glob("*.kv"))
        with self.store(directory, budget_bytes=size - 1) as store:
            store.evict()

    def check(self, directory: Path, *, failed: bool, fault: Fault | None) -> None:
        found = whole(directory, {C}, {A, B})
        # What can't be removed has another one go in its place.
        assert len(found) >= 2, f"lost: {3 - len(found)} went, and the budget wanted one to"
        assert failed or fault is not None or len(found) == 2, "over the budget"


class SavingToAFullDisk(Scenario):
    """Room is made for a save that a full disk has no place for: as much as it lacks."""

    name = "save that evicts"
    also = ("v1", "v2")

    def prepare(self, directory: Path) -> None:
        with self.store(directory) as store:
            for number in range(6):
                save(store, b"%d" % number)

    def run(self, directory: Path) -> None:
        with self.store(directory, on_full="evict") as store:
            save(store, NEW, raw_total=len(payload_of(NEW)))

    def check(self, directory: Path, *, failed: bool, fault: Fault | None) -> None:
        texts = {b"%d" % number for number in range(6)}
        found = whole(directory, set(), texts | {NEW})
        sizes = {len(payload_of(text)) for text in texts}
        gone = len(texts - found.keys())
        # Twice the payload bounds what the save can have lacked.
        bound = 0 if fault is None or fault.error != "ENOSPC" else -(-2 * len(payload_of(NEW)) // min(sizes))
        assert gone <= bound, f"lost: {gone} of 6 files went for a save that {'failed' if failed else 'went well'}"


class Removing(Scenario):
    name = "remove"
    also = ("v2",)

    def run(self, directory: Path) -> None:
        with self.store(directory) as store:
            entry = store.find(C, ctx_size=2000, quant_bits=2)
            if entry is None:
                raise OSError("a miss")
            store.remove(entry)

    def check(self, directory: Path, *, failed: bool, fault: Fault | None) -> None:
        whole(directory, {A, B}, {C})


class Upgrading(Scenario):
    name = "upgrade to"

    def prepare(self, directory: Path) -> None:
        old = Scenario("v1" if self.layout != "v1" else "v2")
        old.prepare(directory)

    def run(self, directory: Path) -> None:
        failed = []
        for outcome in Upgrade(directory, layout=self.layout, workers=1).run():
            if outcome.error is not None:
                failed.append(outcome.error)
        if failed:
            raise failed[0]


class Rebuilding(Scenario):
    name = "rebuild_integrity"

    def prepare(self, directory: Path) -> None:
        super().prepare(directory)
        shutil.rmtree(directory / DIRECTORY_NAME)

    def run(self, directory: Path) -> None:
        with self.store(directory) as store:
            store.rebuild_integrity()


class Conversing(Scenario):
    """ds4-agent's directory: a conversation that grew takes the place of its beginnings."""

    name = "sessions"
    also = ("v1", "v2")

    def prepare(self, directory: Path) -> None:
        sessions = Sessions(directory, layout=self.layout, workers=1)
        for text in (A, C):
            with sessions.save(text, tokens=600, ctx_size=1000) as saving:
                saving.payload.write(payload_of(text))

    def run(self, directory: Path) -> None:
        sessions = Sessions(directory, layout=self.layout, workers=1)
        text = A + b" and on"
        with sessions.save(text, tokens=600, ctx_size=1000) as saving:
            saving.payload.write(payload_of(text))
        with sessions.save_sysprompt(b"You are", tokens=600, ctx_size=1000) as saving:
            saving.payload.write(payload_of(b"You are"))
        reader = sessions.load_sysprompt(b"You are", quant_bits=2)
        if reader is not None:
            with reader:
                assert reader.payload.read() == payload_of(b"You are"), "wrong bytes"
        with sessions.switch(name_of(C)[:40], quant_bits=2) as reader:
            assert reader.payload.read() == payload_of(C), "wrong bytes"
        sessions.list()
        del sessions
        gc.collect()

    def check(self, directory: Path, *, failed: bool, fault: Fault | None) -> None:
        on = A + b" and on"
        found = whole(directory, {C}, {A, on})
        assert A in found or on in found, "lost: the conversation"
        assert failed or on in found, "lost: what was saved"
        if (path := directory / "sysprompt.kv").exists():
            checkpoint = ds4kv.load(path)
            assert checkpoint.payload == payload_of(b"You are"), "wrong bytes"
        left = [name for name in os.listdir(directory) if ".tmp." in name]
        assert not left, f"temporaries left: {left}"


class Dumping(Scenario):
    """A file alone, of a name of its own, in place of one that is there; of many chunks."""

    name = "dump"

    def prepare(self, directory: Path) -> None:
        in_pieces(directory / "out.kv", A, self.layout)

    def run(self, directory: Path) -> None:
        in_pieces(directory / "out.kv", NEW, self.layout)
        checkpoint = ds4kv.load(directory / "out.kv", workers=2)
        assert checkpoint.payload == payload_of(NEW), "wrong bytes"
        with ds4kv.open(directory / "out.kv", workers=2) as reader:
            piece, read = bytearray(1000), b""
            while n := reader.payload.readinto(piece):
                read += piece[:n]
            assert read == payload_of(NEW), "wrong bytes"

    def check(self, directory: Path, *, failed: bool, fault: Fault | None) -> None:
        checkpoint = ds4kv.load(directory / "out.kv")
        assert checkpoint.text in ([A, NEW] if failed else [NEW]), "wrong text"
        assert checkpoint.payload == payload_of(checkpoint.text), "wrong bytes"
        in_pieces(directory / "out.kv", C, self.layout)
        left = [name for name in os.listdir(directory) if ".tmp." in name]
        assert not left, f"temporaries left: {left}, by the next dump to this name"


class Commanding(Scenario):
    """A command: it ends by an exit code, and says what is wrong in a line."""

    def command(self, *words: object, fails_well: Collection[int] = (1,)) -> None:
        out, errors = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
            code = ds4kv.cli.main([str(word) for word in words])
        assert code == 0 or code in fails_well, f"exit code {code}"
        if code:
            assert "Traceback" not in errors.getvalue(), errors.getvalue()
            raise OSError(errors.getvalue())


class Converting(Commanding):
    name = "convert to"

    def prepare(self, directory: Path) -> None:
        in_pieces(directory / "out.kv", C, self.layout)
        in_pieces(directory / "in.kv", A, "v2")

    def run(self, directory: Path) -> None:
        self.command("convert", directory / "in.kv", directory / "out.kv", "--layout", self.layout, "--threads", 1)

    def check(self, directory: Path, *, failed: bool, fault: Fault | None) -> None:
        assert ds4kv.load(directory / "in.kv").payload == payload_of(A), "lost: the source"
        checkpoint = ds4kv.load(directory / "out.kv")
        assert checkpoint.text in ([A, C] if failed else [A]), "wrong text"
        assert checkpoint.payload == payload_of(checkpoint.text), "wrong bytes"
        with contextlib.redirect_stdout(io.StringIO()):
            assert ds4kv.cli.main(["convert", str(directory / "in.kv"), str(directory / "out.kv")]) == 0
        left = [name for name in os.listdir(directory) if ".tmp." in name]
        assert not left, f"temporaries left: {left}, by the next conversion to this name"


class Salvaging(Commanding):
    """A damaged file: it stays to the byte, and what is made of it is a beginning of what it was."""

    name = "salvage"
    also = ("v2", "v2-checked")

    def prepare(self, directory: Path) -> None:
        in_pieces(directory / "in.kv", A, self.layout)
        damaged = bytearray((directory / "in.kv").read_bytes())
        at = len(damaged) * 2 // 3
        damaged[at : at + 2000] = bytes(2000)
        (directory / "in.kv").write_bytes(damaged)
        (directory.parent / "as it was").write_bytes(damaged)

    def run(self, directory: Path) -> None:
        self.command("salvage", directory / "in.kv", directory / "out.kv", "--threads", 1)

    def check(self, directory: Path, *, failed: bool, fault: Fault | None) -> None:
        assert (directory / "in.kv").read_bytes() == (directory.parent / "as it was").read_bytes(), "wrong: IN changed"
        if not failed or (directory / "out.kv").exists():
            payload = ds4kv.load(directory / "out.kv").payload
            assert payload == payload_of(A)[: len(payload)], "wrong bytes"
            assert failed or len(payload) > 4096, "lost: good chunks"


class SettingAside(Scenario):
    """A file that is damaged, as its note proves: it is moved, or stays; it is never lost, nor believed."""

    name = "set aside"
    also = ("v2",)

    def prepare(self, directory: Path) -> None:
        super().prepare(directory)
        path = directory / name_of(C)
        status = os.stat(path)
        with open(path, "r+b") as fp:
            fp.seek(-3000, os.SEEK_END)
            fp.write(b"damage!")
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        shutil.copy(path, directory.parent / "as it was")

    def run(self, directory: Path) -> None:
        with self.store(directory) as store:
            entry = store.find(C, ctx_size=2000, quant_bits=2)
            if entry is None:
                raise OSError("a miss")
            with contextlib.suppress(ds4kv.CorruptError), store.load(entry) as checkpoint:
                # Without its ledger, which a fault may cost, it isn't known to be damaged.
                checkpoint.payload.read()

    def check(self, directory: Path, *, failed: bool, fault: Fault | None) -> None:
        moved = directory / "quarantine"
        places = [directory / name_of(C), *(moved.iterdir() if moved.exists() else [])]
        kept = [place for place in places if place.exists()]
        assert len(kept) == 1, f"lost: the damaged file is {len(kept)} files"
        was = (directory.parent / "as it was").read_bytes()
        region = 52 + len(C)
        assert kept[0].read_bytes()[region:] == was[region:], "wrong: the damaged file changed"
        kept[0].unlink()
        if moved.exists():
            shutil.rmtree(moved)
        whole(directory, {A, B})


class EngineInC(Scenario):
    """A C engine saves a checkpoint in place of another, and loads it."""

    name = "C engine"
    library: ctypes.CDLL | None = None

    @classmethod
    def build(cls, folder: Path) -> None:
        target = folder / "libds4kv_engine.so"
        words = f"-O1 -shared -fPIC -I {ds4kv.get_include()} {Path(__file__).with_name('engine.c')}".split()
        subprocess.run([compiler(), *words, "-o", target, ds4kv.get_library(), "-pthread"], check=True)
        cls.library = ctypes.CDLL(str(target))

    def prepare(self, directory: Path) -> None:
        self.save(directory, A)

    def run(self, directory: Path) -> None:
        self.save(directory, NEW)
        assert self.load(directory) == payload_of(NEW), "wrong bytes"

    def check(self, directory: Path, *, failed: bool, fault: Fault | None) -> None:
        checkpoint = ds4kv.load(directory / "out.kv")
        assert checkpoint.text in ([A, NEW] if failed else [NEW]), "wrong text"
        assert checkpoint.payload == payload_of(checkpoint.text), "wrong bytes"
        self.save(directory, C)
        left = [name for name in os.listdir(directory) if ".tmp." in name]
        assert not left, f"temporaries left: {left}, by the next save to this name"

    def save(self, directory: Path, text: bytes) -> None:
        assert self.library is not None
        payload, error = payload_of(text), ctypes.c_int()
        layout = {"v1": 1, "v2": 2, "v2-checked": 4}[self.layout]
        sizes = ctypes.c_size_t(len(text)), ctypes.c_size_t(len(payload))
        path = os.fsencode(directory / "out.kv")
        self.ended(
            self.library.engine_save(path, layout, text, sizes[0], payload, sizes[1], 0, ctypes.byref(error)), error
        )

    def load(self, directory: Path) -> bytes:
        assert self.library is not None
        payload, read, error = ctypes.create_string_buffer(1 << 20), ctypes.c_size_t(), ctypes.c_int()
        path, size = os.fsencode(directory / "out.kv"), ctypes.c_size_t(1 << 20)
        status = self.library.engine_load(path, payload, size, ctypes.byref(read), ctypes.byref(error))
        self.ended(status, error)
        return payload.raw[: read.value]

    def ended(self, status: int, error: ctypes.c_int) -> None:
        if status in (-5, -6):  # NOMEM, THREAD
            raise MemoryError
        if status == -8:  # IO
            assert error.value, "an error of the system without its number"
            raise OSError(error.value, os.strerror(error.value))
        assert status != -2, "TRUNCATED"
        assert status == 0, f"condemned: status {status}"


SCENARIOS: list[type[Scenario]] = [
    Saving,
    SavingDurably,
    SavingInTheBackground,
    SavingAgain,
    SavingToAFullDisk,
    Loading,
    Consuming,
    Finding,
    Evicting,
    Removing,
    Upgrading,
    Rebuilding,
    Conversing,
    Dumping,
    Converting,
    Salvaging,
    SettingAside,
    EngineInC,
]


def scenarios() -> list[Scenario]:
    return [scenario(layout) for scenario in SCENARIOS for layout in scenario.also]
