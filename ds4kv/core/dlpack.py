"""Memory that an array of any library lends by DLPack, where it lies.

https://dmlc.github.io/dlpack/latest/ is where the structures are from. A capsule that nobody takes over gives its array
back when it goes, so it is held and not renamed.
"""

from __future__ import annotations

import ctypes
from typing import Any

__all__ = ["borrow"]

_HOST = {1, 3, 11}  # the CPU's memory: plain, and pinned by CUDA and by ROCm
_OPAQUE = 3  # the type code of handles
_READ_ONLY, _IS_COPY = 1, 2  # flags
_VERSION = (1, 0)


class _Tensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


class _Versioned(ctypes.Structure):
    _fields_ = [
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("manager_ctx", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", _Tensor),
    ]


_is_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_char_p)(("PyCapsule_IsValid", ctypes.pythonapi))
_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)


def borrow(obj: Any, *, writes: bool) -> tuple[int, int, Any]:
    """Address and size in bytes of an array's memory, and what to hold for as long as it is used.

    Raises TypeError for memory that the CPU can't reach, that is strided or no plain numbers, and for one to be written
    to that is read-only or a copy.
    """
    name = type(obj).__name__
    kind, _ = obj.__dlpack_device__()
    if kind not in _HOST:
        raise TypeError(
            f"{name} is on a device, of DLPack's kind {int(kind)}: give a copy in the CPU's memory, or load into pinned"
            " memory and copy that up"
        )
    capsule = _capsule(obj, name)
    flags = 0
    if _is_valid(capsule, b"dltensor_versioned"):
        versioned = ctypes.cast(_pointer(capsule, b"dltensor_versioned"), ctypes.POINTER(_Versioned)).contents
        if versioned.major != _VERSION[0]:
            raise TypeError(f"{name} lends its memory by version {versioned.major} of DLPack; 1 is known")
        tensor, flags = versioned.tensor, versioned.flags
    elif _is_valid(capsule, b"dltensor"):
        if writes:
            raise TypeError(f"{name} lends its memory by a DLPack of before 1.0, which can't say that it may be filled")
        tensor = ctypes.cast(_pointer(capsule, b"dltensor"), ctypes.POINTER(_Tensor)).contents
    else:
        raise TypeError(f"{name} gives no capsule of DLPack's")
    if writes and flags & (_READ_ONLY | _IS_COPY):
        raise TypeError(f"read-only memory, of {name}, can't be filled")
    bits = tensor.bits * tensor.lanes
    if tensor.code == _OPAQUE or bits % 8:
        raise TypeError(f"{name} is of handles, or of numbers that are no whole bytes")
    count, is_strided = 1, False
    for axis in reversed(range(tensor.ndim)):
        side = tensor.shape[axis]
        is_strided |= bool(tensor.strides) and side != 1 and tensor.strides[axis] != count
        count *= side
    if is_strided and count:
        raise TypeError(f"{name} is strided: give a contiguous copy")
    address = tensor.data + tensor.byte_offset if tensor.data else 0
    return address, count * bits // 8, (obj, capsule)


def _capsule(obj: Any, name: str) -> Any:
    try:
        try:
            return obj.__dlpack__(max_version=_VERSION, copy=False)
        except TypeError:  # of before there were versions
            return obj.__dlpack__()
    except Exception as error:
        raise TypeError(f"{name} doesn't lend its memory by DLPack: {error}") from error
