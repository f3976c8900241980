"""A payload of arrays: a table of contents in front, then the bytes of each array, at multiples of 64.

It is a safetensors file, byte for byte: a u64 with the size of a JSON header, the header, the arrays one behind the
other. That format knows no gaps, so where an array doesn't end at a multiple of 64 a filler follows: an array of bytes
named ``__pad`` and a number. Other tools see fillers as arrays; :func:`views` leaves them out.

:func:`pack` copies nothing: it gives the parts to be written, in their order. :func:`views` copies nothing either: it
shows where each array is in a buffer that was loaded whole. Neither imports numpy or torch.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, overload

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

__all__ = ["ALIGNMENT", "Contents", "Packed", "Place", "View", "Views", "contents", "pack", "views"]

ALIGNMENT = 64
"""Each array begins at a multiple of it, and so does the first one behind the header."""

_SIZE_BYTES = 8  # of the header's size
_MAX_HEADER = 100_000_000  # as in safetensors
_MAX_SIZE = (1 << 63) - 1
_MAX_DIMENSIONS = 64
_METADATA = "__metadata__"
_FILLER = re.compile(r"__pad\d+")

_BITS = {
    **dict.fromkeys(("F4",), 4),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
}
"""How many bits an element has, by its dtype."""

_DTYPES = {
    "bool": "BOOL",
    **{f"uint{bits}": f"U{bits}" for bits in (8, 16, 32, 64)},
    **{f"int{bits}": f"I{bits}" for bits in (8, 16, 32, 64)},
    **{f"float{bits}": f"F{bits}" for bits in (16, 32, 64)},
    "bfloat16": "BF16",
    "complex64": "C64",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e4m3fnuz": "F8_E4M3FNUZ",
    "float8_e5m2": "F8_E5M2",
    "float8_e5m2fnuz": "F8_E5M2FNUZ",
    "float8_e8m0fnu": "F8_E8M0",
}
"""By the names that numpy, ml_dtypes and torch have for them."""

_KINDS = {**dict.fromkeys("bhilqn", "I"), **dict.fromkeys("BHILQN", "U"), **dict.fromkeys("efd", "F")}
"""By the letter of a buffer's format; the size of an element tells the rest."""


class View(NamedTuple):
    """An array: its ``dtype`` as safetensors names it ("F32", "BF16", "U8"), its ``shape``, and its bytes, flat."""

    dtype: str
    shape: tuple[int, ...]
    memory: memoryview


class Views(dict[str, View]):
    """The arrays of a payload by their names, in their order, and the ``metadata`` that was packed with them."""

    metadata: Mapping[str, str]


class Place(NamedTuple):
    """Where an array is: ``size`` bytes at ``offset`` of the payload."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    size: int


class Contents(NamedTuple):
    """A table of contents: ``header`` as it is written, the ``places`` of the arrays, and the payload's ``nbytes``."""

    header: bytes
    places: Mapping[str, Place]
    nbytes: int


class Packed(Sequence[memoryview]):
    """A payload as the parts to be written one after the other: ``for part in packed: stream.write(part)``.

    ``nbytes`` is the size of all together, ``contents`` their table. The arrays are lent, and must not change until
    they are written.
    """

    def __init__(self, table: Contents, parts: Sequence[memoryview]) -> None:
        self.contents = table
        self._parts = parts

    @property
    def nbytes(self) -> int:
        """The size of the payload in bytes."""
        return self.contents.nbytes

    @overload
    def __getitem__(self, index: int, /) -> memoryview: ...
    @overload
    def __getitem__(self, index: slice, /) -> Sequence[memoryview]: ...
    def __getitem__(self, index: int | slice, /) -> memoryview | Sequence[memoryview]:
        return self._parts[index]

    def __len__(self) -> int:
        return len(self._parts)

    def __iter__(self) -> Iterator[memoryview]:
        return iter(self._parts)


def contents(arrays: Mapping[str, tuple[str, Sequence[int]]], *, metadata: Mapping[str, str] | None = None) -> Contents:
    """The table of contents of arrays that are not there yet, by their names: each is its dtype and its shape.

    For who fills a buffer of ``nbytes`` himself, from a GPU for instance. What is between the arrays should be zero.
    Raises ValueError for a name, dtype or shape that can't be, and for a header of more than 100 MB.
    """
    table: dict[str, object] = {} if metadata is None else {_METADATA: _checked_metadata(metadata)}
    ends: dict[str, Place] = {}  # offsets from the first array's
    at = 0
    for name, (dtype, shape) in arrays.items():
        if name == _METADATA or _FILLER.fullmatch(name):
            raise ValueError(f"{name!r} is no array's name: it is one of the format's own")
        if gap := -at % ALIGNMENT:
            table[f"__pad{len(table)}"] = _row("U8", [gap], at, gap)
            at += gap
        size = _size_of(name, dtype, shape)
        table[name] = _row(dtype, list(shape), at, size)
        ends[name] = Place(dtype, tuple(shape), at, size)
        at += size
    text = json.dumps(table, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-(_SIZE_BYTES + len(text)) % ALIGNMENT)
    if len(text) > _MAX_HEADER:
        raise ValueError(f"a header of {len(text)} bytes; {_MAX_HEADER} is the most that is read")
    header = len(text).to_bytes(_SIZE_BYTES, "little") + text
    places = {name: place._replace(offset=len(header) + place.offset) for name, place in ends.items()}
    return Contents(header, places, len(header) + at)


def pack(arrays: Mapping[str, Any], *, metadata: Mapping[str, str] | None = None) -> Packed:
    """A payload of these arrays, by their names and in their order.

    An array is a numpy array, a torch tensor in the CPU's memory of any dtype that safetensors has, a :class:`View`, or
    any other buffer of plain numbers. Its elements lie one behind the other, the last dimension's side by side.

    Raises TypeError for what is no such array, and ValueError for one that is strided, on another device or big-endian;
    the error says what to give instead. Raises ValueError as :func:`contents`, too.
    """
    given = {name: _view_of(name, array) for name, array in arrays.items()}
    table = contents({name: (view.dtype, view.shape) for name, view in given.items()}, metadata=metadata)
    parts = [memoryview(table.header)]
    at = len(table.header)
    for name, place in table.places.items():
        memory = given[name].memory
        if memory.nbytes != place.size:
            raise ValueError(f"{name!r}: {memory.nbytes} bytes; its dtype and shape make {place.size}")
        if gap := place.offset - at:
            parts.append(memoryview(bytes(gap)))
        if place.size:
            parts.append(memory)
        at = place.offset + place.size
    return Packed(table, parts)


def views(buffer: ReadableBuffer | Any) -> Views:
    """The arrays of a payload that lies in ``buffer``, any C-contiguous buffer or a torch tensor of bytes; no copies.

    Any safetensors file is such a payload; in one that was not packed here an array may begin anywhere. Every number is
    checked before it is used. Raises ValueError, with the array's name and the offset in the buffer, for a header that
    isn't one and for arrays that overlap, leave gaps or bytes behind them, or are not all there.
    """
    memory = _flat(_torch_bytes("the buffer", buffer) if _is_tensor(buffer) else memoryview(buffer))
    if memory.nbytes < _SIZE_BYTES:
        raise ValueError(f"{memory.nbytes} bytes at offset 0 are no table of contents")
    header_size = int.from_bytes(memory[:_SIZE_BYTES], "little")
    start = _SIZE_BYTES + header_size
    if header_size > _MAX_HEADER or start > memory.nbytes:
        raise ValueError(f"a header of {header_size} bytes at offset {_SIZE_BYTES}; the buffer has {memory.nbytes}")
    table = _parsed(bytes(memory[_SIZE_BYTES:start]))
    found = Views()
    found.metadata = _checked_metadata(table.pop(_METADATA, {}))
    at = start
    for name, (dtype, shape, begin, end) in _in_order(table, memory.nbytes - start):
        if start + begin != at:
            what = "overlaps the array before it" if start + begin < at else "leaves a gap before it"
            raise ValueError(f"{name!r} at offset {start + begin} {what}, which ends at {at}")
        at = start + end
        if not (_FILLER.fullmatch(name) and dtype == "U8"):
            found[name] = View(dtype, shape, memory[start + begin : at])
    if at != memory.nbytes:
        raise ValueError(f"{memory.nbytes - at} bytes at offset {at} are of no array")
    return found


# The header


def _row(dtype: str, shape: list[int], at: int, size: int) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}


def _size_of(name: str, dtype: object, shape: object) -> int:
    """An array's size in bytes. Raises ValueError if these can't be its dtype and shape."""
    bits = _BITS.get(dtype) if isinstance(dtype, str) else None
    if bits is None:
        raise ValueError(f"{name!r}: {dtype!r} is no dtype of safetensors")
    if not isinstance(shape, Sequence) or len(shape) > _MAX_DIMENSIONS:
        raise ValueError(f"{name!r}: no shape is {shape!r}")
    if not all(type(side) is int and 0 <= side <= _MAX_SIZE for side in shape):
        raise ValueError(f"{name!r}: no shape is {shape!r}")
    size, rest = divmod(math.prod(shape) * bits, 8)
    if rest or size > _MAX_SIZE:
        raise ValueError(f"{name!r}: {shape!r} of {dtype} are no number of bytes")
    return size


def _parsed(header: bytes) -> dict[str, Any]:
    if not header.startswith(b"{"):
        raise ValueError(f"no table of contents begins at offset {_SIZE_BYTES}")
    try:
        table = json.loads(header.decode(), object_pairs_hook=_object, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the table of contents at offset {_SIZE_BYTES} can't be read: {error}") from None
    assert isinstance(table, dict)
    return table


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a name is there twice")
    return table


def _refuse_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is no JSON")


def _checked_metadata(metadata: object) -> dict[str, str]:
    if not isinstance(metadata, Mapping):
        raise ValueError(f"{_METADATA} is no object")
    for key, value in metadata.items():
        if not (isinstance(key, str) and isinstance(value, str)):
            raise ValueError(f"{_METADATA} has {key!r}: {value!r}; keys and values are strings")
    return dict(metadata)


def _in_order(table: dict[str, Any], room: int) -> list[tuple[str, tuple[str, tuple[int, ...], int, int]]]:
    """The arrays as they lie in ``room`` bytes. Raises ValueError for one that can't be there."""
    rows = []
    for name, row in table.items():
        if not isinstance(row, dict) or row.keys() != {"dtype", "shape", "data_offsets"}:
            raise ValueError(f"{name!r} has no dtype, shape and data_offsets, or more than that")
        size, offsets = _size_of(name, row["dtype"], row["shape"]), row["data_offsets"]
        if not (isinstance(offsets, list) and len(offsets) == 2 and all(type(offset) is int for offset in offsets)):
            raise ValueError(f"{name!r}: its offsets are {offsets!r}")
        begin, end = offsets
        if not 0 <= begin <= end <= room:
            raise ValueError(f"{name!r} is at {begin} to {end} of the {room} bytes behind the header")
        if end - begin != size:
            raise ValueError(f"{name!r} at {begin} of the bytes behind the header has {end - begin}, not {size}")
        rows.append((name, (row["dtype"], tuple(row["shape"]), begin, end)))
    return sorted(rows, key=lambda row: row[1][2:])


# Arrays as programs have them


def _view_of(name: str, array: Any) -> View:
    if isinstance(array, View):
        return array._replace(memory=_flat(array.memory))
    if _is_tensor(array):
        return View(_dtype_of(name, array.dtype), tuple(array.shape), _torch_bytes(repr(name), array))
    if hasattr(array, "dtype") and hasattr(array, "flags"):
        return _view_of_numpy(name, array)
    try:
        memory = memoryview(array)
    except TypeError:
        raise TypeError(f"{name!r}: {type(array).__name__} is no array and no buffer") from None
    letter = memory.format.lstrip("@=<")
    kind = _KINDS.get(letter)
    dtype = {"?": "BOOL", "c": "U8"}.get(letter, f"{kind}{memory.itemsize * 8}")
    if dtype not in _BITS:
        raise TypeError(f"{name!r}: a buffer of format {memory.format!r} is none of plain numbers, little-endian")
    if not memory.c_contiguous:
        raise ValueError(f"{name!r} is strided: give a copy, bytes(buffer) of it for instance")
    return View(dtype, tuple(memory.shape or ()), _flat(memory))


def _view_of_numpy(name: str, array: Any) -> View:
    dtype = _dtype_of(name, array.dtype)
    if array.dtype != array.dtype.newbyteorder("<"):
        raise ValueError(f"{name!r} is big-endian: give array.astype({array.dtype.name!r})")
    if not array.flags.c_contiguous:
        raise ValueError(f"{name!r} is strided: give numpy.ascontiguousarray(array), which is a copy")
    return View(dtype, tuple(array.shape), _flat(memoryview(array.reshape(-1).view("u1"))))


def _dtype_of(name: str, dtype: Any) -> str:
    known = _DTYPES.get(getattr(dtype, "name", None) or str(dtype).removeprefix("torch."))
    if known is None:
        raise TypeError(f"{name!r}: safetensors has no {dtype}; give a view of it as bytes")
    return known


def _is_tensor(array: Any) -> bool:
    return hasattr(array, "detach") and hasattr(array, "data_ptr")


def _torch_bytes(name: str, tensor: Any) -> memoryview:
    """The memory of a tensor. Its dtype tells of which torch it is, so that it needn't be imported."""
    if str(tensor.layout) != "torch.strided" or tensor.is_quantized:
        raise TypeError(f"{name} is sparse or quantized: give its parts")
    if tensor.device.type != "cpu":
        raise ValueError(f"{name} is on {tensor.device}: give tensor.cpu(), which is a copy")
    if not tensor.is_contiguous() or tensor.is_conj() or tensor.is_neg():
        raise ValueError(f"{name} is strided or not yet computed: give tensor.resolve_conj().contiguous()")
    torch = sys.modules[type(tensor.dtype).__module__]
    return memoryview(tensor.detach().reshape(-1).view(torch.uint8).numpy())


def _flat(memory: memoryview) -> memoryview:
    """The same bytes without a shape. Raises ValueError for a strided buffer."""
    if not memory.c_contiguous:
        raise ValueError("a strided buffer: give a copy")
    return memory.cast("B") if memory.nbytes else memoryview(b"")
