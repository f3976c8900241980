"""Every rule by which a file is refused, each with a control: the same file with that one thing
repaired loads. One table for whole files, one for payload regions; the second runs through
`ds4kv.load` and through `ds4kv.PayloadReader` alike. All bytes come from reference.py's builders."""

from __future__ import annotations

import hashlib
import io
import os
import struct
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import reference
from helpers import MIB
from reference import (
    build,
    build_checked,
    build_crc,
    build_mid,
    decode_region,
    region_of,
    regroup,
    sequences,
    store,
    ungroup,
)

import ds4kv
from ds4kv.format.header import Form

CHUNK = 64
PAYLOAD = bytes((7 * i + 3) % 251 for i in range(2 * CHUNK + 22))  # two full chunks and a short one
A, B, C = (PAYLOAD[i : i + CHUNK] for i in range(0, len(PAYLOAD), CHUNK))
TEXT = b"text"
REGION = region_of([(64, store(A)), (64, store(B)), (22, store(C))])
GOOD_LZ4 = build(REGION, text=TEXT)
GOOD_RAW = build(PAYLOAD, text=TEXT, codec=0, chunk_size=0)
GOOD_CHECKED = build_checked(PAYLOAD, text=TEXT)
GOOD_MID = build_mid(b"DSV4" + PAYLOAD[4:], text=TEXT)
GOOD_V1 = build(PAYLOAD, text=TEXT, version=1, codec=0, chunk_size=0)
GOOD_MODEL = build_checked(PAYLOAD, text=TEXT, model_id=1, payload_abi=2)
GOOD = (GOOD_LZ4, GOOD_RAW, GOOD_V1, GOOD_CHECKED, GOOD_MID, GOOD_MODEL)

KINDS = {
    reference.CORRUPT: ds4kv.CorruptError,
    reference.TRUNCATED: ds4kv.TruncatedError,
    reference.UNSUPPORTED: ds4kv.UnsupportedError,
}


@dataclass(frozen=True)
class FileRule:
    id: str
    verdict: str
    at: int  # where the error points
    bad: bytes
    good: bytes = GOOD_LZ4


@dataclass(frozen=True)
class RegionRule:
    id: str
    bad: bytes
    at: int  # the first byte of the frame field, or of the record, that gives it away
    good: bytes = REGION
    chunk_size: int = CHUNK
    checked: bool = False


# ------------------------------------------------------------------------------ rules for files


def other_layout(byte_21: int, log2: int, region: bytes, *, model: int = 0, abi: int = 0) -> bytes:
    """A version 2 file of a layout with its codec in byte 21 and its chunk size in byte 22."""
    return build(region, text=TEXT, codec=model, chunk_size=abi | byte_21 << 8 | log2 << 16)


def file_rules() -> Iterator[FileRule]:
    corrupt, truncated, unsupported = reference.CORRUPT, reference.TRUNCATED, reference.UNSUPPORTED
    lz4 = {"region": REGION, "text": TEXT}
    raw = {"region": PAYLOAD, "text": TEXT, "codec": 0, "chunk_size": 0}

    for magic in (b"kVC", b"KVD", b"K\0C", b"\0\0\0"):
        yield FileRule(f"magic {magic!r}", corrupt, 0, build(**lz4, magic=magic))
    for version in (0, 3, 255):
        yield FileRule(f"version {version}", unsupported, 3, build(**lz4, version=version))
    for quant in (0, 1, 3, 5, 255):
        for version in (1, 2):
            yield FileRule(
                f"quant_bits {quant} v{version}",
                corrupt,
                4,
                build(**raw, quant_bits=quant, version=version),
                build(**raw, quant_bits=4, version=version),
            )
    for codec in (3, 7, 255):
        yield FileRule(f"codec {codec}", unsupported, 7, build(**lz4, codec=codec))
        yield FileRule(f"codec {codec} of hc", unsupported, 7, build(**lz4, codec=codec),
                       build(**lz4, codec=2))  # fmt: skip
    yield FileRule("tokens 0", corrupt, 8, build(**lz4, tokens=0), build(**lz4, tokens=1))
    yield FileRule("tokens 0 v1", corrupt, 8, build(**raw, version=1, tokens=0), GOOD_V1)

    one = region_of([(len(PAYLOAD), store(PAYLOAD))])
    for chunk_size in (0, 64 * MIB + 1, 0xFFFFFFFF):
        for codec in (1, 2):
            yield FileRule(
                f"chunk_size {chunk_size} codec {codec}",
                corrupt,
                20,
                build(one, codec=codec, chunk_size=chunk_size),
                build(one, codec=codec, chunk_size=64 * MIB),
            )
    empty = region_of([])
    for size in range(12):
        yield FileRule(f"payload_bytes {size}", corrupt, 52, build(empty, payload_bytes=size),
                       build(empty))  # fmt: skip

    for version in (1, 2):
        shortest = build(version=version, codec=0, chunk_size=0)
        assert len(shortest) == 52
        for size in range(52):
            yield FileRule(f"{size} bytes v{version}", truncated, size, shortest[:size], shortest)
    for good, parts in ((GOOD_LZ4, lz4), (GOOD_RAW, raw)):
        codec, size = good[7], len(parts["region"])
        for claim in (size + 1, 2**31, 2**32 - 1 - len(TEXT)):
            bad = build(**parts, text_bytes=len(TEXT) + claim)
            yield FileRule(f"text {claim} past its end, codec {codec}", truncated, 48, bad, good)
        for claim in (size + 1, 2**32 + size, 2**63, 2**64 - 56, 2**64 - 1):
            bad = build(**parts, payload_bytes=claim)
            yield FileRule(f"payload_bytes {claim}, codec {codec}", truncated, 40, bad, good)
        yield FileRule(f"text cut, codec {codec}", truncated, 48, good[:54], good)
        yield FileRule(f"payload cut, codec {codec}", truncated, 40, good[:60], good)
        yield FileRule(f"last byte cut, codec {codec}", truncated, 40, good[:-1], good)

    # Codecs that live in byte 21: v1 may not have them, v2 files of other layouts are named.
    for byte_21 in (1, 2):
        yield FileRule(
            f"v1 with codec {byte_21} in byte 21",
            unsupported,
            21,
            build(PAYLOAD, text=TEXT, version=1, codec=0, chunk_size=byte_21 << 8),
            build(PAYLOAD, text=TEXT, version=1, codec=9, chunk_size=0xFF1803FF),
        )
    yield FileRule("v2-checked, cut", truncated, 40, GOOD_CHECKED[:-1], GOOD_CHECKED)
    yield FileRule("v2-mid, cut", truncated, 40, GOOD_MID[:-1], GOOD_MID)
    yield FileRule("codec 7, with chunks that are no codec in byte 21", unsupported, 7,
                   build(one, codec=7, chunk_size=4096), build(one, chunk_size=4096))  # fmt: skip

    # With two candidates, what neither fits says how far the better one got.
    records = 52 + len(TEXT) + 12
    for model in (1, 2):
        checked = build_checked(PAYLOAD, text=TEXT, model_id=model)
        second = records + 12 + len(store(A))
        for id, at in (("raw size", second), ("block size", second + 7)):
            bad = bytearray(checked)
            bad[at] ^= 1
            yield FileRule(f"v2-checked, model {model}, {id}", corrupt, second, bytes(bad), checked)
        bad = bytearray(checked)
        bad[records - 4] ^= 1
        yield FileRule(f"v2-checked, model {model}, count", corrupt, records - 12, bytes(bad), checked)
        chunks = region_of([(512, store(bytes(512))), (88, store(bytes(88)))])
        v2 = build(chunks, text=TEXT, codec=model, chunk_size=512)
        second = records + 8 + len(store(bytes(512)))
        for id, at in (("raw size", second), ("block size", second + 7)):
            bad = bytearray(v2)
            bad[at] ^= 1
            yield FileRule(f"v2 of 512 bytes a chunk, codec {model}, {id}", corrupt, second, bytes(bad), v2)
    for log2 in (27, 31, 32, 255):
        bad = bytearray(GOOD_CHECKED)
        bad[22] = log2
        yield FileRule(f"v2-checked, chunks of 2**{log2}", corrupt, 22, bytes(bad), GOOD_CHECKED)
    for at, good in ((21, GOOD_CHECKED), (21, GOOD_MID)):
        for codec in (3, 255):
            bad = bytearray(good)
            bad[at] = codec
            yield FileRule(f"codec {codec}, records as of {good[21]}", unsupported, 21, bytes(bad), good)
    for good in (GOOD_CHECKED, GOOD_MID):
        bad = bytearray(good)
        bad[23] = 1
        yield FileRule(f"byte 23 with codec {good[21]}", corrupt, 23, bytes(bad), good)
    future = build(version=3)
    for size in (4, 20, 47, 51):
        yield FileRule(f"version 3, {size} bytes", unsupported, 3, future[:size],
                       build(version=1, codec=0, chunk_size=0))  # fmt: skip
    yield FileRule("codec 3 in byte 21", unsupported, 21, other_layout(3, 24, PAYLOAD),
                   other_layout(3, 27, PAYLOAD))  # fmt: skip
    yield FileRule("codec 255 in byte 21", unsupported, 21, other_layout(255, 12, PAYLOAD),
                   other_layout(255, 11, PAYLOAD))  # fmt: skip
    for byte_21 in (1, 2):
        yield FileRule(
            f"codec {byte_21} in byte 21 over raw bytes",
            corrupt,
            52 + len(TEXT) + 8,
            other_layout(byte_21, 6, PAYLOAD),
            other_layout(byte_21, 27, PAYLOAD),
        )
    yield FileRule("v2-crc", unsupported, 48, build_crc(PAYLOAD, text=TEXT), GOOD_RAW)


# ---------------------------------------------------------------------------- rules for regions


def checked_of(records: Iterable[Sequence[int | bytes]], **claims: int | bytes) -> bytes:
    """reference.region_of, with the XXH32 of what the block stands for in each head, if it does for anything."""

    def record(raw_size: int, block: bytes, *claim: int) -> tuple[int | bytes, ...]:
        try:
            raw = ungroup(reference.decode_block(block, raw_size)[0])
        except reference.Bad:
            raw = b""
        return raw_size, struct.pack("<I", reference.xxh32(raw)) + block, claim[0] if claim else len(block)

    return reference.region_of((record(*each) for each in records), **claims)


def region_rules(checked: bool) -> Iterator[RegionRule]:
    """For records with and without a checksum."""
    region_of, head_bytes = (checked_of, 12) if checked else (reference.region_of, 8)
    region = region_of([(64, store(A)), (64, store(B)), (22, store(C))])

    def rule(id: str, bad: bytes, at: int, good: bytes = region, chunk_size: int = CHUNK) -> RegionRule:
        return RegionRule(f"checked: {id}" if checked else id, bad, at, good, chunk_size, checked)

    a, b, c = (64, store(A)), (64, store(B)), (22, store(C))
    first = 12
    second = first + head_bytes + len(a[1])
    third = second + head_bytes + len(b[1])
    end = third + head_bytes + len(c[1])
    assert end == len(region)

    # Sizes that do not add up.
    short, long = (63, store(A[:63])), (23, store(PAYLOAD[127:]))
    yield rule("first chunk short, last one longer", region_of([short, b, long]), first)
    yield rule("first chunk short, total less", region_of([short, b, c]), first)
    yield rule("second chunk short", region_of([a, (63, store(B[:63])), long]), second)
    yield rule("surplus in the last", region_of([a, b, (23, store(C + b"!"))], total=150),
                     third)  # fmt: skip
    yield rule("deficit in the last", region_of([a, b, (21, store(C[:21]))], total=150),
                     third)  # fmt: skip
    yield rule("total 1 less", region_of([a, b, c], total=149), third)
    yield rule("total 1 more", region_of([a, b, c], total=151), third)

    # The frame.
    for count in (0, 2, 4, 2**32 - 1):
        yield rule(f"count {count} for 3", region_of([a, b, c], count=count), 8)
    yield rule("count 4 and a fourth record", region_of([a, b, c, c], total=150), 8)
    yield rule("count 3 for two full chunks", region_of([a, b], count=3), 8,
                     region_of([a, b]))  # fmt: skip
    yield rule("total 0 with a record", region_of([a, b, c], total=0), 8)
    empty, at = (region, 8) if checked else (region_of([]), 12)
    yield rule("no chunks but bytes", region_of([], extra=b"\0"), at, empty)
    yield rule("no chunks but a record", region_of([a], total=0, count=0), at, empty)
    yield rule("total 2**64 - 1", region_of([a, b, c], total=2**64 - 1), 8)
    yield rule("total too large for u32 counts", region_of([a, b, c], total=2**38 + 150), 8)
    yield rule(
        "more chunks than the region has room for",
        region_of([a, b, c], total=64 * 2000, count=2000),
        0,
    )

    # Bytes left over, bytes missing.
    for extra in (b"\0", bytes(7), bytes(8), struct.pack("<II", 22, 23) + c[1]):
        yield rule(f"{len(extra)} bytes left over", region + extra, end)
    yield rule("last record missing", region[:third], second)  # whose size leaves no room for it
    yield rule("last head cut", region[: third + head_bytes - 1], second)
    yield rule("last block missing", region[: third + head_bytes], second)
    yield rule("last block cut", region[:-1], third)

    # Record heads.
    for raw_size in (0, 1, 63, 65, 2**31, 2**32 - 1):
        yield rule(f"raw_size {raw_size}", region_of([(raw_size, a[1]), b, c], total=150),
                         first)  # fmt: skip
    yield rule("last raw_size 0", region_of([a, b, (0, c[1])], total=150), third)
    yield rule("last raw_size full", region_of([a, b, (64, c[1])], total=150), third)
    for size in (0, 2**31, 2**32 - 1):
        yield rule(f"block size {size}", region_of([(*a, size), b, c]), first)
    yield rule("last block size 0", region_of([a, b, (22, b"")]), second)
    over = store(A) + bytes(reference.bound(CHUNK) + 1 - len(store(A)))
    yield rule("block above the bound", region_of([(64, over), b, c]), first)
    yield rule("block size 1 less", region_of([a, (*b, len(b[1]) - 1), c]), second)
    yield rule("block size 1 more", region_of([a, (*b, len(b[1]) + 1), c]), second)
    yield rule("block size 1 past the region", region_of([a, b, (*c, len(c[1]) + 1)]), third)

    # Blocks. Each stands in the middle chunk of three, between two good ones.
    good = sequences((b"abcd", 4, 40), b"0123456789abcdefghij")

    def block(id: str, bad: bytes, good: bytes = good) -> RegionRule:
        assert len(reference.decode_block(good, 64)[0]) == 64
        return rule(id, region_of([a, (64, bad), c]), second, region_of([a, (64, good), c]))

    tail = b"0123456789abcdefghij"
    yield block("match reaches 1 before the chunk", sequences((b"abcd", 5, 40), tail))
    yield block("match reaches into the chunk before", sequences((b"abcd", 64, 40), tail))
    yield block("match offset 65535", sequences((b"abcd", 65535, 40), tail))
    yield block("match before any literal", sequences((b"", 1, 44), tail))
    yield block("decodes to 1 more", sequences((b"abcd", 4, 41), tail))
    yield block("decodes to far more", sequences((b"abcd", 4, 5000), tail))
    yield block("decodes to 1 less", sequences((b"abcd", 4, 39), tail))
    yield block("decodes to nothing", b"\0")
    yield block("a byte after the end", good + b"\0")
    yield block("last literal missing", good[:-1])
    yield block("ends with a match", sequences((b"abcd", 4, 40), (tail[:10], 4, 10))[:-1])
    yield block("ends inside an offset", store(A[:40]) + b"\x0f\x01")
    yield block("ends inside a literal length", b"\xf0\xff")
    yield block("ends inside a match length", sequences((b"abcd", 4, 40))[:-1])
    yield block("literals leave the block", b"\xf0\x31" + A[:63])

    # The same in a chunk long enough for LZ4's fast loop, so that both of its loops are asked.
    size, noise = 4096, bytes((i * i * 31 + i) % 256 for i in range(4096))
    for at in (100, 2000, 2900):
        yield rule(
            f"match offset before a long chunk, at {at}",
            region_of([(size, sequences((noise[:at], at + 1, 50), noise[: size - 50 - at]))]),
            12,
            region_of([(size, sequences((noise[:at], at, 50), noise[: size - 50 - at]))]),
            size,
        )  # fmt: skip

    # Claims that no block of that length can make good.
    most = sequences((b"abcd", 1, 2000), tail)
    fair = 4 + 2000 + len(tail)
    for raw_size in (fair + 1, 255 * len(most), 255 * len(most) + 1, 64 * MIB):
        yield rule(
            f"{raw_size} bytes out of {len(most)}",
            region_of([(raw_size, most)]),
            0,
            region_of([(fair, most)]),
            64 * MIB,
        )


def checksum_rules() -> Iterator[RegionRule]:
    """What layout v2-checked asks beyond what v2 does."""
    region = reference.encode_checked(PAYLOAD, CHUNK)
    heads = [12, 12 + 12 + len(store(A)), 12 + 2 * (12 + len(store(A)))]

    def changed(at: int, new: bytes) -> bytes:
        return region[:at] + new + region[at + len(new) :]

    yield RegionRule("checked: no chunks", region_of([]), 8, region, checked=True)
    for number, (head, chunk) in enumerate(zip(heads, (A, B, C), strict=True)):
        for at in (8, 9, 11):
            bad = changed(head + at, bytes([region[head + at] ^ 1]))
            yield RegionRule(f"checksum {number}, byte {at}", bad, head, region, checked=True)
        of_block = struct.pack("<I", reference.xxh32(regroup(chunk)))
        yield RegionRule(f"checksum {number} of what is in the block", changed(head + 8, of_block), head, region,
                         checked=True)  # fmt: skip
        yield RegionRule(f"chunk {number} not regrouped", changed(head + 12, store(chunk)), head, region, checked=True)
        last = head + 11 + len(store(chunk))
        bad = changed(last, bytes([region[last] ^ 0x10]))
        yield RegionRule(f"chunk {number}, a literal changed", bad, head, region, checked=True)


FILES = list(file_rules())
REGIONS = [*region_rules(False), *region_rules(True), *checksum_rules()]

files = pytest.mark.parametrize("rule", FILES, ids=[rule.id for rule in FILES])
regions = pytest.mark.parametrize("rule", REGIONS, ids=[rule.id for rule in REGIONS])
workers = pytest.mark.parametrize("workers", [0, 1, 2, 8])
few_workers = pytest.mark.parametrize("workers", [None, 0])


def as_file(rule: RegionRule, region: bytes) -> bytes:
    word = 2 << 8 | (rule.chunk_size.bit_length() - 1) << 16
    codec, number = (0, word) if rule.checked else (1, rule.chunk_size)
    return build(region, text=TEXT, codec=codec, chunk_size=number, trailer=b"after")


def decoded(rule: RegionRule) -> bytes:
    return decode_region(rule.good, rule.chunk_size, grouped=rule.checked, checked=rule.checked)[0]


def refused(path: Path, verdict: str, workers: int | None) -> ds4kv.Ds4kvError:
    """The error by which load refuses the file, after a look at what it tells."""
    with pytest.raises(KINDS[verdict]) as caught:
        ds4kv.load(path, workers=workers)
    error = caught.value
    assert type(error) is KINDS[verdict]
    assert os.fspath(error.path) == os.fspath(path)
    assert os.fspath(path) in str(error)
    assert isinstance(error.offset, int)
    assert isinstance(error.field, str)
    assert 0 < len(error.field) < 30
    return error


def loads(path: Path, data: bytes, workers: int | None) -> None:
    path.write_bytes(data)
    expected = reference.parse(data)
    assert not expected.loose
    loaded = ds4kv.load(path, workers=workers)
    assert bytes(loaded.payload) == expected.payload
    assert (loaded.text, loaded.trailer) == (expected.text, expected.trailer)
    assert loaded.header.pack() == data[:48]


def test_the_good_files_are_good(tmp_path: Path) -> None:
    for data in GOOD:
        assert reference.parse(data).payload[4:] == PAYLOAD[4:]
        loads(tmp_path / "good.kv", data, None)


@pytest.mark.slow
@files
@few_workers
def test_file_rule(rule: FileRule, workers: int | None, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.kv"
    path.write_bytes(rule.bad)
    with pytest.raises(reference.Bad) as bad:
        reference.parse(rule.bad)
    assert (bad.value.verdict, bad.value.at) == (rule.verdict, rule.at)
    assert refused(path, rule.verdict, workers).offset == rule.at
    loads(path, rule.good, workers)


def test_the_other_layout_is_named(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.kv"
    path.write_bytes(build_crc(PAYLOAD, text=TEXT))
    assert "v2-crc" in str(refused(path, reference.UNSUPPORTED, None))


@pytest.mark.slow
@regions
@workers
def test_region_rule_in_a_file(rule: RegionRule, workers: int | None, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.kv"
    data = as_file(rule, rule.bad)
    path.write_bytes(data)
    with pytest.raises(reference.Bad) as bad:
        reference.parse(data)
    assert bad.value.verdict == reference.CORRUPT
    start = 52 + len(TEXT)
    assert start + rule.at <= refused(path, reference.CORRUPT, workers).offset
    assert refused(path, reference.CORRUPT, workers).offset <= start + len(rule.bad)
    loads(path, as_file(rule, rule.good), workers)


class Pipe(io.RawIOBase):
    """A file object that can't seek and gives little at a time."""

    def __init__(self, content: bytes) -> None:
        self._left = memoryview(content)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        n = min(len(buffer), len(self._left), 13)
        buffer[:n], self._left = self._left[:n], self._left[n:]
        return n


def drain(
    fp: io.BytesIO | Pipe, region_bytes: int, chunk_size: int, workers: int | None, checked: bool = False
) -> bytes:
    """The payload of the region that begins where fp stands, read in small steps."""
    got = bytearray()
    form = Form.CHECKED if checked else Form.PLAIN
    with ds4kv.PayloadReader(fp, region_bytes, chunk_size=chunk_size, form=form, workers=workers) as stream:
        while piece := stream.read(50):
            got += piece
    return bytes(got)


def inside(region: bytes, start: int) -> io.BytesIO:
    fp = io.BytesIO(bytes(start) + region + b"after")
    fp.seek(start)
    return fp


@pytest.mark.slow
@regions
@workers
def test_region_rule_in_a_stream(rule: RegionRule, workers: int | None) -> None:
    with pytest.raises(ds4kv.CorruptError) as caught:
        drain(inside(rule.bad, 1000), len(rule.bad), rule.chunk_size, workers, rule.checked)
    error = caught.value
    assert type(error) is ds4kv.CorruptError
    assert isinstance(error.offset, int)
    assert 1000 + rule.at <= error.offset <= 1000 + len(rule.bad)
    assert error.field
    good = inside(rule.good, 1000)
    assert drain(good, len(rule.good), rule.chunk_size, workers, rule.checked) == decoded(rule)
    assert good.read() == b"after"


@regions
@few_workers
def test_region_rule_through_a_pipe(rule: RegionRule, workers: int | None) -> None:
    with pytest.raises(ds4kv.CorruptError) as caught:
        drain(Pipe(rule.bad + b"after"), len(rule.bad), rule.chunk_size, workers, rule.checked)
    assert type(caught.value) is ds4kv.CorruptError
    good = Pipe(rule.good + b"after")
    assert drain(good, len(rule.good), rule.chunk_size, workers, rule.checked) == decoded(rule)
    assert good.read() == b"after"


@pytest.mark.parametrize("missing", [1, len(REGION) - 12, len(REGION) - 11, len(REGION)])
@pytest.mark.parametrize("kind", [io.BytesIO, Pipe])
@workers
def test_stream_that_ends_early_is_truncated(missing: int, kind: type[io.BytesIO | Pipe], workers: int | None) -> None:
    with pytest.raises(ds4kv.TruncatedError):
        drain(kind(REGION[: len(REGION) - missing]), len(REGION), CHUNK, workers)
    assert drain(kind(REGION), len(REGION), CHUNK, workers) == PAYLOAD


@pytest.mark.parametrize("region_bytes", range(12))
def test_stream_shorter_than_a_frame(region_bytes: int) -> None:
    with pytest.raises(ds4kv.CorruptError):
        ds4kv.PayloadReader(io.BytesIO(REGION), region_bytes, chunk_size=CHUNK)


@pytest.mark.parametrize("at", [4, 100, 2000, 2900, 4000])
def test_match_offset_zero_is_zeros_and_never_what_lay_in_memory(at: int, tmp_path: Path) -> None:
    # LZ4 forbids it and its decoder takes it; to notice would be to walk every block twice. What must not happen is
    # that bytes of the process get into the payload.
    noise = bytes((i * i * 31 + i) % 256 for i in range(4096))
    block = sequences((noise[:at], 0, 50), noise[: 4096 - 50 - at])
    path = tmp_path / "a.kv"
    path.write_bytes(build(region_of([(4096, block)]), chunk_size=4096))
    into = bytearray(b"\xaa") * 4096
    ds4kv.load(path, into=into)
    assert into == noise[:at] + bytes(50) + noise[: 4096 - 50 - at]


@pytest.mark.parametrize("name_of", [b"", b"tex", b"text ", b"Text"])
def test_name_of_another_text(name_of: bytes, tmp_path: Path) -> None:
    wrong = tmp_path / f"{hashlib.sha1(name_of).hexdigest()}.kv"
    right = tmp_path / f"{hashlib.sha1(TEXT).hexdigest()}.kv"
    for data in GOOD:
        wrong.write_bytes(data)
        with pytest.raises(reference.Bad):
            reference.parse(data, wrong.name)
        refused(wrong, reference.CORRUPT, None)
        loads(right, data, None)


# -------------------------------------------------------------------- claims that must cost nothing


def claims() -> Iterator[tuple[str, bytes]]:
    """Files of about a hundred bytes that announce up to 16 EiB, each in another number."""
    pad = bytes(44)
    for version in (1, 2):
        raw = {"version": version, "codec": 0, "chunk_size": 0}
        yield f"v{version} payload", build(pad, payload_bytes=2**64 - 1, **raw)
        yield f"v{version} text", build(pad, text_bytes=2**32 - 1, **raw)
        yield f"v{version} sum", build(pad, text_bytes=40, payload_bytes=2**64 - 92, **raw)
    yield "region", build(pad, payload_bytes=2**64 - 1)
    big = 64 * MIB
    block = store(bytes(24))
    for id, total, count in (
        ("total", 2**64 - 1, 2**32 - 1),
        ("frame that holds", big * (2**32 - 1), 2**32 - 1),
        ("4 GiB", big * 64, 64),
        ("3 chunks", big * 3, 3),
        ("1 chunk", big, 1),
    ):
        for raw_size in (24, big):
            records = [(raw_size, block)]
            region = region_of(records, total=total, count=count)
            yield f"{id}, raw size {raw_size}", build(region, chunk_size=big)
            region = checked_of(records, total=total, count=count)
            yield f"checked: {id}, raw size {raw_size}", build(region, codec=0, chunk_size=2 << 8 | 26 << 16)
    for size in (2**32 - 1, reference.bound(big)):
        region = region_of([(big, block, size)])
        yield f"block size {size}", build(region, chunk_size=big)


FRUGAL = """
import resource, struct, sys
import ds4kv

def stream(path, workers):
    with open(path, "rb") as fp:
        head = fp.read(52)
        chunk_size, size = struct.unpack_from("<I", head, 20)[0] or 1, struct.unpack_from("<Q", head, 40)[0]
        with ds4kv.PayloadReader(fp, size, chunk_size=chunk_size, workers=workers) as payload:
            payload.read(1)

good, *paths = sys.argv[1:]
for workers in (0, 2):
    ds4kv.load(good, workers=workers)
    stream(good, workers)
size = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmSize")) << 10
resource.setrlimit(resource.RLIMIT_AS, (size + (192 << 20),) * 2)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in paths:
    for read in (ds4kv.load, stream):
        for workers in (0, 2):
            try:
                read(path, workers=workers)
            except ds4kv.CorruptError:
                continue
            sys.exit(f"{path} loaded")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc and counts on RLIMIT_AS")
def test_large_claims_cost_nothing(tmp_path: Path) -> None:
    """With 192 MiB of address space to spare (thread stacks want some) and 4 MiB of real memory."""
    good = tmp_path / "good.kv"
    good.write_bytes(build(REGION))
    paths = []
    for number, (id, data) in enumerate(claims()):
        assert len(data) < 160, id
        with pytest.raises(reference.Bad):
            reference.parse(data)
        path = tmp_path / f"{number} {id}.kv"
        path.write_bytes(data)
        paths.append(str(path))
    done = subprocess.run(
        [sys.executable, "-c", FRUGAL, str(good), *paths],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 4096, f"{done.stdout} KiB"
