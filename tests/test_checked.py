"""Layout v2-checked as it is written: what it saves enough of, what it doesn't, and what its stream does on the way."""

from __future__ import annotations

import gc
import io
import os
import random
import warnings
from pathlib import Path
from typing import Any

import pytest
import reference
from helpers import MIB
from hypothesis import given, settings
from hypothesis import strategies as st

import ds4kv
from ds4kv.format.header import Form
from ds4kv.stream import PayloadReader, PayloadWriter, RawWriter
from ds4kv.stream.sums import region_sums

FACTS: dict[str, Any] = {"tokens": 7, "ctx_size": 9, "created_at": 1_780_000_000, "model_id": 3, "payload_abi": 2}
SMALL: dict[str, Any] = {"tokens": 7, "ctx_size": 9}
NOISE = random.Random(1).randbytes(3 * MIB)
WORDS = b"".join(word.to_bytes(4, "little") for word in range(0, 300_000 * 7, 7))


def written(path: Path, payload: bytes, piece: int, **options: Any) -> ds4kv.Header:
    """The header after the payload was written by pieces."""
    with ds4kv.create(path, layout="v2-checked", **FACTS, **options) as checkpoint:
        for start in range(0, len(payload), piece):
            checkpoint.payload.write(payload[start : start + piece])
    return checkpoint.header


@pytest.mark.parametrize("piece", [100_000, MIB, 8 * MIB])
@pytest.mark.parametrize("workers", [0, 2])
def test_what_does_not_shrink_is_v1_to_the_byte(tmp_path: Path, piece: int, workers: int) -> None:
    path, raw = tmp_path / "a.kv", tmp_path / "raw.kv"
    ds4kv.dump(raw, NOISE, layout="v1", trailer=b"KTM", text=b"text", **FACTS)
    options = {"chunk_size": MIB, "workers": workers, "trailer": b"KTM", "text": b"text"}
    header = written(path, NOISE, piece, **options)
    assert (header.layout, header.codec, header.model_id, header.payload_abi) == ("v1", 0, 3, 2)
    assert path.read_bytes() == raw.read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["a.kv", "raw.kv"]


def test_a_dump_that_does_not_shrink_is_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ds4kv.CheckpointWriter, "_store_raw", None)
    path = tmp_path / "a.kv"
    assert ds4kv.dump(path, NOISE, layout="v2-checked", chunk_size=MIB, **FACTS).layout == "v1"
    assert bytes(ds4kv.load(path).payload) == NOISE


@pytest.mark.parametrize("size", [0, 1, 40])
@pytest.mark.parametrize("known", [True, False])
def test_what_is_too_small_to_shrink(tmp_path: Path, size: int, known: bool) -> None:
    header = written(tmp_path / "a.kv", bytes(range(size)), 10, raw_total=size if known else None)
    assert header.layout == "v1"
    assert bytes(ds4kv.load(tmp_path / "a.kv").payload) == bytes(range(size))


@pytest.mark.parametrize("piece", [65_536, 8 * MIB])
def test_noise_in_front_of_what_shrinks(tmp_path: Path, piece: int) -> None:
    payload = NOISE[:MIB] + WORDS
    header = written(tmp_path / "a.kv", payload, piece, chunk_size=MIB)
    assert header.layout == "v2-checked"
    assert bytes(ds4kv.load(tmp_path / "a.kv").payload) == payload
    # The noise is in its block as it is, whose literals have a length of one byte for 255.
    parsed = reference.parse((tmp_path / "a.kv").read_bytes())
    assert parsed.payload == payload


def test_much_noise_in_front_of_what_shrinks(tmp_path: Path) -> None:
    payload = 2 * NOISE + bytes(18 * MIB)
    header = written(tmp_path / "a.kv", payload, len(payload), chunk_size=MIB)
    assert header.layout == "v2-checked"
    assert header.payload_bytes < len(payload) // 3


def test_the_saving_that_is_asked_for(tmp_path: Path) -> None:
    """1/64 of the payload, and a byte less is too little."""
    size = 6400
    sizes = {}
    for zeros in range(80, 260):
        payload = NOISE[: size - zeros] + bytes(zeros)
        region = io.BytesIO()
        with PayloadWriter(region, form=Form.CHECKED, level=0) as writer:
            writer.write(payload)
        header = written(tmp_path / "a.kv", payload, size, level=0)
        saving = size - len(region.getvalue())
        sizes[saving] = header.layout
        assert header.layout == ("v2-checked" if 64 * saving >= size else "v1"), saving
    assert set(sizes.values()) == {"v1", "v2-checked"}


@pytest.mark.parametrize("level", [None, *range(-1, 13)])
def test_any_level_is_read(tmp_path: Path, level: int | None) -> None:
    path = tmp_path / "a.kv"
    payload = WORDS[:200_000]
    header = ds4kv.dump(path, payload, layout="v2-checked", level=level, chunk_size=1 << 16, **FACTS)
    assert (header.layout, header.form) == ("v2-checked", Form.CHECKED)
    assert reference.parse(path.read_bytes()).payload == payload
    if level in (None, 1):
        default = written(tmp_path / "b.kv", payload, 1000, chunk_size=1 << 16)
        assert (header, path.read_bytes()) == (default, (tmp_path / "b.kv").read_bytes())


@pytest.mark.parametrize(
    "options",
    [
        {"level": 13},
        {"level": -2},
        {"codec": "none"},
        {"codec": "lz4hc"},
        {"chunk_size": 1000},
        {"payload_abi": 256},
        {"layout": "v2-mid"},
        {"layout": "v2-crc"},
    ],
)
def test_what_can_not_be_written(tmp_path: Path, options: dict[str, Any]) -> None:
    good: dict[str, Any] = FACTS | {"layout": "v2-checked"}
    with pytest.raises(ValueError):
        ds4kv.dump(tmp_path / "a.kv", WORDS, **good | options)
    assert os.listdir(tmp_path) == []
    assert ds4kv.dump(tmp_path / "a.kv", WORDS, **good).layout == "v2-checked"


def test_no_threads_in_the_environment_is_about_v2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DS4_KV_CACHE_COMPRESSION_THREADS", "0")
    assert ds4kv.dump(tmp_path / "a.kv", WORDS, layout="v2-checked", **FACTS).layout == "v2-checked"
    assert ds4kv.dump(tmp_path / "b.kv", WORDS, tokens=1, ctx_size=1).codec == 0


@pytest.mark.parametrize("payload", [NOISE, WORDS], ids=["noise", "words"])
def test_abandoned(tmp_path: Path, payload: bytes) -> None:
    with (
        pytest.raises(ZeroDivisionError),
        ds4kv.create(tmp_path / "a.kv", layout="v2-checked", chunk_size=MIB, **FACTS) as checkpoint,
    ):
        checkpoint.payload.write(payload)
        raise ZeroDivisionError
    assert os.listdir(tmp_path) == []
    writer = ds4kv.create(tmp_path / "a.kv", layout="v2-checked", chunk_size=MIB, **FACTS)
    writer.payload.write(payload)
    writer.payload.abandon()
    with pytest.raises(ds4kv.Ds4kvError, match="abandoned"):
        writer.close()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del writer, checkpoint
        gc.collect()
    assert os.listdir(tmp_path) == []


def test_a_full_disk_while_it_is_stored_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: RawWriter, b: Any) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched, pytest.raises(OSError, match="No space"):
        patched.setattr(RawWriter, "write", fail)
        written(tmp_path / "a.kv", NOISE, 1000, chunk_size=MIB)
    assert os.listdir(tmp_path) == []
    assert written(tmp_path / "a.kv", NOISE, 1000, chunk_size=MIB).layout == "v1"


@pytest.mark.slow
@pytest.mark.parametrize("payload", [NOISE, WORDS], ids=["noise", "words"])
@pytest.mark.parametrize("whole", [True, False])
def test_a_store_of_checked_files(tmp_path: Path, payload: bytes, whole: bool) -> None:
    with ds4kv.Store(tmp_path, layout="v2-checked", level=0, min_tokens=1) as store:
        if whole:
            entry = store.save_buffer(b"text", payload * 6, tokens=7, ctx_size=9)
        else:
            with store.save(b"text", tokens=7, ctx_size=9) as save:
                for start in range(0, 6 * len(payload), MIB):
                    save.payload.write((payload * 6)[start : start + MIB])
            entry = save.entry
        assert entry is not None
        assert entry.header.layout == ("v1" if payload is NOISE else "v2-checked")
        assert store.verify(entry).value == "ok"
        with store.load(entry) as checkpoint:
            assert checkpoint.payload.read() == payload * 6


def test_a_store_refuses_what_it_could_not_write(tmp_path: Path) -> None:
    for options in ({"layout": "v2-mid"}, {"level": 13}, {"layout": "v1", "level": 1}):
        with pytest.raises(ValueError):
            ds4kv.Store(tmp_path, **options)
    ds4kv.Store(tmp_path, layout="v2-checked", level=12).close()


def test_chunks_are_of_a_mib_unless_another_size_is_asked_for(tmp_path: Path) -> None:
    """And in ``v2`` of 16 MiB, as ds4 has them."""
    path = tmp_path / "a.kv"
    for layout, size in (("v2-checked", MIB), ("v2", 16 * MIB)):
        assert ds4kv.dump(path, WORDS, layout=layout, codec="lz4", **SMALL).chunk_size == size
        assert ds4kv.dump(path, WORDS, layout=layout, codec="lz4", chunk_size=4096, **SMALL).chunk_size == 4096
        for chunk_size in (None, 8192):
            options = {"layout": layout, "codec": "lz4", "chunk_size": chunk_size, "min_tokens": 1}
            with ds4kv.Store(tmp_path / f"{layout} {chunk_size}", **options) as store:
                entry = store.save_buffer(b"text", WORDS, **SMALL)
                assert entry.header.chunk_size == (chunk_size or size)
    assert ds4kv.dump(path, WORDS, layout="v1", **SMALL).chunk_size == 0
    for wrong in (0, 3000, 1 << 27):
        with pytest.raises(ValueError, match=f"chunk_size is {wrong}"):
            ds4kv.dump(path, WORDS, layout="v2-checked", chunk_size=wrong, **SMALL)
        with pytest.raises(ValueError, match=f"chunk_size is {wrong}"):
            ds4kv.Store(tmp_path, layout="v2-checked", chunk_size=wrong)


def test_runs_only_is_of_this_layout_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.kv"
    payload = WORDS * 2
    for options in ({"layout": "v2"}, {"layout": "v2", "codec": "lz4hc"}, {"layout": "v1"}, {"codec": "none"}):
        with pytest.raises(ValueError, match="level is -1"):
            ds4kv.dump(path, payload, level=-1, **SMALL, **options)
        with pytest.raises(ValueError, match="level is -1"):
            ds4kv.Store(tmp_path, level=-1, **options)
    with pytest.raises(ValueError, match="level is -1"):
        PayloadWriter(io.BytesIO(), level=-1)
    sizes = [ds4kv.dump(path, payload, layout="v2-checked", level=level, **SMALL).payload_bytes for level in (0, -1)]
    assert sizes[0] < sizes[1] < len(payload)
    with ds4kv.Store(tmp_path, layout="v2-checked", level=-1, min_tokens=1) as store:
        assert store.save_buffer(b"text", payload, **SMALL).header.payload_bytes == sizes[1]


# ---------------------------------------------------------------------------------------- streams


def test_streams_of_every_form(tmp_path: Path) -> None:
    path = tmp_path / "region"
    for form in (Form.PLAIN, Form.CHECKED):
        with path.open("w+b") as fp:
            fp.write(b"before")
            with PayloadWriter(fp, chunk_size=1 << 16, form=form, sums=True) as writer:
                writer.write(WORDS)
            assert len(writer.sums) == -(-len(WORDS) // (1 << 16))
            region_bytes = writer.region_bytes
        with path.open("rb", buffering=0) as fp:
            fp.seek(6)
            assert region_sums(fp, region_bytes, chunk_size=1 << 16, form=form) == writer.sums
            fp.seek(6)
            with PayloadReader(fp, region_bytes, chunk_size=1 << 16, form=form, sums=writer.sums) as reader:
                assert reader.read() == WORDS
                reader.seek(100_001)
                assert reader.read(77) == WORDS[100_001:100_078]
            wrong = writer.sums[:]
            wrong[3] ^= 1
            fp.seek(6)
            with PayloadReader(fp, region_bytes, chunk_size=1 << 16, form=form, sums=wrong) as reader:
                assert reader.read(3 << 16) == WORDS[: 3 << 16]
                with pytest.raises(ds4kv.CorruptError, match="have changed") as refusal:
                    reader.read()
                assert refusal.value.field == "record"
            fp.seek(6)
            with pytest.raises(ValueError, match="sums for"):
                PayloadReader(fp, region_bytes, chunk_size=1 << 16, form=form, sums=wrong[:-1])
    for form in (Form.RAW, Form.TRANSPOSED):
        with path.open("wb") as fp, pytest.raises(ValueError, match="not written"):
            PayloadWriter(fp, form=form)


def test_sums_of_a_raw_region(tmp_path: Path) -> None:
    path = tmp_path / "region"
    payload = NOISE * 6
    with path.open("wb") as fp, RawWriter(fp, sums=True) as writer:
        for start in range(0, len(payload), 777_777):
            writer.write(payload[start : start + 777_777])
    assert len(writer.sums) == 2
    with path.open("rb", buffering=0) as fp:
        assert region_sums(fp, len(payload), chunk_size=1 << 24, form=Form.RAW) == writer.sums
        fp.seek(0)
        reader = PayloadReader(fp, len(payload), chunk_size=1 << 24, form=Form.RAW, sums=writer.sums)
        assert reader.read() == payload
        reader.seek(5)
        assert reader.read(10) == payload[5:15]


def test_no_checked_region_is_empty(tmp_path: Path) -> None:
    with (tmp_path / "region").open("wb") as fp:
        with pytest.raises(ValueError, match="empty"):
            PayloadWriter(fp, form=Form.CHECKED, raw_total=0)
        writer = PayloadWriter(fp, form=Form.CHECKED)
        with pytest.raises(ValueError, match="empty"):
            writer.close()


# ---------------------------------------------------------------------------------------- runs only

A_RUN = st.tuples(st.sampled_from([0, 1, 255]), st.one_of(st.integers(1, 40), st.sampled_from([254, 270, 274, 1000])))
NO_RUN = st.binary(max_size=40)


@pytest.mark.parametrize("workers", [0, 2])
@settings(max_examples=50)
@given(
    pieces=st.lists(st.one_of(A_RUN, NO_RUN), min_size=1, max_size=30),
    chunk_size=st.one_of(st.integers(1, 60), st.sampled_from([256, 1 << 16])),
)
def test_blocks_of_runs_are_blocks_of_lz4(pieces: list[tuple[int, int] | bytes], chunk_size: int, workers: int) -> None:
    """By the rules that the last match begins 12 bytes before the end, and ends 5 before it: else it would be loose."""
    streams = b"".join(piece if isinstance(piece, bytes) else bytes([piece[0]]) * piece[1] for piece in pieces)
    streams = streams or b"\0"
    payload = b"".join(reference.ungroup(chunk) for chunk in reference.cut(streams, chunk_size))
    fp = io.BytesIO()
    with PayloadWriter(fp, form=Form.CHECKED, level=-1, chunk_size=chunk_size, workers=workers) as writer:
        writer.write(payload)
    region = fp.getvalue()
    assert reference.decode_region(region, chunk_size, grouped=True, checked=True) == (payload, False)
    with PayloadReader(io.BytesIO(region), len(region), chunk_size=chunk_size, form=Form.CHECKED) as reader:
        assert reader.read() == payload


def test_a_long_run_is_short(tmp_path: Path) -> None:
    header = ds4kv.dump(tmp_path / "a.kv", bytes(MIB), layout="v2-checked", level=-1, **SMALL)
    assert header.payload_bytes < MIB // 200
    header = ds4kv.dump(tmp_path / "a.kv", NOISE, layout="v2-checked", level=-1, **SMALL)
    assert (header.layout, header.payload_bytes) == ("v1", len(NOISE))
