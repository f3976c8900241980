"""The caller's memory, as the C core is given it: the bytes of what a program has, where they lie. Nothing is copied.

A plain buffer costs one look. What is none is asked in turn whether it is a PyTorch tensor, has an
``__array_interface__``, or lends itself by DLPack; no library is imported for that. What has no bytes side by side in
the CPU's memory is a TypeError that says what to give instead.
"""

from __future__ import annotations

import functools
import math
import operator
import sys
from typing import TYPE_CHECKING, Any

from ds4kv.core._native import ffi
from ds4kv.core.forks import fork_waits

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Protocol, TypeAlias

    from _typeshed import ReadableBuffer, WriteableBuffer

    class HasArrayInterface(Protocol):
        """As NumPy describes it."""

        @property
        def __array_interface__(self) -> Any: ...

    class HasDLPack(Protocol):
        """As PyTorch tensors are, and arrays of other libraries."""

        def __dlpack__(self, *args: Any, **kwargs: Any) -> Any: ...
        def __dlpack_device__(self) -> Any: ...

    Readable: TypeAlias = ReadableBuffer | HasArrayInterface | HasDLPack
    """What a payload may be given as."""
    Writeable: TypeAlias = WriteableBuffer | HasArrayInterface | HasDLPack
    """What a payload may be read into."""

__all__ = ["buffers_of", "parts_of", "size_of", "source", "target", "view"]

_COPY_UP = "to read from it give tensor.cpu(); to fill it, load into pinned memory of the CPU's and copy that up"


def source(obj: Any) -> Any:
    """The bytes of ``obj``, as an array that len() and the core understand.

    For a ``with`` block, which lets go of the memory at its end: an exception would keep it by the frames of its
    traceback, and garbage collection of a memoryview that is held like this crashes some versions of CPython.
    TypeError for what has no memory to lend, and for arrays of objects: what they hold are addresses in this process.
    """
    return _bytes_of(obj, False)


def target(obj: Any) -> Any:
    """The same to be written to; TypeError if it is read-only."""
    return _bytes_of(obj, True)


def size_of(obj: Any) -> int:
    """Size in bytes of what :func:`source` takes."""
    with source(obj) as array:
        return len(array)


def view(array: Any, start: int, stop: int) -> memoryview:
    """Bytes ``start`` up to ``stop`` of a source or target, for as long as that is held."""
    return memoryview(ffi.buffer(array))[start:stop]


def parts_of(obj: Any) -> list[Any] | None:
    """The buffers of a payload that is given in several, a list or a tuple; None if it is one."""
    return list(obj) if isinstance(obj, list | tuple) else None


def buffers_of(obj: Any) -> list[Any]:
    """The buffers of a payload, however many it is given in."""
    several = parts_of(obj)
    return [obj] if several is None else several


def _bytes_of(obj: Any, writes: bool) -> Any:
    dtype = getattr(obj, "dtype", None)
    if dtype is not None and getattr(dtype, "hasobject", False):
        raise TypeError(f"an array of {dtype} holds references, not bytes")
    try:
        return ffi.from_buffer("uint8_t[]", obj, writes)
    except (TypeError, ValueError, BufferError):
        lent = _lent(obj, writes=writes)
        if lent is None:
            raise
        return lent


def _lent(obj: Any, *, writes: bool) -> Any:
    """The memory of what the fast way can't take. TypeError where it is known why there is none, else None."""
    try:
        is_strided = not memoryview(obj).c_contiguous
    except (ValueError, BufferError):  # closed, or of a format that Python has no name for
        is_strided = not getattr(getattr(obj, "flags", None), "c_contiguous", True)
    except TypeError:
        return _of_no_buffer(obj, writes=writes)
    if is_strided:
        raise TypeError("a strided buffer: give a copy, numpy.ascontiguousarray(array) for instance")
    if writes:
        with ffi.from_buffer("uint8_t[]", obj):  # it raises, if something else is wrong
            raise TypeError(f"read-only memory, of {type(obj).__name__}, can't be filled")
    return None


def _of_no_buffer(obj: Any, *, writes: bool) -> Any:
    tensor = getattr(sys.modules.get("torch"), "Tensor", None)
    if tensor is not None and isinstance(obj, tensor):
        return _of_tensor(obj, writes=writes)
    interface = getattr(obj, "__array_interface__", None)
    if interface is not None:
        return _of_interface(obj, interface, writes=writes)
    if hasattr(obj, "__dlpack__") and hasattr(obj, "__dlpack_device__"):
        with fork_waits:
            from ds4kv.core import dlpack

        address, size, keeper = dlpack.borrow(obj, writes=writes)
        return _at(type(obj).__name__, address, size, keeper, writes=writes)
    return None


def _at(name: str, address: int, size: int, owner: Any, *, writes: bool) -> Any:
    """``size`` bytes of memory, which ``owner`` keeps."""
    if size == 0:
        return ffi.from_buffer("uint8_t[]", bytearray(), require_writable=writes)
    if address == 0:
        raise TypeError(f"{name} has {size} bytes by its shape, and no memory")
    # A destructor without bytecode, so that no signal handler runs in it. What it is there for is to hold the owner.
    held = ffi.gc(ffi.cast("uint8_t *", address), functools.partial(operator.is_, owner))
    return ffi.from_buffer("uint8_t[]", ffi.buffer(held, size), require_writable=writes)


def _of_tensor(tensor: Any, *, writes: bool) -> Any:
    name = f"a tensor of {tensor.dtype}"
    if str(tensor.layout) != "torch.strided" or tensor.is_nested:
        raise TypeError(f"{name} is sparse or nested: give its parts, or tensor.to_dense()")
    if tensor.is_quantized:
        raise TypeError(f"{name} is quantized: give tensor.int_repr(), and keep scale and zero point")
    if tensor.device.type != "cpu":
        raise TypeError(f"{name} is on {tensor.device}: {_COPY_UP}")
    if not tensor.is_contiguous():
        raise TypeError(f"{name} is strided: give tensor.contiguous(), which is a copy")
    if tensor.is_conj() or tensor.is_neg():
        raise TypeError(f"{name} is not yet computed: give tensor.resolve_conj().resolve_neg(), which is a copy")
    if writes and tensor.requires_grad:
        raise TypeError(f"{name} requires a gradient, which filling it would make wrong: give tensor.detach()")
    size = tensor.numel() * tensor.element_size()
    try:
        address, storage = tensor.data_ptr(), tensor.untyped_storage().nbytes()
    except RuntimeError as error:  # a fake one, or a wrapper around others
        raise TypeError(f"{name} has no memory of its own: {error}") from error
    if tensor.storage_offset() * tensor.element_size() + size > storage and size:
        raise TypeError(f"{name} has {size} bytes by its shape, and a storage of {storage}")
    return _at(name, address, size, tensor, writes=writes)


# NumPy's array interface


def _of_interface(obj: Any, interface: Mapping[str, Any], *, writes: bool) -> Any:
    name = type(obj).__name__
    itemsize = _itemsize(interface["typestr"])
    if itemsize is None or _has_objects(interface.get("descr") or []) or interface.get("mask") is not None:
        raise TypeError(f"{name} of {interface['typestr']!r} is no memory of plain numbers")
    shape, strides = interface["shape"], interface.get("strides")
    if strides is not None and not _is_contiguous(shape, strides, itemsize):
        raise TypeError(f"{name} is strided: give numpy.ascontiguousarray(array), which is a copy")
    size, memory = math.prod(shape) * itemsize, interface.get("data")
    if isinstance(memory, tuple):
        address, is_read_only = memory
        if is_read_only and writes:
            raise TypeError(f"read-only memory, of {name}, can't be filled")
        return _at(name, address or 0, size, (obj, interface), writes=writes)
    if memory is None:
        raise TypeError(f"{name} is no buffer, and its __array_interface__ says that it is")
    offset = interface.get("offset", 0)
    whole = target(memory) if writes else source(memory)
    if not 0 <= offset <= len(whole) - size:
        raise TypeError(f"{name} has {size} bytes by its shape, and {len(whole) - offset} in its memory")
    return ffi.from_buffer("uint8_t[]", view(whole, offset, offset + size), require_writable=writes)


def _itemsize(typestr: str) -> int | None:
    """Size in bytes of an element of this type; None for references, and for bits."""
    kind, digits = typestr[1], typestr[2:].partition("[")[0]
    if kind in "Ot":
        return None
    return int(digits) * (4 if kind == "U" else 1)


def _has_objects(descr: Sequence[Any]) -> bool:
    """Whether one of these fields, or of the fields in them, is a reference."""
    return any(kind[1:2] == "O" if isinstance(kind, str) else _has_objects(kind) for _, kind, *_ in descr)


def _is_contiguous(shape: Sequence[int], strides: Sequence[int], itemsize: int) -> bool:
    """Whether elements lie side by side, the last dimension's first; ``strides`` count as ``itemsize`` does."""
    if 0 in shape:
        return True
    step = itemsize
    for side, stride in zip(reversed(shape), reversed(strides), strict=True):
        if side != 1 and stride != step:
            return False
        step *= side
    return True
