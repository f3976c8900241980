"""A ``FILE *`` over a payload stream, for C engines that are called from Python.

stdio gathers what C moves by 4 bytes, and calls the stream's own write() or readinto(). No exception can cross C: it is
kept, C gets an errno, and the stream raises it when it is next used from Python.
"""

from __future__ import annotations

import errno
import io
import os
import weakref
from collections.abc import Callable
from types import TracebackType
from typing import Any

from ds4kv.core._native import ffi, lib
from ds4kv.core.turn import Turn
from ds4kv.errors import CancelledError, CorruptError, TruncatedError

__all__ = ["CSide", "CStream"]


class CStream(io.RawIOBase):
    """A stream that C can have, too. ``c_side`` is a part for the classes of streams, not for who uses one: theirs to
    make.
    """

    failed = False  # of a writer: it is broken, and only to be abandoned
    c_side: CSide

    def as_file(self, ffi: Any = None) -> Any:
        """This stream as a C ``FILE *``, the same at each call: its address, an int.

        For ctypes that is ``ctypes.c_void_p(stream.as_file())``. For cffi, ``stream.as_file(ffi)`` is the cdata, made
        by that ``ffi``. It is to be written, or read, and not to be closed: close() and abandon() do that, and so does
        garbage collection, after which C must not touch it. It doesn't seek.

        What C has written waits in a buffer of 1 MiB; flush() passes it on, and so do write(), tell() and close().
        What C reads is read ahead as much, so from now on C reads alone: readinto(), read() and seek() raise
        io.UnsupportedOperation.

        What goes wrong in a call from C fails there with an errno: that of an OSError, EBADMSG for a CorruptError,
        ENODATA for a TruncatedError, ECANCELED for a CancelledError, ENOMEM, or EIO. The exception itself is raised by
        the next use from Python, flush() and close() among them, but not by abandon().

        Raises ValueError if the stream is closed, OSError where the C library can't make such a file.
        """
        if self.closed:
            raise ValueError("as_file of a closed stream")
        address = self.c_side.address()
        return address if ffi is None else ffi.cast("FILE *", address)

    def flush(self) -> None:
        """Passes on what C has written to :meth:`as_file`, and raises what it met there."""
        self.c_side.settle()
        super().flush()


class CSide:
    """A stream's side towards C: nothing, until C is given a ``FILE *`` of it. ``turn`` is the stream's."""

    def __init__(self, stream: CStream, turn: Turn) -> None:
        self._stream = weakref.ref(stream)
        self._turn = turn
        self.file: _CFile | None = None

    def address(self) -> int:
        """Of the FILE *, which is made by the first call."""
        if self.file is None:
            self.file = _CFile(self._stream())
        return self.file.address

    def settle(self) -> bool:
        """Passes on what C has written and raises what it met; False if C has no part in this, or makes this call."""
        if self.file is None or self.file.is_calling or self._turn.is_mine():
            return False
        self._turn.refuse_second()  # what C has written would be refused, too late for C
        error = self.file.settle()
        if error is not None:
            raise error
        return True

    def refuse_if_it_reads(self) -> None:
        """Raises io.UnsupportedOperation if C has the stream to read."""
        if self.settle():
            raise io.UnsupportedOperation("C reads this stream, by as_file(), and has read ahead")

    def drop(self) -> BaseException | None:
        """Ends the FILE *, dropping what isn't passed on, and returns what C met and nobody was told."""
        file, self.file = self.file, None
        return None if file is None else file.close()


class _CFile:
    """The FILE * itself. It holds its stream weakly, so that one that is dropped ends at once."""

    _place: Any = None
    _error: BaseException | None = None

    def __init__(self, stream: Any) -> None:
        self._stream = weakref.ref(stream)
        self._is_closing = False
        self.is_calling = False  # C has called, and Python is in the stream's own write() or readinto()
        self._handle = ffi.new_handle(self)
        self._writes = stream.writable()
        self._place = ffi.new("FILE *[1]")  # where C puts the file, and takes it from to close it
        error = lib.python_file_open(self._place, self._handle, self._writes)
        if error:
            raise OSError(error, os.strerror(error))

    def __del__(self) -> None:
        self.close()  # does nothing, unless an exception came before the stream had this

    @property
    def _file(self) -> Any:
        return self._place[0]

    @property
    def address(self) -> int:
        return int(ffi.cast("uintptr_t", self._file))

    def settle(self) -> BaseException | None:
        """Passes on what is written, and returns what went wrong since this was asked before."""
        is_broken = self._writes and (lib.fflush(self._file) != 0 or lib.ferror(self._file) != 0)
        error, self._error = self._error, None
        if error is None and is_broken:  # without a word from Python, which may be at its end
            error = OSError(errno.EIO, "what C has written could not be passed on")
        if error is not None:
            self._mark_failed()
            lib.clearerr(self._file)
        return error

    def close(self) -> BaseException | None:
        """Drops what is not passed on, and returns what went wrong."""
        self._is_closing = True
        if self._place is not None:
            lib.python_file_close(self._place)
        self._handle = None
        error, self._error = self._error, None
        return error

    def call(self, move: Callable[[Any], int]) -> int:
        """The bytes moved, or an errno below 0."""
        stream = self._stream()
        if stream is None:
            return -errno.EBADF
        if self._error is not None:
            return -_errno_of(self._error)
        self.is_calling = True
        try:
            return move(stream)
        except BaseException as error:  # noqa: BLE001, no exception crosses C
            return self.keep(error)
        finally:
            self.is_calling = False

    def keep(self, error: BaseException) -> int:
        """Keeps what is raised in a call from C; the errno that C gets for it, below 0."""
        self._error = error
        self._mark_failed()
        return -_errno_of(error)

    def _mark_failed(self) -> None:
        """Of what stdio had gathered to be written, some is gone."""
        stream = self._stream()
        if stream is not None:
            stream.failed = True

    def write(self, raw: Any, n: int) -> int:
        if self._is_closing:
            return n
        with memoryview(ffi.buffer(raw, n)).toreadonly() as payload:
            return self.call(lambda stream: stream.write(payload))

    def read(self, raw: Any, n: int) -> int:
        if self._is_closing:
            return 0
        with memoryview(ffi.buffer(raw, n)) as room:
            return self.call(lambda stream: stream.readinto(room))


def _errno_of(error: BaseException) -> int:
    if isinstance(error, CancelledError):
        return errno.ECANCELED
    if isinstance(error, TruncatedError):
        return getattr(errno, "ENODATA", errno.EIO)
    if isinstance(error, CorruptError):
        return errno.EBADMSG
    if isinstance(error, MemoryError):
        return errno.ENOMEM
    return (error.errno if isinstance(error, OSError) else None) or errno.EIO


def _python_write(handle: Any, raw: Any, n: int) -> int:
    return int(ffi.from_handle(handle).write(raw, n))


def _python_read(handle: Any, raw: Any, n: int) -> int:
    return int(ffi.from_handle(handle).read(raw, n))


def _keep_for_stream(_kind: object, error: BaseException, traceback: TracebackType | None) -> int:
    """A signal handler may raise outside of :meth:`_CFile.call`, too."""
    if traceback is None:
        raise error  # before there was a call, so that cffi prints it
    file: _CFile = ffi.from_handle(traceback.tb_frame.f_locals["handle"])
    return file.keep(error)


ffi.def_extern("python_write", error=-errno.EIO, onerror=_keep_for_stream)(_python_write)
ffi.def_extern("python_read", error=-errno.EIO, onerror=_keep_for_stream)(_python_read)
