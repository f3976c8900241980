"""Six layouts and one magic: no file of one is ever read as another.

Files come from the writers in reference.py, which also states the rules a second time.
"""

from __future__ import annotations

import hashlib
import random
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import reference
from helpers import MIB
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from reference import (
    build,
    build_checked,
    build_crc,
    build_mid,
    build_packed,
    encode_checked,
    encode_packed,
    encode_region,
    regroup,
    ungroup,
)

import ds4kv
from ds4kv.format import layout
from ds4kv.store.entry import read_entry

TEXT = b"text"
PAYLOAD = b"DSV4" + bytes((7 * i + i // 9) % 251 for i in range(1500))
ENCODERS = [reference.store, reference.fast, reference.high]


def sniffed(data: bytes) -> str:
    """The layout that the file is taken for, or the kind of error that it is refused with."""
    with tempfile.TemporaryFile(buffering=0) as fp:
        fp.write(data)
        try:
            header, _ = layout.examine(fp.fileno(), len(data), may_be_damaged=is_cut(data))
        except ds4kv.Ds4kvError as error:
            return type(error).__name__
    return header.layout


def is_cut(data: bytes) -> bool:
    """Whether text and region end beyond the file, which says nothing of its layout."""
    return 52 + int.from_bytes(data[48:52], "little") + int.from_bytes(data[40:48], "little") > len(data)


def word(*, abi: int, codec: int, log2: int, last: int = 0) -> int:
    """Bytes 20 to 23 as a number."""
    return abi | codec << 8 | log2 << 16 | last << 24


# ----------------------------------------------------------------------------------- the reference


def test_xxh32_of_the_reference_is_the_one_of_the_format() -> None:
    run = bytes((37 * i + 11) % 256 for i in range(33))
    sums = {
        7: 0x02226FE7,
        16: 0x96AC9FA6,
        17: 0x3CDFB1A2,
        23: 0x12A0921B,
        31: 0xDF853FBF,
        32: 0xDA8072DC,
        33: 0x3C8FD07D,
    }
    assert {n: reference.xxh32(run[:n]) for n in sums} == sums
    assert reference.xxh32(b"") == 0x02CC5D05
    assert reference.xxh32(b"abc") == 0x32D153FF
    assert reference.xxh32(bytes((131 * i + 7) % 256 for i in range(100003))) == 0xF0EF88E1


@given(raw=st.binary(max_size=40))
def test_regrouped_bytes(raw: bytes) -> None:
    whole = len(raw) - len(raw) % 4
    assert regroup(raw) == b"".join(raw[b:whole:4] for b in range(4)) + raw[whole:]
    assert ungroup(regroup(raw)) == raw


# ----------------------------------------------------------------------------------- every layout

MODELS = st.sampled_from([0, 1, 2, 3, 7, 255]) | st.integers(0, 255)
BYTE = st.integers(0, 255)
PARTS = {
    "text": st.binary(max_size=10),
    "trailer": st.binary(max_size=40),
    "ext_flags": BYTE,
    "reason_code": BYTE,
    "hits": st.integers(0, 2**32 - 1),
}
# Chunk sizes that read as a codec, an exponent and nothing, and any others.
CHUNK_WORDS = st.builds(
    word, abi=BYTE, codec=st.integers(0, 3), log2=st.integers(0, 30), last=st.sampled_from([0, 0, 0, 1, 2])
).filter(lambda size: 1 <= size <= reference.MAX_CHUNK) | st.integers(1, 2000)
RAW_WORDS = st.integers(0, 2**32 - 1) | st.builds(
    word, abi=BYTE, codec=st.integers(0, 4), log2=st.integers(0, 30), last=st.integers(0, 1)
)


@st.composite
def payloads(draw: st.DrawFn) -> bytes:
    size = draw(st.integers(0, 40) | st.integers(0, 3000))
    return draw(st.sampled_from([b"", b"DSV4"])) + random.Random(size).randbytes(size)


@st.composite
def files(draw: st.DrawFn) -> tuple[str, bytes, bytes]:
    """The layout, the payload, and a good file of it."""
    name = draw(st.sampled_from(["v1", "v2", "v2 raw", "v2-mid", "v2-checked", "v2-crc", "packed"]))
    payload = draw(payloads())
    parts = {key: draw(value) for key, value in PARTS.items()}
    block = draw(st.sampled_from(ENCODERS))
    if name == "v1":
        number = draw(RAW_WORDS.filter(lambda number: number >> 8 & 255 not in (1, 2)))
        return name, payload, build(payload, version=1, codec=draw(MODELS), chunk_size=number, **parts)
    if name == "v2 raw":
        return name, payload, build(payload, codec=0, chunk_size=draw(RAW_WORDS), **parts)
    if name == "v2":
        size = draw(CHUNK_WORDS)
        region = encode_region(payload, size, block)
        return name, payload, build(region, codec=draw(st.integers(1, 2)), chunk_size=size, **parts)
    if name == "v2-crc":
        return name, payload, build_crc(payload, **parts)
    parts |= {"log2": draw(st.integers(0, 26)), "model_id": draw(MODELS), "payload_abi": draw(BYTE), "block": block}
    if name == "packed":
        parts |= {"log2": max(parts["log2"], 2), "ext_flags": parts["ext_flags"] & 254, "words": [0, 16, 32]}
        return name, payload, build_packed(payload, **parts)
    if name == "v2-mid":
        return name, payload, build_mid(payload, grouped=draw(st.booleans()), **parts)
    payload = payload or b"DSV4"
    return name, payload, build_checked(payload, **parts)


def fitting(data: bytes) -> list[str]:
    """All layouts with a codec that a version 2 file is of, to its last byte."""
    at = 52 + struct.unpack_from("<I", data, 48)[0]
    region = data[at : at + struct.unpack_from("<Q", data, 40)[0]]
    return [name for name, how in reference.claims(data).items() if reference.misfit(region, *how) is None]


@pytest.mark.slow
@given(file=files())
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_file_is_taken_for_what_it_is(file: tuple[str, bytes, bytes]) -> None:
    name, _, data = file
    found = sniffed(data)
    if name == "v2-crc":
        assert found == "UnsupportedError"
    elif name in ("v1", "packed"):
        assert found == name
    elif name == "v2 raw" and not reference.claims(data):
        plausible = data[21] > 2 and 12 <= data[22] <= 26 and data[23] == 0
        assert found == ("UnsupportedError" if plausible else "v2")
    elif name == "v2 raw":  # one that claims a codec: whatever it is, not raw bytes of v2
        assert found not in ("v1", "v2")
    else:
        fit = fitting(data)
        event(f"{name} fits {fit}")
        assert name in fit
        assert found == fit[0]
        assert fit[0] == name or fit == ["v2", "v2-mid"]  # the one pair that shares its heads
    if name not in ("v1", "v2-crc"):
        try:
            assert found == reference.layout_of(data)
        except reference.Bad as bad:
            assert found == {reference.CORRUPT: "CorruptError"}.get(bad.verdict, "UnsupportedError")


# ------------------------------------------------------------------------------------ the foolers


def second_chunk_that_shrinks_by_eight() -> bytes:
    """``v2-checked``, and a walk by the rules of ``v2`` that minds no raw sizes comes to the same end.

    For that walk the second head begins 4 bytes earlier, and so has the raw size where the block's should be.
    """
    noise = random.Random(8).randbytes(262_700)
    for length in range(1000, 1100):
        block = reference.sequences((noise, 1, length), b"twelve bytes")
        grouped = noise + noise[-1:] * length + b"twelve bytes"
        if len(grouped) - len(block) == 8:
            break
    payload = random.Random(9).randbytes(MIB) + ungroup(grouped)
    blocks = iter([reference.store(regroup(payload[:MIB])), block])
    data = build_checked(payload, log2=20, model_id=1, payload_abi=2, block=lambda _: next(blocks), text=TEXT)
    region = data[52 + len(TEXT) :]
    second = 12 + 8 + struct.unpack_from("<I", region, 16)[0]
    assert second + 8 + struct.unpack_from("<I", region, second + 4)[0] == len(region)
    assert -(-len(payload) // word(abi=2, codec=2, log2=20)) == 2
    return data


def checked(**how: int) -> bytes:
    return build_checked(PAYLOAD, text=TEXT, **how)


def v2(chunk_size: int, payload: bytes = PAYLOAD, codec: int = 1, **parts: object) -> bytes:
    return build(encode_region(payload, chunk_size), codec=codec, chunk_size=chunk_size, text=TEXT, **parts)


def raw(number: int, payload: bytes = PAYLOAD, **parts: object) -> bytes:
    return build(payload, **{"codec": 0, "chunk_size": number, "text": TEXT, **parts})


def fooler(id: str, name: str, data: bytes) -> object:
    return pytest.param(name, data, id=id)  # test_c_api.py has them as well


def foolers() -> Iterator[object]:
    """Good files that look like something else, and what they are."""
    for model in (1, 2, 3, 255):
        for log2 in (0, 6, 10, 24, 26):
            data = checked(log2=log2, model_id=model, payload_abi=2)
            yield fooler(f"v2-checked, 2**{log2}, model {model}", "v2-checked", data)
            payload = regroup(PAYLOAD) if log2 % 2 else PAYLOAD
            mid = build_mid(payload, log2=log2, model_id=model, payload_abi=2, text=TEXT)
            is_one_chunk = model in (1, 2) and log2 > 10  # and one chunk is the same in both
            yield fooler(f"v2-mid, 2**{log2}, model {model}", "v2" if is_one_chunk else "v2-mid", mid)
    for model in (0, 1, 2, 3, 255):
        for log2 in (1, 6, 24, 26):
            packed = build_packed(PAYLOAD, log2=log2, model_id=model, payload_abi=2, words=[0], text=TEXT)
            yield fooler(f"packed, 2**{log2}, model {model}", "packed", packed)
    packed = encode_packed(PAYLOAD, 64, 5)
    for version in (1, 2):
        yield fooler(f"raw, of a region of packed, version {version}", f"v{version}", raw(2, packed, version=version))
    yield fooler("packed, empty", "packed", build_packed(b"", model_id=1, text=TEXT))
    yield fooler("v2-checked, second chunk 8 smaller", "v2-checked", second_chunk_that_shrinks_by_eight())
    for codec in (1, 2):
        for claim in (1, 2):
            for log2 in (0, 1, 6, 24, 26):
                for abi in (0, 2, 255):
                    size = word(abi=abi, codec=claim, log2=log2)
                    yield fooler(f"v2, chunks of {size}, codec {codec}", "v2", v2(size, codec=codec))
        for size in (512, 256, 300, 767, 1024, 65536 + 512, (1 << 26) - 1):
            yield fooler(f"v2, {size}, codec {codec}, one chunk", "v2", v2(size, PAYLOAD[:200], codec))
            yield fooler(f"v2, {size}, codec {codec}, empty", "v2", v2(size, b"", codec))
    for number in (0, 1, 64, 255, 1 << 24, 1 << 26, 2**32 - 1, 0xFFFF00FF, 0x1B0200, 0x1B0100, 0xFF0102, 0x100, 0x1):
        if number != 0x100:
            yield fooler(f"raw, {number:#x}", "v2", raw(number))
    for codec in (1, 2):
        for log2, last in ((27, 0), (255, 0), (24, 1), (6, 255)):
            number = word(abi=2, codec=codec, log2=log2, last=last)
            yield fooler(f"raw, no codec in {number:#x}", "v2", raw(number))
    for number in (0x0300, 0x0B0300, 0x180300 | 1 << 24, 0xFF00, 0x1BFF00):
        yield fooler(f"raw, no codec in {number:#x}", "v2", raw(number))
    for region in (encode_checked(PAYLOAD, 64), encode_region(PAYLOAD, 64)):
        for number in (0, 64, 24 << 16, 2, 1 << 24):
            yield fooler(f"raw, of a region of {len(region)} bytes, {number:#x}", "v2", raw(number, region))
        yield fooler(f"v1, of a region of {len(region)} bytes", "v1", raw(6 << 16, region, version=1, codec=1))
    yield fooler("raw, empty", "v2", raw(0, b""))
    crc = build_crc(PAYLOAD, text=TEXT)
    almost = bytearray(crc)
    almost[48:52] = struct.pack("<I", 4)
    yield fooler("raw, as v2-crc but for its checksum", "v2", bytes(almost))
    for byte in (0, 3, 4, 255):
        for last in (0, 1, 255):
            number = word(abi=9, codec=byte, log2=24, last=last)
            yield fooler(f"v1, {number:#x}", "v1", raw(number, version=1, codec=7))
    more = encode_checked(PAYLOAD, 64)[12:]
    yield fooler("v2-checked, records in the trailer", "v2-checked", checked(model_id=1, trailer=more))
    yield fooler("v2, records in the trailer", "v2", v2(512, trailer=more))
    yield fooler("v2-checked, a tail of 1 to 3 bytes", "v2-checked", build_checked(PAYLOAD[:67], model_id=2, text=TEXT))
    yield fooler("v2-checked, one byte", "v2-checked", build_checked(b"D", model_id=2, text=TEXT))


FOOLERS = list(foolers())


@pytest.mark.parametrize(("name", "data"), FOOLERS)
def test_foolers(name: str, data: bytes, tmp_path: Path) -> None:
    assert sniffed(data) == name
    expected = reference.parse(data)
    assert expected.layout == name
    path = tmp_path / f"{hashlib.sha1(expected.text).hexdigest()}.kv"
    path.write_bytes(data)
    loaded = ds4kv.load(path)
    assert bytes(loaded.payload) == expected.payload
    assert (loaded.text, loaded.trailer, loaded.header.pack()) == (expected.text, expected.trailer, data[:48])
    header = loaded.header
    assert (header.layout, header.model_id, header.payload_abi) == (name, expected.model_id, expected.payload_abi)
    assert read_entry(str(path)).header == header == ds4kv.read_header(path)


@pytest.mark.parametrize(
    "data",
    [
        build(encode_checked(b"", 64), codec=model, chunk_size=word(abi=0, codec=2, log2=27 if model else 6))
        for model in (0, 3)
    ]
    + [build(b"", codec=0, chunk_size=word(abi=0, codec=2, log2=6))],
    ids=["no chunks", "no chunks, a model", "no region"],
)
def test_no_region_of_checksums_is_empty(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.kv"
    path.write_bytes(data)
    with pytest.raises((ds4kv.CorruptError, ds4kv.UnsupportedError)):
        ds4kv.load(path)
    with pytest.raises(reference.Bad):
        reference.parse(data)


# ------------------------------------------------------------------------------------- the damage


SMALL = PAYLOAD[:150]
DAMAGED = {
    "v1": build(SMALL, version=1, codec=9, chunk_size=0x01000002, text=TEXT),
    "v2": v2(64, SMALL),
    "v2, 512": v2(512, PAYLOAD),
    "v2 raw": raw(0, SMALL),
    "v2-mid": build_mid(SMALL, text=TEXT, payload_abi=2),
    "v2-mid, model 1": build_mid(SMALL, text=TEXT, model_id=1),
    "v2-checked": build_checked(SMALL, text=TEXT, payload_abi=2),
    "v2-checked, model 1": build_checked(SMALL, text=TEXT, model_id=1, payload_abi=2),
    "v2-checked, one chunk": build_checked(SMALL, log2=24, text=TEXT, model_id=2),
    "v2-crc": build_crc(SMALL, text=TEXT),
    "packed": build_packed(SMALL, text=TEXT, payload_abi=2),
    "packed, model 1": build_packed(SMALL, text=TEXT, model_id=1, words=[0]),
}


def damages(data: bytes) -> Iterator[tuple[int, int]]:
    """Place and new value: the bytes by which layouts are told apart, and those of the frame and the first head."""
    start = 52 + len(TEXT)
    for at in (3, 7, 20, 21, 22, 23, *range(start, start + 24)):
        values = set(range(256)) if at in (3, 7, 21, 22) else {0, 1, 2, 3, 6, 24, 255, data[at] ^ 1, data[at] ^ 128}
        yield from ((at, value) for value in sorted(values - {data[at]}))


def is_said_to_be_raw(data: bytes) -> bool:
    """Nothing in such a header speaks of a codec, whatever is in the region."""
    return data[3] == 1 or (data[3] == 2 and data[7] == 0 and not reference.claims(data))


@pytest.mark.slow
@pytest.mark.parametrize("kind", DAMAGED)
def test_damage_is_refused_or_does_none(kind: str, tmp_path: Path) -> None:
    """Except where a header is left that says raw, and where a region without checksums is changed inside."""
    good = DAMAGED[kind]
    payload = None if kind == "v2-crc" else reference.parse(good).payload
    path = tmp_path / "a.kv"
    for at, value in damages(good):
        data = good[:at] + bytes([value]) + good[at + 1 :]
        path.write_bytes(data)
        try:
            expected = reference.parse(data)
        except reference.Bad:
            expected = None
        try:
            loaded = ds4kv.load(path)
        except (ds4kv.CorruptError, ds4kv.UnsupportedError):
            assert expected is None, (at, value)
            continue
        assert expected is not None, (at, value)
        assert bytes(loaded.payload) == expected.payload
        is_inside = at >= 52 + len(TEXT)
        if "packed" in kind:
            assert bytes(loaded.payload) == payload, (at, value)  # whatever its header says
        elif "checked" in kind or not (is_inside or is_said_to_be_raw(data)):
            assert is_said_to_be_raw(data) or bytes(loaded.payload) == payload, (at, value)


@given(data=st.data())
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_checked_file_is_never_wrong(data: st.DataObject, tmp_path: Path) -> None:
    """Any change behind its header: it is refused, or loads as it was."""
    good = bytearray(DAMAGED["v2-checked"])
    start = 52 + len(TEXT)
    for _ in range(data.draw(st.integers(1, 3))):
        good[data.draw(st.integers(start, len(good) - 1))] = data.draw(BYTE)
    path = tmp_path / "a.kv"
    path.write_bytes(good)
    try:
        assert ds4kv.load(path).payload == SMALL
    except ds4kv.CorruptError:
        assert good != DAMAGED["v2-checked"]


# ---------------------------------------------------------------------------------- the two peers


@pytest.mark.slow
@given(file=files(), workers=st.sampled_from([0, 2]))
@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
def test_what_the_peer_writes_is_read(file: tuple[str, bytes, bytes], workers: int, tmp_path: Path) -> None:
    name, payload, data = file
    path = tmp_path / "a.kv"
    path.write_bytes(data)
    try:
        expected = reference.parse(data)
    except reference.Bad:
        with pytest.raises((ds4kv.CorruptError, ds4kv.UnsupportedError)):
            ds4kv.load(path, workers=workers)
        return
    loaded = ds4kv.load(path, workers=workers)
    assert bytes(loaded.payload) == expected.payload
    assert loaded.header.pack() == data[:48]
    if name in ("v1", "v2", "v2-checked", "packed"):
        assert expected.payload == payload


@pytest.mark.parametrize("level", [None, *range(13)])
@pytest.mark.parametrize("size", [1, 3, 4, 63, 64, 65, 1000, 5003])
def test_the_peer_reads_what_is_written(level: int | None, size: int, tmp_path: Path) -> None:
    payload = (b"DSV4" + struct.pack("<f", 1.5) * 2000)[:size]
    path = tmp_path / "a.kv"
    options = {"model_id": 2, "payload_abi": 3, "chunk_size": 1024, "layout": "v2-checked", "level": level}
    written = ds4kv.dump(path, payload, tokens=9, ctx_size=64, text=TEXT, trailer=b"tail", **options)
    data = path.read_bytes()
    found = reference.parse(data)
    assert (found.payload, found.text, found.trailer) == (payload, TEXT, b"tail")
    assert (found.layout, found.model_id, found.payload_abi) == (written.layout, 2, 3)
    assert found.layout == ("v2-checked" if size >= 63 else "v1")
    assert data[:48] == written.pack()


def test_both_write_the_same_bytes(tmp_path: Path) -> None:
    """By LZ4_compress_default, the same in all releases of lz4."""
    payload = struct.pack("<2000f", *(n % 17 / 8 for n in range(2000))) + b"odd"
    path = tmp_path / "a.kv"
    parts = {"text": TEXT, "created_at": 5, "last_used": 6}
    options = {"layout": "v2-checked", "chunk_size": 4096, "model_id": 1, "payload_abi": 2}
    ds4kv.dump(path, payload, tokens=600, ctx_size=32768, level=0, **parts, **options)
    assert path.read_bytes() == build_checked(
        payload, log2=12, block=reference.fast, model_id=1, payload_abi=2, **parts
    )


def lost_codecs() -> Iterator[object]:
    """Good files with byte 21 flipped to 0; and what looks so, and is good."""
    for log2 in (1, 6, 12, 24, 26):
        good = {"v2-checked": checked(log2=log2), "v2-mid": build_mid(PAYLOAD, log2=log2, text=TEXT)}
        for name, data in good.items():
            yield fooler(f"{name}, 2**{log2}", "CorruptError", data[:21] + b"\0" + data[22:])
            yield fooler(f"{name}, 2**{log2}, version 1", "v1", data[:3] + b"\1" + data[4:21] + b"\0" + data[22:])
        yield fooler(f"raw, of another region, 2**{log2}", "v2", raw(log2 << 16, encode_checked(PAYLOAD, 128)))
        yield fooler(f"raw, 2**{log2}, twelve zeros", "v2", raw(log2 << 16, bytes(12)))
        cut = checked(log2=log2)
        yield fooler(f"raw, 2**{log2}, cut short", "v2", cut[:21] + b"\0" + cut[22:-1])
    good = checked(log2=6)
    yield fooler("byte 23 is not 0", "v2", good[:21] + b"\0\6\1" + good[24:])
    yield fooler("byte 22 is no exponent", "v2", good[:21] + b"\0\33\0" + good[24:])


LOST_CODECS = list(lost_codecs())


@pytest.mark.parametrize(("name", "data"), LOST_CODECS)
def test_a_codec_that_is_lost_is_told_by_the_records(name: str, data: bytes, tmp_path: Path) -> None:
    assert sniffed(data) == name
    if name == "v1":
        return  # the reference asks for version 2 first
    try:
        assert reference.layout_of(data) == name
    except reference.Bad as bad:
        assert (name, bad.verdict, bad.at) == ("CorruptError", reference.CORRUPT, 21)
        with pytest.raises(ds4kv.CorruptError) as refused:
            (tmp_path / "a.kv").write_bytes(data)
            ds4kv.load(tmp_path / "a.kv")
        assert (refused.value.offset, refused.value.field) == (21, "codec")
