"""Salvage: what is good of a damaged file is kept, what isn't is named, and nothing that is damaged is given out."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import reference
from helpers import GOLDEN, MANIFEST, damage_quietly

import ds4kv
from ds4kv.cli import main
from ds4kv.file.salvage import Damage, Wreck, examine
from ds4kv.store.store import Store

BAD = GOLDEN / "bad"
BASE = (BAD / "base.payload.bin").read_bytes()

CHUNK = 4096
TEXT = b"the rendered prompt"
TRAILER = b"KTM\1\0\0\0\0"
HEAD_BYTES = {"v2": 8, "v2-checked": 12, "packed": 20}
FRAME_BYTES = {"v2": 12, "v2-checked": 12, "packed": 40}
LAYOUTS = list(HEAD_BYTES)
every_layout = pytest.mark.parametrize("layout", LAYOUTS)

_rng = random.Random(7)
PAYLOAD = b"".join(_rng.randbytes(32) * _rng.randint(1, 8) for _ in range(160))[: 5 * CHUNK - 100]


def make(directory: Path, layout: str = "v2", payload: bytes = PAYLOAD, **options: Any) -> Path:
    """A good checkpoint of five chunks with a trailer."""
    path = directory / "damaged.kv"
    options = {"chunk_size": CHUNK, "text": TEXT, "trailer": TRAILER, "ext_flags": 1, "hits": 7, **options}
    if layout == "v1":
        del options["chunk_size"]
    ds4kv.dump(path, payload, tokens=5, ctx_size=9, layout=layout, **options)
    return path


def records(path: Path, layout: str) -> list[tuple[int, int]]:
    """Offset and size of each record, told from the bytes alone."""
    content = path.read_bytes()
    text_bytes, region_bytes = int.from_bytes(content[48:52], "little"), int.from_bytes(content[40:48], "little")
    at, end, found = 52 + text_bytes + FRAME_BYTES[layout], 52 + text_bytes + region_bytes, []
    while at < end:
        size = HEAD_BYTES[layout] + int.from_bytes(content[at + 4 : at + 8], "little")
        found.append((at, size))
        at += size
    return found


def overwrite(path: Path, offset: int, new: bytes) -> None:
    with path.open("r+b") as fp:
        fp.seek(offset)
        fp.write(new)


def spoil(path: Path, layout: str, chunk: int) -> int:
    """Makes one block no block; the offset of its record."""
    offset, size = records(path, layout)[chunk]
    overwrite(path, offset + HEAD_BYTES[layout], b"\xff" * (size - HEAD_BYTES[layout]))
    return offset


def lost(path: Path) -> list[tuple[int, int | None]]:
    """The payload that is lost."""
    return [each[:2] for each in examine(path)[1] if each.raw_start != each.raw_stop]


# ------------------------------------------------------------------------------------------- library


@pytest.mark.parametrize("case", MANIFEST["good"], ids=[case["file"] for case in MANIFEST["good"]])
def test_nothing_is_found_in_good_files(case: dict[str, Any]) -> None:
    payload = (GOLDEN / case["payload"]).read_bytes() if case["payload"] else b""
    assert examine(GOLDEN / case["file"]) == (len(payload), ())
    checkpoint = ds4kv.load(GOLDEN / case["file"], salvage=True)
    assert checkpoint == ds4kv.load(GOLDEN / case["file"])
    assert checkpoint.damage == ()


@pytest.mark.parametrize(
    ("file", "good_bytes", "ranges", "offset", "why"),
    [
        ("ok_control.kv", 9000, [], None, None),
        ("payload_trunc_mid_chunk.kv", 4096, [(4096, 9000)], 2079, "chunk 1: the file ends at byte 3077"),
        ("chunk_count_plus_1.kv", 9000, [], 70, "the frame can't be true"),
        ("raw_0.kv", 4096, [(4096, 9000)], 2079, "chunk 1 claims 0 payload bytes"),
        ("flip_token.kv", 4096, [(4096, 8192)], 2079, "chunk 1: this is no LZ4 block"),
        ("trailing_in_payload.kv", 9000, [], 4542, "7 bytes are left over after the last record"),
    ],
)
def test_of_the_shared_corrupt_files(
    file: str, good_bytes: int, ranges: list[tuple[int, int]], offset: int | None, why: str | None
) -> None:
    found, damage = examine(BAD / file)
    assert found == good_bytes
    assert [each[:2] for each in damage if each.raw_start != each.raw_stop] == ranges
    assert len(damage) == (why is not None)
    if why is not None:
        assert damage[0].offset == offset
        assert damage[0].why.startswith(why)
    checkpoint = ds4kv.load(BAD / file, salvage=True)
    assert checkpoint.payload == BASE[:good_bytes]
    assert checkpoint.damage == damage


@every_layout
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_damaged_block_costs_its_chunk_alone(layout: str, workers: int, tmp_path: Path) -> None:
    for chunk in range(5):
        path = make(tmp_path, layout)
        offset = spoil(path, layout, chunk)
        start, stop = chunk * CHUNK, min((chunk + 1) * CHUNK, len(PAYLOAD))
        good_bytes, damage = examine(path, workers)
        assert good_bytes == start
        assert [each[:3] for each in damage] == [(start, stop, offset)]
        room = bytearray(len(PAYLOAD) + 10)
        checkpoint = ds4kv.load(path, into=room, salvage=True, workers=workers)
        assert checkpoint.payload == PAYLOAD[:start]
        # What is good behind the damage is where it belongs.
        assert room[:start] == PAYLOAD[:start] and room[stop : len(PAYLOAD)] == PAYLOAD[stop:]
        assert (checkpoint.text, checkpoint.trailer, checkpoint.header) == (TEXT, TRAILER, ds4kv.read_header(path))


def test_damage_that_meets_is_one(tmp_path: Path) -> None:
    path = make(tmp_path)
    offsets = [spoil(path, "v2", chunk) for chunk in (0, 1, 3)]
    good_bytes, damage = examine(path)
    assert good_bytes == 0
    assert [each[:3] for each in damage] == [(0, 2 * CHUNK, offsets[0]), (3 * CHUNK, 4 * CHUNK, offsets[2])]
    offset, _ = records(path, "v2")[4]
    overwrite(path, offset, bytes(4))
    assert lost(path) == [(0, 2 * CHUNK), (3 * CHUNK, len(PAYLOAD))]


@every_layout
@pytest.mark.parametrize("field", [0, 4])
@pytest.mark.parametrize("value", [0, 1, 0x7FFFFFFF, 0xFFFFFFFF])
def test_behind_a_broken_head_all_is_lost(layout: str, field: int, value: int, tmp_path: Path) -> None:
    for chunk in range(5):
        path = make(tmp_path, layout)
        offset, _ = records(path, layout)[chunk]
        overwrite(path, offset + field, value.to_bytes(4, "little"))
        start = chunk * CHUNK
        assert lost(path) == [(start, len(PAYLOAD))]
        good_bytes, damage = examine(path)
        assert good_bytes == start
        assert offset <= damage[0].offset <= offset + 4
        assert ds4kv.load(path, salvage=True).payload == PAYLOAD[:start]


@every_layout
def test_a_block_size_that_is_wrong_by_little(layout: str, tmp_path: Path) -> None:
    """The head may be true by itself; but what it leads to isn't."""
    for chunk in range(5):
        for by in (-1, 1, 3):
            path = make(tmp_path, layout)
            offset, size = records(path, layout)[chunk]
            overwrite(path, offset + 4, (size - HEAD_BYTES[layout] + by).to_bytes(4, "little"))
            good_bytes, damage = examine(path)
            assert damage
            assert PAYLOAD[:good_bytes] == ds4kv.load(path, salvage=True).payload
            assert good_bytes <= (chunk + 1) * CHUNK


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["v1", *LAYOUTS])
def test_cut_short_anywhere(layout: str, tmp_path: Path) -> None:
    payload = PAYLOAD[: 2 * 256 + 100]
    options = {} if layout == "v1" else {"chunk_size": 256}
    content = make(tmp_path, layout, payload, **options).read_bytes()
    whole = tmp_path / "damaged.kv"
    region_start = 52 + len(TEXT)
    region_end = region_start + int.from_bytes(content[40:48], "little")
    ends = [at + size for at, size in records(whole, layout)] if layout != "v1" else []
    cut = tmp_path / "cut.kv"
    for size in range(len(content)):
        cut.write_bytes(content[:size])
        if size < 52:
            with pytest.raises(ds4kv.TruncatedError):
                examine(cut)
            continue
        good_bytes, damage = examine(cut)
        checkpoint = ds4kv.load(cut, salvage=True)
        if layout == "v1":
            expected = min(max(size - region_start, 0), len(payload))
        else:
            expected = min(256 * sum(end <= size for end in ends), len(payload))
        assert (good_bytes, bytes(checkpoint.payload)) == (expected, payload[:expected])
        assert checkpoint.text == TEXT[: size - 52]
        if layout == "packed":
            assert checkpoint.trailer == b""
            [*remarks, last] = damage
            assert remarks == []
            assert last.raw_start == (expected if size < region_end else 0)  # or it is of the trailer
            continue
        assert checkpoint.trailer == content[region_end:size]
        if size >= region_end:
            assert damage == ()
        else:
            is_framed = layout == "v1" or size >= region_start + 12
            assert [each[:2] for each in damage] == [(expected, len(payload) if is_framed else None)]
            assert "ends at" in damage[0].why


@pytest.mark.parametrize("model_id", [0, 1, 2])
def test_cut_behind_the_first_record_of_what_v2_claims_too(model_id: int, tmp_path: Path) -> None:
    path = make(tmp_path, "v2-checked", model_id=model_id)
    end = sum(records(path, "v2-checked")[0])
    with path.open("r+b") as fp:
        fp.truncate(end)
    saved = ds4kv.load(path, salvage=True)
    assert (saved.header.layout, saved.payload) == ("v2-checked", PAYLOAD[:CHUNK])


@pytest.mark.parametrize("layout", ["v1", *LAYOUTS])
@pytest.mark.parametrize("claimed", [2**62, 2**63 - 1, 2**64 - 1])
def test_a_region_larger_than_any_file(layout: str, claimed: int, tmp_path: Path) -> None:
    path = make(tmp_path, layout, trailer=b"", ext_flags=0)
    overwrite(path, 40, claimed.to_bytes(8, "little"))
    assert ds4kv.load(path, salvage=True).payload == PAYLOAD


@pytest.mark.parametrize("layout", ["v2", "v2-checked"])
def test_a_damaged_frame_costs_nothing(layout: str, tmp_path: Path) -> None:
    content = make(tmp_path, layout).read_bytes()
    path = tmp_path / "damaged.kv"
    start = 52 + len(TEXT)
    for offset in range(start, start + 12):
        for flip in (0x01, 0x80, 0xFF):
            path.write_bytes(content)
            overwrite(path, offset, bytes([content[offset] ^ flip]))
            good_bytes, damage = examine(path)
            assert good_bytes == len(PAYLOAD)
            assert [each[:3] for each in damage] == [(0, 0, start)]
            assert ds4kv.load(path, salvage=True).payload == PAYLOAD


@pytest.mark.parametrize("size", [len(PAYLOAD), CHUNK, 100], ids=lambda size: f"{size} bytes")
def test_a_damaged_frame_of_packed_is_known_again(size: int, tmp_path: Path) -> None:
    path = make(tmp_path, "packed", PAYLOAD[:size])
    content, good = path.read_bytes(), ds4kv.load(path)
    start = 52 + len(TEXT)
    damages = [(offset, bytes([content[offset] ^ 1])) for offset in range(start, start + 40)]
    for offset, new in [*damages, (start, bytes(40)), (start, b"\xff" * 40)]:
        path.write_bytes(content)
        overwrite(path, offset, new)
        with pytest.raises(ds4kv.CorruptError):
            ds4kv.load(path)
        good_bytes, [damage] = examine(path)
        assert (good_bytes, damage[:3]) == (size, (0, 0, start))
        found = ds4kv.load(path, salvage=True)
        assert found._replace(damage=()) == good


def test_a_damaged_frame_of_packed_costs_what_is_damaged_beside_it(tmp_path: Path) -> None:
    path = make(tmp_path, "packed")
    start, places = 52 + len(TEXT), records(path, "packed")
    overwrite(path, start + 33, b"rust")
    content = path.read_bytes()
    assert lost(path) == []  # the control
    spoil(path, "packed", 3)
    assert lost(path) == [(3 * CHUNK, 4 * CHUNK)]
    overwrite(path, places[3][0], bytes(4))  # so nothing leads to the end, and the frame says no size
    assert lost(path) == [(3 * CHUNK, None)]
    for offset in (16, 49, 52, places[0][0] + 4, places[0][0] + 12, places[0][0] + 60):
        path.write_bytes(content)
        damage_quietly(path, offset)
        good_bytes, damage = examine(path)
        assert good_bytes == 0
        assert [each.raw_start for each in damage if each.raw_start != each.raw_stop] == [0]
        assert ds4kv.load(path, salvage=True).payload == b""


@pytest.mark.parametrize("offset", [8, 16, 24, 52, 52 + len(TEXT) - 1], ids=lambda offset: f"byte {offset}")
def test_what_is_sealed_may_be_damaged_and_the_records_prove_themselves(offset: int, tmp_path: Path) -> None:
    path = make(tmp_path, "packed")
    damage_quietly(path, offset)
    with pytest.raises(ds4kv.CorruptError) as caught:
        ds4kv.load(path)
    assert (caught.value.field, caught.value.offset) == ("seal", 52 + len(TEXT) + 16)
    spoil(path, "packed", 3)
    good_bytes, [of_the_seal, lost_chunk] = examine(path)
    assert good_bytes == 3 * CHUNK
    assert of_the_seal[:3] == (0, 0, 52 + len(TEXT) + 16)
    assert of_the_seal.why == "header and text are not those that were saved with this payload"
    assert lost_chunk[:2] == (3 * CHUNK, 4 * CHUNK)
    assert ds4kv.load(path, salvage=True).trailer == TRAILER


def test_records_of_packed_in_another_place_are_lost(tmp_path: Path) -> None:
    """Chunks 1 and 3 in each other's place, and chunk 2 of the same in a file that was saved anew."""
    noise = random.Random(1).randbytes(len(PAYLOAD))  # stored as it is: records are of one size
    path = make(tmp_path, "packed", noise)
    other = path.rename(tmp_path / "other.kv").read_bytes()
    make(tmp_path, "packed", noise[::-1])
    places = records(path, "packed")
    content = path.read_bytes()
    for chunk, source in ((1, content), (3, content), (2, other)):
        (to, size), (at, _) = places[chunk], places[4 - chunk]
        overwrite(path, to, source[at : at + size])
    assert lost(path) == [(CHUNK, 4 * CHUNK)]
    good = ds4kv.load(path, salvage=True, into=(room := bytearray(len(noise))))
    assert (good.payload, room[4 * CHUNK :]) == (noise[::-1][:CHUNK], noise[::-1][4 * CHUNK :])


@pytest.mark.parametrize("options", [{}, {"ext_flags": 0}, {"ext_flags": 0, "trailer": b""}], ids=str)
def test_where_packed_ends_is_told_by_frame_and_records(options: dict[str, Any], tmp_path: Path) -> None:
    """The region's size is the one number of the header that the records alone prove."""
    path = make(tmp_path, "packed", **options)
    good, content = ds4kv.load(path), path.read_bytes()
    start, (offset, _) = 52 + len(TEXT), records(path, "packed")[3]
    sizes = [good.header.payload_bytes ^ 1 << bit for bit in range(64)]
    for claimed in (0, 39, 40, 41, offset - start, offset - start + 30, *sizes):
        overwrite(path, 40, claimed.to_bytes(8, "little"))
        with pytest.raises(ds4kv.CorruptError):
            ds4kv.load(path)
        found = ds4kv.load(path, salvage=True)
        assert found._replace(damage=()) == good
        [damage] = found.damage
        assert damage[:3] == (0, 0, 40)
        assert damage.why.endswith(f"by the header at {start + claimed}")
    path.write_bytes(content)
    os.truncate(path, offset)
    overwrite(path, 40, (offset - start).to_bytes(8, "little"))
    why = f"the records end after {3 * CHUNK} of {len(PAYLOAD)} bytes of payload"
    assert examine(path)[1][-1] == (3 * CHUNK, len(PAYLOAD), offset, why)


@pytest.mark.parametrize("by", [-1, 1, 3])
@pytest.mark.parametrize("flags", [0, 1])
def test_the_trailer_of_packed_is_found_behind_a_last_block_of_another_size(
    flags: int, by: int, tmp_path: Path
) -> None:
    path = make(tmp_path, "packed", ext_flags=flags)
    offset, size = records(path, "packed")[4]
    overwrite(path, offset + 4, (size - 20 + by).to_bytes(4, "little"))
    found = ds4kv.load(path, salvage=True)
    assert (found.payload, found.trailer) == (PAYLOAD[: 4 * CHUNK], TRAILER)
    assert [each[:2] for each in found.damage] == [(4 * CHUNK, len(PAYLOAD))]
    assert found.header == ds4kv.read_header(path)


@pytest.mark.parametrize("size", [len(PAYLOAD), CHUNK, 100, 0], ids=lambda size: f"{size} bytes")
def test_the_chunk_size_of_packed_is_told_by_frame_and_seal(size: int, tmp_path: Path) -> None:
    path = make(tmp_path, "packed", PAYLOAD[:size])
    good, content = ds4kv.load(path), path.read_bytes()
    for bit in range(21 * 8, 24 * 8):
        path.write_bytes(content)
        overwrite(path, bit // 8, bytes([content[bit // 8] ^ 1 << bit % 8]))
        with pytest.raises(ds4kv.CorruptError):
            ds4kv.load(path)
        found = ds4kv.load(path, salvage=True)
        assert found._replace(damage=()) == good
        [damage] = found.damage
        # Two sizes may both fit a single chunk: then the seal alone says which one was saved.
        assert damage[:3] == (0, 0, bit // 8)
    damage_quietly(path, 16)  # with another damage the seal doesn't hold, and that is told as well
    found = ds4kv.load(path, salvage=True)
    assert found.payload == PAYLOAD[:size]
    assert [each[:3] for each in found.damage] == [(0, 0, 23), (0, 0, 52 + len(TEXT) + 16)]


def test_how_much_is_lost_may_be_unknown(tmp_path: Path) -> None:
    path = make(tmp_path)
    offset, _ = records(path, "v2")[3]
    overwrite(path, 52 + len(TEXT) + 8, b"\x09")
    os.truncate(path, offset + 20)
    good_bytes, damage = examine(path)
    assert good_bytes == 3 * CHUNK
    assert [each[:2] for each in damage] == [(3 * CHUNK, None)]
    with Wreck(path) as wreck:
        assert (wreck.raw_total, wreck.claimed_bytes) == (None, 3 * CHUNK)


def test_a_damaged_text_costs_no_payload(tmp_path: Path) -> None:
    path = tmp_path / f"{hashlib.sha1(TEXT).hexdigest()}.kv"
    shutil.move(make(tmp_path), path)
    assert examine(path) == (len(PAYLOAD), ())
    overwrite(path, 52, b"T")
    good_bytes, damage = examine(path)
    assert good_bytes == len(PAYLOAD)
    assert [each[:3] for each in damage] == [(0, 0, 52)]
    assert "SHA-1" in damage[0].why
    checkpoint = ds4kv.load(path, salvage=True)
    assert (checkpoint.payload, checkpoint.text) == (PAYLOAD, b"T" + TEXT[1:])


def test_a_disk_that_fails_is_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make(tmp_path)
    bad, _ = records(path, "v2")[2]
    preadv = os.preadv

    def fail(fd: int, buffers: Any, offset: int) -> int:
        if offset == bad:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return preadv(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", fail)
    assert examine(path) == (2 * CHUNK, (Damage(2 * CHUNK, 3 * CHUNK, bad, "chunk 2: Input/output error"),))


@pytest.mark.parametrize(
    ("offset", "value", "error"),
    [
        (0, b"X", ds4kv.CorruptError),
        (3, b"\x03", ds4kv.UnsupportedError),
        (4, b"\x03", ds4kv.CorruptError),
        (7, b"\x07", ds4kv.UnsupportedError),
        (8, bytes(4), ds4kv.CorruptError),
    ],
)
def test_without_a_header_there_is_nothing_to_go_by(
    offset: int, value: bytes, error: type[Exception], tmp_path: Path
) -> None:
    path = make(tmp_path)
    examine(path)  # the control
    overwrite(path, offset, value)
    for salvage in (lambda: examine(path), lambda: ds4kv.load(path, salvage=True)):
        with pytest.raises(error) as caught:
            salvage()
        assert caught.value.path == str(path)


def test_into_has_room_for_what_the_records_claim(tmp_path: Path) -> None:
    path = make(tmp_path)
    spoil(path, "v2", 1)
    ds4kv.load(path, into=bytearray(len(PAYLOAD)), salvage=True)
    with pytest.raises(ValueError, match="into is"):
        ds4kv.load(path, into=bytearray(len(PAYLOAD) - 1), salvage=True)


def test_without_salvage_damage_is_an_error(tmp_path: Path) -> None:
    path = make(tmp_path)
    assert ds4kv.load(path).damage == ()
    spoil(path, "v2", 1)
    with pytest.raises(ds4kv.CorruptError):
        ds4kv.load(path)


@pytest.mark.slow
@every_layout
def test_any_bytes_changed_give_no_surprise(layout: str, tmp_path: Path) -> None:
    content = make(tmp_path, layout).read_bytes()
    path = tmp_path / "damaged.kv"
    rng = random.Random(layout)
    for _ in range(300):
        changed = bytearray(content)
        for _ in range(rng.randint(1, 3)):
            changed[rng.randrange(3, len(changed))] ^= 1 << rng.randrange(8)
        path.write_bytes(changed[: rng.choice([len(changed), rng.randrange(52, len(changed))])])
        try:
            good_bytes, damage = examine(path)
        except (ds4kv.CorruptError, ds4kv.UnsupportedError) as error:
            assert error.offset is not None and error.offset < 52
            continue
        assert len(ds4kv.load(path, salvage=True).payload) == good_bytes
        ranges = [each[:2] for each in damage if each.raw_start != each.raw_stop]
        assert all(stop is None or start < stop for start, stop in ranges)
        assert ranges == sorted(ranges, key=lambda each: each[0])
        assert not ranges or ranges[0][0] == good_bytes


# ------------------------------------------------------------------- what a store has noted of a file


def noted(directory: Path, payload: bytes, layout: str, codec: str) -> Path:
    """A checkpoint that a store has saved."""
    with Store(directory, layout=layout, codec=codec) as store:
        entry = store.save_buffer(TEXT + TOOL_CALL, payload, tokens=600, ctx_size=9, tool_map={b"call_1": TOOL_CALL})
    assert entry is not None
    path = Path(entry.path)
    with ds4kv.open(path) as checkpoint:
        assert checkpoint.note is not None
    return path


TOOL_CALL = b"<tool_calls>one</tool_calls>"
LARGE = 2 * ds4kv.format.header.CHUNK_SIZE + 1000


def test_sums_show_which_part_of_a_raw_payload_is_damaged(tmp_path: Path) -> None:
    payload = bytes(LARGE)
    path = noted(tmp_path, payload, "v1", "none")
    assert examine(path) == (LARGE, ())
    start = 52 + len(TEXT + TOOL_CALL)
    chunk = ds4kv.format.header.CHUNK_SIZE
    damage_quietly(path, start + chunk + 5)
    assert examine(path) == (chunk, (Damage(chunk, 2 * chunk, start + chunk, "chunk 1 is not what was saved"),))
    checkpoint = ds4kv.load(path, salvage=True)
    assert checkpoint.payload == payload[:chunk]
    # Whoever doesn't want to know takes the bytes as they are.
    assert ds4kv.load(path, salvage=True, verify=False).damage == ()
    os.truncate(path, start + 2 * chunk + 10)
    assert lost(path) == [(chunk, LARGE)]


def test_sums_show_a_block_that_still_decodes(tmp_path: Path) -> None:
    path = noted(tmp_path, random.Random(3).randbytes(5000), "v2", "lz4")
    offset, size = records(path, "v2")[0]
    damage_quietly(path, offset + size - 10)
    assert examine(path) == (0, (Damage(0, 5000, offset, "chunk 0 is not what was saved"),))
    copy = tmp_path / "copy" / path.name
    copy.parent.mkdir()
    shutil.copyfile(path, copy)
    assert examine(copy) == (5000, ())


def test_a_tool_map_that_is_proven_wrong_is_left_out(tmp_path: Path) -> None:
    path, out = noted(tmp_path, b"payload", "v1", "none"), tmp_path / "out.kv"
    with Wreck(path) as wreck:
        assert wreck.trailer
    damage_quietly(path, path.stat().st_size - 5)
    good_bytes, damage = examine(path)
    assert good_bytes == len(b"payload")
    assert [each[:3] for each in damage] == [(0, 0, 52 + len(TEXT + TOOL_CALL) + 7)]
    assert main(["salvage", str(path), str(out)]) == 0
    saved = ds4kv.load(out)
    assert (saved.payload, saved.trailer, saved.header.ext_flags) == (b"payload", b"", 0)


def test_a_header_that_is_not_the_noted_one_is_told(tmp_path: Path) -> None:
    path = noted(tmp_path, bytes(5000), "v2", "lz4")
    with ds4kv.open(path) as checkpoint:
        if not checkpoint.note.birth_ns:
            pytest.skip("this file system doesn't say when a file came into being")
    damage_quietly(path, 9)
    good_bytes, damage = examine(path)
    assert good_bytes == 5000
    assert [each[:3] for each in damage] == [(0, 0, 9)]


# ------------------------------------------------------------------------------------------- command


@every_layout
def test_the_command_saves_what_is_good(layout: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = make(tmp_path, layout), tmp_path / "gerettet-\u00fc-\u4f60.kv"
    spoil(path, layout, 3)
    before, status = path.read_bytes(), path.stat()
    assert main(["salvage", str(path), str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{out}: 12,288 of {len(PAYLOAD):,} bytes of payload saved"
    assert lines[1].startswith("lost: bytes 12,288 to 16,383, 4,096 bytes: chunk 3: ")
    assert len(lines) == 2
    saved = ds4kv.load(out)
    assert (saved.payload, saved.text, saved.trailer) == (PAYLOAD[: 3 * CHUNK], TEXT, TRAILER)
    chunk_size = saved.header.chunk_size if layout == "v2" else 1 << 20  # in chunks of its size
    before_it = ds4kv.read_header(path)._replace(payload_bytes=0, chunk_size=chunk_size)
    assert saved.header._replace(payload_bytes=0) == before_it
    assert (path.read_bytes(), path.stat().st_mtime_ns) == (before, status.st_mtime_ns)
    assert sorted(tmp_path.iterdir()) == sorted([path, out])


def test_the_command_says_that_it_seals_what_nothing_proves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = make(tmp_path, "packed"), tmp_path / "out.kv"
    spoil(path, "packed", 3)
    overwrite(path, 22, b"\x0d")  # which the seal tells: header and text are proven
    assert main(["salvage", str(path), str(out)]) == 0
    assert "sealed anew" not in capsys.readouterr().out
    damage_quietly(path, 52)
    assert main(["salvage", str(path), str(out)]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[-1] == f"{out} is sealed anew, with header and text as they were found: nothing proves those"
    assert any("header and text are not those that were saved" in line for line in told)
    assert ds4kv.load(out).text != TEXT
    spoil(path, "packed", 0)
    assert main(["salvage", str(path), str(tmp_path / "none.kv")]) == 1
    assert "sealed anew" not in capsys.readouterr().out


def test_the_command_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = make(tmp_path), tmp_path / "out.kv"
    offset = spoil(path, "v2", 3)
    assert main(["salvage", "--json", str(path), str(out)]) == 0
    told = json.loads(capsys.readouterr().out)
    [damage] = told.pop("damage")
    assert told == {"path": str(path), "out": str(out), "saved_bytes": 3 * CHUNK, "raw_total": len(PAYLOAD)}
    assert damage.pop("why").startswith("chunk 3: ")
    assert damage == {"raw_start": 3 * CHUNK, "raw_stop": 4 * CHUNK, "offset": offset}


def test_the_command_says_that_nothing_could_be_saved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = make(tmp_path), tmp_path / "out.kv"
    spoil(path, "v2", 0)
    assert main(["salvage", str(path), str(out)]) == 1
    told, err = capsys.readouterr()
    assert told.splitlines()[1].startswith("lost: bytes 0 to 4,095")
    assert err == f"ds4kv: error: {path}: nothing could be saved\n"
    assert main(["salvage", "--json", str(path), str(out)]) == 1
    assert json.loads(capsys.readouterr().out)["out"] is None
    assert list(tmp_path.iterdir()) == [path]


def test_the_command_on_a_good_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = make(tmp_path), tmp_path / "out.kv"
    assert main(["salvage", str(path), str(out)]) == 0
    told = capsys.readouterr().out.splitlines()[1:]
    assert told == ["no damage was found; without checksums or sums, changed bytes that still decode can't be seen"]
    assert out.read_bytes() == path.read_bytes()
    ds4kv.dump(path, PAYLOAD, tokens=1, ctx_size=1, layout="v2-checked", chunk_size=CHUNK)
    assert main(["salvage", str(path), str(out)]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == ["nothing is lost: no damage was found"]


def test_no_tool_map_is_claimed_that_is_not_there(tmp_path: Path) -> None:
    path, out = make(tmp_path, ext_flags=0xF5), tmp_path / "out.kv"
    os.truncate(path, path.stat().st_size - len(TRAILER) - 1)
    assert main(["salvage", str(path), str(out)]) == 0
    saved = ds4kv.load(out)
    assert (saved.header.ext_flags, saved.trailer, saved.payload) == (0xF4, b"", PAYLOAD[: 4 * CHUNK])


@pytest.mark.parametrize("layout", ["v1", "v2 none"])
def test_the_command_on_a_raw_file_that_was_cut(
    layout: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = tmp_path / "damaged.kv", tmp_path / "out.kv"
    version = 1 if layout == "v1" else 2
    content = reference.build(PAYLOAD, text=TEXT, version=version, codec=0, chunk_size=0)
    path.write_bytes(content[:-5])
    assert main(["salvage", str(path), str(out)]) == 0
    assert "lost: bytes" in capsys.readouterr().out
    assert out.read_bytes()[52:] == content[52:-5]
    assert ds4kv.load(out).payload == PAYLOAD[:-5]


@pytest.mark.parametrize("way", ["itself", "another spelling", "symbolic link", "hard link"])
def test_the_damaged_file_is_never_the_target(way: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = make(tmp_path), tmp_path / "out.kv"
    spoil(path, "v2", 3)
    before = path.read_bytes()
    target = {"itself": path, "another spelling": tmp_path / "." / ".." / tmp_path.name / path.name}.get(way, out)
    if way == "symbolic link":
        out.symlink_to(path)
    if way == "hard link":
        out.hardlink_to(path)
    assert main(["salvage", str(path), str(target)]) == 2
    assert "is the damaged file itself" in capsys.readouterr().err
    assert path.read_bytes() == before
    assert {name.name for name in tmp_path.iterdir()} <= {path.name, out.name}


def test_bad_use_of_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = make(tmp_path)
    for argv, code, message in [
        ([str(path)], 2, "OUT"),
        ([str(path), str(tmp_path)], 2, "is a directory"),
        ([str(path), str(tmp_path / f"{'0' * 40}.kv")], 2, "SHA-1"),
        ([str(tmp_path / "missing.kv"), str(tmp_path / "out.kv")], 1, "No such file"),
        ([str(BAD / "codec_7.kv"), str(tmp_path / "out.kv")], 1, "codec 7"),
        ([str(path), str(tmp_path / "missing" / "out.kv")], 1, "No such file"),
    ]:
        assert main(["salvage", *argv]) == code
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("ds4kv: error: ") and message in err and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == [path]
