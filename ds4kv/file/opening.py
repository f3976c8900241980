"""A checkpoint file that is open, up to its payload: what is noted of it, where everything is in it, its text.

A reader and a salvage open a file here. They differ in what they do about damage that leaves the payload to be read,
such as a wrong text: a reader raises it, a salvage goes on and tells it in the end.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from types import TracebackType
from typing import TypeAlias

from ds4kv.core.region import PREFIX_SIZE
from ds4kv.errors import CorruptError, Ds4kvError
from ds4kv.file.inplace import read_at_rest
from ds4kv.file.ledger import Ledger
from ds4kv.file.note import Note
from ds4kv.file.sealed import judge_seal, judge_trailer, mended_outline, seal_in, seal_of
from ds4kv.file.verdict import Verdict
from ds4kv.format.header import Ext
from ds4kv.format.layout import Outline, examine
from ds4kv.format.naming import sha1_mismatch
from ds4kv.stream.regular import RegularFile

__all__ = ["OpenFile", "Report", "outline_of"]

_TOOL_MAP = int(Ext.TOOL_MAP)

Report: TypeAlias = Callable[[CorruptError], None]


def outline_of(path: str) -> Outline:
    """Where everything is in a file, which is closed again. Raises as :func:`ds4kv.open`."""
    with RegularFile(path) as fp, Judging(fp):
        outline = examine(fp.fileno(), fp.status.st_size)
        if (seal := seal_in(fp.fileno(), outline)) is not None:
            judge_seal(seal, outline, fp.read_exactly(PREFIX_SIZE, outline.text_bytes))
        return outline


class OpenFile:
    """An open checkpoint: ``fp`` is the file, to be read ``with judging``.

    ``note`` is what its bytes are held against, None if nothing is known of them. ``seal`` is the one in the frame of a
    file in layout packed, which is its own proof and has no note; None of another.

    With a ``report`` the file may be damaged: each damage that leaves the payload to be read is told by a call of it,
    and text and region may be cut short. Without, it is raised.

    ``ledger`` is the directory's, where that is open already; without ``verify`` none is asked. ``known_text`` is what
    the text should be: if it is, its SHA-1 needn't be computed.

    Raises CorruptError, TruncatedError or UnsupportedError, with path, offset and field, and OSError.
    """

    note: Note | None = None
    seal: int | None = None

    def __init__(
        self,
        path: str,
        *,
        verify: bool,
        ledger: Ledger | None = None,
        known_text: bytes | None = None,
        report: Report | None = None,
    ) -> None:
        self.path = path
        self.fp = RegularFile(path)
        self.judging = Judging(self.fp)
        try:
            with self.judging:
                if verify:
                    self.note = self._find_note(ledger, report)
                self.outline = self._find_outline(report)
                self.text = self._read_text(report)
                try:
                    self._judge_text(known_text)
                except CorruptError as error:
                    _tell(error, report)
                self.seal = self._find_seal(report)
                try:
                    judge_seal(self.seal, self.outline, self.text)
                except CorruptError as error:
                    _tell(error, report)
        except BaseException:
            self.fp.close()
            raise

    def _find_outline(self, report: Report | None) -> Outline:
        try:
            return examine(self.fp.fileno(), self.fp.status.st_size, may_be_damaged=report is not None)
        except CorruptError as error:
            outline = None if report is None else mended_outline(self.fp.fileno(), error)
            if outline is None:
                raise
            _tell(error, report)
            return outline

    def _find_note(self, ledger: Ledger | None, report: Report | None) -> Note | None:
        directory, name = os.path.split(self.path)
        if ledger is None:
            with contextlib.closing(Ledger(directory)) as own:
                note = own.get(name)
        else:
            note = ledger.get(name)
        try:
            return None if note is None else note.applying(self.fp.fileno())
        except CorruptError as error:
            _tell(error, report)
            return note  # the header is not the noted one, and the sums hold still

    def _read_text(self, report: Report | None) -> bytes:
        read = self.fp.read_exactly if report is None else self.fp.read_at
        return read(PREFIX_SIZE, self.outline.text_bytes)

    def _judge_text(self, known_text: bytes | None) -> None:
        if self.text != known_text and (key := sha1_mismatch(self.path, self.text)) is not None:
            raise CorruptError(
                f"the text's SHA-1 is {key}, not the one in the file's name", offset=PREFIX_SIZE, field="text"
            )
        if self.note is not None:
            self.note.check_text(self.text)

    def _find_seal(self, report: Report | None) -> int | None:
        try:
            return seal_in(self.fp.fileno(), self.outline)
        except CorruptError:
            if report is None:
                raise
            return seal_of(self.outline.header, self.text)  # the frame is the walk's to judge

    @property
    def trailer_bytes(self) -> int:
        """Size of the trailer that is there now; other programs may rewrite it at any time. Raises as reading it."""
        if self.seal is not None:
            return len(self.read_trailer()[0])
        return max(os.fstat(self.fp.fileno()).st_size - self.outline.region_end, 0)

    def read_trailer(self) -> tuple[bytes, Verdict]:
        """What follows the region now, b"" if nothing does or it is being rewritten all the time; OK if it is what was
        saved, UNKNOWN if it may be anything. Raises CorruptError for damage, and OSError.
        """
        fd, start = self.fp.fileno(), self.outline.region_end
        flags = self.outline.header.ext_flags
        is_flagged = bool(flags & _TOOL_MAP) or (self.note is not None and self.note.has_tool_map)
        found = read_at_rest(
            fd,
            start,
            lambda size, is_map: (self.fp.read_at(start, size), is_map),
            is_flagged=is_flagged,
            is_sealed=self.seal is not None,
        )
        if found is None:
            return b"", Verdict.UNKNOWN
        trailer, is_map = found
        if self.seal is not None:
            with self.judging:
                return judge_trailer(trailer, self.seal, is_flagged=is_map, offset=start)
        if self.note is None:
            return trailer, Verdict.UNKNOWN
        with self.judging:
            return trailer, self.note.check_trailer(trailer, fd, offset=start)

    def close(self) -> None:
        """Closes the file."""
        self.fp.close()


def _tell(error: CorruptError, report: Report | None) -> None:
    if report is None:
        raise error
    report(error)


class Judging:
    """``with`` this, a file is read: errors raised within name it.

    A proof of damage holds only if nobody wrote to the file since it was opened: else it is an OSError, ESTALE.
    A class, as a generator would take longer than the look at a file's header.
    """

    def __init__(self, fp: RegularFile) -> None:
        self._fp = fp

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        if isinstance(exc, Ds4kvError):
            exc.path = self._fp.name
            if isinstance(exc, CorruptError):
                self._fp.check_unchanged()
