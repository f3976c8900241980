"""The 48 bytes: where each field is, what is kept, what is refused; and that nothing but Python is needed for it."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from processes import DEADLINE

import ds4kv
from ds4kv import Codec, Header, Layout, Reason
from ds4kv.core._native import ffi, lib
from ds4kv.format.header import Form

BYTE, U32, U64 = (st.integers(0, 2**bits - 1) for bits in (8, 32, 64))
COMMON = {
    "quant_bits": st.sampled_from([2, 4]),
    "reason_code": BYTE,
    "ext_flags": BYTE,
    "tokens": st.integers(1, 2**32 - 1),
    "hits": U32,
    "ctx_size": U32,
    "created_at": U64,
    "last_used": U64,
    "payload_bytes": U64,
}


def headers(**fields: st.SearchStrategy) -> st.SearchStrategy[Header]:
    return st.fixed_dictionaries(COMMON | fields).map(lambda values: Header(**values))


V1 = headers(layout=st.just(Layout.V1), model_id=BYTE, payload_abi=U32)
V2_NONE = headers(codec=st.just(Codec.NONE), chunk_size=U32)
LOG2 = headers(
    layout=st.sampled_from([Layout.V2_CHECKED, Layout.V2_MID]),
    codec=st.just(Codec.LZ4),
    chunk_size=st.integers(0, 26).map(lambda log2: 1 << log2),
    model_id=BYTE,
    payload_abi=BYTE,
)
PACKED = headers(
    layout=st.just(Layout.PACKED),
    codec=st.just(Codec.LZ4),
    chunk_size=st.integers(1, 26).map(lambda log2: 1 << log2),
    model_id=BYTE,
    payload_abi=BYTE,
)
V2_LZ4 = headers(codec=st.sampled_from([Codec.LZ4, Codec.LZ4HC]), chunk_size=st.integers(1, 1 << 26))


@given(V1 | V2_NONE | V2_LZ4 | LOG2 | PACKED)
def test_round_trip(header: Header) -> None:
    assert Header.unpack(header.pack(), header.layout) == header
    assert pickle.loads(pickle.dumps(header)) == header


def test_every_field_has_its_place() -> None:
    header = Header(
        layout=Layout.V2,
        quant_bits=4,
        reason_code=5,
        ext_flags=6,
        codec=Codec.LZ4,
        tokens=0x01020304,
        hits=0x05060708,
        ctx_size=0x090A0B0C,
        chunk_size=0x00010203,
        created_at=0x1112131415161718,
        last_used=0x2122232425262728,
        payload_bytes=0x3132333435363738,
    )
    assert header.pack().hex(" ") == (
        "4b 56 43 02 04 05 06 01 04 03 02 01 08 07 06 05 0c 0b 0a 09 03 02 01 00"
        " 18 17 16 15 14 13 12 11 28 27 26 25 24 23 22 21 38 37 36 35 34 33 32 31"
    )


@pytest.mark.parametrize(("layout", "codec"), [("v2-checked", 2), ("v2-mid", 1)])
def test_where_a_layout_with_its_codec_in_byte_21_has_its_fields(layout: str, codec: int) -> None:
    header = Header(layout=layout, tokens=1, ctx_size=1, codec=Codec.LZ4, chunk_size=1 << 24, model_id=9, payload_abi=3)
    head = header.pack()
    assert (head[3], head[7], head[20:24]) == (2, 9, bytes([3, codec, 24, 0]))
    assert Header.unpack(head, Layout(layout)) == header
    for at, byte in ((21, 3 - codec), (21, 0), (22, 27), (22, 255), (23, 1)):
        with pytest.raises(ds4kv.CorruptError) as caught:
            Header.unpack(head[:at] + bytes([byte]) + head[at + 1 :], Layout(layout))
        assert caught.value.offset == at


@pytest.mark.parametrize("layout", [None, Layout.V2, Layout.V2_CHECKED, Layout.PACKED])
def test_where_packed_has_its_fields(layout: Layout | None) -> None:
    """Its version tells it, whatever it is taken for."""
    fields = {"codec": Codec.LZ4, "chunk_size": 1 << 20, "model_id": 9, "payload_abi": 3}
    header = Header(layout="packed", tokens=1, ctx_size=1, **fields)
    head = header.pack()
    assert (header.version, head[3], head[7], head[20:24]) == (75, 75, 9, bytes([3, 0, 20, 0]))
    assert Header.unpack(head, layout) == header
    for at, byte, field in ((21, 1, "codec"), (22, 0, "chunk_size"), (22, 27, "chunk_size"), (23, 1, "chunk_size")):
        with pytest.raises(ds4kv.CorruptError) as caught:
            Header.unpack(head[:at] + bytes([byte]) + head[at + 1 :], layout)
        assert (caught.value.offset, caught.value.field) == (at, field)
    for version in (0, 3, 74, 76, 107, 255):
        with pytest.raises(ds4kv.UnsupportedError, match="1, 2 and 75 are read"):
            Header.unpack(head[:3] + bytes([version]) + head[4:], layout)


def test_forms() -> None:
    lz4 = {"tokens": 1, "ctx_size": 1, "codec": Codec.LZ4, "chunk_size": 64}
    assert Header(layout="v1", tokens=1, ctx_size=1).form is Form.RAW
    assert Header(tokens=1, ctx_size=1).form is Form.RAW
    assert Header(**lz4).form is Header(**lz4 | {"codec": Codec.LZ4HC}).form is Form.PLAIN
    assert Header(layout="v2-checked", **lz4).form is Form.CHECKED
    assert Header(layout="packed", **lz4).form is Form.PACKED
    assert Header(layout="v2-mid", **lz4).form is None


def test_bytes_that_v1_does_not_use_are_kept() -> None:
    head = bytearray(Header(layout=Layout.V1, tokens=1, ctx_size=1).pack())
    head[7], head[20:24] = 9, b"\x02\x00\x00\x07"
    header = Header.unpack(bytes(head))
    assert (header.codec, header.chunk_size) == (Codec.NONE, 0)
    assert header.pack() == head


@pytest.mark.parametrize("code", range(256))
def test_reasons(code: int) -> None:
    header = Header.unpack(Header(tokens=1, ctx_size=1, reason_code=code).pack())
    assert header.reason is (Reason(code) if code <= 6 else Reason.UNKNOWN)
    assert header.reason_code == code


def test_reason_words() -> None:
    words = ["unknown", "cold", "continued", "evict", "shutdown", "agent-system", "agent-session"]
    assert [reason.word for reason in Reason] == words
    assert [Reason.from_word(word) for word in words] == list(Reason)
    with pytest.raises(ValueError, match="'warm'"):
        Reason.from_word("warm")


GOOD = {"tokens": 1, "ctx_size": 1}


@pytest.mark.parametrize(
    "wrong",
    [
        {"tokens": 0},
        {"tokens": 2**32},
        {"quant_bits": 3},
        {"reason_code": 256},
        {"ext_flags": -1},
        {"hits": 2**32},
        {"created_at": -1},
        {"layout": "v3"},
        {"layout": "v2-crc"},
        {"layout": "v2-checked"},
        {"layout": "v2-checked", "codec": Codec.LZ4HC, "chunk_size": 64},
        {"layout": "v2-checked", "codec": Codec.LZ4, "chunk_size": 65},
        {"layout": "v2-checked", "codec": Codec.LZ4, "chunk_size": 1 << 27},
        {"layout": "v2-checked", "codec": Codec.LZ4, "chunk_size": 64, "model_id": 256},
        {"layout": "v2-checked", "codec": Codec.LZ4, "chunk_size": 64, "payload_abi": 256},
        {"layout": "packed"},
        {"layout": "packed", "codec": Codec.LZ4HC, "chunk_size": 64},
        {"layout": "packed", "codec": Codec.LZ4, "chunk_size": 65},
        {"layout": "packed", "codec": Codec.LZ4, "chunk_size": 1},
        {"layout": "packed", "codec": Codec.LZ4, "chunk_size": 1 << 27},
        {"layout": "packed", "codec": Codec.LZ4, "chunk_size": 64, "payload_abi": 256},
        {"layout": "v1", "codec": Codec.LZ4, "chunk_size": 1},
        {"codec": Codec.LZ4, "chunk_size": 0},
        {"codec": Codec.LZ4, "chunk_size": (1 << 26) + 1},
        {"codec": 3},
        {"model_id": 1},
        {"payload_abi": 1},
    ],
    ids=str,
)
def test_a_header_that_no_file_may_hold(wrong: dict[str, int]) -> None:
    Header(**GOOD)
    with pytest.raises(ValueError):
        Header(**GOOD | wrong)


def test_it_is_a_value() -> None:
    header = Header(**GOOD)
    assert header == Header(**GOOD)
    assert hash(header) == hash(Header(**GOOD))
    assert header._replace(hits=1) != header
    assert pickle.loads(pickle.dumps(header)) == copy.copy(header) == header
    with pytest.raises(AttributeError):
        header.hits = 1


@pytest.mark.parametrize("module", ["errors", "format.header", "core.workers"])
def test_plain_modules_never_load_the_extension(module: str) -> None:
    # The package's __init__ does load it, so the module is run on its own, as a directory listing might.
    code = f"""
import importlib.util, sys, types
spec = importlib.util.find_spec("ds4kv")
package = sys.modules["ds4kv"] = types.ModuleType("ds4kv")
package.__path__ = list(spec.submodule_search_locations)
importlib.import_module("ds4kv.{module}")
assert not [name for name in sys.modules if "_native" in name or "cffi" in name], sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=DEADLINE)


def test_errors_say_where() -> None:
    error = ds4kv.CorruptError("no good", path="dir/a.kv", offset=7, field="codec")
    assert str(error) == "dir/a.kv at byte 7 (codec): no good"
    assert str(ds4kv.CorruptError("no good")) == "no good"
    assert isinstance(error, ValueError)
    assert issubclass(ds4kv.TruncatedError, ds4kv.CorruptError)
    assert not issubclass(ds4kv.UnsupportedError, ds4kv.CorruptError)


def test_errors_travel_between_processes() -> None:
    error = pickle.loads(pickle.dumps(ds4kv.TruncatedError("short", path="a.kv", offset=3, field="text")))
    assert type(error) is ds4kv.TruncatedError
    assert str(error) == "a.kv at byte 3 (text): short"


# ------------------------------------------------------------------------------------ the twin in C

C_FIELDS = {"reason_code": "reason"}  # where C has a field by another name
LAYOUTS = {1: Layout.V1, 2: Layout.V2, 3: Layout.V2_MID, 4: Layout.V2_CHECKED, 5: Layout.PACKED}


def by_python(head: bytes, layout: Layout) -> object:
    """The header; or the kind of error, offset and field."""
    try:
        return Header.unpack(head, layout)
    except ds4kv.Ds4kvError as error:
        return type(error), error.offset, error.field


def by_c(head: bytes, layout: int) -> object:
    found, fault = ffi.new("ds4kv_header *"), ffi.new("ds4kv_fault *")
    status = lib.ds4kv_header_unpack(found, head, layout, fault)
    if status < 0:
        kind = {lib.DS4KV_CORRUPT: ds4kv.CorruptError, lib.DS4KV_UNSUPPORTED: ds4kv.UnsupportedError}[status]
        return kind, fault.offset, ffi.string(fault.field).decode()
    fields = {name: getattr(found, C_FIELDS.get(name, name)) for name in Header._fields}
    return Header(**fields | {"layout": LAYOUTS[found.layout], "codec": Codec(found.codec)})


def pack_by_c(header: Header) -> bytes:
    numbers = {number: layout for layout, number in LAYOUTS.items()}
    fields = {C_FIELDS.get(name, name): int(value) for name, value in header._asdict().items() if name != "layout"}
    packed, fault = ffi.new("uint8_t[48]"), ffi.new("ds4kv_fault *")
    c_header = ffi.new("ds4kv_header *", fields | {"layout": numbers[header.layout]})
    assert lib.ds4kv_header_pack(c_header, packed, fault) == 0, ffi.string(fault.why)
    return bytes(packed)


def check_twins(head: bytes) -> None:
    for number in (2, 3, 4):
        header = by_python(head, LAYOUTS[number])
        assert by_c(head, number) == header
        if isinstance(header, Header):
            assert pack_by_c(header) == header.pack() == head


GOLDEN_HEADS = sorted({path.read_bytes()[:48] for path in Path(__file__).with_name("golden").glob("*.kv")})
CODED = [
    Header(**GOOD | {"layout": layout, "codec": Codec.LZ4, "chunk_size": 1 << 24}).pack()
    for layout in (Layout.V2_MID, Layout.V2_CHECKED, Layout.PACKED)
]


@pytest.mark.parametrize("head", [*GOLDEN_HEADS, *CODED], ids=lambda head: head.hex())
def test_both_parsers_say_the_same_of_every_changed_byte(head: bytes) -> None:
    check_twins(head)
    for at in range(48):
        for value in range(256) if at in (3, 4, 7, 21, 22, 23) else (0, 1, 2, 127, 255):
            check_twins(head[:at] + bytes([value]) + head[at + 1 :])


@given(data=st.data())
def test_both_parsers_say_the_same_of_boundaries_and_of_anything(data: st.DataObject) -> None:
    head = bytearray(data.draw(st.sampled_from(GOLDEN_HEADS + CODED)))
    for at, size in ((8, 4), (12, 4), (16, 4), (20, 4), (24, 8), (32, 8), (40, 8)):
        top = (1 << 8 * size) - 1
        value = data.draw(st.sampled_from([0, 1, 1 << 24, 1 << 26, (1 << 26) + 1, top - 1, top]) | st.integers(0, top))
        head[at : at + size] = value.to_bytes(size, "little")
    for _ in range(data.draw(st.integers(0, 4))):
        head[data.draw(st.integers(0, 47))] = data.draw(st.integers(0, 255))
    check_twins(bytes(head))
