"""The tool map: its bytes, what a forgiving reader makes of others, and which calls of a text it keeps."""

from __future__ import annotations

import struct
import time

import pytest
from helpers import GOLDEN
from hypothesis import example, given
from hypothesis import strategies as st

import ds4kv
from ds4kv.format.toolmap import (
    MAX_BLOCK_BYTES,
    pack_tool_map,
    read_tool_map,
    select_tool_map,
    tool_blocks,
    unpack_tool_map,
)

MAPS = st.dictionaries(st.binary(min_size=1, max_size=256), st.binary(min_size=1, max_size=99), max_size=9)

TWO = {b"call_1": b"<tool_calls>1</tool_calls>", b"toolu_2": b"\x00\xff"}
TWO_PACKED = (
    b"KTM\x01\x02\0\0\0"
    b"\x06\0\0\0\x1a\0\0\0call_1<tool_calls>1</tool_calls>"
    b"\x07\0\0\0\x02\0\0\0toolu_2\x00\xff"
)  # fmt: skip


def head(count: int) -> bytes:
    return b"KTM\x01" + struct.pack("<I", count)


def lengths(id_size: int, block_size: int) -> bytes:
    return struct.pack("<II", id_size, block_size)


ENTRY = lengths(1, 2) + b"ixx"


# Bytes


def test_bytes() -> None:
    assert pack_tool_map(TWO) == TWO_PACKED
    assert unpack_tool_map(TWO_PACKED) == TWO


@given(MAPS)
def test_round_trip(tool_map: dict[bytes, bytes]) -> None:
    packed = pack_tool_map(tool_map)
    assert len(packed) == (8 + sum(8 + len(id_) + len(block) for id_, block in tool_map.items()) if tool_map else 0)
    assert list(unpack_tool_map(packed).items()) == list(tool_map.items())


def test_a_map_of_nothing_is_no_trailer() -> None:
    assert pack_tool_map({}) == b""
    assert unpack_tool_map(b"") == {}


@pytest.mark.parametrize("name", ["s04_trailer.v1.kv", "s04_trailer.v2.lz4.kv", "s04_trailer.v2.none.kv"])
def test_the_map_of_another_writer(name: str) -> None:
    trailer = ds4kv.load(GOLDEN / name).trailer
    tool_map = unpack_tool_map(trailer)
    assert tool_map == {b"call_shared_01": "<tool_calls>grep ü</tool_calls>".encode()}
    assert pack_tool_map(tool_map) == trailer


@pytest.mark.parametrize("view", [bytearray, memoryview, lambda data: memoryview(data).cast("B", (1, len(data)))])
def test_any_buffer(view: type) -> None:
    assert unpack_tool_map(view(TWO_PACKED)) == TWO


class Sized(bytes):
    """Bytes that claim a length, which in earnest would fill the memory."""

    def __len__(self) -> int:
        return MAX_BLOCK_BYTES + 1


@pytest.mark.parametrize(
    ("tool_map", "why"),
    [
        ({b"": b"x"}, "id of 0 bytes, outside 1..256"),
        ({b"i" * 257: b"x"}, "id of 257 bytes, outside 1..256"),
        ({b"i": b""}, "tool block of id b'i' is 0 bytes, outside 1..536870912"),
        ({b"i": Sized()}, "tool block of id b'i' is 536870913 bytes, outside 1..536870912"),
        (dict.fromkeys((b"%d" % i for i in range(400_001)), b"x"), "400001 entries; at most 400000"),
    ],
)
def test_what_no_reader_takes_is_not_packed(tool_map: dict[bytes, bytes], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        pack_tool_map(tool_map)


@pytest.mark.parametrize("tool_map", [{b"i": b"x"}, {b"i" * 256: b"x"}])
def test_control_of_the_limits(tool_map: dict[bytes, bytes]) -> None:
    assert unpack_tool_map(pack_tool_map(tool_map)) == tool_map


@pytest.mark.slow
def test_most_entries() -> None:
    tool_map = dict.fromkeys((b"%d" % i for i in range(400_000)), b"x")
    assert unpack_tool_map(pack_tool_map(tool_map)) == tool_map


# The forgiving reader


@pytest.mark.parametrize(
    ("trailer", "kept"),
    [
        (head(1) + ENTRY, {b"i": b"xx"}),
        (head(1)[:7], {}),
        (b"KTN\x01" + (head(1) + ENTRY)[4:], {}),
        (b"KTM\x02" + (head(1) + ENTRY)[4:], {}),
        (head(0) + ENTRY, {}),
        (head(400_000) + ENTRY, {b"i": b"xx"}),
        (head(400_001) + ENTRY, {}),
        (head(1) + ENTRY + b"more", {b"i": b"xx"}),
        (head(2) + ENTRY, {b"i": b"xx"}),
        (head(2) + ENTRY + lengths(1, 2)[:7], {b"i": b"xx"}),
        (head(2) + ENTRY + lengths(1, 2) + b"jx", {b"i": b"xx"}),
        (head(2) + ENTRY + lengths(1, 2) + b"jxx", {b"i": b"xx", b"j": b"xx"}),
        (head(2) + lengths(0, 2) + b"xx" + ENTRY, {}),
        (head(2) + lengths(1, 0) + b"j" + ENTRY, {}),
        (head(2) + lengths(257, 1) + b"j" * 257 + b"x" + ENTRY, {}),
        (head(2) + lengths(256, 1) + b"j" * 256 + b"x" + ENTRY, {b"j" * 256: b"x", b"i": b"xx"}),
        (head(2) + lengths(1, MAX_BLOCK_BYTES) + b"jx" + ENTRY, {}),
        (head(2) + ENTRY + lengths(1, 1) + b"iy", {b"i": b"y"}),
    ],
)
def test_what_is_kept_of_damaged_maps(trailer: bytes, kept: dict[bytes, bytes]) -> None:
    assert unpack_tool_map(trailer) == kept


class Endless:
    """A trailer of 1 GiB: an entry of as many bytes as given, and one more; and what was read of it."""

    size = 1 << 30

    def __init__(self, block_size: int) -> None:
        self.second = 8 + 8 + 1 + block_size
        self.first = head(2) + lengths(1, block_size) + b"j"
        self.largest = 0

    def read_at(self, at: int, size: int) -> bytes:
        self.largest = max(self.largest, size)
        if at < self.second:
            return self.first[at : at + size]
        return ENTRY[at - self.second : at - self.second + size]


def test_what_is_not_wanted_is_not_read() -> None:
    trailer = Endless(MAX_BLOCK_BYTES)
    assert read_tool_map(trailer.read_at, trailer.size, wanted={b"i"}) == {b"i": b"xx"}
    assert trailer.largest == 8
    trailer = Endless(MAX_BLOCK_BYTES + 1)
    assert read_tool_map(trailer.read_at, trailer.size, wanted={b"i"}) == {}


def test_a_trailer_that_shrinks_while_it_is_read() -> None:
    data = head(2) + ENTRY + ENTRY[:-1]
    assert read_tool_map(lambda at, size: data[at : at + size], len(data) + 1) == {b"i": b"xx"}
    data = head(2) + ENTRY + lengths(1, 2) + b"jx"
    assert read_tool_map(lambda at, size: data[at : at + size], len(data) + 1) == {b"i": b"xx"}


@pytest.mark.parametrize(("count", "kept"), [(8, 1), (9, 0)])
def test_max_ids(count: int, kept: int) -> None:
    assert len(unpack_tool_map(head(count) + ENTRY, max_ids=2)) == kept


def test_wanted() -> None:
    assert unpack_tool_map(TWO_PACKED, wanted=[b"toolu_2", b"other"]) == {b"toolu_2": b"\x00\xff"}
    assert unpack_tool_map(TWO_PACKED, wanted=()) == {}


def slow_unpack(data: bytes) -> dict[bytes, bytes]:
    found: dict[bytes, bytes] = {}
    if data[:4] != b"KTM\x01" or len(data) < 8:
        return found
    count, data = int.from_bytes(data[4:8], "little"), data[8:]
    while 0 < count <= 400_000 and len(data) >= 8:
        i, b = int.from_bytes(data[:4], "little"), int.from_bytes(data[4:8], "little")
        if i == 0 or i > 256 or b == 0 or b > 2**29 or len(data) < 8 + i + b:
            break
        found[data[8 : 8 + i]] = data[8 + i : 8 + i + b]
        data, count = data[8 + i + b :], count - 1
    return found


@given(MAPS, st.data())
def test_changed_and_cut_maps(tool_map: dict[bytes, bytes], data: st.DataObject) -> None:
    packed = bytearray(pack_tool_map(tool_map) + data.draw(st.binary(max_size=20)))
    for _ in range(data.draw(st.integers(0, 3)) if packed else 0):
        packed[data.draw(st.integers(0, len(packed) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(packed[: data.draw(st.integers(0, len(packed)))])
    assert unpack_tool_map(cut) == slow_unpack(cut)


@given(st.binary(max_size=200).map(lambda tail: b"KTM\x01" + tail) | st.binary(max_size=50))
def test_random_bytes(data: bytes) -> None:
    assert unpack_tool_map(data) == slow_unpack(data)


# Tool blocks in a text


def dsml(text: str) -> bytes:
    """The text with full-width bars, as the model writes them."""
    return text.replace("|", "\uff5c").encode()


@pytest.mark.parametrize(
    ("text", "blocks"),
    [
        ("", []),
        ("no call", []),
        ("a <tool_calls>x</tool_calls> b", ["<tool_calls>x</tool_calls>"]),
        ("<DSML|tool_calls>x</DSML|tool_calls>", ["<DSML|tool_calls>x</DSML|tool_calls>"]),
        ("<|DSML|tool_calls>x</|DSML|tool_calls>", ["<|DSML|tool_calls>x</|DSML|tool_calls>"]),
        ("<tool_calls></tool_calls>", ["<tool_calls></tool_calls>"]),
        # newlines
        ("a\n\n<tool_calls>x</tool_calls>\n\n", ["\n\n<tool_calls>x</tool_calls>"]),
        ("a\n\n\n<tool_calls>x</tool_calls>", ["\n\n<tool_calls>x</tool_calls>"]),
        ("a\n<tool_calls>x</tool_calls>", ["<tool_calls>x</tool_calls>"]),
        ("\n\n<DSML|tool_calls>x</DSML|tool_calls>", ["\n\n<DSML|tool_calls>x</DSML|tool_calls>"]),
        # one after the other
        (
            "<tool_calls>1</tool_calls><tool_calls>2</tool_calls>",
            ["<tool_calls>1</tool_calls>", "<tool_calls>2</tool_calls>"],
        ),
        (
            "<tool_calls>1</tool_calls>\n\n<tool_calls>1</tool_calls>",
            ["<tool_calls>1</tool_calls>", "\n\n<tool_calls>1</tool_calls>"],
        ),
        # the closing tag must match; what is inside is inside
        ("<tool_calls>x</DSML|tool_calls>y</tool_calls>", ["<tool_calls>x</DSML|tool_calls>y</tool_calls>"]),
        ("<tool_calls><tool_calls>x</tool_calls></tool_calls>", ["<tool_calls><tool_calls>x</tool_calls>"]),
        (
            "<tool_calls><DSML|tool_calls>x</tool_calls></DSML|tool_calls>",
            ["<tool_calls><DSML|tool_calls>x</tool_calls>"],
        ),
        # no closing tag: as if the opening one weren't there
        ("<tool_calls>x", []),
        ("<tool_calls>x<DSML|tool_calls>y</DSML|tool_calls>", ["<DSML|tool_calls>y</DSML|tool_calls>"]),
        ("</tool_calls><tool_calls>", []),
        ("<tool_calls>1</tool_calls><tool_calls>2", ["<tool_calls>1</tool_calls>"]),
    ],
)
def test_tool_blocks(text: str, blocks: list[str]) -> None:
    assert list(tool_blocks(dsml(text))) == [dsml(block) for block in blocks]


def test_bars_of_ascii_are_others() -> None:
    assert list(tool_blocks(b"<|DSML|tool_calls>x</|DSML|tool_calls>")) == []


def slow_tool_blocks(text: bytes) -> list[bytes]:
    """By trying every opener, as it is written down, at every position."""
    openers = [
        (newlines + b"<" + name + b">", b"</" + name + b">")
        for newlines in (b"\n\n", b"")
        for name in (dsml("|DSML|tool_calls"), dsml("DSML|tool_calls"), b"tool_calls")
    ]
    blocks, position = [], 0
    while position < len(text):
        for opener, closer in openers:
            closed = text.find(closer, position + len(opener))
            if text.startswith(opener, position) and closed >= 0:
                blocks.append(text[position : closed + len(closer)])
                position = closed + len(closer)
                break
        else:
            position += 1
    return blocks


PIECES = ["\n", "\n\n", "x", "<tool_calls>", "</tool_calls>", "<DSML|tool_calls>", "</DSML|tool_calls>"]
PIECES += ["<|DSML|tool_calls>", "</|DSML|tool_calls>", "<", "tool_calls>"]
TEXTS = st.lists(st.sampled_from(PIECES), max_size=14).map(lambda pieces: dsml("".join(pieces)))


@given(TEXTS | st.binary(max_size=50))
def test_tool_blocks_are_those_of_the_slow_search(text: bytes) -> None:
    assert list(tool_blocks(text)) == slow_tool_blocks(text)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("piece", "end"),
    [
        ("<tool_calls>", ""),
        ("<tool_calls>", "<DSML|tool_calls></DSML|tool_calls>"),
        ("<tool_calls></tool_calls>", "<DSML|tool_calls></DSML|tool_calls>"),
        ("<DSML|tool_calls><tool_calls></tool_calls>", ""),
    ],
)
def test_the_time_of_a_search_grows_with_the_text(piece: str, end: str) -> None:
    text = dsml(piece * 100_000 + end)
    start = time.process_time()
    for _ in tool_blocks(text):
        pass
    assert time.process_time() - start < 5  # it takes 0.2 s; one pass over the text for each of its pieces, minutes


# What is kept with a text


def call(name: str) -> bytes:
    return f"<tool_calls>{name}</tool_calls>".encode()


def test_selected_in_the_order_of_the_text_and_the_newest_id_first() -> None:
    remembered = {b"1": call("a"), b"2": call("b"), b"3": call("a"), b"4": call("c"), b"5": call("a")}
    text = b"x" + call("b") + call("a") + b"y" + call("b") + call("unknown")
    assert list(select_tool_map(text, remembered).items()) == [
        (b"2", call("b")),
        (b"5", call("a")),
        (b"3", call("a")),
        (b"1", call("a")),
    ]
    assert select_tool_map(b"text", remembered) == {}
    assert select_tool_map(text, {}) == {}


def test_only_exact_tool_blocks_are_selected() -> None:
    remembered = {b"1": call("a"), b"2": b"\n\n" + call("a"), b"3": b"a", b"4": call("a") + b" "}
    assert select_tool_map(call("a"), remembered) == {b"1": call("a")}
    assert select_tool_map(b"a\n\n" + call("a"), remembered) == {b"2": b"\n\n" + call("a")}


def test_an_id_that_no_tool_map_can_hold_is_left_out() -> None:
    remembered = {b"": call("a"), b"i" * 257: call("a"), b"i" * 256: call("a")}
    assert select_tool_map(call("a"), remembered) == {b"i" * 256: call("a")}


@pytest.mark.slow
def test_most_ids() -> None:
    remembered = dict.fromkeys((b"%d" % i for i in range(400_002)), call("a"))
    selected = select_tool_map(call("a"), remembered)
    assert len(pack_tool_map(selected)) > 0
    assert (len(selected), next(iter(selected)), list(selected)[-1]) == (400_000, b"400001", b"2")


@pytest.mark.slow
@given(
    TEXTS,
    st.lists(st.tuples(st.sampled_from([b"", b"1", b"2", b"3", b"4", b"5", b"6"]), TEXTS), max_size=5),
    st.randoms(use_true_random=False),
)
@example(call("a"), [(b"", call("a")), (b"1", call("a"))], None)
def test_a_selection_is_the_slow_one_and_can_be_packed(
    text: bytes, others: list[tuple[bytes, bytes]], rng: object
) -> None:
    blocks = slow_tool_blocks(text)
    pairs = others + [(b"own %d" % i, block) for i, block in enumerate(blocks)]
    if rng is not None:
        rng.shuffle(pairs)
    remembered = dict(pairs)
    expected = []
    for place, block in enumerate(blocks):
        if block not in blocks[:place]:
            expected += [(id_, block) for id_, own in reversed(remembered.items()) if own == block and id_]
    selected = select_tool_map(text, remembered)
    assert list(selected.items()) == expected
    assert unpack_tool_map(pack_tool_map(selected)) == selected
