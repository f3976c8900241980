"""Memory is taken where it lies: buffers, tensors, array interfaces, DLPack. What is refused says the way out."""

from __future__ import annotations

import ctypes
import gc
import io
import math
import mmap
import sys
import weakref
from typing import Any

import numpy as np
import pytest

from ds4kv import RawReader, RawWriter
from ds4kv.core import memory

CONTENT = bytes(range(256))


def read(obj: Any) -> bytes:
    """What a source of it holds."""
    with memory.source(obj) as array:
        return bytes(memory.view(array, 0, len(array)))


def fill(obj: Any, content: bytes) -> None:
    with memory.target(obj) as array:
        memory.view(array, 0, len(array))[:] = content


def through_streams(obj: Any, into: Any) -> None:
    """Writes one object and reads what was written into the other one."""
    fp = io.BytesIO()
    with RawWriter(fp) as writer:
        size = writer.write(obj)
    assert len(fp.getvalue()) == size
    with RawReader(io.BytesIO(fp.getvalue()), size) as reader:
        reader.readinto_exactly(into)


def read_only(array: Any) -> Any:
    array.flags.writeable = False
    return array


# Buffers


@pytest.mark.parametrize("dtype", ["f4", "?", "c16", ">u2", "M8[ns]", "U3", "S5", [("a", "u1"), ("b", "f8")]])
def test_numpy_arrays_of_every_kind(dtype: Any) -> None:
    array = np.zeros(16, dtype)
    array.view("u1")[:] = np.arange(array.nbytes, dtype="u1")
    assert memory.size_of(array) == array.nbytes
    assert read(array) == read(read_only(array.copy())) == array.tobytes()
    into = np.zeros_like(array)
    through_streams(array, into)
    assert into.tobytes() == array.tobytes()


@pytest.mark.parametrize("name", ["bfloat16", "float8_e4m3fn"])
def test_arrays_that_are_no_memoryview(name: str) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    state = np.arange(100).astype(getattr(ml_dtypes, name))
    assert memory.size_of(state) == state.nbytes
    into = np.zeros_like(state)
    through_streams(state, into)
    assert into.tobytes() == state.tobytes()
    with pytest.raises(TypeError, match="strided"):
        memory.source(state[::2])


@pytest.mark.parametrize("obj", [b"", bytearray(), memoryview(b""), np.zeros((3, 0)), np.zeros((4, 4))[2:2]])
def test_what_is_empty(obj: Any) -> None:
    assert memory.size_of(obj) == 0
    assert read(obj) == b""


@pytest.mark.parametrize(
    ("good", "bad", "way_out"),
    [
        (np.zeros((8, 8)), np.zeros((8, 8))[:, ::2], "ascontiguousarray"),
        (np.zeros((8, 8)), np.zeros((8, 8)).T, "ascontiguousarray"),
        (memoryview(b"abcd"), memoryview(b"abcd")[::2], "strided"),
        (np.zeros(2, "V8"), np.zeros(2, object), "references"),
        (np.zeros(2, [("a", "V8")]), np.zeros(2, [("a", object)]), "references"),
        (b"text", "text", "unicode"),
        (b"5", 5, "bytes-like"),
        (b"", None, "bytes-like"),
    ],
)
def test_what_has_no_bytes_side_by_side_is_refused(good: Any, bad: Any, way_out: str) -> None:
    memory.source(good)
    with pytest.raises(TypeError, match=way_out):
        memory.source(bad)
    with pytest.raises(TypeError):
        memory.target(bad)


@pytest.mark.parametrize("obj", [b"1234567", memoryview(b"abc"), read_only(np.zeros(4))])
def test_read_only_memory_is_not_filled(obj: Any) -> None:
    memory.source(obj)
    memory.target(bytearray(obj))
    with pytest.raises(TypeError, match="read-only"):
        memory.target(obj)


def test_what_is_closed_says_so_itself() -> None:
    closed = mmap.mmap(-1, 4096)
    memory.source(closed)
    closed.close()
    released = memoryview(bytearray(4))
    released.release()
    for obj, complaint in ((closed, "mmap closed"), (released, "released memoryview")):
        for take in (memory.source, memory.target):
            with pytest.raises(ValueError, match=complaint):
                take(obj)


def test_a_list_or_tuple_is_several_buffers() -> None:
    assert memory.parts_of([b"a", b"b"]) == memory.parts_of((b"a", b"b")) == [b"a", b"b"]
    assert memory.parts_of([]) == []
    assert [memory.parts_of(one) for one in (b"ab", bytearray(2), np.zeros(2), None)] == [None] * 4


# __array_interface__


class Interface:
    """Memory with NumPy's description, and no buffer."""

    def __init__(self, array: Any, **others: Any) -> None:
        self.array = array
        self.__array_interface__ = {**array.__array_interface__, **others}


@pytest.mark.parametrize("dtype", ["f4", "?", "c8", "u2", "M8[s]", "U2", [("a", "u1"), ("b", [("c", "f8")])]])
@pytest.mark.parametrize("shape", [(4,), (2, 3), (), (2, 0), (1, 4, 1)])
def test_an_array_interface(dtype: Any, shape: tuple[int, ...]) -> None:
    array = np.zeros(shape, dtype)
    content = CONTENT[: array.nbytes]
    fill(Interface(array), content)
    assert array.tobytes() == content == read(Interface(array))
    assert memory.size_of(Interface(array, strides=array.strides)) == array.nbytes


def test_an_array_interface_over_a_buffer() -> None:
    room = bytearray(20)
    obj = Interface(np.zeros(4, "i4"), data=room, offset=4)
    fill(obj, CONTENT[:16])
    assert room == bytes(4) + CONTENT[:16]
    assert read(obj) == CONTENT[:16]
    beyond = Interface(np.zeros(4, "i4"), data=room, offset=5)
    with pytest.raises(TypeError, match="16 bytes by its shape, and 15"):
        memory.source(beyond)
    of_bytes = Interface(np.zeros(4, "i4"), data=CONTENT[:16])
    assert read(of_bytes) == CONTENT[:16]
    with pytest.raises(TypeError, match="read-only"):
        memory.target(of_bytes)


@pytest.mark.parametrize(
    ("bad", "way_out"),
    [
        (Interface(np.zeros((4, 4))[:, ::2]), "ascontiguousarray"),
        (Interface(np.zeros((4, 4)).T), "ascontiguousarray"),
        (Interface(np.zeros(4), strides=(0,)), "ascontiguousarray"),
        (Interface(np.zeros(2, object)), "plain numbers"),
        (Interface(np.zeros(2, [("a", [("b", object)])])), "plain numbers"),
        (Interface(np.zeros(2), typestr="|t3"), "plain numbers"),
        (Interface(np.zeros(2), mask=np.zeros(2, bool)), "plain numbers"),
        (Interface(np.zeros(2), data=(0, False)), "no memory"),
        (Interface(np.zeros(2), data=None), "no buffer"),
    ],
)
def test_an_array_interface_that_is_no_plain_memory_is_refused(bad: Any, way_out: str) -> None:
    memory.source(Interface(np.zeros((4, 4))))
    for take in (memory.source, memory.target):
        with pytest.raises(TypeError, match=way_out):
            take(bad)


def test_a_read_only_array_interface() -> None:
    obj = Interface(read_only(np.arange(4)))
    assert read(obj) == np.arange(4).tobytes()
    with pytest.raises(TypeError, match="read-only"):
        memory.target(obj)


# DLPack


class DLPack:
    """An array of some library that lends itself by DLPack alone; NumPy makes the capsules."""

    def __init__(self, array: Any, *, kind: int = 1, has_versions: bool = True) -> None:
        self.array, self.kind, self.has_versions = array, kind, has_versions

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.kind, 0

    def __dlpack__(self, **kwargs: Any) -> Any:
        if kwargs and not self.has_versions:
            raise TypeError("got an unexpected keyword argument")
        return self.array.__dlpack__(**kwargs)


@pytest.mark.parametrize("has_versions", [False, True])
@pytest.mark.parametrize("dtype", ["f4", "?", "c8", "u2", "i8"])
@pytest.mark.parametrize("shape", [(4,), (2, 3), (), (2, 0), (1, 4, 1)])
def test_dlpack(dtype: str, shape: tuple[int, ...], has_versions: bool) -> None:
    array = np.zeros(shape, dtype)
    content = CONTENT[: array.nbytes]
    fill(DLPack(array), content)
    assert array.tobytes() == content == read(DLPack(array, has_versions=has_versions))


def test_dlpack_that_cannot_say_whether_it_may_be_written_to() -> None:
    assert read(DLPack(np.arange(4), has_versions=False)) == np.arange(4).tobytes()
    with pytest.raises(TypeError, match=r"before 1\.0"):
        memory.target(DLPack(np.arange(4), has_versions=False))


@pytest.mark.parametrize("kind", [1, 3, 11])
def test_dlpack_of_memory_that_the_cpu_reaches(kind: int) -> None:
    assert read(DLPack(np.arange(4), kind=kind)) == np.arange(4).tobytes()


@pytest.mark.parametrize(
    ("bad", "way_out"),
    [
        (DLPack(np.zeros(4), kind=2), "pinned"),
        (DLPack(np.zeros((4, 4))[:, ::2]), "contiguous copy"),
        (DLPack(np.zeros((4, 4)).T), "contiguous copy"),
        (DLPack(np.zeros(4, "M8[s]")), "DLPack"),  # NumPy says that it has no type for it
        (DLPack(np.zeros(4, object)), "DLPack"),
    ],
)
def test_dlpack_that_is_no_plain_memory_is_refused(bad: Any, way_out: str) -> None:
    memory.source(DLPack(np.zeros((4, 4))))
    for take in (memory.source, memory.target):
        with pytest.raises(TypeError, match=way_out):
            take(bad)


@pytest.mark.parametrize("has_versions", [False, True])
def test_dlpack_of_read_only_memory(has_versions: bool) -> None:
    obj = DLPack(read_only(np.arange(4)), has_versions=has_versions)
    with pytest.raises(TypeError, match=r"read-?only"):
        memory.target(obj)
    if has_versions:  # before there were versions nobody could say it, so NumPy gives nothing
        assert read(obj) == np.arange(4).tobytes()


def test_dlpack_that_gives_something_else() -> None:
    class Odd(DLPack):
        def __dlpack__(self, **kwargs: Any) -> Any:
            return "no capsule"

    with pytest.raises(TypeError, match="capsule"):
        memory.source(Odd(np.zeros(4)))


class Versioned(DLPack):
    """One with these numbers where NumPy has others: offsets into what the capsule points to."""

    MAJOR, FLAGS, CODE, BITS = (0, ctypes.c_uint32), (24, ctypes.c_uint64), (52, ctypes.c_uint8), (53, ctypes.c_uint8)

    def __init__(self, field: tuple[int, Any], value: int) -> None:
        super().__init__(np.arange(4))
        self.field, self.value = field, value

    def __dlpack__(self, **kwargs: Any) -> Any:
        capsule = super().__dlpack__(**kwargs)
        pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
            ("PyCapsule_GetPointer", ctypes.pythonapi)
        )(capsule, b"dltensor_versioned")
        offset, kind = self.field
        kind.from_address(pointer + offset).value = self.value
        return capsule


def test_what_dlpack_says_is_heeded() -> None:
    assert read(Versioned(Versioned.FLAGS, 0)) == read(Versioned(Versioned.FLAGS, 3)) == np.arange(4).tobytes()
    memory.target(Versioned(Versioned.FLAGS, 0))
    for is_copy_or_read_only in (1, 2):
        with pytest.raises(TypeError, match="read-only"):
            memory.target(Versioned(Versioned.FLAGS, is_copy_or_read_only))
    assert memory.size_of(Versioned(Versioned.BITS, 8)) == 4
    for field, value, complaint in (
        (Versioned.MAJOR, 2, "version 2"),
        (Versioned.CODE, 3, "handles"),
        (Versioned.BITS, 4, "whole bytes"),
    ):
        with pytest.raises(TypeError, match=complaint):
            memory.source(Versioned(field, value))


# Who holds it


@pytest.mark.parametrize("kind", [Interface, DLPack])
@pytest.mark.parametrize("take", [memory.source, memory.target])
def test_memory_is_there_as_long_as_it_is_held(kind: Any, take: Any) -> None:
    def lent() -> tuple[Any, weakref.ref[Any]]:
        array = np.arange(1000)
        return take(kind(array)), weakref.ref(array)

    gc.disable()  # references alone decide
    try:
        held, array = lent()
        assert array() is not None
        with held:
            assert bytes(memory.view(held, 0, 8000)) == np.arange(1000).tobytes()
        assert array() is None
        held, array = lent()
        del held
        assert array() is None
    finally:
        gc.enable()


# PyTorch


@pytest.fixture
def torch() -> Any:
    return pytest.importorskip("torch")


DTYPES = [
    *("bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float16", "bfloat16"),
    *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu", "float4_e2m1fn_x2"),
    *("float32", "float64", "complex32", "complex64", "complex128"),
]


def test_every_dtype_of_torch_is_here(torch: Any) -> None:
    """But those that torch has no storage for."""
    found = {str(value).removeprefix("torch.") for value in vars(torch).values() if isinstance(value, torch.dtype)}
    odd = {name for name in found if name.startswith(("q", "bits", "uint", "int")) and name not in DTYPES}
    assert found - odd <= set(DTYPES)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3, 5), (), (0, 2), (1, 4, 1)])
@pytest.mark.filterwarnings("ignore")  # what torch thinks of its own complex32
def test_tensors_of_every_dtype(dtype: str, shape: tuple[int, ...], torch: Any) -> None:
    if not hasattr(torch, dtype):
        pytest.skip(f"no {dtype} in this torch")
    tensor, into = (torch.empty(shape, dtype=getattr(torch, dtype)) for _ in range(2))
    size = math.prod(shape) * tensor.element_size()
    content = bytes(i % 2 for i in range(size)) if dtype == "bool" else CONTENT[:size]
    fill(tensor, content)
    assert memory.size_of(tensor) == size
    assert read(tensor) == content
    assert tensor.reshape(-1).view(torch.uint8).numpy().tobytes() == content
    through_streams(tensor, into)
    assert read(into) == content


def test_a_part_of_a_tensor_that_lies_side_by_side(torch: Any) -> None:
    tensor = torch.zeros(4, 3, dtype=torch.int32)
    fill(tensor[2], CONTENT[:12])
    assert tensor.numpy().tobytes() == bytes(24) + CONTENT[:12] + bytes(12)
    assert read(tensor[2]) == CONTENT[:12]
    assert read(tensor.T.contiguous()) == tensor.numpy().T.tobytes()


@pytest.mark.parametrize(
    ("make", "way_out"),
    [
        (lambda torch: torch.zeros(4, 4)[:, :2], r"tensor\.contiguous"),
        (lambda torch: torch.zeros(4, 4).T, r"tensor\.contiguous"),
        (lambda torch: torch.zeros(1).expand(4), r"tensor\.contiguous"),
        (lambda torch: torch.zeros(2, 3, 4, 5).to(memory_format=torch.channels_last), r"tensor\.contiguous"),
        (lambda torch: torch.zeros(4, dtype=torch.complex64).conj(), "resolve_conj"),
        (lambda torch: torch._neg_view(torch.zeros(4)), "resolve_neg"),
        (lambda torch: torch.zeros(4, 4).to_sparse(), "to_dense"),
        (lambda torch: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]), "nested"),
        (lambda torch: torch.quantize_per_tensor(torch.zeros(4), 1, 0, torch.quint8), "int_repr"),
        (lambda torch: torch.zeros(4, device="meta"), "pinned"),
        (lambda torch: torch._efficientzerotensor((4,)), "memory"),
        (lambda torch: resized(torch.zeros(4), 0), "storage of 0"),
        (lambda torch: resized(torch.zeros(4), 15), "storage of 15"),
        (lambda torch: fake(torch), "memory"),
    ],
)
@pytest.mark.filterwarnings("ignore")  # what torch thinks of its own nested and quantized tensors
def test_tensors_that_are_no_plain_memory_are_refused(make: Any, way_out: str, torch: Any) -> None:
    memory.source(torch.zeros(4, 4))
    try:
        tensor = make(torch)
    except (AttributeError, NotImplementedError) as error:
        pytest.skip(str(error))
    for take in (memory.source, memory.target):
        with pytest.raises(TypeError, match=way_out):
            take(tensor)


def resized(tensor: Any, size: int) -> Any:
    tensor.untyped_storage().resize_(size)
    return tensor


def fake(torch: Any) -> Any:
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode():
        return torch.zeros(4)


def test_tensors_with_a_gradient(torch: Any) -> None:
    """It may be saved; to fill it would change what the gradient was made of."""
    parameter = torch.nn.Parameter(torch.ones(4))
    assert read(parameter) == read(parameter * 1) == np.ones(4, "f4").tobytes()
    with pytest.raises(TypeError, match=r"tensor\.detach\(\)"):
        memory.target(parameter)
    fill(parameter.detach(), np.zeros(4, "f4").tobytes())
    assert parameter.sum() == 0


def test_a_tensor_is_there_as_long_as_it_is_held(torch: Any) -> None:
    def lent() -> tuple[Any, weakref.ref[Any]]:
        tensor = torch.arange(1000)
        return memory.source(tensor), weakref.ref(tensor)

    held, tensor = lent()
    assert bytes(memory.view(held, 0, 8000)) == np.arange(1000).tobytes()
    with held:
        assert tensor() is not None
    assert tensor() is None


def test_torch_is_not_imported_for_it() -> None:
    class Tensor:  # as an array of a library that isn't there
        dtype = "torch.bfloat16"

        def data_ptr(self) -> int:
            raise AssertionError

    before = set(sys.modules)
    with pytest.raises(TypeError, match="bytes-like"):
        memory.source(Tensor())
    assert set(sys.modules) == before
