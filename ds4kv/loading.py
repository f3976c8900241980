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
from ds4kv.checkpoint import CheckpointReader
from ds4kv.errors import CorruptError, Ds4kvError
from ds4kv.header import Form
from ds4kv.lock import locked
from ds4kv.rewrite import identity, tool_map_bytes, touch
from ds4kv.stream import PayloadReader, RawReader
from ds4kv.trailer import read_tool_map

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

    from ds4kv.directory import Directory
    from ds4kv.index import Entry

__all__ = ["LoadingCheckpoint"]


_logger = logging.getLogger("ds4kv")


class _Watched(io.RawIOBase):
    fault: CorruptError | None = None

    def readinto(self, b: WriteableBuffer, /) -> int:
        try:
            return super().readinto(b) or 0
        except CorruptError as error:
            self.fault = error
            raise


class _CompressedPayload(_Watched, PayloadReader):
    pass


class _RawPayload(_Watched, RawReader):
    pass


class LoadingCheckpoint(CheckpointReader):
    """An open checkpoint of a store: ``entry``, ``header``, ``text``, ``payload`` as a stream, ``trailer``.

    Made by :meth:`ds4kv.Store.load`, as a context manager. Leaving its block well is a hit, which the store notes in
    the file; leaving it by an exception is none. Whichever way it ends, a file whose payload was proven wrong by a read
    is set aside.
    """

    payload: _CompressedPayload | _RawPayload

    def __init__(self, entry: Entry, directory: Directory, *, workers: int | None, consume_above: int | None) -> None:
        self._started = time.monotonic()
        self._directory = directory
        self._consume_above = consume_above
        self.entry = entry
        super().__init__(entry.path, workers=workers)
        self._ended = False
        self._file = identity(os.fstat(self._fp.fileno()))

    def _open_payload(self) -> _CompressedPayload | _RawPayload:
        size = self.header.payload_bytes
        if self.form is Form.RAW:
            return _RawPayload(self._fp, size)
        return _CompressedPayload(
            self._fp, size, chunk_size=self.header.chunk_size, form=self.form, workers=self._workers
        )

    @property
    def tool_map(self) -> dict[bytes, bytes]:
        """What the model wrote for each tool call, by the call's id; empty if the file has no such map.

        It is the one that is there now: a save of the same text may have replaced it since the checkpoint was opened.
        Raises TimeoutError if the directory's lock can't be had, and OSError.
        """
        with self._directory.at_rest():
            size = tool_map_bytes(self._fp.fileno(), self._region_end)
            return read_tool_map(lambda at, n: self._fp.read_at(self._region_end + at, n), size)

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
        fault = self.payload.fault
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
                touch(path, last_used=self._directory.now(), file=self._file)
        except FileNotFoundError:
            pass  # evicted while it was loaded
        except (OSError, Ds4kvError) as failure:
            _logger.warning("kv cache hit not noted %s: %s", path, failure)
        return False
