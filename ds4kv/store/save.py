"""A checkpoint that is being saved into a store.

An engine writes its state, and need not look at what becomes of it: a save that is refused, or isn't needed, takes
what is written and drops it.
"""

from __future__ import annotations

import contextlib
import os
import time
from types import TracebackType

from ds4kv.errors import CorruptError
from ds4kv.file.inplace import identity, rewrite_trailer
from ds4kv.file.lock import locked
from ds4kv.store import log
from ds4kv.store.claims import Claim
from ds4kv.store.directory import Directory
from ds4kv.store.entry import Entry, read_entry
from ds4kv.store.room import StoreWriter, over_budget
from ds4kv.stream import Nowhere, PayloadWriter, RawWriter
from ds4kv.stream.lifetime import Finishable

__all__ = ["NewSave", "PresentSave", "Save"]


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

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.payload!r}, entry={self.entry!r}, refusal={self.refusal!r}>"

    def close(self) -> None:
        """Publishes the checkpoint, if it is needed and fits."""
        self.payload.close()

    def abandon(self) -> None:
        """Gives up what isn't published."""
        self.payload.abandon()

    def cancel(self) -> None:
        """From any thread: who writes to the payload gets a CancelledError, and nothing is published."""
        self.payload.cancel()


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
                    file=self._present.file,
                    fsync=self._fsync,
                ):
                    self._directory.ledger.renew(path, trailer)
                    self.entry = read_entry(path)
        except TimeoutError as error:
            self.entry = self._present
            self.refusal = f"the checkpoint is there, and its tool map stays as it is: {error.strerror}"
            log.trouble("tool map not written", path, error)
        except FileNotFoundError:
            pass
        except CorruptError as error:
            log.load_failed(path, error, 0)
            self._directory.set_aside(path, self._present.stamp[:4])
            self.refusal = f"the checkpoint that was there is damaged: {error.why}"
        if self.entry is None and self.refusal is None:
            self.refusal = "the checkpoint that was there has been removed or replaced meanwhile"


class NewSave(Save):
    """The payload goes to a file, which is published at the end. ``claim`` is held until then."""

    needed = True

    def __init__(
        self,
        directory: Directory,
        writer: StoreWriter,
        replaced: list[Entry],
        *,
        claim: Claim,
        raw_total: int | None,
        started: float,
        trimmed: int,
    ) -> None:
        self.payload = writer.payload
        self.entry = None
        self.refusal = None
        self._directory = directory
        self._writer = writer
        self._replaced = replaced
        self._claim = claim
        self._raw_total = raw_total
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
        finally:
            self._claim.end()

    def _publish_if_it_fits(self) -> None:
        writer, directory = self._writer, self._directory
        is_abandoned = self.payload.closed and not self.payload.complete
        if not self._raw_total and not is_abandoned and self.payload.tell() == 0:
            writer.abandon()
            self.refusal = "nothing was written"
            return
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
        may_evict = True
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(locked(directory.path))
            except FileNotFoundError:
                raise  # the directory itself was removed, and the draft with it
            except OSError as error:
                # The rename needs no lock. The eviction does, and is left to the next save.
                log.trouble("stores without the lock, and evicts nothing", directory.path, error)
                may_evict = False
            entry = self._publish()
            if may_evict:
                directory.count_hits()
                try:
                    directory.evict_locked(protected=entry.sha)
                except OSError as error:
                    log.trouble("not evicted", directory.path, error)

    def _publish(self) -> Entry:
        writer, directory = self._writer, self._directory
        path = writer.draft.target
        status = os.fstat(writer.draft.fd)
        writer.publish()
        # Another program may have evicted or replaced it already. It was saved all the same.
        with contextlib.suppress(OSError):
            now = os.stat(path)
            status = now if identity(now) == identity(status) else status
        self.entry = Entry.of(path, writer.header, writer.text_bytes, status)
        for old in self._replaced:
            if old.path != path:
                directory.unlink(old.path, old.file)
            log.replaced(old.path)
        log.stored(
            writer.header,
            file_size=writer.file_size,
            raw_total=writer.payload.tell(),
            seconds=time.monotonic() - self._started,
            trimmed=self._trimmed,
        )
        return self.entry

    def cancel(self) -> None:
        self._writer.cancel()

    def abandon(self) -> None:
        if not self._ended:
            self._ended = True
            try:
                self._writer.abandon()
            finally:
                self._claim.end()

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        if exc is not None and not self._ended:
            self._ended = True
            try:
                self._fail(exc)
            finally:
                self._claim.end()
        else:
            super().__exit__(exc_type, exc, tb)

    def _fail(self, error: BaseException) -> None:
        self._writer.abandon()
        log.store_failed(self._writer.header.reason.word, error, time.monotonic() - self._started)
