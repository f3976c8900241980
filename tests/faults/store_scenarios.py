"""Scenarios of directories: what a store, an upgrade and ds4-agent's sessions do."""

from __future__ import annotations

import contextlib
import gc
import os
import shutil
from pathlib import Path

from faults.scenario import MAPS, NEW, OTHER, A, B, C, Scenario, name_of, payload_of, save, whole
from faults.shim import Fault

import ds4kv
from ds4kv.file.ledger import DIRECTORY_NAME
from ds4kv.file.note import Verdict
from ds4kv.format.toolmap import unpack_tool_map
from ds4kv.store.sessions import Sessions
from ds4kv.store.upgrade import Upgrade

__all__ = ["SCENARIOS"]


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
            # What can't be read is a miss.
            assert store.import_tool_maps([b"call_34"]) in ({b"call_34": OTHER}, {}), "wrong tool map"

    def check(self, directory: Path, *, failed: bool, fault: Fault | None) -> None:
        found = whole(directory, {A, B, C})
        tool_map = unpack_tool_map(found[A].trailer) if found[A].header.ext_flags & 1 else {}
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
        size = sum((directory / name_of(text)).stat().st_size for text in (A, B, C))  # no listing, which may fail
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
    also = ("v1", "v2", "v2-checked")  # packed needs no notes

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
        try:
            with sessions.switch(name_of(C)[:40], quant_bits=2) as reader:
                assert reader.payload.read() == payload_of(C), "wrong bytes"
        except LookupError as error:  # documented; a file that can't be opened isn't listed
            raise OSError("a miss") from error
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


SCENARIOS = [
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
    SettingAside,
]
