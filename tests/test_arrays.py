"""A table of contents in front of arrays: what is packed is found again, by us and by safetensors, or refused."""

from __future__ import annotations

import array
import contextlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ds4kv.arrays import ALIGNMENT, Packed, View, contents, pack, views
from hypothesis import given, settings
from hypothesis import strategies as st

NUMPY = {
    "BOOL": np.bool_,
    **{f"{kind[0].upper()}{bits}": f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)},
    **{f"F{bits}": f"float{bits}" for bits in (16, 32, 64)},
    "C64": "complex64",
}


def joined(packed: Packed) -> bytes:
    return b"".join(packed)


def raw(table: object, behind: bytes = b"") -> bytes:
    """A payload with any header."""
    header = table if isinstance(table, bytes) else json.dumps(table).encode()
    return len(header).to_bytes(8, "little") + header + behind


def row(begin: int, end: int, dtype: object = "U8", shape: object = None) -> dict[str, object]:
    return {"dtype": dtype, "shape": [end - begin] if shape is None else shape, "data_offsets": [begin, end]}


@st.composite
def many_arrays(draw: st.DrawFn) -> dict[str, Any]:
    names = draw(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), max_size=6, unique=True))
    found = {}
    for name in names:
        dtype = np.dtype(NUMPY[draw(st.sampled_from(sorted(NUMPY)))])
        shape = tuple(draw(st.lists(st.integers(0, 5), max_size=4)))
        size = math.prod(shape) * dtype.itemsize
        content = draw(st.binary(min_size=size, max_size=size))
        found[name] = np.frombuffer(content, np.uint8).view(dtype).reshape(shape)
    return found


def same(view: View, content: np.ndarray[Any, Any]) -> bool:
    assert np.dtype(NUMPY[view.dtype]) == content.dtype
    return view.shape == content.shape and view.memory == content.tobytes()


# What goes in comes out


@given(many_arrays(), st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), st.just("é"), max_size=2))
def test_what_is_packed_is_found_again(given_arrays: dict[str, Any], metadata: dict[str, str]) -> None:
    packed = pack(given_arrays, metadata=metadata)
    payload = joined(packed)
    assert len(payload) == packed.nbytes
    found = views(payload)
    assert list(found) == list(given_arrays)
    assert all(same(found[name], content) for name, content in given_arrays.items())
    assert found.metadata == metadata
    assert joined(pack(found, metadata=metadata)) == payload


@given(many_arrays())
def test_arrays_begin_at_multiples_of_64(given_arrays: dict[str, Any]) -> None:
    packed = pack(given_arrays)
    payload = joined(packed)
    assert len(packed.contents.header) % ALIGNMENT == 0
    for name, place in packed.contents.places.items():
        assert place.offset % ALIGNMENT == 0
        assert payload[place.offset : place.offset + place.size] == given_arrays[name].tobytes()


@settings(deadline=None)
@given(many_arrays())
def test_safetensors_reads_it(given_arrays: dict[str, Any]) -> None:
    safetensors = pytest.importorskip("safetensors")
    found = dict(safetensors.deserialize(joined(pack(given_arrays, metadata={"a": "b"}))))
    found = {name: info for name, info in found.items() if not name.startswith("__pad")}
    assert found.keys() == given_arrays.keys()
    for name, content in given_arrays.items():
        assert bytes(found[name]["data"]) == content.tobytes()
        assert tuple(found[name]["shape"]) == content.shape
        assert np.dtype(NUMPY[found[name]["dtype"]]) == content.dtype


@settings(deadline=None)
@given(many_arrays())
def test_what_safetensors_writes_is_read(given_arrays: dict[str, Any]) -> None:
    safetensors = pytest.importorskip("safetensors.numpy")
    # That writer takes no numpy scalars' shape apart, and copies what it gets.
    found = views(safetensors.save(given_arrays, metadata={"a": "b"}))
    assert found.keys() == given_arrays.keys()
    assert all(same(found[name], content) for name, content in given_arrays.items())
    assert found.metadata == {"a": "b"}


def test_a_payload_written_to_a_file_is_opened_by_safetensors(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors")
    keys, values = np.arange(35, dtype=np.float16).reshape(5, 7), np.arange(3, dtype=np.int64)
    path = tmp_path / "payload.safetensors"
    with path.open("wb") as fp:
        fp.writelines(pack({"keys": keys, "values": values}, metadata={"tokens": "5"}))
    with safetensors.safe_open(path, "numpy") as file:
        assert set(file.keys()) == {"keys", "values", "__pad2"}
        assert file.metadata() == {"tokens": "5"}
        np.testing.assert_array_equal(file.get_tensor("keys"), keys)
        np.testing.assert_array_equal(file.get_tensor("values"), values)


def test_nothing_is_copied() -> None:
    content = np.zeros((4, 16), np.float32)
    packed = pack({"a": content})
    content[2, 3] = 1
    payload = bytearray(joined(packed))
    found = views(payload)["a"]
    assert same(found, content)
    payload[packed.contents.places["a"].offset] = 7
    assert found.memory[0] == 7
    assert len(packed) == 2 and packed[0] == packed.contents.header


def test_no_arrays_are_a_payload_too() -> None:
    assert views(joined(pack({}))) == {}
    assert pack({}).nbytes == ALIGNMENT


def test_a_table_can_be_had_before_the_arrays() -> None:
    table = contents({"a": ("BF16", (3, 5)), "b": ("F8_E4M3", (0, 2)), "c": ("U8", ())})
    assert [place.size for place in table.places.values()] == [30, 0, 1]
    buffer = bytearray(table.nbytes)
    buffer[: len(table.header)] = table.header
    assert {name: (view.dtype, view.shape) for name, view in views(buffer).items()} == {
        "a": ("BF16", (3, 5)),
        "b": ("F8_E4M3", (0, 2)),
        "c": ("U8", ()),
    }


# What an array may be


@pytest.mark.parametrize(
    ("buffer", "dtype", "shape"),
    [
        (b"abc", "U8", (3,)),
        (bytearray(4), "U8", (4,)),
        (memoryview(b"abcdef").cast("B", (2, 3)), "U8", (2, 3)),
        (memoryview(b"abcdef").cast("c"), "U8", (6,)),
        (array.array("h", [1, 2]), "I16", (2,)),
        (array.array("L", [1, 2]), "U64", (2,)),
        (array.array("d", [1.0]), "F64", (1,)),
        (memoryview(b"\1\0").cast("?"), "BOOL", (2,)),
        (np.float32(1.5), "F32", ()),
        (View("BF16", (2,), memoryview(b"abcd")), "BF16", (2,)),
    ],
)
def test_buffers_of_plain_numbers_are_arrays(buffer: Any, dtype: str, shape: tuple[int, ...]) -> None:
    view = views(joined(pack({"a": buffer})))["a"]
    assert (view.dtype, view.shape) == (dtype, shape)
    assert view.memory == (buffer.memory if isinstance(buffer, View) else memoryview(buffer).tobytes())


@pytest.mark.parametrize(
    ("given_array", "error", "way_out"),
    [
        (np.zeros((4, 4))[:, ::2], ValueError, "ascontiguousarray"),
        (np.zeros((4, 4)).T, ValueError, "ascontiguousarray"),
        (np.zeros(4, ">f4"), ValueError, "astype"),
        (np.zeros(4, object), TypeError, "view of it as bytes"),
        (np.zeros(4, complex), TypeError, "view of it as bytes"),
        (np.zeros(4, "M8[s]"), TypeError, "view of it as bytes"),
        (np.zeros(4, [("a", "i4")]), TypeError, "view of it as bytes"),
        (memoryview(b"abcdef")[::2], ValueError, "a copy"),
        ([1, 2], TypeError, "no buffer"),
        (None, TypeError, "no buffer"),
        (View("F32", (2,), memoryview(b"abcd")), ValueError, "4 bytes; its dtype and shape make 8"),
    ],
)
def test_what_is_no_such_array_is_refused(given_array: Any, error: type[Exception], way_out: str) -> None:
    with pytest.raises(error, match=way_out):
        pack({"a": given_array})


@pytest.mark.parametrize("name", ["__metadata__", "__pad0", "__pad12"])
def test_names_of_the_format_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="no array's name"):
        pack({name: b"a"})
    assert list(views(joined(pack({f"{name}_": b"a"})))) == [f"{name}_"]


@pytest.mark.parametrize("metadata", [{"a": 1}, {1: "a"}, {"a": None}, ["a"]])
def test_metadata_is_strings(metadata: Any) -> None:
    with pytest.raises(ValueError, match="__metadata__"):
        pack({}, metadata=metadata)


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [
        ("F12", (2,)),
        (None, (2,)),
        ("F32", (-1,)),
        ("F32", (1.0,)),
        ("F32", (True,)),
        ("F32", 4),
        ("F32", (1,) * 65),
        ("F4", (3,)),
        ("F6_E2M3", (2,)),
        ("F64", (1 << 60, 2)),
        ("F64", (1 << 64, 0)),
    ],
)
def test_what_can_not_be_a_dtype_and_a_shape_is_refused(dtype: Any, shape: Any) -> None:
    with pytest.raises(ValueError, match="'a'"):
        contents({"a": (dtype, shape)})
    assert contents({"a": ("F4", (4,))}).places["a"].size == 2


def test_a_header_that_nobody_would_read_is_not_made() -> None:
    with pytest.raises(ValueError, match="100000000"):
        contents({}, metadata={"a": "a" * 100_000_000})


# torch


def torch_dtypes() -> list[str]:
    names = ["bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float16", "bfloat16"]
    eights = ["float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"]
    return [*names, *eights, "float32", "float64", "complex64"]


@pytest.mark.parametrize("dtype", torch_dtypes())
@pytest.mark.parametrize("shape", [(3, 5), (), (0, 2)])
def test_tensors_of_every_dtype(dtype: str, shape: tuple[int, ...]) -> None:
    torch = pytest.importorskip("torch")
    safetensors = pytest.importorskip("safetensors.torch")
    torch_dtype = getattr(torch, dtype)
    content = torch.arange(math.prod(shape) * 8, dtype=torch.uint8)[: math.prod(shape) * torch_dtype.itemsize]
    if dtype == "bool":
        content = content % 2
    tensor = content.view(torch_dtype).reshape(shape)
    payload = joined(pack({"a": tensor, "b": torch.nn.Parameter(torch.ones(2))}))
    view = views(payload)["a"]
    assert view.shape == shape
    assert view.memory == content.numpy().tobytes()
    if dtype == "float8_e8m0fnu":
        return  # safetensors' torch half has no name for it yet
    assert torch.equal(
        safetensors.load(payload)["a"].reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8)
    )


def test_tensors_are_not_copied() -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.zeros(4, 4, dtype=torch.bfloat16)
    packed = pack({"a": tensor})
    tensor[1, 2] = 1
    payload = torch.frombuffer(bytearray(joined(packed)), dtype=torch.uint8)
    view = views(payload)["a"]
    assert view.memory == tensor.view(torch.uint8).numpy().tobytes()
    payload[packed.contents.places["a"].offset] = 9
    assert view.memory[0] == 9


@pytest.mark.parametrize(
    ("make", "error", "way_out"),
    [
        (lambda torch: torch.zeros(4, 4)[:, :2], ValueError, "contiguous"),
        (lambda torch: torch.zeros(4, 4).T, ValueError, "contiguous"),
        (lambda torch: torch.zeros(4, dtype=torch.complex64).conj(), ValueError, "resolve_conj"),
        (lambda torch: torch.zeros(4, device="meta"), ValueError, "cpu"),
        (lambda torch: torch.zeros(4, dtype=torch.complex128), TypeError, "as bytes"),
        (lambda torch: torch.zeros(4).to_sparse(), TypeError, "sparse"),
    ],
)
def test_tensors_that_are_no_plain_memory_are_refused(make: Any, error: type[Exception], way_out: str) -> None:
    torch = pytest.importorskip("torch")
    with pytest.raises(error, match=way_out):
        pack({"a": make(torch)})


# What is damaged is refused, or right


GOOD = joined(pack({"a": np.arange(6, dtype=np.int16).reshape(2, 3), "b": b"abc"}, metadata={"c": "d"}))


@pytest.mark.parametrize(
    ("payload", "complaint"),
    [
        (b"", "0 bytes"),
        (b"\2\0\0\0\0\0\0", "7 bytes"),
        (
            (1 << 63).to_bytes(8, "little") + b"{}",
            "a header of 9223372036854775808 bytes at offset 8; the buffer has 10",
        ),
        ((3).to_bytes(8, "little") + b"{}", "a header of 3 bytes"),
        (raw(b""), "offset 8"),
        (raw(b" {}"), "offset 8"),
        (raw(b"[]"), "offset 8"),
        (raw(b"{} {}"), "offset 8"),
        (raw(b"{"), "offset 8"),
        (raw(b'{"a":\xff}'), "offset 8"),
        (raw(b'{"a":' + b"[" * 100_000), "offset 8"),
        (raw(b'{"a":NaN}'), "NaN"),
        (raw(b'{"a":1' + b"0" * 5000 + b"}"), "offset 8"),
        (raw(b'{"a":{},"a":{}}'), "twice"),
        (raw({"a": 1}), "'a'"),
        (raw({"a": {"dtype": "U8", "shape": [1]}}, b"1"), "'a'"),
        (raw({"a": row(0, 1) | {"more": 1}}, b"1"), "'a'"),
        (raw({"a": row(0, 1, "U7")}, b"1"), "'a'"),
        (raw({"a": row(0, 1, ["U8"])}, b"1"), "'a'"),
        (raw({"a": row(0, 1, shape=[1.0])}, b"1"), "'a'"),
        (raw({"a": row(0, 1, shape="1")}, b"1"), "'a'"),
        (raw({"a": row(0, 1, shape=[2])}, b"1"), "'a' at 0"),
        (raw({"a": row(0, 1, "F32", [1])}, b"1"), "'a' at 0"),
        (raw({"a": row(0, 1) | {"data_offsets": [0]}}, b"1"), "'a'"),
        (raw({"a": row(0, 1) | {"data_offsets": [0, True]}}, b"1"), "'a'"),
        (raw({"a": row(0, 1) | {"data_offsets": [0, 1.0]}}, b"1"), "'a'"),
        (raw({"a": row(0, 1) | {"data_offsets": {"0": 0, "1": 1}}}, b"1"), "'a'"),
        (raw({"a": row(-1, 1)}, b"1"), "'a' is at -1"),
        (raw({"a": row(0, 2)}, b"1"), "'a' is at 0 to 2 of the 1 bytes"),
        (raw({"a": row(1, 0, shape=[1])}, b"1"), "'a' is at 1"),
        (raw({"a": row(1, 2)}, b"12"), r"'a' at offset \d+ leaves a gap"),
        (raw({"a": row(0, 2), "b": row(1, 3)}, b"123"), r"'b' at offset \d+ overlaps"),
        (raw({"a": row(0, 1)}, b"12"), r"1 bytes at offset \d+ are of no array"),
        (raw({"__metadata__": [], "a": row(0, 1)}, b"1"), "__metadata__"),
        (raw({"__metadata__": {"a": {}}, "b": row(0, 1)}, b"1"), "__metadata__"),
    ],
)
def test_what_is_no_payload_is_refused(payload: bytes, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        views(payload)
    assert list(views(raw({"b": row(1, 3), "a": row(0, 1)}, b"123"))) == ["a", "b"]


def test_only_contiguous_buffers_are_looked_at() -> None:
    with pytest.raises(ValueError, match="strided"):
        views(memoryview(bytes(200))[::2])


def judge(payload: bytes) -> None:
    """Refused, or each byte is of one array at most, the sizes fit, and safetensors would read it too."""
    try:
        found = views(payload)
    except ValueError:
        return
    with contextlib.suppress(ImportError):
        from safetensors import deserialize

        names = {name for name, _ in deserialize(bytes(payload))}
        assert found.keys() <= names
    assert sum(view.memory.nbytes for view in found.values()) <= len(payload)
    for view in found.values():
        bits = int("".join(c for c in view.dtype.partition("_")[0] if c.isdigit()) or 8)
        assert view.memory.nbytes * 8 == math.prod(view.shape) * bits


@given(st.integers(0, len(GOOD) * 8 - 1))
def test_a_flipped_bit_is_refused_or_right(bit: int) -> None:
    damaged = bytearray(GOOD)
    damaged[bit // 8] ^= 1 << bit % 8
    judge(bytes(damaged))
    if bit >= 8 * (8 + int.from_bytes(GOOD[:8], "little")):
        assert views(damaged).keys() == {"a", "b"}  # the store's sums are for that


@pytest.mark.parametrize("size", range(0, len(GOOD), 7))
def test_what_is_cut_short_is_refused(size: int) -> None:
    with pytest.raises(ValueError):
        views(GOOD[:size])


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
sides = st.integers(-1, 9) | st.integers()
rows = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["U8", "F32", "F4", "F6_E2M3", "?"]) | json_values,
        "shape": st.lists(sides, max_size=3) | json_values,
        "data_offsets": st.lists(sides, min_size=2, max_size=2) | json_values,
    }
)


@given(st.dictionaries(st.text(max_size=3), rows | json_values, max_size=4), st.binary(max_size=20))
def test_any_table_is_refused_or_right(table: dict[str, Any], behind: bytes) -> None:
    judge(raw(table, behind))


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_or_right(payload: bytes) -> None:
    judge(payload)
