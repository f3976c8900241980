"""Damage to files in layout packed: whatever is done to the bytes, no reader gives out a wrong one.

Only hits, last_used and the trailer's flag may differ: they are what is changed in place; and without that flag a
trailer may be gone. DS4KV_FLIPS=500000 tries so many files with several flipped bits, in place of a few thousand.
"""

from __future__ import annotations

import hashlib
import os
import random
import struct
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from processes import started

import ds4kv
from ds4kv.file.verdict import Verdict
from ds4kv.format.toolmap import pack_tool_map

FLIPS = int(os.environ.get("DS4KV_FLIPS", "6000"))
TEXT = b"the prompt <tool_calls>now()</tool_calls>"
MAP = pack_tool_map({b"call_7": b"<tool_calls>now()</tool_calls>"})
FACTS: dict[str, Any] = {"text": TEXT, "tokens": 700, "ctx_size": 900, "hits": 3, "model_id": 1, "payload_abi": 2}
NOISE = random.Random(5).randbytes(100_000)
FLOATS = np.float32(2.0 ** (np.arange(4096) % 32)).tobytes()
HALVES = np.float16(np.arange(4096) % 64).tobytes()


def built(payload: bytes, **options: Any) -> bytes:
    return reference.build_packed(payload, **{**FACTS, **options})


FILES = {
    "tool map": built(FLOATS[:2100], log2=11, trailer=MAP, ext_flags=1),
    "another trailer": built(FLOATS[:2100], log2=12, trailer=b"what an engine put here"),
    "stored": built(NOISE[:150], log2=6, text=b"", model_id=0),
    "planes of 16": built(HALVES[:4096], log2=11, words=[16]),
    "planes of 32": built(FLOATS[:4096], log2=11),
    "many chunks": built(b"abcdefgh" * 25 + NOISE[:30], log2=5, words=[0], trailer=MAP, ext_flags=0xFF),
    "empty": built(b"", trailer=MAP, ext_flags=1),
}
every_file = pytest.mark.parametrize("kind", FILES)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("damage") / "a.kv"


def facts(data: bytes) -> bytes:
    """All of a header that is never to be wrong."""
    head = bytearray(data[:48])
    head[6] &= 0xFE
    head[12:16] = bytes(4)
    head[32:40] = bytes(8)
    return bytes(head)


def parts(data: bytes) -> tuple[bytes, bytes, list[bytes], bytes]:
    """Header and text, frame, records, and what is behind them."""
    at = 52 + struct.unpack_from("<I", data, 48)[0]
    end = at + struct.unpack_from("<Q", data, 40)[0]
    front, frame, at, records = data[:at], data[at : at + 40], at + 40, []
    while at < end:
        size = 20 + struct.unpack_from("<I", data, at + 4)[0]
        records.append(data[at : at + size])
        at += size
    return front, frame, records, data[end:]


def sealed(data: bytes) -> bytes:
    """The same without the size of the region, which is proven when the records are read."""
    return facts(data)[:40]


def judge(data: bytes, good: bytes, path: Path, workers: int = 0) -> str:
    """What comes of damaged bytes, by every way in: all that reads them refuses, or all that is given out is right."""
    true = reference.parse(good)
    path.write_bytes(data)
    refused = set()

    def is_right(header: ds4kv.Header, text: bytes, payload: bytes, trailer: bytes) -> None:
        assert facts(header.pack()) == facts(good)
        assert (text, payload) == (true.text, true.payload)
        assert trailer == true.trailer or (trailer == b"" and not header.ext_flags & 1)

    try:
        loaded = ds4kv.load(path, workers=workers)
        is_right(loaded.header, loaded.text, bytes(loaded.payload), loaded.trailer)
    except (ds4kv.CorruptError, ds4kv.UnsupportedError):
        refused.add("load")
    try:
        with ds4kv.open(path, workers=workers) as checkpoint:
            assert sealed(checkpoint.header.pack()) == sealed(good)
            assert checkpoint.text == true.text
            payload = b""
            while piece := checkpoint.payload.read(1000):
                payload += piece
                assert true.payload.startswith(payload)  # before the damage is met, too
            is_right(checkpoint.header, checkpoint.text, payload, checkpoint.trailer)
    except (ds4kv.CorruptError, ds4kv.UnsupportedError):
        refused.add("open")
    try:
        assert sealed(ds4kv.read_header(path).pack()) == sealed(good)
    except (ds4kv.CorruptError, ds4kv.UnsupportedError):
        refused.add("read_header")
    try:
        with ds4kv.open(path, workers=workers) as checkpoint:
            assert checkpoint.verify() in (Verdict.OK, Verdict.UNKNOWN)
    except (ds4kv.CorruptError, ds4kv.UnsupportedError):
        refused.add("verify")
    try:
        reference.parse(data)
    except reference.Bad:
        refused.add("reference")
    assert refused - {"read_header"} in (set(), {"load", "open", "verify", "reference"}), refused
    assert "read_header" not in refused or len(refused) == 5  # all else reads what it reads
    return "refused" if "load" in refused else "right"


@every_file
def test_control(kind: str, path: Path) -> None:
    good = FILES[kind]
    assert judge(good, good, path) == "right"
    if kind != "empty":
        transforms = {"planes of 16": {1}, "planes of 32": {2}, "stored": {0}, "many chunks": {0}}
        at = 52 + len(reference.parse(good).text) + 40
        assert struct.unpack_from("<I", good, at + 8)[0] in transforms.get(kind, {2})


# ----------------------------------------------------------------------------------------- flipped bits


def free_bits(good: bytes) -> set[int]:
    """The bits that may change: hits, last_used, the flag; and a trailer without its flag."""
    free = {6 * 8, *range(12 * 8, 16 * 8), *range(32 * 8, 40 * 8)}
    if not good[6] & 1:
        end = 52 + struct.unpack_from("<I", good, 48)[0] + struct.unpack_from("<Q", good, 40)[0]
        free |= set(range(end * 8, len(good) * 8))
        if end == len(good):
            free.remove(6 * 8)  # a tool map is promised, and there is none
    return free


def alike_bits(good: bytes) -> set[int]:
    """The bits of LZ4 blocks, where another match may stand for the same bytes; and of a transform without planes."""
    front, frame, records, _ = parts(good)
    at, found = len(front) + len(frame), set()
    for record in records:
        if record[:4] != record[4:8]:
            found |= set(range(8 * (at + 20), 8 * (at + len(record))))
            if struct.unpack_from("<I", record)[0] < 2048:
                found |= {8 * (at + 8), 8 * (at + 8) + 1}
        at += len(record)
    return found


def check_flips(kind: str, path: Path, bits: range) -> None:
    good = FILES[kind]
    free, may_be_alike = free_bits(good), alike_bits(good)
    for bit in bits:
        data = bytearray(good)
        data[bit // 8] ^= 1 << bit % 8
        said = judge(bytes(data), good, path)
        assert said == ("right" if bit in free else "refused") or bit in may_be_alike, (bit // 8, bit % 8)


@every_file
def test_some_of_its_bits(kind: str, path: Path) -> None:
    check_flips(kind, path, range(0, 8 * len(FILES[kind]), 13))


@pytest.mark.slow
@every_file
def test_every_single_bit(kind: str, path: Path) -> None:
    check_flips(kind, path, range(8 * len(FILES[kind])))


@pytest.mark.slow
@pytest.mark.timeout(60 + FLIPS // 100)
def test_several_bits_at_once(path: Path) -> None:
    """Some far apart, some close together, some all in the header: at random, and the same in each run."""
    rng = random.Random(int(os.environ.get("DS4KV_FLIPS_SEED", "1")))
    kinds = sorted(FILES)
    counts: Counter[str] = Counter()
    for _ in range(FLIPS):
        good = FILES[rng.choice(kinds)]
        data = bytearray(good)
        where = rng.choice([len(good), len(good), 52, 110])
        start, width = rng.randrange(8 * where), rng.choice([8 * where, 64, 8])
        for _ in range(rng.choice([2, 2, 3, 4, 8, 30])):
            bit = (start + rng.randrange(width)) % (8 * min(where, len(good)))
            data[bit // 8] ^= 1 << bit % 8
        counts[judge_quickly(bytes(data), good, path)] += 1
    assert counts["refused"] > FLIPS // 2
    assert counts["right"] > FLIPS // 100  # only what is free was flipped
    print(dict(counts))


TRUE = {good: reference.parse(good) for good in FILES.values()}


def judge_quickly(data: bytes, good: bytes, path: Path) -> str:
    """As :func:`judge`, by one way in that reads all of it."""
    path.write_bytes(data)
    try:
        loaded = ds4kv.load(path, workers=0)
    except (ds4kv.CorruptError, ds4kv.UnsupportedError):
        if data[-1] % 16 == 0:  # slow, so not of all
            with pytest.raises(reference.Bad):
                reference.parse(data)
        return "refused"
    true = TRUE[good]
    assert reference.parse(data).payload == true.payload
    assert facts(loaded.header.pack()) == facts(good)
    assert (loaded.text, bytes(loaded.payload)) == (true.text, true.payload)
    assert loaded.trailer == true.trailer or (loaded.trailer == b"" and not loaded.header.ext_flags & 1)
    return "right"


def check_salvage(data: bytes, good: bytes, path: Path) -> None:
    """No chunk that a salvage calls good is another one, and what it says is whole is."""
    true = TRUE[good]
    path.write_bytes(data)
    room = bytearray(max(len(true.payload), 1) + 4096)
    try:
        found = ds4kv.load(path, salvage=True, into=room)
    except (ds4kv.CorruptError, ds4kv.UnsupportedError):
        return
    except ValueError:  # more is claimed than there is room for
        found = ds4kv.load(path, salvage=True)
        assert true.payload.startswith(bytes(found.payload))
        return
    assert true.payload.startswith(bytes(found.payload))
    assert found.damage or (bytes(found.payload), found.text) == (true.payload, true.text)
    assert found.damage or sealed(found.header.pack()) == sealed(good)
    lost = [range(each.raw_start, len(room) if each.raw_stop is None else each.raw_stop) for each in found.damage]
    size = true.chunk_size
    for start in range(0, len(true.payload), size):
        stop = min(start + size, len(true.payload))
        if not any(gap.start < stop and start < gap.stop for gap in lost):
            assert room[start:stop] == true.payload[start:stop], start


@every_file
def test_salvage_of_some_of_its_bits(kind: str, path: Path) -> None:
    good = FILES[kind]
    for bit in range(0, 8 * len(good), 19):
        data = bytearray(good)
        data[bit // 8] ^= 1 << bit % 8
        check_salvage(bytes(data), good, path)
    for size in range(60, len(good), 7):
        check_salvage(good[:size], good, path)


@every_file
def test_what_is_said_twice_may_be_damaged(kind: str, path: Path) -> None:
    """Chunk size, the region's size, and the frame: whichever bit of them is flipped, a salvage has all the rest."""
    good = FILES[kind]
    true, front = TRUE[good], 52 + len(TRUE[good].text)
    path.write_bytes(good)
    assert ds4kv.load(path, salvage=True).damage == ()  # the control
    for at in [*range(21, 24), *range(40, 48), *range(front, front + 40)]:
        for bit in range(8):
            data = bytearray(good)
            data[at] ^= 1 << bit
            path.write_bytes(data)
            found = ds4kv.load(path, salvage=True)
            assert (found.text, bytes(found.payload), found.trailer) == (true.text, true.payload, true.trailer)
            assert found.header.pack() == good[:48]
            assert [each.raw_start == each.raw_stop for each in found.damage] == [True], (at, bit)


@pytest.mark.slow
@every_file
def test_salvage_of_every_bit(kind: str, path: Path) -> None:
    good = FILES[kind]
    for bit in range(8 * len(good)):
        data = bytearray(good)
        data[bit // 8] ^= 1 << bit % 8
        check_salvage(bytes(data), good, path)


# -------------------------------------------------------------------------------- what is cut, and moved


@every_file
def test_cut_short_at_every_byte(kind: str, path: Path) -> None:
    good = FILES[kind]
    parsed = reference.parse(good)
    end = 52 + len(parsed.text) + parsed.payload_bytes
    for size in range(len(good)):
        is_free = size >= end and not good[6] & 1
        assert judge(good[:size], good, path) == ("right" if is_free else "refused"), size
        if not is_free and size > 3:
            with pytest.raises(ds4kv.TruncatedError if size < end + 9 else ds4kv.CorruptError):
                ds4kv.load(path)


@every_file
def test_bytes_behind_it(kind: str, path: Path) -> None:
    good = FILES[kind]
    for more in (b"\0", bytes(9), good[-8:], good):
        assert judge(good + more, good, path) == ("refused" if good[6] & 1 else "right")


@every_file
def test_bytes_taken_out_or_put_in(kind: str, path: Path) -> None:
    good = FILES[kind]
    end = 52 + struct.unpack_from("<I", good, 48)[0] + struct.unpack_from("<Q", good, 40)[0]
    for at in range(0, end, 3):
        for data in (good[:at] + good[at + 1 :], good[:at] + b"\0" + good[at:], good[:at] + good[at + 4 :]):
            if data != good:
                judge(data, good, path)


def joined(front: bytes, frame: bytes, records: list[bytes], behind: bytes) -> bytes:
    """With the payload's size that it has now."""
    region = frame + b"".join(records)
    return front[:40] + struct.pack("<Q", len(region)) + front[48:] + region + behind


SAME = b"one chunk and the same again....".ljust(32, b".")
CHUNKS = {
    "stored": [NOISE[64 * i :][:64] for i in range(6)],
    "the same chunk": [SAME * 2] * 6,
    "zeros": [bytes(64)] * 6,
    "packed": [bytes([i]) * 64 for i in range(6)],
}


@pytest.mark.parametrize("kind", CHUNKS)
def test_records_that_changed_places(kind: str, path: Path) -> None:
    good = built(b"".join(CHUNKS[kind]), words=[0], trailer=MAP, ext_flags=1)
    front, frame, records, behind = parts(good)
    assert judge(joined(front, frame, records, behind), good, path) == "right"
    for i in range(6):
        for j in range(6):
            if i == j:
                continue
            swapped = records[:]
            swapped[i], swapped[j] = records[j], records[i]
            assert judge(joined(front, frame, swapped, behind), good, path) == "refused"
            repeated = records[:]
            repeated[i] = records[j]
            assert judge(joined(front, frame, repeated, behind), good, path) == "refused"
    for odd in (records[:-1], records[1:], records + records[-1:], records[::-1], records[1:] + records[:1]):
        assert judge(joined(front, frame, odd, behind), good, path) == "refused"


def others() -> Iterator[tuple[str, bytes]]:
    """Files whose records are of the same sizes, and that differ in one thing."""
    payload = b"".join(CHUNKS["stored"])
    for name, options in {
        "text": {"text": TEXT.upper()},
        "tokens": {"tokens": 701},
        "model": {"model_id": 2},
        "created_at": {"created_at": 1},
        "reason": {"reason_code": 2},
        "flags": {"ext_flags": 3},
    }.items():
        yield name, built(payload, trailer=MAP, **{"ext_flags": 1, **options})
    yield "first chunk", built(NOISE[1000:1064] + payload[64:], trailer=MAP, ext_flags=1)
    yield "payload", built(NOISE[1000 : 1000 + len(payload)], trailer=MAP, ext_flags=1)


OTHERS = dict(others())


@pytest.mark.parametrize("name", OTHERS)
def test_records_of_another_file(name: str, path: Path) -> None:
    """Of the same geometry, and in part of the same header and text: then the first chunk's sum tells."""
    good = built(b"".join(CHUNKS["stored"]), trailer=MAP, ext_flags=1)
    front, frame, records, behind = parts(good)
    other_front, other_frame, other_records, other_behind = parts(OTHERS[name])
    for i in range(6):
        mixed = records[:]
        mixed[i] = other_records[i]
        assert judge(joined(front, frame, mixed, behind), good, path) == "refused"
    is_sealed_alike = name in ("first chunk", "payload")
    assert judge(joined(front, other_frame, records, behind), good, path) == "refused"
    if not is_sealed_alike:
        assert judge(joined(other_front, frame, records, behind), good, path) == "refused"
        assert judge(joined(front, other_frame, other_records, behind), good, path) == "refused"
        assert judge(joined(front, frame, records, other_behind), good, path) == "refused"
        assert judge(joined(other_front, frame, records, other_behind), good, path) == "refused"
    # The control: all of it, which is another good file.
    assert judge(joined(other_front, other_frame, other_records, other_behind), OTHERS[name], path) == "right"


def test_what_the_sums_cannot_tell(path: Path) -> None:
    """FORMAT.md names it: header, text and first chunk the same."""
    chunks = CHUNKS["stored"]
    one, other = (
        built(b"".join([*chunks[:5], last]), ext_flags=1, trailer=MAP) for last in (chunks[5], NOISE[999:1063])
    )
    front, frame, records, behind = parts(one)
    path.write_bytes(joined(front, frame, [*records[:5], parts(other)[2][5]], behind))
    assert bytes(ds4kv.load(path).payload) == b"".join([*chunks[:5], NOISE[999:1063]])


@settings(max_examples=300)
@given(data=st.data())
def test_splices(data: st.DataObject, path: Path) -> None:
    one, other = (FILES[data.draw(st.sampled_from(sorted(FILES)))] for _ in range(2))
    # With the same header and text, the frame says which of them it is.
    assume(one is other or reference.seal_of(one) != reference.seal_of(other))
    cut, go_on = data.draw(st.integers(0, len(one))), data.draw(st.integers(0, len(other)))
    spliced = one[:cut] + other[go_on:]
    good = other if cut < 52 and go_on == cut else one
    if facts(spliced + bytes(48)) == facts(other):
        good = other
    judge(spliced, good, path)


# -------------------------------------------------------- lies with right sums: what has to be judged by itself

RAW = FLOATS[:2048]


def lying(
    *,
    total: int = 2048,
    count: int = 1,
    zero: int = 0,
    raw_size: int = 2048,
    block_size: int | None = None,
    transform: int = 2,
    block: bytes | None = None,
    of: bytes = RAW,
    index: int = 0,
    extra: bytes = b"",
    seal: int | None = None,
    log2: int = 11,
    **options: Any,
) -> bytes:
    """A file of one record, all of whose sums are right, whatever else they say."""

    def region(true_seal: int) -> bytes:
        key, first_sum = true_seal if seal is None else seal, reference.xxh3(of)
        bytes_ = reference.fast(reference.planes_of(of, 32)) if block is None else block
        size = len(bytes_) if block_size is None else block_size
        head = reference.PACKED_HEAD.pack(raw_size, size, transform, reference.xxh3(of, key + first_sum + index))
        return reference.packed_frame(total, count, key, first_sum, zero) + head + bytes_ + extra

    return built(b"", region=region, log2=log2, **options)


ZEROS = reference.fast(bytes(2048))
LIES: dict[str, tuple[dict[str, Any], str, int]] = {
    # what is said, the field that is named, and where in the region
    "total": ({"total": 2047}, "raw_size", 40),
    "total of another count": ({"total": 2049}, "chunk_count", 8),
    "total beyond the region": ({"total": 2**62, "count": 0}, "chunk_count", 8),
    "more than a region holds": ({"total": 2**41, "count": 2**30}, "chunk_count", 8),
    "the most there can be": ({"total": 2**58 - 2**26, "count": 2**32 - 1, "log2": 26}, "chunk_count", 8),
    "one chunk of 64 MiB": ({"total": 2**26, "count": 1, "log2": 26}, "raw_total", 0),
    "count": ({"count": 2}, "chunk_count", 8),
    "no count": ({"count": 0, "total": 0}, "region", 40),
    "not zero": ({"zero": 1}, "frame", 0),
    "seal": ({"seal": 5}, "seal", 16),
    "raw size": ({"raw_size": 2049}, "raw_size", 40),
    "raw size 0": ({"raw_size": 0}, "raw_size", 40),
    "no block": ({"block": b"", "extra": bytes(9)}, "block_size", 44),
    "a block of 1": ({"block": b"\0", "extra": bytes(8)}, "block_size", 44),
    "a region too small for it": ({"block": b"\0"}, "raw_total", 0),
    "a block that is larger": ({"block": ZEROS + bytes(2048)}, "block_size", 44),
    "a block beyond the region": ({"block_size": 2000}, "block_size", 44),
    "all ones": ({"block_size": 2**32 - 1}, "block_size", 44),
    "a stored chunk of planes": ({"block": reference.planes_of(RAW, 32), "transform": 2}, "transform", 48),
    "transform 3": ({"transform": 3}, "transform", 48),
    "transform of 2**31": ({"transform": 2**31 + 2}, "transform", 48),
    "transform 1": ({"transform": 1}, "checksum", 52),
    "transform 0": ({"transform": 0}, "checksum", 52),
    "another chunk's number": ({"index": 1}, "checksum", 52),
    "another chunk": ({"block": ZEROS}, "checksum", 52),
    "a stored chunk": ({"block": bytes(2048), "transform": 0}, "checksum", 52),
    "a block of less": ({"block": reference.fast(bytes(2047))}, "block", 60),
    "a block of more": ({"block": reference.fast(bytes(2049))}, "block", 60),
    "a byte left over in the block": ({"block": ZEROS + b"\0"}, "block", 60),
    "a byte left over": ({"extra": b"\0"}, "region", -1),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_told(lie: str, path: Path) -> None:
    said, field, at = LIES[lie]
    data = lying(**said)
    start = 52 + len(TEXT)
    path.write_bytes(data)
    for workers in (0, 2):
        with pytest.raises(ds4kv.CorruptError) as refused:
            ds4kv.load(path, workers=workers)
        assert (refused.value.field, refused.value.offset) == (field, start + at if at >= 0 else len(data) - 1)
    with pytest.raises(reference.Bad):
        reference.parse(data)


def test_control_of_the_lies(path: Path) -> None:
    path.write_bytes(lying())
    assert bytes(ds4kv.load(path).payload) == RAW == reference.parse(lying()).payload
    path.write_bytes(lying(block=RAW, transform=0))
    assert bytes(ds4kv.load(path).payload) == RAW


HEADER_LIES = {"codec": (21, b"\1"), "exponent 0": (22, b"\0"), "exponent 27": (22, b"\x1b"), "last": (23, b"\1")}


@pytest.mark.parametrize("lie", HEADER_LIES)
def test_a_lie_in_the_header_is_told_before_the_seal(lie: str, path: Path) -> None:
    at, byte = HEADER_LIES[lie]
    for word in (lying(), lying(log2=12, total=2048)):
        data = word[:at] + byte + word[at + 1 :]
        path.write_bytes(data)
        with pytest.raises(ds4kv.CorruptError) as refused:
            ds4kv.load(path)
        assert (refused.value.field, refused.value.offset) == ("codec" if at == 21 else "chunk_size", at)
        with pytest.raises(reference.Bad):
            reference.parse(data)


def test_a_name_that_is_not_the_texts(path: Path) -> None:
    right, wrong = (path.with_name(f"{hashlib.sha1(text).hexdigest()}.kv") for text in (TEXT, TEXT + b"x"))
    for name in (right, wrong):
        name.write_bytes(FILES["tool map"])
    assert ds4kv.load(right).text == TEXT
    with pytest.raises(ds4kv.CorruptError):
        ds4kv.load(wrong)


# ------------------------------------------------------------------------------------- memory and time

LIMITED = """
import resource, sys
import ds4kv
ds4kv.load(sys.argv[1], workers=0)
with open("/proc/self/statm") as statm:
    used = int(statm.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[2]),) * 2)
for path in sys.argv[3:]:
    for workers in (0, 2):
        try:
            ds4kv.load(path, workers=workers)
            print("loaded")
        except ds4kv.CorruptError:
            print("refused")
        except MemoryError:
            print("no memory")
"""


def test_no_memory_is_taken_for_what_a_file_only_says(path: Path) -> None:
    folder = path.parent
    good = folder / "good.kv"
    good.write_bytes(lying())
    names = []
    for lie, (said, _, _) in LIES.items():
        names.append(folder / f"{len(names)}.kv")
        names[-1].write_bytes(lying(**said))
        assert lie
    large = folder / "large.kv"  # the control: 300 MiB of zeros are not to be had
    ds4kv.dump(large, bytes(300 << 20), layout="packed", tokens=1, ctx_size=1, level=-1)
    room = 64 << 20
    command = [sys.executable, "-c", LIMITED, good, str(room), *names, large]
    with started([str(each) for each in command]) as child:
        printed, errors = child.finish()
    assert errors == b""
    assert printed.split(b"\n")[:-1] == [b"refused"] * (2 * len(names)) + [b"no memory"] * 2


def test_many_tiny_chunks_take_no_time(path: Path) -> None:
    """Of 2 bytes each: the least there can be."""
    path.write_bytes(built(NOISE[:60_000], log2=1, words=[0]))
    start = time.monotonic()
    assert bytes(ds4kv.load(path, workers=2).payload) == NOISE[:60_000]
    assert time.monotonic() - start < 20
