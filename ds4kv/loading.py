"""A checkpoint that is being loaded from a store, and what its loading tells of it.

The bytes are known to be wrong as soon as a read says so, whatever the engine makes of that: one in C can't pass the
exception on, and one in Python may raise its own. So the streams remember it.
"""

from __future__ import annotations

import io
import logging
import os
import time

from ds4kv import log
from ds4kv.errors import CorruptError, Ds4kvError
from ds4kv.lock import locked
from ds4kv.reading import CheckpointReader
from ds4kv.rewrite import identity, read_at_rest, touch
from ds4kv.stream import PayloadReader, RawReader
from ds4kv.trailer import read_tool_map, unpack_tool_map

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Container

    from _typeshed import WriteableBuffer

    from ds4kv.directory import Directory
    from ds4kv.files import RegularFile
    from ds4kv.index import Entry
    from ds4kv.integrity import Note

__all__ = ["LoadingCheckpoint", "read_noted_tool_map"]


_logger = logging.getLogger("ds4kv")


class _Watched(io.RawIOBase):
    fault: CorruptError | None = None

    def readinto(self, b: WriteableBuffer, /) -> int:
        try:
            return super().readinto(b) or 0
        except CorruptError as error:
            self.fault = error
            raise


class _WatchedReader(_Watched, PayloadReader):
    pass


class _WatchedRawReader(_Watched, RawReader):
    pass


class LoadingCheckpoint(CheckpointReader):
    """An open checkpoint of a store: ``entry``, ``header``, ``text``, ``payload`` as a stream, ``trailer``.

    Made by :meth:`ds4kv.Store.load`, as a context manager. Leaving its block well is a hit, which the store notes in
    the file; leaving it by an exception is none. Whichever way it ends, a file whose payload was proven wrong by a read
    is set aside.
    """

    payload: _WatchedReader | _WatchedRawReader
    _reader = _WatchedReader
    _raw_reader = _WatchedRawReader

    def __init__(self, entry: Entry, directory: Directory, *, workers: int | None, consume_above: int | None) -> None:
        self._started = time.monotonic()
        self._directory = directory
        self._consume_above = consume_above
        self.entry = entry
        super().__init__(entry.path, workers=workers, ledger=directory.ledger)
        self._ended = False
        self._fault: CorruptError | None = None  # of the trailer
        self._file = identity(os.fstat(self._fp.fileno()))

    @property
    def tool_map(self) -> dict[bytes, bytes]:
        """What the model wrote for each tool call, by the call's id; empty if the file has no such map.

        It is the one that is there now: a save of the same text may have replaced it since the checkpoint was opened.
        Raises CorruptError if it is proven wrong, TimeoutError if the directory's lock can't be had, and OSError.
        """
        with self._directory.at_rest():
            try:
                return read_noted_tool_map(self._fp, self._region_end, self.note)
            except CorruptError as error:
                self._fault = error
                error.path = self._path
                raise

    def _trailer_fault(self) -> CorruptError | None:
        if self.note is None:
            return None
        fd = self._fp.fileno()
        trailer = self._fp.read_at(self._region_end, max(os.fstat(fd).st_size - self._region_end, 0))
        try:
            self.note.check_trailer(trailer, fd, offset=self._region_end)
        except CorruptError as error:
            return error
        return None

    @property
    def fault(self) -> CorruptError | None:
        """What a read has proven wrong."""
        return self.payload.fault or self._fault

    def __exit__(self, *exc: object) -> None:
        try:
            if not self._ended:
                self._ended = True
                error = exc[1] if len(exc) > 1 else None
                self._end(error if isinstance(error, BaseException) else None)  # while the file has its inode
        finally:
            self.close()

    def _end(self, error: BaseException | None) -> None:
        seconds = time.monotonic() - self._started
        path = self.entry.path
        fault = self.fault
        if fault is not None:
            log.load_failed(path, fault, seconds)
            self._directory.set_aside(path, lambda status: identity(status) == self._file)
        elif error is not None:
            log.load_failed(path, error, seconds)
        else:
            log.hit(self.header, text_bytes=self.text_bytes, seconds=seconds, path=path, consumed=self._note_hit())

    def _note_hit(self) -> bool:
        """Touches or consumes the file; whether it is consumed. The engine has its state, so no failure is an error."""
        path = self.entry.path
        try:
            if self._consume_above is not None and self.header.tokens > self._consume_above:
                return self._directory.remove(path, self._file)
            with locked(self._directory.path):
                # Before the hit, which changes the mtime: by that alone a damaged trailer can be told from a new one.
                fault = self._trailer_fault()
                if fault is None and touch(path, last_used=self._directory.now(), file=self._file):
                    self._directory.ledger.renew(path, note=self.note)
            if fault is not None:
                log.load_failed(path, fault, time.monotonic() - self._started)
                self._directory.set_aside(path, lambda status: identity(status) == self._file)
        except FileNotFoundError:
            pass  # evicted while it was loaded
        except (OSError, Ds4kvError) as failure:
            _logger.warning("kv cache hit not noted %s: %s", path, failure)
        return False


def read_noted_tool_map(
    fp: RegularFile, start: int, note: Note | None, *, wanted: Container[bytes] | None = None
) -> dict[bytes, bytes]:
    """The tool map of an open checkpoint whose region ends at ``start``; empty while it is being rewritten.

    No lock is needed. Of a file that is noted all of it is read, wanted or not. Raises CorruptError if it is proven
    wrong, and OSError.
    """
    if note is None:
        return read_at_rest(fp.fileno(), start, lambda size, is_map: _read(fp, start, size * is_map, wanted)) or {}
    trailer = read_at_rest(fp.fileno(), start, lambda size, is_map: fp.read_at(start, size * is_map))
    if trailer is None:
        return {}
    if trailer or note.has_tool_map:
        note.check_trailer(trailer, fp.fileno(), offset=start)
    return unpack_tool_map(trailer, wanted=wanted)


def _read(fp: RegularFile, start: int, size: int, wanted: Container[bytes] | None) -> dict[bytes, bytes]:
    return read_tool_map(lambda at, n: fp.read_at(start + at, n), size, wanted=wanted)
