"""A directory of checkpoints, as an engine uses it: find the longest one that a prompt begins with, load it, save new
ones, and stay within a budget.

The directory is the state. Every call looks at what is there now, so other processes, ds4 among them, may use it at the
same time: files appear whole, by a rename, and what is open stays whole when it is removed.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import threading
import time

from ds4kv import log, policy
from ds4kv import workers as _workers
from ds4kv._core import size_of
from ds4kv.arguments import store_options
from ds4kv.background import Background
from ds4kv.claims import Claims
from ds4kv.directory import Directory
from ds4kv.draft import sweep
from ds4kv.errors import CorruptError
from ds4kv.files import RegularFile
from ds4kv.forks import renew_lock
from ds4kv.header import CHUNK_SIZE, Codec, Ext, Header, Layout, Reason
from ds4kv.index import stamp
from ds4kv.integrity import Verdict
from ds4kv.layout import PREFIX_SIZE
from ds4kv.loading import LoadingCheckpoint, read_noted_tool_map
from ds4kv.lock import locked
from ds4kv.lookup import longest_prefix
from ds4kv.naming import sha1_mismatch
from ds4kv.reading import CheckpointReader
from ds4kv.rewrite import identity
from ds4kv.saving import NO_SPACE, NewSave, PresentSave, Room, Save, StoreWriter, over_budget
from ds4kv.stream import encoder_level
from ds4kv.trailer import pack_tool_map, select_tool_map
from ds4kv.writing import codec_for

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Collection, Iterable, Mapping
    from typing import Any, Self

    from _typeshed import ReadableBuffer

    from ds4kv.background import SaveFuture
    from ds4kv.directory import Score
    from ds4kv.index import Entry

    Payload = ReadableBuffer | Callable[[], ReadableBuffer]

__all__ = ["Store"]

_logger = logging.getLogger("ds4kv")

_TOLD_BY_ENTRY = ("tokens", "ctx_size", "quant_bits")
_QUEUE_SIZE = 4
"""Saves that may wait for the background thread, each with its buffer."""


class Store:
    """The checkpoints of one directory.

    It and what it gives may be used from several threads, each load and each save by one at a time. ``with`` a store,
    or after :meth:`close`, all saves in the background are done.

    The budget is ``budget_bytes``, or ``budget_mb`` MiB; 0 is the default. Lengths are in tokens; ``min_tokens`` holds
    for finding and saving, and the ``continued_`` and ``boundary_`` ones are kept for the engine, which decides what to
    save with :mod:`ds4kv.policy`. With ``reject_different_quant`` only checkpoints of the same quantization are found.

    ``layout``, ``codec`` and ``level`` are those of new files, as in :func:`ds4kv.create`; ``workers`` as
    :func:`ds4kv.workers.resolve` has it. With ``consume`` a file of more than ``cold_max_tokens`` tokens is removed
    once it was loaded. ``on_full`` is ``raise`` or ``evict``, see :meth:`save`. ``score`` is a function of an entry and
    the time that says what a checkpoint is worth; the least worth goes first. ``clock`` gives Unix seconds. ``nice`` is
    that of :class:`ds4kv.PayloadWriter`, for all saves. With ``fsync`` a save is durable when it returns.

    ``mode`` is that of new files, whatever the umask; by default 0600, so that nobody else reads what was prompted.

    Opening makes the directory, with mode 0700, removes what killed processes left half written, and evicts: a smaller
    budget takes effect at once, unless ``evict_on_open`` is false. In a directory that is not ours to write that is not
    done, and the log says so. A ``read_only`` store makes, changes and removes nothing at all: loads are not counted,
    saves are refused, and a directory that is not there is an empty one.

    Raises ValueError for arguments out of their range, and OSError.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        budget_mb: int = policy.BUDGET_MB,
        budget_bytes: int | None = None,
        min_tokens: int = policy.MIN_TOKENS,
        cold_max_tokens: int = policy.COLD_MAX_TOKENS,
        continued_interval_tokens: int = policy.CONTINUED_INTERVAL_TOKENS,
        boundary_trim_tokens: int = policy.BOUNDARY_TRIM_TOKENS,
        boundary_align_tokens: int = policy.BOUNDARY_ALIGN_TOKENS,
        reject_different_quant: bool = False,
        workers: int | None = None,
        layout: str = "v2",
        codec: str | None = None,
        level: int | None = None,
        consume: bool = False,
        on_full: str = "raise",
        score: Score | None = None,
        clock: Callable[[], float] = time.time,
        nice: int = 0,
        fsync: bool = False,
        mode: int | None = None,
        read_only: bool = False,
        evict_on_open: bool = True,
    ) -> None:
        self.min_tokens = _not_negative("min_tokens", min_tokens)
        self.cold_max_tokens = _not_negative("cold_max_tokens", cold_max_tokens)
        self.continued_interval_tokens = _not_negative("continued_interval_tokens", continued_interval_tokens)
        self.boundary_trim_tokens = _not_negative("boundary_trim_tokens", boundary_trim_tokens)
        self.boundary_align_tokens = _not_negative("boundary_align_tokens", boundary_align_tokens)
        if on_full not in ("raise", "evict"):
            raise ValueError(f"on_full is {on_full!r}, not 'raise' or 'evict'")
        budget = _not_negative("budget_mb", budget_mb) << 20
        if budget_bytes is not None:
            budget = _not_negative("budget_bytes", budget_bytes)
        self._directory = Directory(
            os.path.abspath(os.fsdecode(directory)),
            budget_bytes=budget or policy.BUDGET_MB << 20,
            score=score,
            clock=clock,
            is_read_only=read_only,
        )
        self._claims = Claims(self.directory)
        self._reject_different_quant = reject_different_quant
        self._workers = _workers.resolve(workers)
        self._template = _template(Layout(layout), codec)
        if level is not None:
            encoder_level(self._template.codec, level)
        self._level = level
        self._consume_above = cold_max_tokens if consume and cold_max_tokens else None
        self._evicts_when_full = on_full == "evict"
        self._fsync = fsync
        if mode is not None and not 0 <= mode <= 0o777:
            raise ValueError(f"mode is {mode:#o}, outside 0..0o777")
        self._mode = mode
        if not 0 <= nice <= 19:
            raise ValueError(f"nice is {nice}, outside 0..19")
        self._nice = nice
        self._background: Background | None = None
        self._closed = False
        self._mutex: threading.Lock
        renew_lock(self, "_mutex")  # of these two
        if not read_only:
            self._make_directory()
            self._tidy(evict_on_open)
        log.opened(
            self.directory,
            budget_bytes=self.budget_bytes,
            min_tokens=self.min_tokens,
            cold_max_tokens=self.cold_max_tokens,
            continued_interval_tokens=self.continued_interval_tokens,
            boundary_trim_tokens=self.boundary_trim_tokens,
            boundary_align_tokens=self.boundary_align_tokens,
            reject_different_quant=self._reject_different_quant,
            codec=None if self._template.layout is Layout.V1 else self._template.codec,
            workers=self._workers,
            chunk_size=CHUNK_SIZE,
        )

    def _make_directory(self) -> None:
        """Makes it, if need be: for who may have the files, by their ``mode``, or for its owner alone."""
        if os.path.isdir(self.directory):
            return
        wanted = 0o700
        if self._mode is not None:  # who reads the files looks into it, too
            wanted |= self._mode | (self._mode & 0o444) >> 2
        try:
            os.makedirs(self.directory, mode=wanted, exist_ok=True)
            if self._mode is not None:
                os.chmod(self.directory, wanted)
        except OSError as error:
            log.mkdir_failed(self.directory, error)
            raise

    def _tidy(self, evict: bool) -> None:
        if not os.access(self.directory, os.W_OK, effective_ids=os.access in os.supports_effective_ids):
            _logger.warning("kv cache is not ours to write, and nothing is evicted: %s", self.directory)
            return
        sweep(self.directory)
        try:
            if evict:
                self._directory.evict()
        except TimeoutError as error:  # the next save evicts
            _logger.warning("kv cache not evicted %s: %s", self.directory, error)
        self._directory.ledger.forget_absent()

    @classmethod
    def from_args(cls, namespace: argparse.Namespace) -> Self | None:
        """The store that a command line asks for, see :func:`ds4kv.add_cli_arguments`; None if it asks for none."""
        options = store_options(namespace)
        return None if options["directory"] is None else cls(**options)

    @property
    def directory(self) -> str:
        """Its absolute path."""
        return self._directory.path

    @property
    def budget_bytes(self) -> int:
        """What all files together may take."""
        return self._directory.budget_bytes

    # Reading

    def entries(self) -> list[Entry]:
        """Every checkpoint that is there now, in the directory's order; none if it was removed. Raises OSError."""
        return self._directory.entries()

    def find(
        self,
        prompt: ReadableBuffer,
        *,
        ctx_size: int,
        quant_bits: int,
        model_id: int | None = None,
        payload_abi: int | None = None,
        exclude: Collection[Entry] = (),
    ) -> Entry | None:
        """The checkpoint with the longest text that ``prompt`` begins with, or None.

        It has at least ``min_tokens``, was saved by a context of at most ``ctx_size`` tokens, is of the same
        quantization if others are rejected, and none of ``exclude``: those that the engine could not use. Where
        ``model_id`` or ``payload_abi`` is given, its header has the same; layout ``v2`` has no room for them and counts
        as 0. A ``quant_bits`` other than 2 and 4 finds nothing.

        The stored text is read and compared. A file that can't be read is passed over. Raises OSError if the directory
        can't be read.
        """
        if quant_bits not in (2, 4):
            return None
        passed_over = {entry.path for entry in exclude}

        suits = self._what_suits(ctx_size, quant_bits, model_id, payload_abi, self.min_tokens, passed_over)
        with memoryview(prompt).cast("B") as whole:
            entries = self.entries()
            while (entry := longest_prefix(entries, whole, suits)) is not None:
                beginning = bytes(whole[: entry.text_bytes])
                text = self._directory.text_of(entry)
                # A text that isn't what its name says is damaged, which is the load's to say.
                if text == beginning or (text is not None and sha1_mismatch(entry.path, text) is not None):
                    return entry.found_for(beginning)
                passed_over.add(entry.path)
        return None

    def _what_suits(
        self,
        ctx_size: int,
        quant_bits: int,
        model_id: int | None,
        payload_abi: int | None,
        least_tokens: int = 0,
        but: Collection[str] = (),
    ) -> Callable[[Entry], bool]:
        """Says of an entry whether this engine could load it, whatever its text and its payload are."""
        is_any_quant = not self._reject_different_quant

        def suits(entry: Entry) -> bool:
            return (
                entry.tokens >= least_tokens
                and entry.ctx_size <= ctx_size
                and (is_any_quant or entry.quant_bits == quant_bits)
                and entry.path not in but
                and (model_id is None or entry.header.model_id == model_id)
                and (payload_abi is None or entry.header.payload_abi == payload_abi)
            )

        return suits

    def load(self, entry: Entry) -> LoadingCheckpoint:
        """Opens a checkpoint that was found, as a context manager.

        Header, text and hash are checked again. Leaving the block well notes the hit in the file, or removes the file
        if the store consumes and it is long; leaving it by an exception does neither. A file whose bytes are proven
        wrong, here or while its payload is read, goes to ``quarantine/`` and the CorruptError comes through: find()
        then gives the next best. After any other failure the file is where and as it was.

        Raises FileNotFoundError if the checkpoint was removed or replaced since it was found, which other processes may
        do at any time: a miss. Else as :func:`ds4kv.open`.
        """
        started = time.monotonic()
        try:
            checkpoint = LoadingCheckpoint(
                entry, self._directory, workers=self._workers, consume_above=self._consume_above
            )
        except Exception as error:
            log.load_failed(entry.path, error, time.monotonic() - started)
            if isinstance(error, CorruptError):
                self._set_aside(entry)
            raise
        header = checkpoint.header
        is_same = entry.matched in (None, checkpoint.text)
        if not is_same or any(getattr(header, name) != getattr(entry, name) for name in _TOLD_BY_ENTRY):
            checkpoint.close()
            raise FileNotFoundError(errno.ENOENT, "another checkpoint took its place since it was found", entry.path)
        return checkpoint

    def _set_aside(self, entry: Entry) -> None:
        # The file of this entry, if it still has the name and the stamp: then so it had while it was read.
        self._directory.set_aside(entry.path, lambda status: stamp(status)[:4] == entry.stamp[:4])

    def verify(self, entry: Entry) -> Verdict:
        """Reads all of a checkpoint; the file stays, whatever is found.

        OK is a file that is what was saved, UNKNOWN one that decodes and that nobody has noted, or whose trailer may
        have been written by another program since. Raises UnsupportedError and OSError.
        """
        try:
            with self._reader(entry) as reader:
                return reader.verify()
        except CorruptError:
            return Verdict.DAMAGED

    def rebuild_integrity(self) -> list[Entry]:
        """Notes the sums of all checkpoints that have none, as they are now; what was noted.

        Only what decodes is noted. What is proven corrupt is set aside, as by a load. Raises TimeoutError if the
        directory's lock can't be had, PermissionError of a read-only store, and OSError.
        """
        self._refuse_if_read_only()
        self._directory.ledger.forget_absent()
        return [entry for entry in self.entries() if self._note(entry)]

    def _note(self, entry: Entry) -> bool:
        try:
            with self._reader(entry) as reader:
                note = reader.make_note() if reader.note is None else None
                if note is None:
                    return False
                with locked(self.directory):
                    if identity(os.stat(entry.path)) != (note.device, note.inode):
                        return False
                    name = os.path.basename(entry.path)
                    self._directory.ledger.put(name, note)
                    return self._directory.ledger.get(name) == note
        except FileNotFoundError:
            return False  # evicted since it was listed
        except CorruptError as error:
            log.load_failed(entry.path, error, 0)
            self._set_aside(entry)
            return False

    def _reader(self, entry: Entry) -> CheckpointReader:
        return CheckpointReader(entry.path, workers=self._workers, ledger=self._directory.ledger)

    def import_tool_maps(self, ids: Iterable[bytes]) -> dict[bytes, bytes]:
        """What the model wrote for these tool calls, by their ids, as far as the checkpoints here know it.

        No payload is read, and no lock is needed. Raises OSError.
        """
        missing = set(ids)
        found: dict[bytes, bytes] = {}
        for entry in self.entries():
            if missing and entry.ext_flags & Ext.TOOL_MAP:
                found |= self._read_tool_map(entry, missing)
                missing -= found.keys()
        return found

    def _read_tool_map(self, entry: Entry, wanted: set[bytes]) -> dict[bytes, bytes]:
        start = PREFIX_SIZE + entry.text_bytes + entry.header.payload_bytes
        try:
            with RegularFile(entry.path) as fp:
                if identity(os.fstat(fp.fileno())) != entry.stamp[:2]:
                    return {}  # replaced since it was listed
                note = self._directory.ledger.applying(os.path.basename(entry.path), fp.fileno())
                return read_noted_tool_map(fp, start, note, wanted=wanted)
        except FileNotFoundError:
            return {}  # evicted since it was listed
        except CorruptError as error:
            log.tool_map_refused(entry.path, error)  # and the file is the next load's to judge
            return {}

    # Writing

    def save(
        self,
        text: ReadableBuffer,
        *,
        tokens: int,
        ctx_size: int,
        quant_bits: int = 2,
        reason: str | int = "cold",
        ext_flags: int = 0,
        tool_map: Mapping[bytes, bytes] | None = None,
        raw_total: int | None = None,
        trimmed: int = 0,
        model_id: int | None = None,
        payload_abi: int | None = None,
    ) -> Save:
        """Begins to save a checkpoint, as a context manager; its ``payload`` is the stream to write to.

        ``text`` is the key. ``tool_map`` is all that the engine remembers, oldest first; the part that occurs in
        ``text`` is stored, and sets or clears bit 0 of ``ext_flags``. ``raw_total`` is the payload's size in bytes,
        where it is known beforehand; ``trimmed``, the tokens of the prompt that are left out, is for the log alone.

        ``model_id`` and ``payload_abi`` go into the header, which in layout ``v2`` has no room for them.

        A text that has a checkpoint which this engine can load isn't saved again; its tool map is, and replaces the one
        there. One that is being saved at this moment isn't either, whoever does it. A file that doesn't fit the budget
        by its real size, with 1 % of slack, isn't let in. That, too few tokens, nothing written and a ``quant_bits``
        other than 2 and 4 are refusals, no errors: see :class:`ds4kv.saving.Save`.

        At the block's end the file gets its name, and then the directory is brought within the budget, by removing the
        checkpoints of the lowest score, and this one last. A block left by an exception leaves nothing behind. If
        someone holds the directory's lock for 30 s, the file gets its name all the same and nothing is removed.

        A full disk is an OSError, from the payload's write() or the end of the block, and nothing is removed for it.
        With ``on_full="evict"`` room is made by score, as much as the write lacks, and the write is tried once more. No
        checkpoint goes unless all that is to be written can then fit: so give ``raw_total``. Without it nobody knows,
        and one save costs no more than half of what the checkpoints take together.

        Raises ValueError for what no file may hold, and OSError.
        """
        started = time.monotonic()
        if self._directory.is_read_only:
            return Save(refusal="the store is read only")
        key_text = bytes(memoryview(text))
        reason_code = Reason.from_word(reason) if isinstance(reason, str) else reason
        if tokens < max(self.min_tokens, 1):
            return Save(refusal=f"{tokens} tokens; a checkpoint has at least {max(self.min_tokens, 1)}")
        if quant_bits not in (2, 4):
            return Save(refusal=f"quant_bits is {quant_bits}, not 2 or 4")
        if len(key_text) >= 1 << 32:
            log.skipped_for_text(tokens)
            return Save(refusal=f"the text is {len(key_text)} bytes; its length has 32 bits")
        trailer = pack_tool_map(select_tool_map(key_text, tool_map or {}))
        sha = hashlib.sha1(key_text, usedforsecurity=False).hexdigest()
        path = os.path.join(self.directory, f"{sha}.kv")
        same_key = [entry for entry in self.entries() if entry.sha == sha]
        suits = self._what_suits(ctx_size, quant_bits, model_id, payload_abi)
        for entry in same_key:
            if suits(entry) and self._directory.text_of(entry) == key_text:
                return PresentSave(self._directory, entry, trailer, fsync=self._fsync)
        now = self._directory.now()
        fields = self._template._asdict() | {
            "tokens": tokens,
            "ctx_size": ctx_size,
            "quant_bits": quant_bits,
            "reason_code": reason_code,
            "ext_flags": ext_flags | Ext.TOOL_MAP if trailer else ext_flags & ~int(Ext.TOOL_MAP),
            "created_at": now,
            "last_used": now,
            "model_id": model_id or 0,
            "payload_abi": payload_abi or 0,
        }
        header = Header(**fields)
        least = PREFIX_SIZE + len(key_text) + len(trailer)
        if self._template.codec is Codec.NONE:
            least += raw_total or 0
        if policy.with_slack(least) > self.budget_bytes:
            log.skipped_for_estimate(tokens, header.reason.word, file_size=least, budget_bytes=self.budget_bytes)
            return Save(refusal=over_budget(least, self.budget_bytes))
        try:
            claim = self._claims.claim(os.path.basename(path), self._directory.temporaries)
            if isinstance(claim, str):
                return Save(refusal=f"the text is being saved by {claim}")
            try:
                writer = self._create(path, header, key_text, trailer, raw_total, least)
            except BaseException:
                claim.end()
                raise
        except OSError as error:
            log.create_failed(path, error, time.monotonic() - started)
            raise
        return NewSave(
            self._directory, writer, same_key, claim=claim, raw_total=raw_total, started=started, trimmed=trimmed
        )

    def _create(
        self, path: str, header: Header, text: bytes, trailer: bytes, raw_total: int | None, least: int
    ) -> StoreWriter:
        room = Room(self._directory) if self._evicts_when_full else None

        def create() -> StoreWriter:
            return StoreWriter(
                path,
                header,
                text,
                trailer,
                budget_bytes=self.budget_bytes,
                room=room,
                level=self._level,
                workers=self._workers,
                nice=self._nice,
                raw_total=raw_total,
                fsync=self._fsync,
                ledger=self._directory.ledger,
                mode=self._mode,
            )

        try:
            return create()
        except FileNotFoundError:
            self._make_directory()  # it was removed since the store was opened
        except OSError as error:
            if error.errno not in NO_SPACE or room is None or not room.make(least, least):
                raise
        return create()

    def save_buffer(self, text: ReadableBuffer, payload: Payload, **options: Any) -> Entry | None:
        """Saves a whole payload, and returns the checkpoint of ``text``, or None if it was refused.

        ``payload`` is any C-contiguous buffer, compressed where it lies, or a function without arguments that makes one
        and isn't called if it isn't needed. ``options`` and what is raised are those of :meth:`save`.
        """
        return self._save_buffer(text, payload, **options).entry

    def _save_buffer(self, text: ReadableBuffer, payload: Payload, **options: Any) -> Save:
        if not callable(payload):
            options.setdefault("raw_total", size_of(payload))
        with self.save(text, **options) as saving:
            if saving.needed:
                saving.payload.write(payload() if callable(payload) else payload)
        return saving

    def save_async(self, text: ReadableBuffer, payload: Payload, *, wait: bool = True, **options: Any) -> SaveFuture:
        """:meth:`save_buffer` on a background thread, which does one save after the other, in order.

        A buffer must not change before the future is done; a function is called there, when it is its turn. While 4
        saves are waiting already this waits too, or with ``wait`` false refuses the save. The future's ``refusal`` says
        why there is no checkpoint; what goes wrong is logged, and raised by its result().

        Where no thread can be had, as in an atexit handler, and within a payload function, the save is done at once.

        Raises RuntimeError after :meth:`close`.
        """
        key_text = bytes(memoryview(text))
        with self._mutex:
            if self._closed:
                raise RuntimeError(f"the store of {self.directory} is closed")
            if self._background is None or self._background.is_inherited:
                self._background = Background(queue_size=_QUEUE_SIZE)
            background = self._background
        return background.submit(lambda: self._save_buffer(key_text, payload, **options), wait=wait)

    def evict(self) -> list[Entry]:
        """Brings the directory within its budget, as every save does; what was removed.

        A file that can't be removed is passed over. Raises TimeoutError if the directory's lock can't be had,
        PermissionError of a read-only store, and OSError.
        """
        self._refuse_if_read_only()
        return [victim.entry for victim in self._directory.evict().removed]

    def plan_eviction(self, budget_mb: int, now: float | None = None) -> list[policy.Victim]:
        """What would go, in this order and why, for a budget of ``budget_mb`` MiB at ``now``. Touches nothing."""
        return self._directory.plan(budget_mb << 20, now)

    def remove(self, entry: Entry) -> bool:
        """Removes a checkpoint; False if it is gone already, or was replaced. Raises as :meth:`evict`."""
        self._refuse_if_read_only()
        return self._directory.remove(entry.path, entry.stamp[:2])

    def _refuse_if_read_only(self) -> None:
        if self._directory.is_read_only:
            raise PermissionError(errno.EPERM, "the store was opened to read only", self.directory)

    def close(self) -> None:
        """Waits for the saves in the background; no more are taken."""
        with self._mutex:
            self._closed = True
            background = self._background
        if background is not None and not background.is_inherited:
            background.close()
        self._directory.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _not_negative(name: str, value: int) -> int:
    if value < 0:
        raise ValueError(f"{name} is {value}, which is negative")
    return value


def _template(layout: Layout, codec: str | None) -> Header:
    """A header with what all new files of a store have in common."""
    if layout is Layout.V2_MID:
        raise ValueError("layout v2-mid is read, not written: use v2-checked")
    kept = codec_for(layout, codec)
    return Header(tokens=1, ctx_size=0, layout=layout, codec=kept, chunk_size=0 if kept is Codec.NONE else CHUNK_SIZE)
