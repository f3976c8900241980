"""The C core in Python terms: the only module that calls it, and the only one that turns a status into an error.

Each call into the core releases the GIL, so put and take are where other threads run. Objects here are not for two
threads at once; :mod:`ds4kv.stream` sees to that.
"""

from __future__ import annotations

import os
from typing import Any, NamedTuple

from ds4kv.core import memory
from ds4kv.core._native import ffi, lib
from ds4kv.errors import CorruptError, Ds4kvError, TruncatedError, UnsupportedError

__all__ = [
    "MAX_LEVEL",
    "MIN_LEVEL",
    "Compressor",
    "Decompressor",
    "Frame",
    "Hasher",
    "c_frame",
    "check",
    "decode",
    "file_birth",
    "frame_decode",
    "frame_of",
    "frame_size",
    "hash64",
    "is_hopeless",
    "record_head_size",
    "region_bound",
    "seal_of",
    "trim",
    "write_out",
]

_SLICE_MS = 20  # that a thread waits in C before Python looks for signals, and whether it is cancelled

MAX_LEVEL: int = lib.DS4KV_MAX_LEVEL
MIN_LEVEL: int = lib.DS4KV_MIN_LEVEL
_STATE: int = lib.DS4KV_STATE


class Frame(NamedTuple):
    """What stands before the records of a region, and the chunk size and form that the file's header tells.

    ``seal`` and ``first_sum`` are of form PACKED, and 0 in the others: what header and text are known by, and the
    XXH3-64 of the first chunk, 0 of an empty payload.
    """

    raw_total: int
    chunk_count: int
    chunk_size: int
    form: int
    seal: int = 0
    first_sum: int = 0

    def pack(self) -> bytes:
        """The bytes, :func:`frame_size` of them."""
        head = ffi.new("uint8_t[]", frame_size(self.form))
        lib.ds4kv_frame_encode(c_frame(self), head)
        return bytes(ffi.buffer(head))


_PROVEN = {
    lib.DS4KV_CORRUPT: CorruptError,
    lib.DS4KV_TRUNCATED: TruncatedError,
    lib.DS4KV_UNSUPPORTED: UnsupportedError,
}


def check(status: int, fault: Any = None) -> int:
    """``status`` if it is a success; the one place where it becomes an exception."""
    if status >= 0:
        return status
    if status in _PROVEN:
        why, field = ffi.string(fault.why).decode(), ffi.string(fault.field).decode()
        raise _PROVEN[status](why, offset=int(fault.offset), field=field)
    if status == lib.DS4KV_IO:
        raise OSError(fault.os_error, os.strerror(fault.os_error))
    if status == lib.DS4KV_NOMEM:
        raise MemoryError("no memory for the chunks of a checkpoint")
    if status == lib.DS4KV_PARAM:
        raise ValueError("an argument is outside what the core takes")
    if status == _STATE:
        raise RuntimeError("not at this moment, or not in this process: a stream stays with the process that made it")
    raise Ds4kvError(f"LZ4 failed on good arguments (status {status})")


def c_frame(frame: Frame) -> Any:
    """The frame as C has it."""
    return ffi.new("ds4kv_frame *", tuple(frame))


def frame_of(found: Any) -> Frame:
    """A frame of C's."""
    sizes = found.raw_total, found.chunk_count, found.chunk_size
    return Frame(*sizes, found.form, found.seal, found.first_sum)


def frame_size(form: int) -> int:
    """Bytes before the first record of a region in this form."""
    return int(lib.ds4kv_frame_size(form))


def record_head_size(form: int) -> int:
    """Bytes before each block of a region in this form."""
    return int(lib.ds4kv_record_head_size(form))


def frame_decode(head: bytes, region_bytes: int, chunk_size: int, form: int) -> Frame:
    """Reads a frame and holds it against the region's size; CorruptError with an offset into the region."""
    frame, fault = ffi.new("ds4kv_frame *"), ffi.new("ds4kv_fault *")
    check(lib.ds4kv_frame_decode(frame, head, region_bytes, chunk_size, form, fault), fault)
    return frame_of(frame)


def region_bound(raw_total: int, chunk_size: int, form: int) -> int:
    """What a region of so many bytes of payload takes at most."""
    return int(lib.ds4kv_region_bound(raw_total, chunk_size, form))


def trim() -> None:
    """Ends the threads that are without work and frees the memory that is kept, which else happens after a second."""
    lib.ds4kv_trim()


def write_out(fd: int, offset: int, size: int) -> None:
    """Has the system begin to write those bytes of a file to its disk, where it can be asked to."""
    lib.ds4kv_file_write_out(fd, offset, size)


def file_birth(fd: int) -> int:
    """When an open file came into being, in ns since 1970; 0 where the system can't tell."""
    return int(lib.ds4kv_file_birth(fd))


def hash64(obj: Any, seed: int = 0) -> int:
    """The XXH3-64 of what :func:`memory.source` takes."""
    with memory.source(obj) as array:
        return int(lib.ds4kv_hash_seeded(array, len(array), seed))


def seal_of(head: bytes, text: bytes) -> int:
    """What a file of layout packed is known by: a sum of its header and text length, 52 bytes, and of its text.

    Hits, last use, the flag of a tool map and the region's size are no part of it, as they may change after a save
    begins.
    """
    return int(lib.ds4kv_seal(head, ffi.from_buffer(text), len(text)))


def is_hopeless(array: Any, chunk_size: int, level: int) -> bool:
    """Whether compressing a :func:`memory.source` would save less than 1/64 of it, by samples from all over it."""
    return bool(check(lib.ds4kv_is_hopeless(array, len(array), chunk_size, level)))


def decode(region: Any, chunk_size: int, form: int, into: Any, workers: int) -> None:
    """Decodes a :func:`memory.source` that holds a region into a :func:`memory.target` of its raw_total."""
    fault = ffi.new("ds4kv_fault *")
    check(lib.ds4kv_decode(region, len(region), chunk_size, form, into, len(into), workers, fault), fault)


class Hasher:
    """The XXH3-64 of bytes that come by pieces."""

    def __init__(self) -> None:
        self._hasher = ffi.gc(ffi.new("ds4kv_hasher **"), lib.drop_hasher)
        check(lib.ds4kv_hasher_new(self._hasher))

    def put(self, array: Any, start: int, stop: int) -> None:
        """Goes on with bytes of a :func:`memory.source`."""
        lib.ds4kv_hasher_put(self._hasher[0], array + start, stop - start)

    def take(self) -> int:
        """The hash of what was put since the last take."""
        return int(lib.ds4kv_hasher_take(self._hasher[0]))


class Compressor:
    """Payload in, records out."""

    def __init__(
        self,
        raw_total: int | None,
        chunk_size: int,
        form: int,
        level: int,
        workers: int,
        *,
        nice: int = 0,
        sums: bool = False,
        seal: int = 0,
    ) -> None:
        """With ``sums``, the XXH3-64 of each record is made with it. ``seal`` is for form PACKED alone."""
        self._place = ffi.new("ds4kv_writer **")  # which a loan may need longer than the writer
        self._writer = ffi.gc(self._place, lib.drop_writer)  # owned before it is made
        self._record = ffi.new("const void **")
        total = lib.DS4KV_UNKNOWN if raw_total is None else raw_total
        check(lib.ds4kv_writer_new(self._writer, total, chunk_size, form, level, workers))
        check(lib.ds4kv_writer_nice(self._writer[0], nice))
        if sums:
            check(lib.ds4kv_writer_sums(self._writer[0]))
        if seal:
            check(lib.ds4kv_writer_seal(self._writer[0], seal))
        self._chunk = ffi.new("const void **")
        if form == lib.DS4KV_FORM_PACKED:
            check(lib.ds4kv_writer_leave_stored(self._writer[0]))

    def loan(self) -> Any:
        """For the ``with`` block in which memory is lent: whatever ends it, nothing is read from there after.

        An exception that comes while something still is to be read ends the compressor.
        """
        return ffi.gc(self._place, lib.reclaim_writer)

    def put(self, array: Any, start: int, stop: int, *, lent: bool) -> int:
        """Takes bytes of a :func:`memory.source`; fewer than all of them: take a record, then put the rest."""
        return check(lib.ds4kv_writer_put(self._writer[0], array + start, stop - start, lent))

    def lent(self) -> int:
        """How many chunks are still to be read from lent memory."""
        return check(lib.ds4kv_writer_lent(self._writer[0]))

    def finish(self) -> None:
        """No more input."""
        check(lib.ds4kv_writer_finish(self._writer[0]))

    def wait(self) -> bool:
        """Whether take() would wait for no other thread; it is waited for a little. Gives back what was taken."""
        return bool(lib.ds4kv_writer_wait(self._writer[0], _SLICE_MS))

    def take(self) -> memoryview | None:
        """The oldest record, valid until the next call; None when there is none."""
        size = check(lib.ds4kv_writer_take(self._writer[0], self._record))
        return memoryview(ffi.buffer(self._record[0], size)) if size else None

    def stored(self) -> memoryview | None:
        """The chunk that belongs behind the record taken last, as valid as that; None if the record is whole."""
        size = int(lib.ds4kv_writer_stored(self._writer[0], self._chunk))
        return memoryview(ffi.buffer(self._chunk[0], size)) if size else None

    @property
    def sum(self) -> int:
        """The sum of the record taken last."""
        return int(lib.ds4kv_writer_sum(self._writer[0]))

    @property
    def frame(self) -> Frame:
        """The frame of what was put so far."""
        frame = ffi.new("ds4kv_frame *")
        lib.ds4kv_writer_frame(self._writer[0], frame)
        return frame_of(frame)

    def free(self) -> None:
        """Ends the threads and gives the memory back; RuntimeError comes of any other call after."""
        ffi.release(self._writer)


class Decompressor:
    """Records in, payload out."""

    def __init__(
        self,
        frame: Frame,
        region_bytes: int,
        first_chunk: int,
        first_offset: int,
        workers: int,
        file: tuple[int, int] | None = None,
        sums: Any = None,
    ) -> None:
        """``file`` is a descriptor and where the region begins in that file: then nothing is put, only taken.
        ``sums`` is an array of 64-bit integers, the sums that the records of the whole region should have.
        """
        self._place = ffi.new("ds4kv_reader **")  # which a loan may need longer than the reader
        self._reader = ffi.gc(self._place, lib.drop_reader)  # owned before it is made
        check(lib.ds4kv_reader_new(self._reader, c_frame(frame), region_bytes, first_chunk, first_offset, workers))
        self._room = ffi.new("void **")
        if sums is not None:
            self._sums = ffi.from_buffer("uint64_t[]", sums)
            if len(self._sums) != frame.chunk_count:
                raise ValueError(f"{len(self._sums)} sums for {frame.chunk_count} chunks")
            self._check(lib.ds4kv_reader_sums(self._reader[0], self._sums))
        if file is not None:
            self._check(lib.ds4kv_reader_from_file(self._reader[0], *file))

    def _check(self, status: int) -> int:
        if status >= 0:
            return status
        if status == _STATE:  # there may be no reader to ask
            return check(status)
        fault = ffi.new("ds4kv_fault *")
        lib.ds4kv_reader_fault(self._reader[0], fault)
        return check(status, fault)

    def loan(self) -> Any:
        """For the ``with`` block in which memory is aimed at: whatever ends it, nothing is written there after.

        An exception that comes before all is there ends the decompressor.
        """
        return ffi.gc(self._place, lib.reclaim_reader)

    def room(self) -> memoryview | None:
        """Where the next bytes of the region belong; None: take first, or there are no more."""
        size = self._check(lib.ds4kv_reader_room(self._reader[0], self._room))
        return memoryview(ffi.buffer(self._room[0], size)) if size else None

    def put(self, n: int) -> None:
        """``n`` bytes were placed there."""
        self._check(lib.ds4kv_reader_put(self._reader[0], n))

    def finish(self) -> None:
        """The input has ended; TruncatedError if the region had more to come."""
        self._check(lib.ds4kv_reader_finish(self._reader[0]))

    def aim(self, array: Any, start: int, stop: int) -> None:
        """The payload bytes that come next belong in this part of a :func:`memory.target`, until all are taken."""
        self._check(lib.ds4kv_reader_aim(self._reader[0], array + start, stop - start))

    def aim_parts(self, arrays: list[Any]) -> None:
        """The payload bytes that come next belong in these targets, one after the other."""
        self._parts = ffi.new("ds4kv_part[]", [(array, len(array)) for array in arrays])
        self._check(lib.ds4kv_reader_aim_parts(self._reader[0], self._parts, len(arrays)))

    def wait(self) -> bool:
        """Whether take() would wait for no other thread; it is waited for a little."""
        return bool(lib.ds4kv_reader_wait(self._reader[0], _SLICE_MS))

    def take(self, array: Any, start: int, stop: int, *, wait: bool) -> int:
        """Moves payload bytes there and says how many: 0 if none are ready and none could be waited for. With None as
        ``array``, they go where they were aimed.
        """
        to = ffi.NULL if array is None else array + start
        return self._check(lib.ds4kv_reader_take(self._reader[0], to, stop - start, wait))

    def free(self) -> None:
        """Ends the threads and gives the memory back; RuntimeError comes of any other call after."""
        ffi.release(self._reader)


# A child has no use for threads that only wait, and Python 3.12 warns of forks beside any.
os.register_at_fork(before=trim)
