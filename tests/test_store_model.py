"""The store against a plain model of its rules: after every step the same files, to the byte.

What the store does, what other programs and users do to its directory meanwhile, power cuts, forked children, and a
clock that jumps. By default this takes
seconds. `DS4KV_STEPS=50000 pytest tests/test_store_model.py` walks about as many steps, in sessions of 50 each.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import os
import shutil
import struct
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import reference
from hypothesis import HealthCheck, event, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from processes import status_of_fork
from store_model import Model, listed, parsed

import ds4kv
from ds4kv.file import note
from ds4kv.store import index
from ds4kv.store.store import Store

SESSION = 50
STEPS = int(os.environ.get("DS4KV_STEPS", "2500"))
LOCK, LEDGER, QUARANTINE = ".ds4kv.lock", ".ds4kv", "quarantine"
QUARANTINE_SHARE = 10  # of the budget, a tenth

BLOCKS = [
    b"<tool_calls>one</tool_calls>",
    "\n\n<\uff5cDSML\uff5ctool_calls>two</\uff5cDSML\uff5ctool_calls>".encode(),
    "<DSML\uff5ctool_calls></tool_calls></DSML\uff5ctool_calls>".encode(),
]
TEXTS = [
    b"",
    b"a",
    b"b",
    b"ab",
    b"ba",
    b"ab\0c",
    b"ab" + BLOCKS[0],
    b"ab" + BLOCKS[0] + BLOCKS[1] + b"!",
    b"ab" + BLOCKS[0] + BLOCKS[1] + b"!" + BLOCKS[0] + BLOCKS[2],
    b"<tool_calls>" + BLOCKS[2],
]
PAYLOADS = [
    b"",
    b"x",
    bytes(5000),
    hashlib.shake_128(b"noise").digest(300),
    b"abcd" * 100 + hashlib.shake_128(b"half").digest(400),
    hashlib.shake_128(b"more").digest(1100),
]
IDS = [b"call_1", b"call_2", b"toolu_3"]

texts = st.integers(0, len(TEXTS) - 1).map(lambda number: TEXTS[number])
payloads = st.integers(0, len(PAYLOADS) - 1).map(lambda number: PAYLOADS[number])
tokens = st.sampled_from([600, 601, 3000, 11, 10, 9, 0])
ctx_sizes = st.sampled_from([1000, 2000, 0])
quants = st.sampled_from([2, 2, 2, 4, 4, 4, 3])
remembered = st.dictionaries(st.sampled_from(IDS), st.integers(0, len(BLOCKS) - 1).map(lambda number: BLOCKS[number]))
just_enough = st.builds(  # or just not, for one file
    lambda text, payload, more: max((52 + len(text) + len(payload)) * 101 // 100 + more, 1),
    texts,
    payloads,
    st.integers(0, 1),
)
budgets = st.integers(1500, 6000) | just_enough
times = st.sampled_from([0, 1, 1_780_000_000, 1_780_000_001, 1_780_021_600, 2**40])
jumps = st.sampled_from([0, 1, 0.5, 3600, 21600, 5 * 21600, 10**6, 10**9, -1, -3600, -(10**10)])


class EngineError(Exception):
    pass


class StoreMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.top = Path(tempfile.mkdtemp(prefix="ds4kv-model-"))
        self.directory = self.top / "store"
        self.scratch = self.top / "scratch.kv"
        self.model = Model()
        self.clock = 1_780_000_000.0
        # Sessions are so short that by its own measure the index would never trust what it remembers.
        self.denied: dict[int, int] = {}  # descriptors by inode, which is no other file's while they are open
        self.open_file = open_file = os.open

        def open_or_not(path: Any, *args: Any, **options: Any) -> int:
            fd = open_file(path, *args, **options)
            if os.fstat(fd).st_ino in self.denied:
                os.close(fd)
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
            return fd

        self.patches = contextlib.ExitStack()
        self.patches.enter_context(mock.patch.object(index, "_COARSEST_TICK_NS", 20_000_000))
        self.patches.enter_context(mock.patch.object(os, "open", open_or_not))
        self.patches.enter_context(mock.patch.object(note, "boot", lambda: self.model.boot + 1))

    def teardown(self) -> None:
        self.patches.close()
        for fd in self.denied.values():
            os.close(fd)
        if hasattr(self, "store"):
            self.store.close()
        shutil.rmtree(self.top)

    @property
    def now(self) -> int:
        return max(int(self.clock), 0)

    def order(self) -> list[str]:
        return os.listdir(self.directory) if self.directory.exists() else []

    def pick(self, data: st.DataObject) -> str:
        return data.draw(st.sampled_from(sorted(self.model.files)), label="name")

    # What the store does

    @initialize(
        budget=budgets,
        min_tokens=st.sampled_from([0, 10]),
        reject=st.booleans(),
        written=st.sampled_from([("v1", None), ("v2", "none"), ("v2", None), ("v2", "lz4")]),
        consume=st.booleans(),
        first=st.lists(st.tuples(texts, payloads, remembered), min_size=3, max_size=6),
    )
    def start(
        self,
        budget: int,
        min_tokens: int,
        reject: bool,
        written: tuple[str, str | None],
        consume: bool,
        first: list[tuple[bytes, bytes, dict[bytes, bytes]]],
    ) -> None:
        self.layout, self.codec = written
        self.options = {
            "min_tokens": min_tokens,
            "reject_different_quant": reject,
            "layout": self.layout,
            "codec": self.codec,
            "consume": consume,
            "cold_max_tokens": 600,
        }
        self.model.min_tokens = min_tokens
        self.model.reject_different_quant = reject
        self.model.consume_above = 600 if consume else 0
        self.open(budget)
        for text, payload, tool_map in first:
            self.take_a_turn(text, payload, tool_map, tokens=600, seconds=1)

    def open(self, budget: int) -> None:
        order = self.order()
        self.store = Store(self.directory, budget_bytes=budget, workers=1, clock=lambda: self.clock, **self.options)
        self.model.budget = budget
        self.model.evict(now=self.now, order=order)
        self.model.noted = {name: noted for name, noted in self.model.noted.items() if name in self.model.files}
        assert self.model.total() <= budget

    @rule(budget=budgets, seconds=jumps)
    def reopen(self, budget: int, seconds: float) -> None:
        self.clock += seconds
        self.store.close()
        self.open(budget)

    @rule(
        text=texts,
        payload=payloads,
        tokens=tokens,
        ctx_size=ctx_sizes,
        quant_bits=quants,
        reason=st.sampled_from([0, 1, 2, 6, 200]),
        ext_flags=st.sampled_from([0, 1, 2, 255]),
        tool_map=remembered,
        how=st.sampled_from(["with", "in pieces", "buffer", "call", "background", "engine fails"]),
        seconds=jumps,
    )
    def save(self, text: bytes, payload: bytes, how: str, seconds: float, **fields: Any) -> None:
        self.clock += seconds
        region, head = self.region(payload)
        order = self.order()
        tool_map = fields["tool_map"]
        entry = None
        if how == "buffer":
            entry = self.store.save_buffer(text, payload, **fields)
        elif how == "call":
            entry = self.store.save_buffer(text, lambda: payload, **fields)
        elif how == "background":
            entry = self.store.save_async(text, payload, **fields).result(timeout=60)
        else:
            with contextlib.suppress(EngineError):
                with self.store.save(text, **fields) as saving:
                    half = len(payload) // 2 if how == "in pieces" else 0
                    saving.payload.write(payload[:half])
                    saving.payload.write(payload[half:])
                    if how == "engine fails":
                        raise EngineError
                entry = saving.entry
        # A tie is broken by the directory's order when the new file is in it, which nobody sees from outside: of those
        # that tie, what is gone went first.
        after = set(self.order())
        order.sort(key=lambda name: name in after)
        name, is_new = self.model.save(
            text,
            region,
            tokens=fields["tokens"],
            ctx_size=fields["ctx_size"],
            quant_bits=fields["quant_bits"],
            reason_code={"cold": 1}.get(fields["reason"], fields["reason"]),
            ext_flags=fields["ext_flags"],
            remembered=tool_map,
            now=self.now,
            order=order,
            is_empty=not payload,
            engine_fails=how == "engine fails",
            **head,
        )
        if how != "engine fails":
            assert (entry and os.path.basename(entry.path)) == name
            event("saved" if is_new else "not saved" if name is None else "present")
        if is_new:
            assert self.model.total() <= self.model.budget

    @rule(text=texts, payload=payloads, tool_map=remembered, tokens=st.sampled_from([600, 601, 3000]), seconds=jumps)
    def take_a_turn(
        self, text: bytes, payload: bytes, tool_map: dict[bytes, bytes], tokens: int, seconds: float
    ) -> None:
        """As engines do: load what there is, save what became of it."""
        self.load_the_best_that_loads(text, ctx_size=2000, engine_fails=False)
        self.save(
            text,
            payload,
            how="buffer",
            seconds=seconds,
            tokens=tokens,
            ctx_size=2000,
            quant_bits=2,
            reason="cold",
            ext_flags=0,
            tool_map=tool_map,
        )

    def region(self, payload: bytes) -> tuple[bytes, dict[str, int]]:
        """What the store has to write, told without a store."""
        ds4kv.dump(self.scratch, payload, tokens=1, ctx_size=0, layout=self.layout, codec=self.codec)
        data = self.scratch.read_bytes()
        file = reference.parse(data)
        assert file.payload == payload
        return data[reference.TEXT_AT :], {"version": file.version, "codec": file.codec, "chunk_size": file.chunk_size}

    @rule(prompt=texts, more=texts, ctx_size=ctx_sizes, quant_bits=quants)
    def find(self, prompt: bytes, more: bytes, ctx_size: int, quant_bits: int) -> None:
        entry = self.store.find(prompt + more, ctx_size=ctx_size, quant_bits=quant_bits)
        name = self.model.find(prompt + more, ctx_size=ctx_size, quant_bits=quant_bits)
        assert (entry and os.path.basename(entry.path)) == name

    @rule(prompt=texts, ctx_size=st.sampled_from([2000, 1000]), engine_fails=st.booleans())
    def load_the_best_that_loads(self, prompt: bytes, ctx_size: int, engine_fails: bool) -> None:
        while True:
            entry = self.store.find(prompt, ctx_size=ctx_size, quant_bits=2)
            name = self.model.find(prompt, ctx_size=ctx_size, quant_bits=2)
            assert (entry and os.path.basename(entry.path)) == name
            if entry is None or self.load(entry, engine_fails):
                return

    @rule(prompt=texts, place=st.integers(0, 23), flipped=st.integers(1, 255))
    def load_what_was_damaged(self, prompt: bytes, place: int, flipped: int) -> None:
        name = self.model.find(prompt, ctx_size=2000, quant_bits=2)
        if name is not None and (file := listed(name, self.model.files[name])).end > reference.TEXT_AT:
            at = min(reference.TEXT_AT + file.text_bytes + place, file.end - 1)
            self.overwrite(name, at, bytes([self.model.files[name][at] ^ flipped]))
        self.load_the_best_that_loads(prompt, ctx_size=2000, engine_fails=False)

    def load(self, entry: object, engine_fails: bool) -> bool:
        expected = self.model.load(os.path.basename(entry.path), now=self.now, engine_fails=engine_fails)
        try:
            with self.store.load(entry) as checkpoint:
                payload = checkpoint.payload.read()
                assert expected is not None
                assert (checkpoint.text, payload, checkpoint.trailer) == (
                    expected.text,
                    expected.payload,
                    expected.trailer,
                )
                if engine_fails:
                    raise EngineError
        except ds4kv.CorruptError:
            event("set aside")
            assert expected is None
            return False
        except EngineError:
            assert engine_fails
        event("loaded")
        return True

    @precondition(lambda self: self.model.total() > self.model.budget)
    @rule()
    def evict(self) -> None:
        order = self.order()
        removed = self.store.evict()
        assert [os.path.basename(entry.path) for entry in removed] == self.model.evict(now=self.now, order=order)
        assert self.model.total() <= self.model.budget
        event(f"evict removed {'some' if removed else 'none'}")

    # What others do

    @rule(
        text=texts,
        payload=payloads,
        tokens=st.sampled_from([600, 601, 3000, 10, 1, 2**32 - 1]),
        ctx_size=ctx_sizes,
        quant_bits=st.sampled_from([2, 4]),
        written=st.sampled_from([("v1", None), ("v2", "none"), ("v2", "lz4"), ("v2", "lz4hc")]),
        chunk_size=st.sampled_from([64, 1 << 24]),
        trailer=st.sampled_from([b"", b"junk", struct.pack("<3sBIII", b"KTM", 1, 1, 6, 1) + b"call_1B"]),
        hits=st.sampled_from([0, 0, 1, 100, 2**32 - 1]),
        created_at=times,
        last_used=times,
        upper=st.booleans(),
    )
    def foreign_save(
        self, text: bytes, payload: bytes, written: tuple[str, str], upper: bool, trailer: bytes, **fields: int
    ) -> None:
        sha = hashlib.sha1(text).hexdigest()
        name = f"{sha.upper() if upper else sha}.kv"
        path = self.directory / name
        layout, codec = written
        if codec in (None, "none"):
            fields.pop("chunk_size")
        ds4kv.dump(
            path,
            payload,
            text=text,
            layout=layout,
            codec=codec,
            trailer=trailer,
            ext_flags=bool(trailer),
            reason=77,
            **fields,
        )
        self.model.remove(name)  # dump forgets what had the name
        self.model.replace(name, path.read_bytes())

    @rule(
        texts=st.sampled_from([(b"a", b"b"), (b"ab", b"ba")]),
        used=st.lists(
            st.tuples(st.sampled_from([0, 0, 1, 2]), st.sampled_from([0, 1, 21600, 5 * 21600, 7 * 21600])),
            min_size=2,
            max_size=2,
        ),
    )
    def foreign_twins(self, texts: tuple[bytes, bytes], used: list[tuple[int, int]]) -> None:
        """Files that differ in their use alone."""
        for text, (hits, age) in zip(texts, used, strict=True):
            name = f"{hashlib.sha1(text).hexdigest()}.kv"
            fields = {"hits": hits, "created_at": 0, "last_used": max(self.now - age, 0)}
            ds4kv.dump(self.directory / name, b"twin", text=text, tokens=600, ctx_size=1000, codec="none", **fields)
            self.model.remove(name)
            self.model.replace(name, (self.directory / name).read_bytes())

    @rule(
        name=st.sampled_from(["sysprompt.kv", "0" * 40 + ".kv", "0" * 39 + ".kv", "g" * 40 + ".kv", "0" * 40 + ".KV"]),
        data=st.sampled_from([b"", b"KVC\2", bytes(100), reference.build(b"", codec=0)]),
    )
    def foreign_file(self, name: str, data: bytes) -> None:
        (self.directory / name).write_bytes(data)
        self.model.write(name, data)

    @precondition(lambda self: self.model.listed())
    @rule(
        data=st.data(),
        change=st.one_of(
            st.tuples(st.just((3, "B")), st.sampled_from([1, 2, 3])),
            st.tuples(st.just((4, "B")), st.sampled_from([2, 3, 4])),
            st.tuples(st.just((5, "B")), st.integers(0, 255)),
            st.tuples(st.just((6, "B")), st.integers(0, 255)),
            st.tuples(st.just((7, "B")), st.integers(0, 3)),
            st.tuples(st.just((8, "I")), st.sampled_from([0, 1, 10, 2**31, 2**32 - 1])),
            st.tuples(st.just((12, "I")), st.sampled_from([0, 1, 50, 2**32 - 1])),
            st.tuples(st.just((16, "I")), st.sampled_from([0, 1000, 2000, 2001])),
            st.tuples(st.just((24, "Q")), times),
            st.tuples(st.just((32, "Q")), times),
            st.tuples(st.just((40, "Q")), st.sampled_from([0, 1, 30, 2**63, 2**64 - 1])),
            st.tuples(st.just((48, "I")), st.sampled_from([0, 1, 5, 2**32 - 1])),
        ),
    )
    def foreign_header(self, data: st.DataObject, change: tuple[tuple[int, str], int]) -> None:
        (offset, kind), value = change
        self.overwrite(self.pick(data), offset, struct.pack(f"<{kind}", value))

    @precondition(lambda self: self.model.listed())
    @rule(data=st.data(), flipped=st.integers(1, 255))
    def damage(self, data: st.DataObject, flipped: int) -> None:
        """A byte of the text or of the payload's region changes, the region's framing more often than not."""
        name = data.draw(st.sampled_from(sorted(file.name for file in self.model.listed())), label="name")
        file = listed(name, self.model.files[name])
        region = reference.TEXT_AT + file.text_bytes
        places = st.integers(reference.TEXT_AT, file.end - 1) | st.integers(region, min(region + 24, file.end - 1))
        if file.end > region:
            at = data.draw(places, label="offset")
            self.overwrite(name, at, bytes([self.model.files[name][at] ^ flipped]))

    def overwrite(self, name: str, offset: int, patch: bytes) -> None:
        old = self.model.files[name]
        if len(old) < offset + len(patch):
            return
        new = old[:offset] + patch + old[offset + len(patch) :]
        if listed(name, new) is not None and (file := parsed(name, new)) is not None and file.loose:
            return  # decoders differ about such a block
        with open(self.directory / name, "r+b", buffering=0) as fp:
            os.pwrite(fp.fileno(), patch, offset)
        self.model.write(name, new)

    @precondition(lambda self: self.model.listed())
    @rule(data=st.data(), flipped=st.integers(1, 255))
    def rot(self, data: st.DataObject, flipped: int) -> None:
        """A byte changes that nobody has written."""
        file = data.draw(st.sampled_from(sorted(self.model.listed(), key=lambda file: file.name)), label="file")
        at = data.draw(st.integers(0, file.end - 1), label="offset")
        path, stamp = self.directory / file.name, self.model.stamps[file.name]
        status = path.stat()
        self.overwrite(file.name, at, bytes([self.model.files[file.name][at] ^ flipped]))
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        self.model.stamps[file.name] = stamp

    @precondition(lambda self: self.model.listed())
    @rule(
        data=st.data(),
        payload=payloads,
        written=st.sampled_from([("v1", None), ("v2", "none"), ("v2", "lz4"), ("v2-checked", None)]),
        how=st.sampled_from(["in place", "in place, with its time", "as another file"]),
    )
    def foreign_copy(self, data: st.DataObject, payload: bytes, written: tuple[str, str | None], how: str) -> None:
        """Another program copies a good file over one: of the same text, by another engine."""
        file = data.draw(st.sampled_from(sorted(self.model.listed(), key=lambda file: file.name)), label="file")
        path, start = self.directory / file.name, reference.TEXT_AT
        text = self.model.files[file.name][start : start + file.text_bytes]
        self.scratch.unlink(missing_ok=True)
        options = {"tokens": file.tokens, "ctx_size": file.ctx_size, "created_at": file.created_at, "hits": 3}
        ds4kv.dump(self.scratch, payload, text=text, layout=written[0], codec=written[1], **options)
        copy = self.scratch.read_bytes()
        if how == "as another file":
            os.replace(self.scratch, path)
            self.model.replace(file.name, copy)
        else:
            path.write_bytes(copy)
            if how == "in place, with its time":
                shutil.copystat(self.scratch, path)
            self.model.write(file.name, copy)

    @precondition(lambda self: self.model.listed())
    @rule(data=st.data(), hits=st.integers(1, 9))
    def foreign_hit(self, data: st.DataObject, hits: int) -> None:
        """As ds4 notes it: hits and last use, in place and without the lock."""
        file = data.draw(st.sampled_from(sorted(self.model.listed(), key=lambda file: file.name)), label="file")
        between = self.model.files[file.name][16:32]
        self.overwrite(file.name, 12, struct.pack("<I16sQ", hits, between, self.now))

    @precondition(lambda self: self.model.files)
    @rule(data=st.data())
    def another_user(self, data: st.DataObject) -> None:
        """A file is another user's, and not to be opened; or it is no longer."""
        name = self.pick(data)
        path = self.directory / name
        status = path.stat()
        path.chmod(status.st_mode ^ 0o040)
        if name in self.model.shut:
            os.close(self.denied.pop(status.st_ino))
        else:
            self.denied[status.st_ino] = self.open_file(path, os.O_RDONLY)
        self.model.shut ^= {name}

    @rule(data=st.data())
    def power_cut(self, data: st.DataObject) -> None:
        """Of what the store wrote in place the times are on the disk, and some of the bytes; everything is of another
        boot."""
        budget = self.model.budget
        self.store.close()
        for name, before in sorted(self.model.before.items()):
            if data.draw(st.booleans(), label=f"{name} lost its last hit"):
                path, stamp = self.directory / name, self.model.stamps[name]
                status = path.stat()
                path.write_bytes(before)
                os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
                self.model.write(name, before)
                self.model.stamps[name] = stamp
        self.model.before.clear()
        self.model.boot += 1
        self.open(budget)

    @rule(prompt=texts)
    def fork(self, prompt: bytes) -> None:
        """A forked child finds and loads."""
        work = functools.partial(self.load_the_best_that_loads, prompt, ctx_size=2000, engine_fails=False)
        assert status_of_fork(work) == 0
        while (name := self.model.find(prompt, ctx_size=2000, quant_bits=2)) is not None:
            if self.model.load(name, now=self.now, engine_fails=False) is not None:
                break

    @precondition(lambda self: self.model.files)
    @rule(
        data=st.data(),
        how=st.sampled_from(["replace", "unlink", "remove", "resize"]),
        by=st.integers(-200, -1) | st.integers(1, 50),
    )
    def a_file_goes(self, data: st.DataObject, how: str, by: int) -> None:
        name = self.pick(data)
        path = self.directory / name
        if how == "replace":  # it takes the name of another, whose text it doesn't hold
            target = self.pick(data)
            os.replace(path, self.directory / target)
            self.model.move(name, target)
        elif how == "resize":
            old = self.model.files[name]
            size = max(len(old) + by, 0)
            os.truncate(path, size)
            self.model.write(name, old[:size].ljust(size, b"\0"))
        else:
            entry = next((entry for entry in self.store.entries() if entry.path == str(path)), None)
            if how == "remove" and entry is not None:
                assert self.store.remove(entry)
                assert not self.store.remove(entry)
                self.model.remove(name)
            else:
                path.unlink()
                self.model.replace(name, None)

    # What always holds

    @invariant()
    def directory_is_the_models(self) -> None:
        if not self.directory.exists():
            return
        names = set(self.order()) - {LOCK, LEDGER, QUARANTINE}
        assert {name: (self.directory / name).read_bytes() for name in names} == self.model.files
        aside = self.directory / QUARANTINE
        moved = {path.name: path.read_bytes() for path in aside.iterdir()} if aside.exists() else {}
        kept = self.model.quarantine
        assert moved.items() <= kept.items()
        if moved != kept:  # the oldest went, for want of room, and never the last
            assert sum(map(len, kept.values())) > self.model.budget // QUARANTINE_SHARE
            assert [*kept][-1] in moved
        self.model.quarantine = {name: data for name, data in kept.items() if name in moved}

    @invariant()
    def store_sees_what_the_model_sees(self) -> None:
        if not hasattr(self, "store"):
            return
        assert {os.path.basename(entry.path): facts(entry, entry.header) for entry in self.store.entries()} == {
            file.name: facts(file, file) for file in self.model.listed()
        }
        order = self.order()
        plan = self.store.plan_eviction(0)
        assert [os.path.basename(victim.entry.path) for victim in plan] == self.model.victims(
            0, now=self.now, order=order
        )
        assert self.store.import_tool_maps(IDS[:2]) == self.model.tool_maps(set(IDS[:2]), order)


def facts(file: Any, header: Any) -> tuple[object, ...]:
    return (
        file.sha,
        file.text_bytes,
        header.tokens,
        header.hits,
        header.ctx_size,
        header.quant_bits,
        header.created_at,
        header.last_used,
    )


StoreMachine.TestCase.settings = settings(
    max_examples=max(STEPS // SESSION, 1),
    stateful_step_count=SESSION,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)
TestStore = StoreMachine.TestCase
# What is found wrong is made short before it is told.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]
