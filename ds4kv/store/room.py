"""The file that a save into a store writes. It must fit into the budget, and the disk may be full.

A file that turns out to be too large is given up as soon as that is known. On a full disk, other checkpoints may be
removed for it.
"""

from __future__ import annotations

import errno
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

from ds4kv.file.draft import OutputFile
from ds4kv.file.writer import CheckpointWriter
from ds4kv.format.header import Header
from ds4kv.store import log, policy
from ds4kv.store.directory import Directory
from ds4kv.store.settings import Settings
from ds4kv.stream.encoding import Encoding

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

__all__ = ["NO_SPACE", "Room", "StoreWriter", "over_budget"]

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


class Room:
    """Which checkpoints one save may have removed for it, where the disk is full.

    None, unless all that is left to write can then fit. Where nobody knows how much that is: at most half of what the
    checkpoints take when room is first made.
    """

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self._left: int | None = None

    def make(self, size: int, need: int | None) -> bool:
        """Frees ``size`` bytes for a write, of ``need`` bytes that the save has still to write in all, None if nobody
        knows. False: none was freed.
        """
        try:
            if need is not None:
                return self._directory.make_room(size, need=need) > 0
            if self._left is None:
                self._left = sum(entry.file_size for entry in self._directory.entries()) // 2
            freed = self._directory.make_room(size, need=size, most=self._left)
        except OSError as error:  # and the full disk is what the engine is told of
            log.trouble("no room made", self._directory.path, error)
            return False
        self._left -= freed
        return freed > 0


class _LimitedFile(OutputFile):
    """A draft's file on its way into a budget, and onto a disk where room can be made.

    A write of payload or trailer that would go past ``limit`` bytes gives the file up: it is emptied, and drops what
    comes from then on.
    """

    _in_payload = False
    _final_size: int | None = None
    _is_exact = False

    def __init__(
        self,
        path: str,
        mode: str,
        *,
        opener: Callable[[str, int], int],
        limit: int,
        room: Room | None,
    ) -> None:
        super().__init__(path, mode, opener=opener)
        self._limit = limit
        self._room = room

    def begin_payload(self, final_size: int | None, *, is_exact: bool) -> None:
        self._in_payload = True
        self._final_size = final_size
        self._is_exact = is_exact

    def end_payload(self) -> None:
        self._in_payload = False  # only the header comes, which has its place already

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
            if error.errno not in NO_SPACE or self._room is None or not self._in_payload:
                raise
            need = None if self._final_size is None else self._final_size - end + size
            # How small a payload becomes nobody knows beforehand, so a compressed one gets room for this write only.
            if not self._room.make(need if need is not None and self._is_exact else size, need):
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
        encoding: Encoding | None,
        *,
        directory: Directory,
        settings: Settings,
        room: Room | None,
        raw_total: int | None,
    ) -> None:
        self.text_bytes = len(text)
        self._budget_bytes = directory.budget_bytes
        super().__init__(
            path,
            header,
            text,
            trailer,
            encoding,
            raw_total=raw_total,
            fsync=settings.fsync,
            ledger=directory.ledger,
            mode=settings.mode,
            make_file=functools.partial(_LimitedFile, limit=directory.budget_bytes, room=room),
        )

    def settle(self) -> bool:
        """Makes the draft the whole file, for publish() to give it its name. False if the file doesn't fit: then it is
        only to be abandoned.
        """
        self.finish_payload()
        if self.draft.file.given_up or not policy.fits(
            text_bytes=self.text_bytes,
            payload_bytes=self.payload.region_bytes,
            trailer_bytes=len(self.stored(self.trailer)),
            budget_bytes=self._budget_bytes,
        ):
            return False
        self.make_whole()
        return True


def over_budget(file_size: int, budget_bytes: int) -> str:
    """The refusal of a file of this size."""
    return f"a file of {file_size} bytes, with 1 % of slack, is over the budget of {budget_bytes} bytes"
