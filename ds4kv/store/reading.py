"""The half of a store that saves nothing: what an engine asks it before a prefill."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Collection, Iterable
from typing import TYPE_CHECKING

from ds4kv.errors import CorruptError, Ds4kvError
from ds4kv.file.reader import CheckpointReader
from ds4kv.file.verdict import Verdict
from ds4kv.format.identity import is_of, mark_of
from ds4kv.store import lookup
from ds4kv.store.ahead import LoadFuture
from ds4kv.store.directory import Directory
from ds4kv.store.entry import Entry, read_entry
from ds4kv.store.load import LoadingCheckpoint, open_found
from ds4kv.store.nearest import Nearest
from ds4kv.store.settings import Settings
from ds4kv.store.upkeep import import_tool_maps, make_notes

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

    from ds4kv.store.ahead import Into

__all__ = ["Reading"]


class Reading:
    """What :class:`ds4kv.Store` has for finding, loading and checking. ``min_tokens`` holds for finding."""

    min_tokens: int

    def __init__(self, shelf: Directory, settings: Settings) -> None:
        self._shelf = shelf
        self._read_settings = settings
        self._mark = mark_of(settings.identity)
        self._nearest = Nearest(shelf, self._mark)

    @property
    def directory(self) -> str:
        """Its absolute path."""
        return self._shelf.path

    @property
    def budget_bytes(self) -> int:
        """What all files together may take."""
        return self._shelf.budget_bytes

    def entries(self) -> list[Entry]:
        """Every checkpoint that is there now, in the directory's order; none if it was removed. Raises OSError."""
        return self._shelf.entries()

    def find(
        self,
        prompt: ReadableBuffer,
        *,
        ctx_size: int,
        quant_bits: int | None = None,
        model_id: int | None = None,
        payload_abi: int | None = None,
        exclude: Collection[Entry] = (),
    ) -> Entry | None:
        """The checkpoint with the longest text that ``prompt`` begins with, or None.

        It has at least ``min_tokens``, was saved by a context of at most ``ctx_size`` tokens, is of the same
        quantization if others are rejected, and none of ``exclude``: those that the engine could not use. Where
        ``model_id`` or ``payload_abi`` is given, its header has the same; layout ``v2`` has no room for them and counts
        as 0. A ``quant_bits`` of None is an engine's that has none; another one than 2 and 4 finds nothing.

        The stored text is read and compared. A file that can't be read is passed over. Raises OSError if the directory
        can't be read.
        """
        if (whole := self._whole(prompt)) is None or quant_bits not in (None, 2, 4):
            return None
        suits = self._what_suits(ctx_size, quant_bits, model_id, payload_abi, exclude)
        return lookup.find(self._shelf, whole, suits, mark_bytes=len(self._mark))

    def nearest(
        self,
        prompt: ReadableBuffer,
        *,
        ctx_size: int,
        quant_bits: int | None = None,
        model_id: int | None = None,
        payload_abi: int | None = None,
        exclude: Collection[Entry] = (),
    ) -> tuple[Entry, int] | None:
        """The checkpoint whose text has the longest beginning in common with ``prompt``, and how many bytes that is.

        For engines that can cut a state back to what is common. It suits as one that :meth:`find` gives. Of those with
        as much in common it is one whose text ends there, else the one of the fewest tokens, of 64 at least. None if
        no byte is common.

        The first call reads all texts, the later ones those that are new. Then it takes a millisecond, in a directory
        of ten thousand too. What is in common is read and compared. Raises as find().
        """
        if (whole := self._whole(prompt)) is None or quant_bits not in (None, 2, 4):
            return None
        suits = self._what_suits(ctx_size, quant_bits, model_id, payload_abi, exclude)
        found = self._nearest.find(whole, suits)
        return None if found is None else (found[0], found[1] - len(self._mark))

    def _whole(self, text: ReadableBuffer) -> bytes | None:
        """The text as files have it; None if it pretends to be of some identity."""
        whole = self._mark + bytes(memoryview(text))
        return whole if is_of(self._mark, whole) else None

    def _what_suits(
        self,
        ctx_size: int,
        quant_bits: int | None,
        model_id: int | None,
        payload_abi: int | None,
        exclude: Collection[Entry],
    ) -> Callable[[Entry], bool]:
        return lookup.what_suits(
            ctx_size=ctx_size,
            quant_bits=self._read_settings.quant_wanted(quant_bits),
            model_id=model_id,
            payload_abi=payload_abi,
            least_tokens=self.min_tokens,
            but={entry.path for entry in exclude},
        )

    def get(self, text: ReadableBuffer) -> Entry | None:
        """The checkpoint of this very text, or None. One look at one file, however many there are.

        It is what the file's name says; load() compares. A file that can't be read, or isn't a checkpoint, is none.
        """
        if (whole := self._whole(text)) is None:
            return None
        sha = hashlib.sha1(whole, usedforsecurity=False).hexdigest()
        try:
            return read_entry(os.path.join(self._shelf.path, f"{sha}.kv"))
        except (Ds4kvError, OSError):
            return None

    def __contains__(self, text: ReadableBuffer) -> bool:
        return self.get(text) is not None

    def load(self, entry: Entry) -> LoadingCheckpoint:
        """Opens a checkpoint that was found, as a context manager.

        Header, text and hash are checked again. Leaving the block well notes the hit in the file, or removes the file
        if the store consumes and it is long; leaving it by an exception does neither. A file whose bytes are proven
        wrong, here or while its payload is read, goes to ``quarantine/`` and the CorruptError comes through: find()
        then gives the next best. After any other failure the file is where and as it was.

        Raises FileNotFoundError if the checkpoint was removed or replaced since it was found, which other processes may
        do at any time: a miss. Else as :func:`ds4kv.open`.
        """
        workers, consume_above = self._read_settings.workers, self._read_settings.consume_above
        return open_found(entry, self._shelf, mark=self._mark, workers=workers, consume_above=consume_above)

    def load_async(self, entry: Entry, *, into: Into | None = None) -> LoadFuture:
        """Loads all of a checkpoint on a thread of its own; its result is a :class:`ds4kv.Checkpoint`.

        The payload goes into ``into``, as :func:`ds4kv.load` has it, which is not to be touched before the future is
        done, or into fresh memory. That counts as a hit. ``cancel()`` ends it at any time. result() raises what
        :meth:`load` and reads do, ValueError if ``into`` has another size, and CancelledError.
        """
        future = LoadFuture(entry.path)
        future.begin(lambda: self.load(entry), into)
        return future

    def verify(self, entry: Entry) -> Verdict:
        """Reads all of a checkpoint; the file stays, whatever is found.

        OK is a file that is what was saved, by its own proof in layout ``packed``, else by what is noted of it. UNKNOWN
        is one that decodes and that nobody has noted, or whose trailer may have been written by another program since.
        Raises UnsupportedError and OSError.
        """
        try:
            with CheckpointReader(entry.path, workers=self._read_settings.workers, ledger=self._shelf.ledger) as reader:
                return reader.verify()
        except CorruptError:
            return Verdict.CORRUPT

    def rebuild_integrity(self) -> list[Entry]:
        """Notes the sums of all checkpoints that have none, as they are now; what was noted.

        Only what decodes is noted, and nothing of layout ``packed``, which needs no notes. What is proven corrupt is
        set aside, as by a load, and what can't be read is passed over. Raises TimeoutError if the directory's lock
        can't be had, PermissionError of a read-only store, and OSError.
        """
        self._shelf.refuse_if_read_only()
        return make_notes(self._shelf, workers=self._read_settings.workers)

    def import_tool_maps(self, ids: Iterable[bytes]) -> dict[bytes, bytes]:
        """What the model wrote for these tool calls, by their ids, as far as the checkpoints here know it.

        No payload is read, and no lock is needed; a file that can't be read is passed over. Raises OSError if the
        directory can't be read.
        """
        return import_tool_maps(self._shelf, ids)
