"""A checkpoint that is being saved into a store.

A save that isn't needed, or isn't let in, takes what is written to it and drops it: an engine writes its state and goes
on, and need not look at what became of it.
"""

from __future__ import annotations

import errno
import functools
import time

from ds4kv import log, policy
from ds4kv.draft import OutputFile
from ds4kv.index import read_entry
from ds4kv.lock import locked
from ds4kv.rewrite import rewrite_trailer
from ds4kv.stream import Finishable, Nowhere, PayloadWriter, RawWriter
from ds4kv.writing import CheckpointWriter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from _typeshed import ReadableBuffer

    from ds4kv.directory import Directory
    from ds4kv.header import Header
    from ds4kv.index import Entry
    from ds4kv.integrity import Ledger

    MakeRoom = Callable[[int], bool]
    """Frees that many bytes of a full disk, or says that it can't and frees none."""

__all__ = ["NO_SPACE", "NewSave", "PresentSave", "Save", "StoreWriter", "over_budget"]

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


class _LimitedFile(OutputFile):
    """A draft's file on its way into a budget, and onto a disk where room can be made.

    A write of payload or trailer that takes the file past ``limit`` bytes gives it up: it is emptied, and what follows
    is dropped.
    """

    _in_payload = False
    _final_size: int | None = None

    def __init__(
        self,
        path: str,
        mode: str,
        *,
        opener: Callable[[str, int], int],
        limit: int,
        make_room: MakeRoom | None,
    ) -> None:
        super().__init__(path, mode, opener=opener)
        self._limit = limit
        self._make_room = make_room

    def begin_payload(self, final_size: int | None) -> None:
        self._in_payload = True
        self._final_size = final_size

    def end_payload(self) -> None:
        self._in_payload = False  # the header's place is there, and room is not made by who holds the lock

    def write(self, b: ReadableBuffer, /) -> int:
        size = memoryview(b).nbytes
        if self.given_up:
            return size
        end = self.tell() + size
        if self._in_payload and end > self._limit:
            self.given_up = True
            self.truncate(0)
            return size
        try:
            return super().write(b)
        except OSError as error:
            if error.errno not in NO_SPACE or self._make_room is None or not self._in_payload:
                raise
            # Of a compressed payload nobody knows how much is to come, so room is made as it is needed.
            if not self._make_room(size if self._final_size is None else self._final_size - end + size):
                raise
            return super().write(b)


class StoreWriter(CheckpointWriter):
    """A checkpoint on its way into a directory with a budget."""

    def __init__(
        self,
        path: str,
        header: Header,
        text: bytes,
        trailer: bytes,
        *,
        budget_bytes: int,
        make_room: MakeRoom | None,
        level: int | None,
        workers: int | None,
        nice: int,
        raw_total: int | None,
        fsync: bool,
        ledger: Ledger,
        mode: int | None = None,
    ) -> None:
        self._text_bytes = len(text)
        self._budget_bytes = budget_bytes
        super().__init__(
            path,
            header,
            text,
            trailer,
            level=level,
            workers=workers,
            nice=nice,
            raw_total=raw_total,
            fsync=fsync,
            ledger=ledger,
            mode=mode,
            make_file=functools.partial(_LimitedFile, limit=budget_bytes, make_room=make_room),
        )

    def settle(self) -> bool:
        """Finishes region and trailer: all that takes time, space, or more than the budget.

        False if the file doesn't fit; it is only to be abandoned then. What close() has left is quick.
        """
        self.finish_payload()
        if self.draft.file.given_up or not policy.fits(
            text_bytes=self._text_bytes,
            payload_bytes=self.payload.region_bytes,
            trailer_bytes=len(self.trailer),
            budget_bytes=self._budget_bytes,
        ):
            return False
        self.finish()
        if self._fsync:
            self.draft.sync()
        return True


def over_budget(file_size: int, budget_bytes: int) -> str:
    """The refusal of a file of this size."""
    return f"a file of {file_size} bytes, with 1 % of slack, is over the budget of {budget_bytes} bytes"


class Save(Finishable):
    """A save under way, as a context manager: ``payload`` is the stream to write the engine's state to.

    Made by :meth:`ds4kv.Store.save`. Leaving the block well publishes the checkpoint, or not: ``entry`` is then the
    checkpoint of this text in the store, None if there is none, and ``refusal`` says in words why. Where ``needed`` is
    false, what is written to ``payload`` is dropped, so an engine may spare itself the writing.
    """

    payload: PayloadWriter | RawWriter
    needed = False

    def __init__(self, *, entry: Entry | None = None, refusal: str | None = None) -> None:
        self.payload = RawWriter(Nowhere())
        self.entry = entry
        self.refusal = refusal

    def close(self) -> None:
        """Publishes the checkpoint, if it is needed and fits."""
        self.payload.close()

    def abandon(self) -> None:
        """Gives up what isn't published."""
        self.payload.abandon()


class PresentSave(Save):
    """The text has a checkpoint: at most its tool map is written."""

    def __init__(self, directory: Directory, entry: Entry, trailer: bytes, *, fsync: bool) -> None:
        super().__init__(entry=entry)
        self._directory = directory
        self._present = entry
        self._trailer = trailer
        self._fsync = fsync

    def close(self) -> None:
        super().close()
        trailer, self._trailer = self._trailer, b""
        if not trailer:
            return  # and an older map stays
        path = self._present.path
        self.entry = None
        try:
            with locked(self._directory.path):
                if rewrite_trailer(
                    path,
                    trailer,
                    last_used=self._directory.now(),
                    file=self._present.stamp[:2],
                    fsync=self._fsync,
                ):
                    self._directory.ledger.renew(path, trailer)
                    self.entry = read_entry(path)
        except FileNotFoundError:
            pass
        if self.entry is None:
            self.refusal = "the checkpoint that was there has been removed or replaced meanwhile"


class NewSave(Save):
    """The payload goes to a file, which is published at the end."""

    needed = True

    def __init__(
        self,
        directory: Directory,
        path: str,
        writer: StoreWriter,
        replaced: list[Entry],
        *,
        started: float,
        trimmed: int,
    ) -> None:
        self.payload = writer.payload
        self.entry = None
        self.refusal = None
        self._directory = directory
        self._path = path
        self._writer = writer
        self._replaced = replaced
        self._started = started
        self._trimmed = trimmed
        self._ended = False

    def close(self) -> None:
        if self._ended:
            return
        self._ended = True
        try:
            self._publish_if_it_fits()
        except BaseException as error:
            self._fail(error)
            raise

    def _publish_if_it_fits(self) -> None:
        writer, directory = self._writer, self._directory
        if not writer.settle():
            writer.abandon()
            self.refusal = over_budget(writer.file_size, directory.budget_bytes)
            log.skipped_for_size(
                writer.header.tokens,
                writer.header.reason.word,
                file_size=writer.file_size,
                budget_bytes=directory.budget_bytes,
                seconds=time.monotonic() - self._started,
            )
            return
        with locked(directory.path):
            writer.close()
            self.entry = read_entry(self._path)
            for old in self._replaced:
                # One of this very name is gone by now, and this removes nothing.
                directory.unlink(old.path, old.stamp[:2])
                log.replaced(old.path)
            log.stored(
                writer.header,
                file_size=writer.file_size,
                raw_total=writer.payload.tell(),
                seconds=time.monotonic() - self._started,
                trimmed=self._trimmed,
            )
            directory.evict_locked(protected=self.entry.sha)

    def abandon(self) -> None:
        if not self._ended:
            self._ended = True
            self._writer.abandon()

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        if exc is not None and not self._ended:
            self._ended = True
            self._fail(exc)
        else:
            super().__exit__(exc_type, exc, tb)

    def _fail(self, error: BaseException) -> None:
        self._writer.abandon()
        log.store_failed(self._writer.header.reason.word, error, time.monotonic() - self._started)
