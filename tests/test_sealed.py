"""Layout packed in streams, files and stores: what a file proves by itself, also after what changes in it later."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import damage_quietly, sha1, text_like
from hypothesis import given, settings
from hypothesis import strategies as st
from test_stream import Pipe, payloads, region_of

import ds4kv
from ds4kv import Layout, PayloadReader, PayloadWriter
from ds4kv.core import native
from ds4kv.file.inplace import rewrite_trailer, touch
from ds4kv.file.ledger import DIRECTORY_NAME, Ledger
from ds4kv.file.lock import LOCK_NAME
from ds4kv.file.verdict import Proof, Verdict
from ds4kv.format.header import Form
from ds4kv.format.toolmap import pack_tool_map
from ds4kv.store.store import Store

NOISE = hashlib.shake_256(b"noise").digest(50_000)
PAYLOAD = text_like(50_000) + NOISE
BLOCK = b"<tool_calls>ls</tool_calls>"
CHAT = b"Q" + BLOCK + b"A"
SAVE: dict[str, Any] = {"tokens": 600, "ctx_size": 32768}
PROMPT: dict[str, Any] = {"ctx_size": 32768, "quant_bits": 2}
FACTS: dict[str, Any] = {"layout": "packed", "tokens": 600, "ctx_size": 9, "text": b"text", "chunk_size": 1 << 14}


# ------------------------------------------------------------------------------------------ streams


@given(
    payload=payloads,
    chunk_size=st.integers(1, 70) | st.integers(71, 8192) | st.just(1 << 26),
    workers=st.sampled_from([0, 1, 2, 8]),
    level=st.sampled_from([None, -1, 0, 1, 2, 9]),
    splits=st.lists(st.integers(1, 3000), min_size=1, max_size=8),
    seal=st.integers(0, (1 << 64) - 1),
    known=st.booleans(),
    pipe=st.booleans(),
)
@settings(deadline=None)
def test_any_split_any_workers(payload, chunk_size, workers, level, splits, seal, known, pipe) -> None:
    payload = payload[: 300 * chunk_size]
    how = {"chunk_size": chunk_size, "form": Form.PACKED, "level": level, "seal": seal}
    fp = Pipe() if known and pipe else io.BytesIO()
    with PayloadWriter(fp, workers=workers, raw_total=len(payload) if known else None, **how) as writer:
        position = turn = 0
        while position < len(payload):
            n = splits[turn % len(splits)]
            position, turn = position + writer.write(payload[position : position + n]), turn + 1
    region = bytes(fp.data) if isinstance(fp, Pipe) else fp.getvalue()
    assert writer.region_bytes == len(region)
    assert region == region_of(payload, workers=0, **how)
    source = Pipe(region + b"more") if pipe else io.BytesIO(region + b"more")
    with PayloadReader(source, len(region), chunk_size=chunk_size, form=Form.PACKED, workers=workers) as reader:
        assert (reader.raw_total, reader.seal) == (len(payload), seal)
        assert reader.read() == payload
    assert source.read(4) == b"more"


def test_the_frame_and_its_sums() -> None:
    chunk, seal = b"chunk of 16 byte", 0x1122334455667788
    region = region_of(chunk * 2, chunk_size=16, form=Form.PACKED, seal=seal)
    first_sum = native.hash64(chunk)
    frame = b"".join(n.to_bytes(size, "little") for n, size in ((32, 8), (2, 4), (0, 4), (seal, 8), (first_sum, 8)))
    assert region[:32] == frame
    assert region[32:40] == native.hash64(frame).to_bytes(8, "little")
    for index, at in enumerate((40, 76)):
        own_sum = native.hash64(chunk, (seal + first_sum + index) % (1 << 64))
        assert region[at : at + 36] == b"\x10\0\0\0\x10\0\0\0\0\0\0\0" + own_sum.to_bytes(8, "little") + chunk
    empty = region_of(b"", form=Form.PACKED, seal=seal)
    assert (len(empty), empty[24:32]) == (40, bytes(8))


def test_sums_of_a_ledger_are_not_for_it() -> None:
    with pytest.raises(ValueError, match="sums are for forms"):
        PayloadWriter(io.BytesIO(), form=Form.PACKED, sums=True)
    with pytest.raises(ValueError, match="no room"):
        PayloadWriter(io.BytesIO(), form=Form.CHECKED, seal=1)
    region = region_of(b"payload", form=Form.PACKED)
    with pytest.raises(ValueError, match="sums are for forms"):
        PayloadReader(io.BytesIO(region), len(region), chunk_size=1 << 24, form=Form.PACKED, sums=[0])


# -------------------------------------------------------------------------------------------- files


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.kv"


@pytest.mark.parametrize("payload", [PAYLOAD, NOISE, b"", b"x"], ids=["half", "noise", "empty", "byte"])
@pytest.mark.parametrize("is_announced", [False, True])
def test_it_stays_what_it_is(payload: bytes, is_announced: bool, path: Path) -> None:
    with ds4kv.create(path, raw_total=len(payload) if is_announced else None, **FACTS) as checkpoint:
        checkpoint.payload.write(payload)
    assert checkpoint.header.layout is Layout.PACKED
    assert checkpoint.file_size == path.stat().st_size
    assert ds4kv.load(path).payload == payload
    assert ds4kv.read_header(path) == checkpoint.header
    assert path.stat().st_size <= 52 + 4 + 40 + len(payload) + 20 * -(-len(payload) // (1 << 14))


def test_what_is_sealed_may_not_change_after_it(path: Path) -> None:
    for change in ({"tokens": 601}, {"ext_flags": 2}, {"created_at": 7}, {"model_id": 1}):
        checkpoint = ds4kv.create(path, **FACTS)
        checkpoint.payload.write(PAYLOAD)
        checkpoint.header = checkpoint.header._replace(**change)
        with pytest.raises(ValueError, match="seals the header when the payload begins"):
            checkpoint.close()
        assert os.listdir(path.parent) == []
    with ds4kv.create(path, **FACTS) as checkpoint:
        checkpoint.payload.write(PAYLOAD)
        checkpoint.header = checkpoint.header._replace(hits=7, last_used=8, ext_flags=1)
        checkpoint.trailer = b"tail"
    found = ds4kv.load(path)
    assert (found.header.hits, found.header.last_used, found.header.ext_flags) == (7, 8, 1)
    assert (found.payload, found.trailer) == (PAYLOAD, b"tail")


def test_a_tool_map_that_is_not_there_is_not_claimed(path: Path) -> None:
    header = ds4kv.dump(path, PAYLOAD, **FACTS, ext_flags=0xF1)
    assert header == ds4kv.read_header(path)
    assert header.ext_flags == 0xF0


def test_uses_and_tool_maps_leave_it_sealed(path: Path) -> None:
    ds4kv.dump(path, PAYLOAD, **FACTS)
    for trailer in (b"KTM a", b"KTM longer" * 100, b"KTM", b""):
        touch(str(path), last_used=77)
        rewrite_trailer(str(path), trailer, last_used=78)
        with ds4kv.open(path) as checkpoint:
            assert (checkpoint.verify(), checkpoint.proof()) == (Verdict.OK, Proof.SEALED)
            assert (checkpoint.trailer, checkpoint.trailer_bytes) == (trailer, len(trailer))


@pytest.mark.parametrize("size", [0, 1, 8, 9, 12])
def test_a_tool_map_that_was_cut_is_told(size: int, path: Path) -> None:
    ds4kv.dump(path, PAYLOAD, **FACTS, trailer=b"KTM a", ext_flags=1)
    end = path.stat().st_size - 13
    os.truncate(path, end + size)
    with ds4kv.open(path) as checkpoint:
        with pytest.raises(ds4kv.CorruptError) as caught:
            checkpoint.verify()
        assert caught.value.field == "trailer"
        assert isinstance(caught.value, ds4kv.TruncatedError) is (size < 9)
    with path.open("r+b") as fp:
        fp.seek(6)
        fp.write(b"\0")
    with ds4kv.open(path) as checkpoint:
        assert (checkpoint.trailer, checkpoint.trailer_bytes) == (b"", 0)
        assert checkpoint.proof() is (Proof.CHECKSUMS if size else Proof.SEALED)


def test_a_file_that_is_being_rewritten_is_not_condemned(path: Path) -> None:
    maps = [bytes([n]) * (1000 * n) for n in range(1, 5)]
    ds4kv.dump(path, b"x", **FACTS, trailer=maps[0], ext_flags=1)
    ended = threading.Event()

    def rewrite() -> None:
        n = 0
        while not ended.is_set():
            n += 1
            rewrite_trailer(str(path), maps[n % 4], last_used=n)

    thread = threading.Thread(target=rewrite)
    thread.start()
    try:
        seen = set()
        for _ in range(300):
            with contextlib.suppress(OSError), ds4kv.open(path) as checkpoint:
                seen.add(checkpoint.trailer)
        assert seen <= {*maps, b""}
    finally:
        ended.set()
        thread.join()
    assert ds4kv.load(path).trailer in maps


def test_header_and_text_of_another_file_are_not_taken(path: Path) -> None:
    """Same sizes, same payload."""
    ds4kv.dump(path, PAYLOAD, **FACTS)
    one = path.read_bytes()
    ds4kv.dump(path, PAYLOAD, **FACTS | {"text": b"tezt"})
    two = path.read_bytes()
    start = 56
    for forged in (one[:start] + two[start:], two[:start] + one[start:]):
        path.write_bytes(forged)
        for read in (ds4kv.load, ds4kv.read_header, ds4kv.open):
            with pytest.raises(ds4kv.CorruptError) as caught:
                read(path)
            assert (caught.value.field, caught.value.offset, caught.value.path) == ("seal", 56 + 16, str(path))


@pytest.mark.parametrize("has_ledger", [False, True])
def test_a_note_of_an_earlier_file_is_forgotten(has_ledger: bool, path: Path) -> None:
    with contextlib.closing(Ledger(str(path.parent))) as ledger:
        for layout in ("v2", "packed"):
            options: dict[str, Any] = {"ledger": ledger} if has_ledger or layout == "v2" else {}
            with ds4kv.create(path, **FACTS | {"layout": layout}, **options) as checkpoint:
                checkpoint.payload.write(PAYLOAD)
            assert (ledger.get(path.name) is None) is (layout == "packed")
        with ds4kv.open(path) as checkpoint:
            assert (checkpoint.note, checkpoint.verify()) == (None, Verdict.OK)
            assert checkpoint.make_note() is None


# ------------------------------------------------------------------------------------------- stores


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "kv", layout="packed", level=0, workers=1) as store:
        yield store


def names(store: Store) -> set[str]:
    return set(os.listdir(store.directory)) - {LOCK_NAME}


@pytest.mark.parametrize("is_announced", [False, True])
def test_round_trip(is_announced: bool, store: Store) -> None:
    options = SAVE | {"tool_map": {b"call_1": BLOCK}, "ext_flags": 0xF4, "model_id": 5, "payload_abi": 6}
    with store.save(CHAT, raw_total=len(PAYLOAD) if is_announced else None, **options) as saving:
        saving.payload.write(PAYLOAD)
    entry = saving.entry
    assert entry is not None
    assert (entry.layout, entry.file_size) == (Layout.PACKED, Path(entry.path).stat().st_size)
    assert store.find(CHAT + b" and more", **PROMPT) == entry
    assert store.verify(entry) is Verdict.OK
    for hits in (1, 2):
        with store.load(entry) as checkpoint:
            assert checkpoint.payload.read() == PAYLOAD
            assert checkpoint.tool_map == {b"call_1": BLOCK}
        assert ds4kv.read_header(entry.path).hits == hits
    assert store.import_tool_maps([b"call_1"]) == {b"call_1": BLOCK}
    assert store.rebuild_integrity() == []
    assert names(store) == {f"{sha1(CHAT)}.kv"}  # and no notes


def test_the_tool_map_of_a_present_text_is_rewritten(store: Store) -> None:
    entry = store.save_buffer(CHAT, PAYLOAD, **SAVE)
    again = store.save_buffer(CHAT, PAYLOAD, tool_map={b"call_1": BLOCK}, **SAVE)
    assert (again.file, again.ext_flags) == (entry.file, 1)
    assert store.import_tool_maps([b"call_1", b"call_2"]) == {b"call_1": BLOCK}
    assert store.verify(again) is Verdict.OK
    assert ds4kv.load(again.path).trailer == pack_tool_map({b"call_1": BLOCK})
    assert DIRECTORY_NAME not in names(store)


def test_a_present_text_whose_file_is_damaged_is_set_aside(store: Store) -> None:
    entry = store.save_buffer(CHAT, PAYLOAD, **SAVE)
    damage_quietly(Path(entry.path), 52 + len(CHAT) + 20)
    with store.save(CHAT, tool_map={b"call_1": BLOCK}, **SAVE) as saving:
        pass
    assert saving.entry is None
    assert "damaged" in saving.refusal
    assert names(store) == {"quarantine"}
    assert store.save_buffer(CHAT, PAYLOAD, **SAVE) is not None


@pytest.mark.parametrize("offset", [8, 24, 53, 52 + len(CHAT) + 3, 5000, -3], ids=lambda at: f"byte {at}")
def test_what_is_damaged_is_set_aside_by_itself(offset: int, store: Store) -> None:
    store.save_buffer(CHAT[:1], b"shorter", **SAVE)
    entry = store.save_buffer(CHAT, PAYLOAD, tool_map={b"call_1": BLOCK}, **SAVE)
    damage_quietly(Path(entry.path), offset % entry.file_size)

    def load() -> bytes:
        with store.load(store.find(CHAT, **PROMPT)) as checkpoint:
            return checkpoint.payload.read()

    if offset == -3:  # of the tool map: the payload is good, and the file isn't
        assert load() == PAYLOAD
    else:
        with pytest.raises(ds4kv.CorruptError):
            load()
    assert load() == b"shorter"
    assert names(store) == {"quarantine", f"{sha1(CHAT[:1])}.kv"}


def test_entries_of_all_layouts_live_in_one_directory(tmp_path: Path) -> None:
    layouts = ["v1", "v2", "v2-checked", "packed"]
    for n, layout in enumerate(layouts):
        with Store(tmp_path, layout=layout) as store:
            store.save_buffer(b"x" * (n + 1), PAYLOAD + bytes([n]), **SAVE)
    with Store(tmp_path) as store:
        assert sorted(entry.layout for entry in store.entries()) == sorted(layouts)
        for n in range(4):
            with store.load(store.find(b"x" * (n + 1), **PROMPT)) as checkpoint:
                assert checkpoint.payload.read() == PAYLOAD + bytes([n])
        assert {store.verify(entry) for entry in store.entries()} == {Verdict.OK}
        with contextlib.closing(Ledger(str(tmp_path))) as ledger:
            assert ledger.names() == {f"{sha1(b'x' * n)}.kv" for n in (1, 2, 3)}


def test_admission_counts_the_sum_behind_the_tool_map(tmp_path: Path) -> None:
    size = 52 + len(CHAT) + 40 + 20 + len(NOISE) + len(pack_tool_map({b"call_1": BLOCK})) + 8
    just = size + -(-size // 100)
    for budget, fits in ((just, True), (just - 1, False)):
        with Store(tmp_path / str(budget), budget_bytes=budget, layout="packed") as store:
            entry = store.save_buffer(CHAT, NOISE, tool_map={b"call_1": BLOCK}, **SAVE)
            assert (entry is not None) is fits
            assert entry is None or entry.file_size == size


def test_sessions_are_packed_too(tmp_path: Path) -> None:
    with ds4kv.Sessions(tmp_path, layout="packed").save(b"text", tokens=600, ctx_size=9) as saving:
        saving.payload.write(PAYLOAD)
    [path] = tmp_path.glob("*.kv")
    with ds4kv.open(path) as checkpoint:
        assert (checkpoint.header.layout, checkpoint.verify()) == (Layout.PACKED, Verdict.OK)
