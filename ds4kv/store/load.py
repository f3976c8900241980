"""A checkpoint that is being loaded from a store, and what its loading tells of it.

The bytes are known to be wrong as soon as a read says so, whatever the engine makes of that: one in C can't pass the
exception on, and one in Python may raise its own. So the stream remembers it.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Container
from types import TracebackType

from ds4kv.errors import CorruptError
from ds4kv.file.inplace import identity, read_at_rest
from ds4kv.file.note import Note
from ds4kv.file.reader import CheckpointReader
from ds4kv.file.sealed import judge_trailer
from ds4kv.format.toolmap import read_tool_map, unpack_tool_map
from ds4kv.store import log
from ds4kv.store.directory import Directory
from ds4kv.store.entry import Entry, stamp
from ds4kv.stream.regular import RegularFile

__all__ = ["LoadingCheckpoint", "open_found", "read_noted_tool_map"]

_TOLD_BY_ENTRY = ("tokens", "ctx_size", "quant_bits")


class LoadingCheckpoint(CheckpointReader):
    """An open checkpoint of a store: ``entry``, ``header``, ``text``, ``payload`` as a stream, ``trailer``.

    Made by :meth:`ds4kv.Store.load`, as a context manager. Leaving its block well is a hit, which the store notes in
    the file; leaving it by an exception is none. Whichever way it ends, a file whose bytes were proven wrong by a read
    is set aside, if nobody wrote to it meanwhile.
    """

    def __init__(
        self, entry: Entry, directory: Directory, *, mark: bytes, workers: int | None, consume_above: int | None
    ) -> None:
        self._started = time.monotonic()
        self._directory = directory
        self._consume_above = consume_above
        self.entry = entry
        super().__init__(entry.path, workers=workers, ledger=directory.ledger, known_text=entry.known_text)
        self.text = self.text.removeprefix(mark)
        self._ended = False
        self._fault: CorruptError | None = None  # of the trailer

    @property
    def tool_map(self) -> dict[bytes, bytes]:
        """What the model wrote for each tool call, by the call's id; empty if the file has no such map.

        It is the one that is there now: a save of the same text may have replaced it since the checkpoint was opened.
        Raises CorruptError if it is proven wrong, and OSError.
        """
        try:
            return read_noted_tool_map(self.file.fp, self.file.outline.region_end, self.note, self.file.seal)
        except CorruptError as error:
            self._fault = error
            error.path = self.file.path
            raise

    def _trailer_fault(self) -> CorruptError | None:
        """What is wrong with the trailer. To be asked before the hit, which changes the mtime: by the mtime alone a
        damaged trailer can be told from a new one, where it isn't sealed.
        """
        try:
            note, seal = self.note, self.file.seal
            if seal is not None or (note is not None and (note.trailer_bytes or self.trailer_bytes)):
                self.verify_trailer()
        except CorruptError as error:
            return error
        except OSError:
            return None  # somebody is writing, or the disk fails: no verdict
        return None

    @property
    def fault(self) -> CorruptError | None:
        """What a read has proven wrong."""
        return self.payload.fault or self._fault

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        try:
            if not self._ended:
                self._ended = True
                self._end(exc)  # while the file has its inode
        finally:
            super().__exit__(exc_type, exc, tb)

    def _end(self, error: BaseException | None) -> None:
        seconds = time.monotonic() - self._started
        path, opened = self.entry.path, self.file.fp.status
        fault = self.fault or (self._trailer_fault() if error is None else None)
        if fault is not None:
            log.load_failed(path, fault, seconds)
            self._directory.set_aside(path, stamp(opened)[:4])
        elif error is not None:
            log.load_failed(path, error, seconds)
        else:
            is_long = self._consume_above is not None and self.header.tokens > self._consume_above
            consumed = self._directory.note_hit(
                path, identity(opened), head=self.entry.head, note=self.note, consume=is_long
            )
            log.hit(self.header, text_bytes=self.text_bytes, seconds=seconds, path=path, consumed=consumed)


def open_found(
    entry: Entry, directory: Directory, *, mark: bytes, workers: int, consume_above: int | None
) -> LoadingCheckpoint:
    """As :meth:`ds4kv.Store.load`, of a store whose texts begin with ``mark``."""
    started = time.monotonic()
    try:
        checkpoint = LoadingCheckpoint(entry, directory, mark=mark, workers=workers, consume_above=consume_above)
    except Exception as error:
        log.load_failed(entry.path, error, time.monotonic() - started)
        if isinstance(error, CorruptError):
            # If the file still has this stamp, so it had while it was read.
            directory.set_aside(entry.path, entry.stamp[:4])
        raise
    header = checkpoint.header
    is_same = entry.matched in (None, checkpoint.text)
    if not is_same or any(getattr(header, name) != getattr(entry, name) for name in _TOLD_BY_ENTRY):
        checkpoint.close()
        raise FileNotFoundError(errno.ENOENT, "another checkpoint took its place since it was found", entry.path)
    return checkpoint


def read_noted_tool_map(
    fp: RegularFile, start: int, note: Note | None, seal: int | None, *, wanted: Container[bytes] | None = None
) -> dict[bytes, bytes]:
    """The tool map of an open checkpoint whose region ends at ``start``; empty while it is being rewritten.

    It is read without the lock. Where there is a note or a seal the whole map is read, for its sum, whatever is
    ``wanted``. Raises CorruptError if it is proven wrong, and OSError.
    """
    if note is None and seal is None:
        return read_at_rest(fp.fileno(), start, lambda size, is_map: _read(fp, start, size * is_map, wanted)) or {}
    found = read_at_rest(
        fp.fileno(),
        start,
        lambda size, is_map: (fp.read_at(start, size * is_map), is_map),
        is_sealed=seal is not None,
    )
    if found is None:
        return {}
    trailer, is_map = found
    if seal is not None:
        trailer, _ = judge_trailer(trailer, seal, is_flagged=is_map, offset=start)
    elif note is not None and (trailer or note.has_tool_map):
        note.check_trailer(trailer, fp.fileno(), offset=start)
    return unpack_tool_map(trailer, wanted=wanted)


def _read(fp: RegularFile, start: int, size: int, wanted: Container[bytes] | None) -> dict[bytes, bytes]:
    return read_tool_map(lambda at, n: fp.read_at(start + at, n), size, wanted=wanted)
