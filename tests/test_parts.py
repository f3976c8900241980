"""A payload in several buffers: written and read as if it were one, and copied nowhere that it needn't be."""

from __future__ import annotations

import gc
import io
import itertools
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import MIB, text_like
from hypothesis import given, settings
from hypothesis import strategies as st

import ds4kv
from ds4kv import PayloadReader, PayloadWriter, RawWriter
from ds4kv.format.header import Form
from ds4kv.stream import Nowhere

PAYLOAD = text_like(200_001)
CHUNK_SIZE = 4096
FACTS: dict[str, Any] = {"tokens": 600, "ctx_size": 32768, "created_at": 5}
FACTS_OF_SAVE: dict[str, Any] = {"tokens": 600, "ctx_size": 32768}
LAYOUTS: dict[str, dict[str, Any]] = {
    "v1": {"layout": "v1"},
    "v2": {"layout": "v2", "codec": "lz4", "chunk_size": CHUNK_SIZE},
    "v2 lz4hc": {"layout": "v2", "codec": "lz4hc", "level": 3, "chunk_size": CHUNK_SIZE},
    "v2-checked": {"layout": "v2-checked", "chunk_size": CHUNK_SIZE},
    "v2-checked runs": {"layout": "v2-checked", "level": -1, "chunk_size": CHUNK_SIZE},
}
every_layout = pytest.mark.parametrize("options", LAYOUTS.values(), ids=LAYOUTS)


def cut(payload: bytes, *cuts: int) -> list[bytes]:
    """The pieces between these places."""
    ends = sorted([0, *cuts, len(payload)])
    return [payload[start:stop] for start, stop in itertools.pairwise(ends)]


CUTS: dict[str, list[bytes]] = {
    "one": [PAYLOAD],
    "two": cut(PAYLOAD, 70_000),
    "at chunks": cut(PAYLOAD, *range(0, len(PAYLOAD), CHUNK_SIZE)),
    "beside chunks": cut(PAYLOAD, *range(0, len(PAYLOAD), 10_001)),
    "small": cut(PAYLOAD, *range(0, len(PAYLOAD), 777)),
    "table and arrays": cut(PAYLOAD, 100, 100, 50_000, 50_000, 120_000, len(PAYLOAD)),
}
every_cut = pytest.mark.parametrize("parts", CUTS.values(), ids=CUTS)


# Writing


@every_layout
@every_cut
@pytest.mark.parametrize("workers", [0, 2])
def test_a_dump_of_several_is_one_of_all(
    options: dict[str, Any], parts: list[bytes], workers: int, tmp_path: Path
) -> None:
    whole, several = tmp_path / "whole.kv", tmp_path / "several.kv"
    header = ds4kv.dump(whole, PAYLOAD, workers=workers, **FACTS, **options)
    for given_as in (parts, tuple(parts)):
        assert ds4kv.dump(several, given_as, workers=workers, **FACTS, **options) == header
        assert several.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("form", [Form.PLAIN, Form.CHECKED, Form.PACKED])
@pytest.mark.parametrize("is_announced", [False, True])
@pytest.mark.parametrize("workers", [0, 1, 2])
@settings(max_examples=40)
@given(
    cuts=st.lists(st.integers(0, 30_000), max_size=12),
    calls=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    chunk_size=st.sampled_from([1000, 4096, 40_000]),
)
def test_however_it_is_split(
    cuts: list[int], calls: list[int], chunk_size: int, form: Form, is_announced: bool, workers: int
) -> None:
    payload = PAYLOAD[:30_000]

    def region(parts: list[bytes], calls: list[int]) -> bytes:
        fp = io.BytesIO()
        raw_total = len(payload) if is_announced else None
        with PayloadWriter(
            fp, form=form, chunk_size=chunk_size, workers=workers, raw_total=raw_total, sums=form != Form.PACKED
        ) as writer:
            while parts:
                n = calls[0]
                assert writer.writev(parts[:n]) == sum(map(len, parts[:n]))
                parts, calls = parts[n:], calls[1:] or calls
                assert writer.tell() == len(payload) - sum(map(len, parts))
        sums.append(writer.sums)
        return fp.getvalue()

    sums: list[Any] = []
    assert region(cut(payload, *cuts), calls) == region([payload], [1])
    assert sums[0] == sums[1]


def test_sums_of_raw_ones() -> None:
    payload = PAYLOAD * 100
    sums = []
    for parts in ([payload], cut(payload, *range(0, len(payload), 3_000_001))):
        with RawWriter(Nowhere(), sums=True) as writer:
            writer.writev(parts)
        sums.append(writer.sums)
    assert sums[0] == sums[1]
    assert len(sums[0]) == 2


def test_any_kind_of_memory_together() -> None:
    parts = [
        b"a",
        bytearray(b"bc"),
        np.arange(6, dtype=np.uint16).reshape(2, 3),
        memoryview(b"de"),
        b"",
        np.zeros((0, 3)),
    ]
    fp = io.BytesIO()
    with RawWriter(fp) as writer:
        assert writer.writev(iter(parts)) == 17
    assert fp.getvalue() == b"abc" + np.arange(6, dtype=np.uint16).tobytes() + b"de"


def test_no_buffers_are_no_bytes(tmp_path: Path) -> None:
    with RawWriter(io.BytesIO()) as writer:
        assert writer.writev([]) == writer.writev([b"", b""]) == 0
    for options in LAYOUTS.values():
        ds4kv.dump(tmp_path / "a.kv", [], **FACTS, **options)
        assert ds4kv.load(tmp_path / "a.kv").payload == b""
        assert ds4kv.load(tmp_path / "a.kv", into=[]).parts == ()


def test_one_that_is_refused_leaves_the_stream_as_it_was() -> None:
    fp = io.BytesIO()
    with PayloadWriter(fp, chunk_size=CHUNK_SIZE) as writer:
        for bad in ([b"good", "text"], [b"good", np.zeros((4, 4)).T], b"one buffer", None):
            with pytest.raises(TypeError):
                writer.writev(bad)  # type: ignore[arg-type]
        writer.writev([b"go", b"od"])
    with PayloadReader(io.BytesIO(fp.getvalue()), len(fp.getvalue()), chunk_size=CHUNK_SIZE) as reader:
        assert reader.read() == b"good"


def test_all_of_them_are_held_against_what_was_announced() -> None:
    for parts in ([b"1234", b"567"], [b"1234567", b""]):
        writer = PayloadWriter(io.BytesIO(), raw_total=6)
        with pytest.raises(ValueError, match="7 more after 0 are too many"):
            writer.writev(parts)
        assert writer.writev([b"123", b"456"]) == 6
        writer.close()


def test_a_closed_stream() -> None:
    writer = PayloadWriter(io.BytesIO())
    writer.close()
    with pytest.raises(ValueError, match="closed"):
        writer.writev([b"a"])


@pytest.mark.parametrize("workers", [0, 2])
def test_buffers_are_let_go(workers: int) -> None:
    """When it returns, and when the file object fails."""

    class Fails(io.BytesIO):
        def write(self, b: Any) -> int:
            raise OSError("disk")

    parts = [bytearray(part) for part in CUTS["beside chunks"]]
    with PayloadWriter(io.BytesIO(), chunk_size=CHUNK_SIZE, workers=workers) as writer:
        writer.writev(parts)
    writer = PayloadWriter(Fails(), chunk_size=CHUNK_SIZE, workers=workers)
    gc.disable()  # the exception keeps the frames, and these the buffers
    try:
        with pytest.raises(OSError, match="disk") as caught:
            writer.writev(parts)
        for part in parts:
            part.clear()  # BufferError if anything still held it
        assert caught.value is not None
    finally:
        gc.enable()
    writer.abandon()


def test_workers_see_all_of_them_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a payload that is lent in parts nothing waits at the end of a part."""
    from ds4kv.core.native import Compressor

    loans, puts = [], []
    loan, put = Compressor.loan, Compressor.put

    def counted(self: Compressor) -> Any:
        loans.append(len(puts))
        return loan(self)

    def watched(self: Compressor, *args: Any, lent: bool) -> int:
        puts.append(lent)
        return put(self, *args, lent=lent)

    monkeypatch.setattr(Compressor, "loan", counted)
    monkeypatch.setattr(Compressor, "put", watched)
    with PayloadWriter(Nowhere(), chunk_size=CHUNK_SIZE, workers=2, raw_total=len(PAYLOAD)) as writer:
        writer.writev(CUTS["beside chunks"])
    assert loans == [0]
    assert all(puts)
    assert len(puts) >= len(CUTS["beside chunks"])


def test_a_payload_of_noise_is_known_by_its_buffers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And one of which every other buffer is noise is compressed."""
    monkeypatch.setattr(ds4kv.CheckpointWriter, "_store_raw", None)
    noise, words = random.Random(1).randbytes(MIB), text_like(MIB)
    path = tmp_path / "a.kv"
    for parts, layout in (
        ([b"table", *[noise] * 20], "v1"),
        ([words] * 20, "v2-checked"),
        ([noise, words] * 10, "v2-checked"),
        ([noise] * 10 + [words] * 10, "v2-checked"),
        ([noise] + [words[:50_000]] * 40, "v2-checked"),
    ):
        assert ds4kv.dump(path, parts, layout="v2-checked", **FACTS).layout == layout
        assert ds4kv.load(path).payload == b"".join(parts)


# Reading


@every_layout
@every_cut
@pytest.mark.parametrize("workers", [0, 2])
def test_a_load_into_several(options: dict[str, Any], parts: list[bytes], workers: int, tmp_path: Path) -> None:
    path = tmp_path / "a.kv"
    ds4kv.dump(path, PAYLOAD, text=b"text", trailer=b"KTM", **FACTS, **options)
    for kind in (list, tuple):
        into = kind(bytearray(len(part)) for part in parts)
        got = ds4kv.load(path, into=into, workers=workers)
        assert (got.text, got.trailer, got.payload, got.damage) == (b"text", b"KTM", b"", ())
        assert list(got.parts) == list(into) == parts
        if got.parts[-1]:
            got.parts[-1][0] ^= 1
            assert got.parts[-1] == into[-1]


def test_one_buffer_is_no_part(tmp_path: Path) -> None:
    path = tmp_path / "a.kv"
    ds4kv.dump(path, PAYLOAD, **FACTS)
    assert ds4kv.load(path).parts == ds4kv.load(path, into=bytearray(len(PAYLOAD))).parts == ()


@every_layout
@pytest.mark.parametrize("sizes", [[], [200_000], [100_000, 100_000], [200_001, 1]])
def test_parts_of_another_size_are_refused_untouched(options: dict[str, Any], sizes: list[int], tmp_path: Path) -> None:
    path = tmp_path / "a.kv"
    ds4kv.dump(path, PAYLOAD, **FACTS, **options)
    into = [bytearray(size) for size in sizes]
    with pytest.raises(ValueError, match=rf"into is {sum(sizes)} bytes in {len(sizes)} buffers, .* is 200001"):
        ds4kv.load(path, into=into)
    assert into == [bytes(size) for size in sizes]
    ds4kv.load(path, into=[bytearray(200_000), bytearray(1)])
    with pytest.raises(TypeError, match="read-only"):
        ds4kv.load(path, into=[bytearray(200_000), b"1"])


def test_a_salvage_fills_one(tmp_path: Path) -> None:
    path = tmp_path / "a.kv"
    ds4kv.dump(path, PAYLOAD, **FACTS)
    assert ds4kv.load(path, into=bytearray(len(PAYLOAD)), salvage=True).payload == PAYLOAD
    with pytest.raises(ValueError, match="salvage"):
        ds4kv.load(path, into=[bytearray(len(PAYLOAD))], salvage=True)


# A store


@every_cut
def test_saves_and_loads_of_a_store(parts: list[bytes], tmp_path: Path) -> None:
    with ds4kv.Store(tmp_path, workers=2, chunk_size=CHUNK_SIZE) as store:
        entries = [
            store.save_buffer(b"a list", parts, **FACTS_OF_SAVE),
            store.save_buffer(b"a tuple", tuple(parts), **FACTS_OF_SAVE),
            store.save_buffer(b"a function", lambda: parts, **FACTS_OF_SAVE),
            store.save_async(b"later", parts, **FACTS_OF_SAVE).result(20),
            store.save_async(b"a function, later", lambda: parts, **FACTS_OF_SAVE).result(20),
        ]
        for entry in entries:
            assert entry is not None
            assert ds4kv.load(entry.path).payload == PAYLOAD
        into = [bytearray(len(part)) for part in parts]
        got = store.load_async(entries[0], into=into).result(20)
        assert list(got.parts) == into == parts
        with pytest.raises(ValueError, match="buffers"):
            store.load_async(entries[0], into=[*into, bytearray(1)]).result(20)
        assert store.save_buffer(b"a list", ["no buffer"], raw_total=1, **FACTS_OF_SAVE) is not None  # it is there


def test_what_is_given_together_is_announced_together(tmp_path: Path) -> None:
    """A store refuses what can't fit before it writes."""
    with ds4kv.Store(tmp_path, codec="none", budget_bytes=100_000) as store:
        assert store.save_buffer(b"text", [PAYLOAD[:50_000], PAYLOAD[:60_000]], **FACTS_OF_SAVE) is None
        assert store.save_buffer(b"text", [PAYLOAD[:50_000], PAYLOAD[:20_000]], **FACTS_OF_SAVE) is not None
    assert len([name for name in os.listdir(tmp_path) if name.endswith(".kv")]) == 1


# PyTorch


def test_layers_of_a_model(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    layers = [torch.randn(2, 50, 64).to(torch.bfloat16) for _ in range(6)]
    path = tmp_path / "a.kv"
    for options in LAYOUTS.values():
        ds4kv.dump(path, layers, **FACTS, **options)
        into = [torch.empty_like(layer) for layer in layers]
        got = ds4kv.load(path, into=into)
        assert all(torch.equal(a, b) for a, b in zip(into, layers, strict=True))
        assert b"".join(got.parts) == b"".join(layer.view(torch.uint8).numpy().tobytes() for layer in layers)
        whole = torch.empty(6, 2, 50, 64, dtype=torch.bfloat16)
        view = ds4kv.load(path, into=whole).payload
        assert torch.equal(whole, torch.stack(layers))
        view[:] = bytes(len(view))
        assert not whole.any()
    with pytest.raises(TypeError, match=r"tensor\.contiguous\(\)"):
        ds4kv.dump(path, [layers[0], layers[1].transpose(0, 1)], **FACTS)
    with ds4kv.Store(tmp_path / "store") as store:
        entry = store.save_async(b"text", lambda: layers, **FACTS_OF_SAVE).result(20)
        into = [torch.empty_like(layer) for layer in layers]
        store.load_async(entry, into=into).result(20)
        assert all(torch.equal(a, b) for a, b in zip(into, layers, strict=True))
