"""The saved sessions of ds4-agent: a directory of checkpoints without a budget, each a conversation that can go on.

A conversation that grew replaces what was saved of it before: saving removes the checkpoints of all beginnings of its
text. Beside them lies one checkpoint of a fixed name, of the system prompt.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, TypeVar

from ds4kv.errors import Ds4kvError
from ds4kv.file import api as _checkpoint
from ds4kv.file.draft import sweep
from ds4kv.file.lock import locked
from ds4kv.file.reader import CheckpointReader
from ds4kv.file.writer import CheckpointWriter
from ds4kv.format.header import Reason
from ds4kv.format.layout import PREFIX_SIZE
from ds4kv.store import log
from ds4kv.store.directory import Directory
from ds4kv.store.entry import Entry, read_text
from ds4kv.stream.regular import RegularFile

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

__all__ = ["SYSPROMPT_NAME", "Session", "Sessions", "read_title"]

T = TypeVar("T")

SYSPROMPT_NAME = "sysprompt.kv"
_TITLE_BYTES = 70
_TURN_BYTES = 1 << 16  # of which a title is made: blanks in a row count once
_PIECE_SIZE = 1 << 20
_USER_TURN = "<\uff5cUser\uff5c>".encode()
_MARKER = "<\uff5c".encode()


class Session(NamedTuple):
    """A saved conversation: its :class:`ds4kv.Entry`, and how its first user turn begins."""

    entry: Entry
    title: str


SessionList: TypeAlias = list[Session]  # the method list() hides the type's name


class Sessions:
    """The sessions in ``directory``, by default ds4-agent's own: ``~/.ds4/kvcache``. It is made with mode 0700.

    ``layout``, ``codec`` and ``workers`` are those of new files, as in :func:`ds4kv.create`; ``clock`` gives Unix
    seconds. Loading a session changes nothing in its file. Opening removes what killed processes left half written.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str] | None = None,
        *,
        workers: int | None = None,
        layout: str = "v2",
        codec: str | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if directory is None:
            directory = os.path.join(os.environ.get("HOME") or ".", ".ds4", "kvcache")
        self.directory = os.path.abspath(os.fsdecode(directory))
        self._workers = workers
        self._layout = layout
        self._codec = codec
        os.makedirs(self.directory, mode=0o700, exist_ok=True)
        sweep(self.directory)
        self._directory = Directory(self.directory, clock=clock)
        self._directory.ledger.forget_absent()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.directory!r})"

    def list(self) -> SessionList:
        """All saved sessions, the one used last first. Raises OSError."""
        entries = sorted(self._directory.entries(), key=lambda entry: entry.header.last_used, reverse=True)
        return [Session(entry, title) for entry in entries if (title := _if_readable(read_title, entry)) is not None]

    def switch(self, prefix: str, *, quant_bits: int) -> CheckpointReader:
        """Opens the one session whose SHA-1 begins with ``prefix``, 1 to 40 hex digits of either case.

        Raises ValueError if it is no such prefix, or the session is of another quantization than ``quant_bits``;
        LookupError if no session has it, or several have; else as :func:`ds4kv.open`. The file stays, whatever is
        wrong with it.
        """
        digits = prefix.lower()
        if not 1 <= len(digits) <= 40 or not set(digits) <= set("0123456789abcdef"):
            raise ValueError(f"{prefix!r} is not the beginning of a SHA-1: 1 to 40 hex digits")
        found = {entry.sha: entry for entry in sorted(self._directory.entries()) if entry.sha.startswith(digits)}
        if len(found) != 1:
            which = (
                f"{len(found)} sessions begin with {prefix}: {', '.join(found)}" if found else f"no session {prefix}"
            )
            raise LookupError(f"{which} (in {self.directory})")
        (entry,) = found.values()
        if entry.quant_bits != quant_bits:
            raise ValueError(f"{entry.path} was saved with quant_bits {entry.quant_bits}, the engine has {quant_bits}")
        return _checkpoint.open(entry.path, workers=self._workers)

    @contextlib.contextmanager
    def save(
        self,
        text: ReadableBuffer,
        *,
        tokens: int,
        ctx_size: int,
        quant_bits: int = 2,
        raw_total: int | None = None,
        fsync: bool = False,
    ) -> Iterator[CheckpointWriter]:
        """Saves the conversation ``text``, as a context manager that gives what :func:`ds4kv.create` does.

        Once it is published, every other checkpoint here whose text is a shorter beginning of this one is removed,
        whoever saved it. It replaces one of the same text. Raises TimeoutError if the directory's lock can't be had,
        ValueError if nothing was written, and as :func:`ds4kv.create`.
        """
        whole = bytes(memoryview(text))
        name = f"{hashlib.sha1(whole, usedforsecurity=False).hexdigest()}.kv"
        with self._create(
            name,
            reason=Reason.AGENT_SESSION,
            text=whole,
            tokens=tokens,
            ctx_size=ctx_size,
            quant_bits=quant_bits,
            raw_total=raw_total,
            fsync=fsync,
        ) as writer:
            yield writer
        with locked(self.directory):
            for entry in self._directory.entries():
                if entry.text_bytes < len(whole) and _if_readable(read_text, entry) == whole[: entry.text_bytes]:
                    try:
                        self._directory.unlink(entry.path, entry.file)
                    except OSError as error:
                        log.trouble("could not remove shorter session", entry.path, error)

    def load_sysprompt(self, text: ReadableBuffer, *, quant_bits: int) -> CheckpointReader | None:
        """Opens the checkpoint of the system prompt, if it is of this very text and quantization.

        None if there is none, or a damaged or another one: then it is to be computed and saved. Raises OSError.
        """
        try:
            reader = _checkpoint.open(os.path.join(self.directory, SYSPROMPT_NAME), workers=self._workers)
        except (FileNotFoundError, Ds4kvError):
            return None
        if reader.header.quant_bits == quant_bits and reader.text == bytes(memoryview(text)):
            return reader
        reader.close()
        return None

    def matches_sysprompt(self, text: ReadableBuffer, *, quant_bits: int) -> bool:
        """Whether :meth:`load_sysprompt` would give a checkpoint."""
        reader = self.load_sysprompt(text, quant_bits=quant_bits)
        if reader is not None:
            reader.close()
        return reader is not None

    def save_sysprompt(
        self,
        text: ReadableBuffer,
        *,
        tokens: int,
        ctx_size: int,
        quant_bits: int = 2,
        raw_total: int | None = None,
        fsync: bool = False,
    ) -> CheckpointWriter:
        """Saves the state after the system prompt ``text``, in place of the one before; as :func:`ds4kv.create`.

        Closing it raises ValueError if nothing was written.
        """
        return self._create(
            SYSPROMPT_NAME,
            reason=Reason.AGENT_SYSTEM,
            text=text,
            tokens=tokens,
            ctx_size=ctx_size,
            quant_bits=quant_bits,
            raw_total=raw_total,
            fsync=fsync,
        )

    def _create(self, name: str, **options: Any) -> CheckpointWriter:
        """As :func:`ds4kv.create`, by the settings of these sessions."""
        writer = _checkpoint.create(
            os.path.join(self.directory, name),
            layout=self._layout,
            codec=self._codec,
            workers=self._workers,
            created_at=self._directory.now(),
            ledger=self._directory.ledger,
            **options,
        )
        writer.needs_payload = True
        return writer


def read_title(entry: Entry) -> str | None:
    """At most 70 bytes of the first user turn, in one line; empty if there is none, None if the file is gone.

    However long the text is, no more than a MiB of it is in memory at a time. Raises OSError.
    """
    try:
        with RegularFile(entry.path) as fp:
            turn = _first_user_turn(fp, entry.text_bytes)
    except FileNotFoundError:
        return None
    return " ".join(turn.decode(errors="replace").split()).encode()[:_TITLE_BYTES].decode(errors="ignore")


def _first_user_turn(fp: RegularFile, text_bytes: int) -> bytes:
    """How it begins, no more of it than a title can need; empty if there is none."""
    for start in range(0, text_bytes, _PIECE_SIZE):
        # The mark may begin in this piece and end in the next one.
        size = min(_PIECE_SIZE + len(_USER_TURN) - 1, text_bytes - start)
        at = fp.read_at(PREFIX_SIZE + start, size).find(_USER_TURN)
        if at >= 0:
            start += at + len(_USER_TURN)
            turn = fp.read_at(PREFIX_SIZE + start, min(_TURN_BYTES, text_bytes - start))
            return turn.partition(_MARKER)[0]
    return b""


def _if_readable(read: Callable[[Entry], T | None], entry: Entry) -> T | None:
    """What ``read`` gives; None if the file can't be read: that is one file, and ends nothing else."""
    try:
        return read(entry)
    except OSError as error:
        log.trouble("could not read", entry.path, error)
        return None
