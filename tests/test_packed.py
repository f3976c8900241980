"""Layout packed as it is written and read: both ways with the reference, and what proves a file wherever it goes."""

from __future__ import annotations

import hashlib
import io
import os
import random
import shutil
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
from helpers import answer
from hypothesis import given, settings
from hypothesis import strategies as st

import ds4kv
from ds4kv.cli import main
from ds4kv.file.inplace import rewrite_trailer, touch
from ds4kv.file.ledger import Ledger
from ds4kv.file.salvage import Wreck, examine
from ds4kv.file.verdict import Proof, Verdict
from ds4kv.format.header import Form
from ds4kv.format.toolmap import pack_tool_map
from ds4kv.store.store import Store
from ds4kv.stream import PayloadReader, PayloadWriter

FACTS: dict[str, Any] = {
    "tokens": 700, "ctx_size": 900, "created_at": 1_780_000_000, "last_used": 1_780_000_009, "quant_bits": 4,
    "hits": 3, "model_id": 3, "payload_abi": 2,
}  # fmt: skip
TEXT = b"the rendered prompt <tool_calls>now()</tool_calls>"
MAP = pack_tool_map({b"call_7": b"<tool_calls>now()</tool_calls>"})
LEVELS = [-1, 0, 1, 2, 9, 12]


def floats(size: int, seed: int = 1) -> bytes:
    """32-bit floats as caches have them: of one sign and size for a while, rounded to bfloat16."""
    rng = np.random.default_rng(seed)
    numbers = np.repeat(rng.normal(0, 1, size // 256 + 1), 64) * rng.normal(1, 0.01, 64 * (size // 256 + 1))
    return (numbers.astype("<f4").view("<u4") & np.uint32(0xFFFF0000)).tobytes()[:size]


def halves(size: int, seed: int = 1) -> bytes:
    """The same as bfloat16."""
    return np.frombuffer(floats(2 * size + 4, seed)[: (2 * size + 4) // 4 * 4], "<u2")[1::2].tobytes()[:size]


def words(size: int) -> bytes:
    rng = random.Random(2)
    return b"".join(rng.choice([b"ring ", b"slot ", b"frame ", b"block "]) for _ in range(size // 5 + 1))[:size]


KINDS = {
    "floats": floats,
    "halves": halves,
    "words": words,
    "zeros": bytes,
    "noise": random.Random(3).randbytes,
    "mixed": lambda size: (floats(size // 2) + random.Random(4).randbytes(size // 4) + halves(size))[:size],
}
TRANSFORMS = {"floats": {2}, "halves": {1}, "words": {0}}


def heads(data: bytes) -> list[tuple[int, int, int, int]]:
    """Each record's raw size, block size, transform and sum."""
    at = 52 + struct.unpack_from("<I", data, 48)[0]
    end = at + struct.unpack_from("<Q", data, 40)[0]
    at, found = at + 40, []
    while at < end:
        found.append(reference.PACKED_HEAD.unpack_from(data, at))
        at += 20 + found[-1][1]
    return found


def dumped(path: Path, payload: bytes, **options: Any) -> bytes:
    ds4kv.dump(path, payload, layout="packed", **{**FACTS, "text": TEXT, **options})
    return path.read_bytes()


def test_which_layout_it_is(tmp_path: Path) -> None:
    data = dumped(tmp_path / "a.kv", floats(10_000))
    header = ds4kv.read_header(tmp_path / "a.kv")
    assert data[:4] == b"KVCK"
    assert (data[7], data[20:24]) == (3, bytes([2, 0, 20, 0]))
    assert (header.layout, header.form, header.version) == (ds4kv.Layout.PACKED, Form.PACKED, 75)
    assert (header.model_id, header.payload_abi, header.chunk_size) == (3, 2, 1 << 20)
    assert header.pack() == data[:48]


# ------------------------------------------------------------------------------- there and back


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_peer_reads_what_is_written(kind: str, level: int, tmp_path: Path) -> None:
    payload = KINDS[kind](100_003)
    for chunk_size in (1 << 12, 1 << 15, 1 << 20):
        data = dumped(tmp_path / "a.kv", payload, level=level, chunk_size=chunk_size, trailer=MAP, ext_flags=1)
        found = reference.parse(data)
        assert found.payload == payload
        assert (found.layout, found.text, found.trailer) == ("packed", TEXT, MAP)
        assert {key: getattr(found, key) for key in FACTS} == FACTS
        assert reference.lint(data) == []
        loaded = ds4kv.load(tmp_path / "a.kv")
        assert (bytes(loaded.payload), loaded.text, loaded.trailer) == (payload, TEXT, MAP)
        assert loaded.header.pack() == data[:48]


@pytest.mark.parametrize("level", [-1, 0, 1, 9])
@pytest.mark.parametrize("log2", [1, 8, 11, 12, 19])
def test_sizes_around_borders_of_chunks_and_planes(level: int, log2: int, tmp_path: Path) -> None:
    chunk = 1 << log2
    near = {0, 1, 2, 3, 5, 15, 2047, 2048, 2049, *(k * chunk + d for k in (1, 2, 3) for d in (-1, 0, 1))}
    if log2 == 19:
        near |= {(256 << 10) + d for d in (-1, 0, 1, 2047, 2048)}
    for size in sorted(size for size in near if size <= min(3000 * chunk, 1 << 20)):
        payload = floats(size)
        data = dumped(tmp_path / "a.kv", payload, level=level, chunk_size=chunk, workers=size % 3)
        assert reference.parse(data).payload == payload, size
        assert bytes(ds4kv.load(tmp_path / "a.kv", workers=size % 2).payload) == payload, size


@pytest.mark.parametrize("kind", TRANSFORMS)
def test_each_kind_has_its_words(kind: str, tmp_path: Path) -> None:
    data = dumped(tmp_path / "a.kv", KINDS[kind](400_000), chunk_size=1 << 16)
    assert {transform for _, _, transform, _ in heads(data)} == TRANSFORMS[kind]


def test_floats_are_a_third_and_halves_shrink(tmp_path: Path) -> None:
    """Of random numbers the sign, the exponent's lowest bits and the mantissa can't shrink."""
    assert len(dumped(tmp_path / "a.kv", floats(1 << 20))) < 0.4 * (1 << 20)
    assert len(dumped(tmp_path / "a.kv", halves(1 << 20))) < 0.8 * (1 << 20)


@pytest.mark.parametrize("level", LEVELS)
def test_what_does_not_shrink_is_stored_with_its_sums(level: int, tmp_path: Path) -> None:
    payload = KINDS["noise"](100_000)
    data = dumped(tmp_path / "a.kv", payload, level=level, chunk_size=1 << 14)
    assert [head[:3] for head in heads(data)] == [(1 << 14, 1 << 14, 0)] * 6 + [(1696, 1696, 0)]
    assert len(data) == 52 + len(TEXT) + 40 + 7 * 20 + len(payload)
    assert ds4kv.read_header(tmp_path / "a.kv").layout == "packed"


@pytest.mark.parametrize("level", [None, 0, 9])
def test_nothing_is_a_frame_alone(level: int | None, tmp_path: Path) -> None:
    data = dumped(tmp_path / "a.kv", b"", level=level, trailer=MAP)
    assert len(data) == 52 + len(TEXT) + 40 + len(MAP) + 8
    assert reference.parse(data).payload == bytes(ds4kv.load(tmp_path / "a.kv").payload) == b""
    with ds4kv.open(tmp_path / "a.kv") as checkpoint:
        assert checkpoint.proof() is Proof.SEALED


@pytest.mark.parametrize("level", [-1, 0, 1, 9])
@pytest.mark.parametrize("kind", ["mixed", "noise"])
def test_neither_workers_nor_pieces_change_a_byte(kind: str, level: int, tmp_path: Path) -> None:
    payload = KINDS[kind](300_000)
    options = {"level": level, "chunk_size": 1 << 15, "layout": "packed", "text": TEXT, "trailer": b"tail", **FACTS}
    files = {dumped(tmp_path / "a.kv", payload, level=level, chunk_size=1 << 15, trailer=b"tail")}
    for workers in (0, 1, 2, 3):
        for piece in (1000, 1 << 15, 100_001, len(payload)):
            for total in (None, len(payload)):
                with ds4kv.create(tmp_path / "b.kv", workers=workers, raw_total=total, **options) as checkpoint:
                    for start in range(0, len(payload), piece):
                        checkpoint.payload.write(payload[start : start + piece])
                files.add((tmp_path / "b.kv").read_bytes())
    assert len(files) == 1


@given(
    size=st.integers(0, 9000),
    log2=st.integers(1, 13),
    transforms=st.lists(st.sampled_from([0, 16, 32]), min_size=1, max_size=3),
    block=st.sampled_from([reference.store, reference.fast, reference.high]),
    kind=st.sampled_from(sorted(KINDS)),
    workers=st.sampled_from([0, 2]),
    trailer=st.binary(max_size=20),
)
@settings(max_examples=150)
def test_what_the_peer_writes_is_read(
    size: int, log2: int, transforms: list[int], block: Any, kind: str, workers: int, trailer: bytes,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:  # fmt: skip
    payload = KINDS[kind](min(size, 600 << log2))
    path = tmp_path_factory.getbasetemp() / "peer.kv"
    path.write_bytes(
        reference.build_packed(payload, log2=log2, words=transforms, block=block, trailer=trailer, text=TEXT)
    )
    loaded = ds4kv.load(path, workers=workers)
    assert (bytes(loaded.payload), loaded.text, loaded.trailer) == (payload, TEXT, trailer)
    with ds4kv.open(path, workers=workers) as checkpoint:
        assert checkpoint.verify() is Verdict.OK


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["floats", "mixed"])
def test_any_part_of_it_alone(kind: str, workers: int, tmp_path: Path) -> None:
    """Each chunk is judged by its number, wherever reading begins."""
    payload, rng = KINDS[kind](200_001), random.Random(6)
    dumped(tmp_path / "a.kv", payload, chunk_size=1 << 13)
    with ds4kv.open(tmp_path / "a.kv", workers=workers) as checkpoint:
        for _ in range(100):
            start, size = rng.randrange(len(payload) + 1), rng.choice([1, 100, 8192, 20_000, 200_001])
            assert checkpoint.payload.seek(start) == start
            assert checkpoint.payload.read(size) == payload[start : start + size]
    rooms = [bytearray(size) for size in (1, 8191, 0, 100_000, 91_809)]
    ds4kv.load(tmp_path / "a.kv", into=rooms, workers=workers)
    assert b"".join(rooms) == payload


# -------------------------------------------------------------------------- streams that can't seek


class OneWay(io.RawIOBase):
    """Bytes that go one way, as through a pipe."""

    def __init__(self, data: bytes = b"") -> None:
        self.data, self.at = bytearray(data), 0

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def write(self, b: Any) -> int:
        self.data += b
        return len(b)

    def readinto(self, b: Any) -> int:
        n = min(len(b), len(self.data) - self.at, 1000)
        b[:n] = self.data[self.at : self.at + n]
        self.at += n
        return n


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("size", [0, 1, 5000, 100_001])
def test_streams_that_only_go_on(size: int, workers: int) -> None:
    payload, seal = KINDS["mixed"](size), 0xFEDCBA9876543210
    options: dict[str, Any] = {"form": Form.PACKED, "chunk_size": 1 << 13, "workers": workers, "seal": seal}
    there, region = io.BytesIO(), OneWay()
    with PayloadWriter(there, **options) as writer:
        writer.write(payload)
    with PayloadWriter(region, raw_total=size, **options) as writer:
        writer.write(payload)
    assert region.data == there.getvalue()
    with pytest.raises(io.UnsupportedOperation):
        PayloadWriter(OneWay(), **options)
    assert reference.decode_packed(bytes(region.data), 1 << 13) == (payload, False)
    del options["seal"]
    with PayloadReader(OneWay(region.data), len(region.data), **options) as reader:
        assert (reader.seal, reader.raw_total) == (seal, size)
        assert reader.read() == payload


def test_through_a_pipe() -> None:
    payload = KINDS["floats"](3 << 20)
    options: dict[str, Any] = {"form": Form.PACKED, "chunk_size": 1 << 16, "workers": 1}
    with PayloadWriter(size := io.BytesIO(), **options) as writer:
        writer.write(payload)
    read_end, write_end = os.pipe()

    def write() -> None:
        with open(write_end, "wb", buffering=0) as fp:
            with PayloadWriter(fp, raw_total=len(payload), seal=5, **options) as writer:
                writer.write(payload)

    thread = threading.Thread(target=write)
    thread.start()
    with open(read_end, "rb") as fp, PayloadReader(fp, len(size.getvalue()), **options) as reader:
        got = reader.read()
        assert reader.seal == 5
    thread.join(60)
    assert got == payload


@pytest.mark.parametrize("options", [{"form": Form.PLAIN, "seal": 1}, {"form": Form.PACKED, "sums": True}])
def test_what_a_stream_is_not_given(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        PayloadWriter(io.BytesIO(), **options)


@pytest.mark.parametrize(
    "options",
    [{"level": 13}, {"level": -2}, {"codec": "none"}, {"codec": "lz4hc"}, {"chunk_size": 1000}, {"chunk_size": 1},
     {"chunk_size": 1 << 27}, {"payload_abi": 256}, {"model_id": 256}],
)  # fmt: skip
def test_what_can_not_be_written(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        dumped(tmp_path / "a.kv", b"payload", **options)
    assert os.listdir(tmp_path) == []
    assert dumped(tmp_path / "a.kv", b"payload")


# ------------------------------------------------------------------------------------ what is sealed


@pytest.fixture
def path(tmp_path: Path) -> Path:
    dumped(tmp_path / "a.kv", floats(10_000), chunk_size=4096, trailer=MAP, ext_flags=1)
    return tmp_path / "a.kv"


def change(path: Path, at: int, new: bytes) -> None:
    with path.open("r+b") as fp:
        fp.seek(at)
        fp.write(new)


SEALED = {
    "quant_bits": (4, b"\2"), "reason": (5, b"\4"), "responses_visible": (6, b"\3"), "unknown flag": (6, b"\x81"),
    "model_id": (7, b"\1"), "tokens": (8, b"\1\0\0\0"), "ctx_size": (16, b"\1\0\0\0"), "payload_abi": (20, b"\0"),
    "created_at": (24, bytes(8)), "text": (52, b"T"),
}  # fmt: skip


@pytest.mark.parametrize("fact", SEALED)
def test_facts_that_are_sealed(fact: str, path: Path) -> None:
    at, new = SEALED[fact]
    change(path, at, new)
    for look in (ds4kv.read_header, ds4kv.load, ds4kv.open):
        with pytest.raises(ds4kv.CorruptError) as refused:
            look(path)
        assert (refused.value.field, refused.value.offset) == ("seal", 52 + len(TEXT) + 16)
    with pytest.raises(reference.Bad, match="seal"):
        reference.parse(path.read_bytes())
    assert main(["verify", str(path)]) == 1


FREE = {"hits": (12, b"\7\0\0\0"), "last_used": (32, bytes(8)), "tool map": (6, b"\0")}


@pytest.mark.parametrize("fact", FREE)
def test_facts_that_are_free(fact: str, path: Path) -> None:
    """The controls of the others."""
    at, new = FREE[fact]
    change(path, at, new)
    data = path.read_bytes()
    assert ds4kv.read_header(path).pack() == data[:48]
    loaded = ds4kv.load(path)
    assert (bytes(loaded.payload), loaded.trailer, loaded.header.pack()) == (floats(10_000), MAP, data[:48])
    assert reference.parse(data).trailer == MAP
    with ds4kv.open(path) as checkpoint:
        assert checkpoint.verify() is Verdict.OK


@pytest.mark.parametrize("at", range(8))
def test_a_size_that_is_wrong_is_told_by_the_records(at: int, path: Path) -> None:
    for bit in range(8):
        data = bytearray(path.read_bytes())
        data[40 + at] ^= 1 << bit
        bad = path.with_name("bad.kv")
        bad.write_bytes(data)
        with pytest.raises(ds4kv.CorruptError):
            ds4kv.load(bad)


def test_a_header_may_not_change_once_it_is_sealed(tmp_path: Path) -> None:
    for field, value in (("tokens", 701), ("hits", 4)):
        writer = ds4kv.create(tmp_path / "a.kv", layout="packed", **FACTS)
        writer.payload.write(b"payload")
        writer.header = writer.header._replace(**{field: value})
        if field == "hits":
            writer.close()
            continue
        with pytest.raises(ValueError, match="seal"):
            writer.close()
        assert os.listdir(tmp_path) == []
    assert reference.parse((tmp_path / "a.kv").read_bytes()).hits == 4


# ---------------------------------------------------------------------------------- another version


def may_2026(data: bytes) -> bool:
    """Whether the reader of May 2026 takes a file for its own, lists it and counts it: by its first 52 bytes."""
    if len(data) < 52 or data[:3] != b"KVC" or data[3] not in (1, 2) or data[4] not in (2, 4):
        return False
    if data[8:12] == bytes(4) or (data[3] == 2 and data[7] not in (0, 1)):
        return False
    return data[3] == 1 or data[7] == 0 or 0 < struct.unpack_from("<I", data, 20)[0] <= 64 << 20


def test_the_reader_of_may_2026_never_takes_it_for_its_own(tmp_path: Path) -> None:
    for model_id in (0, 1, 2):
        for log2 in (1, 12, 20, 26):
            data = dumped(tmp_path / "a.kv", floats(5000), model_id=model_id, chunk_size=1 << log2)
            assert not may_2026(data)
            assert may_2026(data[:3] + b"\1" + data[4:])  # the control: nothing but the version keeps it
    ds4kv.dump(tmp_path / "a.kv", floats(5000), tokens=1, ctx_size=1)
    assert may_2026((tmp_path / "a.kv").read_bytes())


@pytest.mark.parametrize("version", [*range(75), *range(76, 256)])
def test_a_version_that_was_lost(version: int, path: Path) -> None:
    for model_id in (0, 1, 2, 3):
        data = bytearray(dumped(path, floats(5000), chunk_size=1 << 11, model_id=model_id))
        data[3] = version
        path.write_bytes(data)
        verdict = "unsupported" if version not in (1, 2) or (version == 2 and model_id == 3) else "corrupt"
        kind = {"unsupported": ds4kv.UnsupportedError, "corrupt": ds4kv.CorruptError}[verdict]
        for look in (ds4kv.read_header, ds4kv.load, ds4kv.open):
            if look is ds4kv.read_header and version == 2 and model_id in (1, 2):
                continue  # a header of v2 with a codec; the frame is not looked at
            with pytest.raises(kind):
                look(path)
        with pytest.raises(reference.Bad) as bad:
            reference.parse(bytes(data))
        assert bad.value.verdict == verdict


@pytest.mark.parametrize("version", [1, 2])
def test_a_payload_that_begins_as_a_frame_is_one_where_nothing_speaks_of_packed(version: int, tmp_path: Path) -> None:
    """The control: ds4's files have zeros in bytes 21 to 23."""
    region = reference.encode_packed(floats(5000), 1 << 11, 5)
    good = bytearray(reference.build(region, version=version, codec=0, chunk_size=7, text=TEXT))
    assert not any(good[21:24])
    (tmp_path / "a.kv").write_bytes(good)
    assert bytes(ds4kv.load(tmp_path / "a.kv").payload) == reference.parse(bytes(good)).payload == region
    for byte in (21, 22, 23):
        data = bytearray(good)
        data[byte] |= 1
        with pytest.raises(reference.Bad) as said:
            reference.parse(bytes(data))
        (tmp_path / "a.kv").write_bytes(data)
        with pytest.raises(ds4kv.Ds4kvError) as refused:
            ds4kv.load(tmp_path / "a.kv")
        assert isinstance(refused.value, ds4kv.CorruptError) == (said.value.verdict == reference.CORRUPT)
        assert byte == 21 or getattr(refused.value, "field", None) == "version"


# ------------------------------------------------------------------------------ wherever a file goes


def proof_of(path: Path) -> Proof | None:
    with ds4kv.open(path) as checkpoint:
        assert checkpoint.verify() is Verdict.OK
    with ds4kv.open(path) as checkpoint:
        return checkpoint.proof()


def test_a_copy_is_as_good_as_the_file(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "there").mkdir()
    copies = [tmp_path / "b.kv", tmp_path / "there/c.kv", tmp_path / f"there/{hashlib.sha1(TEXT).hexdigest()}.kv"]
    for copy in copies:
        shutil.copyfile(path, copy)
    os.rename(copies[0], tmp_path / "d.kv")
    for file in (path, tmp_path / "d.kv", *copies[1:]):
        assert proof_of(file) is Proof.SEALED
        assert main(["verify", str(file)]) == 0
        assert "ok: sealed" in capsys.readouterr().out
        assert main(["verify", "--json", str(file)]) == 0
        assert answer(capsys)["proof"] == "sealed"


SAVE: dict[str, Any] = {"tokens": 600, "ctx_size": 32768}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "store", layout="packed") as store:
        yield store


def test_a_store_proves_it_without_a_note(store: Store, tmp_path: Path) -> None:
    entry = store.save_buffer(TEXT, floats(100_000), **SAVE)
    assert (entry.header.layout, store.verify(entry)) == ("packed", Verdict.OK)
    assert Ledger(str(tmp_path / "store")).names() == set()
    with store.load(entry) as checkpoint:
        assert checkpoint.payload.read() == floats(100_000)
    (again,) = store.entries()
    assert (again.header.hits, store.verify(again)) == (1, Verdict.OK)
    assert store.rebuild_integrity() == []
    assert Ledger(str(tmp_path / "store")).names() == set()


def test_the_note_of_the_file_before_is_forgotten(tmp_path: Path) -> None:
    with Store(tmp_path, layout="v2") as store:
        store.remove(store.save_buffer(TEXT, floats(1000), **SAVE))
        entry = store.save_buffer(TEXT, floats(1000), **SAVE)
        assert Ledger(str(tmp_path)).names() == {os.path.basename(entry.path)}
    ds4kv.dump(entry.path, floats(1000), layout="packed", text=TEXT, **SAVE)
    assert Ledger(str(tmp_path)).names() == set()
    with Store(tmp_path) as store:
        assert [store.verify(entry) for entry in store.entries()] == [Verdict.OK]


@pytest.mark.parametrize("name", ["a.kv", f"{hashlib.sha1(TEXT).hexdigest()}.kv"])
def test_a_note_of_another_file_says_nothing_of_it(name: str, tmp_path: Path) -> None:
    """As when it was put there by rename, by a program that knows no ledger."""
    with Store(tmp_path, layout="v2") as store:
        entry = store.save_buffer(TEXT, floats(1000), **SAVE)
    dumped(tmp_path / "other", floats(1000))
    os.rename(tmp_path / "other", entry.path)
    with Store(tmp_path) as store:
        assert [store.verify(entry) for entry in store.entries()] == [Verdict.OK]


def test_uses_and_tool_maps_leave_it_sealed(path: Path) -> None:
    other = pack_tool_map({b"call_8": b"<tool_calls>later()</tool_calls>", b"call_9": b"x" * 1000})
    for trailer in (MAP, other, MAP, b"", MAP):
        assert touch(str(path), last_used=5)
        assert rewrite_trailer(str(path), trailer, last_used=6)
        data = path.read_bytes()
        parsed = reference.parse(data)
        assert (parsed.trailer, bool(parsed.ext_flags & 1), parsed.last_used) == (trailer, bool(trailer), 6)
        assert reference.lint(data) == []
        assert ds4kv.load(path).trailer == trailer
        assert proof_of(path) is Proof.SEALED


def test_a_rewrite_that_was_killed_is_no_damage(path: Path) -> None:
    """The flag is off, and what is behind the region is anything."""
    whole = path.read_bytes()
    end = len(whole) - len(MAP) - 8
    for left in (
        whole[end:-1],
        whole[end:-9],
        b"x",
        b"",
        bytes(8),
        bytes(9),
        MAP[:20] + bytes(100),
        whole[end:] + b"x",
    ):
        path.write_bytes(whole[:6] + b"\0" + whole[7:end] + left)
        assert reference.parse(path.read_bytes()).trailer == b""
        loaded = ds4kv.load(path)
        assert (bytes(loaded.payload), loaded.trailer) == (floats(10_000), b"")
        with ds4kv.open(path) as checkpoint:
            assert checkpoint.verify() in (Verdict.OK, Verdict.UNKNOWN)
        assert main(["verify", str(path)]) == 0
        assert rewrite_trailer(str(path), MAP, last_used=6)
        assert ds4kv.load(path).trailer == MAP
        assert proof_of(path) is Proof.SEALED
        if left != whole[end:]:  # with the flag on it is one
            path.write_bytes(whole[:end] + left)
            with pytest.raises(ds4kv.CorruptError) as refused:
                ds4kv.load(path)
            assert refused.value.field == "trailer"
            assert isinstance(refused.value, ds4kv.TruncatedError) == (len(left) < 9)


# ------------------------------------------------------------------------------------------- salvage


def test_salvage_finds_nothing_in_a_good_file(path: Path) -> None:
    assert examine(path) == (10_000, ())
    saved = ds4kv.load(path, salvage=True)
    assert (bytes(saved.payload), saved.damage) == (floats(10_000), ())


def all_that_is_good(path: Path) -> dict[int, bytes]:
    """The chunks of 4 KiB that no damage is said of, as they lie in the memory that a salvage was given."""
    room = bytearray(1 << 16)
    damage = ds4kv.load(path, into=room, salvage=True).damage
    with Wreck(path) as wreck:
        size = wreck.claimed_bytes
    lost = {start for each in damage for start in range(each.raw_start, each.raw_stop or 1 << 16, 4096)}
    starts = set(range(0, size, 4096)) - lost
    return {start // 4096: bytes(room[start : min(start + 4096, size)]) for start in starts}


@pytest.mark.parametrize("chunk", [0, 1, 2])
def test_salvage_gives_out_the_chunks_that_are_good(chunk: int, path: Path) -> None:
    data = path.read_bytes()
    at = 52 + len(TEXT) + 40 + sum(20 + head[1] for head in heads(data)[:chunk])
    for spot in (12, 30):  # its sum, its block
        path.write_bytes(data)
        change(path, at + spot, bytes([data[at + spot] ^ 16]))
        good, damage = examine(path)
        assert good == chunk * 4096
        assert [(each.raw_start, each.raw_stop) for each in damage] == [(good, min(good + 4096, 10_000))]
        assert bytes(ds4kv.load(path, salvage=True).payload) == floats(10_000)[:good]
        assert all_that_is_good(path) == {index: floats(10_000)[index * 4096 :][:4096] for index in {0, 1, 2} - {chunk}}


def test_salvage_of_a_swapped_record_keeps_the_others(tmp_path: Path) -> None:
    payload = KINDS["noise"](5 * 4096)
    data = dumped(tmp_path / "a.kv", payload, chunk_size=4096)
    at, size = 52 + len(TEXT) + 40, 20 + 4096
    records = [data[at + i * size :][:size] for i in range(5)]
    records[1], records[3] = records[3], records[1]
    (tmp_path / "a.kv").write_bytes(data[:at] + b"".join(records))
    damage = examine(tmp_path / "a.kv")[1]
    assert [each[:2] for each in damage] == [(4096, 8192), (3 * 4096, 4 * 4096)]
    good = {index: payload[index * 4096 :][:4096] for index in (0, 2, 4)}
    assert all_that_is_good(tmp_path / "a.kv") == good
