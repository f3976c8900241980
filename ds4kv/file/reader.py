"""A checkpoint while it is read: header, text, payload as a stream, trailer.

What is proven wrong is refused before anything is allocated for it. Where a store has noted what the file was, all that
is read is held against that.
"""

from __future__ import annotations

import contextlib
import os

from ds4kv.core import native as _core
from ds4kv.core import workers as _workers
from ds4kv.core.forks import fork_waits
from ds4kv.errors import CorruptError, Ds4kvError, TruncatedError
from ds4kv.file.inplace import read_at_rest
from ds4kv.file.ledger import Ledger
from ds4kv.file.note import Note, Verdict
from ds4kv.format import layout as _layout
from ds4kv.format.header import CHUNK_SIZE, Ext, Form, Header
from ds4kv.format.naming import sha1_mismatch
from ds4kv.stream.regular import RegularFile
from ds4kv.stream.streams import PayloadReader, RawReader, Single, region_sums

TYPE_CHECKING = False
if TYPE_CHECKING:
    from array import array
    from collections.abc import Iterator
    from types import TracebackType
    from typing import Self

    StrPath = str | os.PathLike[str]

_TOOL_MAP = int(Ext.TOOL_MAP)

__all__ = ["CheckpointReader", "examine", "judging"]


class CheckpointReader(Single):
    """An open checkpoint: ``header``, ``text``, ``payload`` as a stream, ``trailer``. Made by :func:`ds4kv.open`.

    ``form`` is how its region holds the chunks of the payload. ``note`` is what reads are held against, see
    :mod:`ds4kv.file.note`; None if nothing is known of the file.

    A file that somebody writes to while it is read is not judged: where bytes would be proven wrong, reads, verify and
    opening then raise OSError, with ESTALE.
    """

    payload: PayloadReader | RawReader
    note: Note | None = None

    def __init__(
        self,
        path: StrPath,
        *,
        workers: int | None = None,
        verify: bool = True,
        ledger: Ledger | None = None,
        known_text: bytes | None = None,
    ) -> None:
        """``known_text`` is what the text should be: if so, its SHA-1 needn't be computed again."""
        self._path = os.fsdecode(path)
        self._workers = _workers.resolve(workers)
        self._fp = RegularFile(self._path)
        try:
            with judging(self._fp):
                if verify:
                    self.note = self._find_note(ledger)
                self.header, text_bytes = examine(self._fp)
                self.text = self._fp.read_exactly(_layout.PREFIX_SIZE, text_bytes)
                if self.text != known_text and (key := sha1_mismatch(self._path, self.text)) is not None:
                    raise CorruptError(
                        f"the text's SHA-1 is {key}, not the one in the file's name",
                        offset=_layout.PREFIX_SIZE,
                        field="text",
                    )
                if self.note is not None:
                    self.note.check_text(self.text)
                self._region_start = _layout.PREFIX_SIZE + text_bytes
                self._region_end = self._region_start + self.header.payload_bytes
                self._fp.seek(self._region_start)
                self.form = self._find_form()
                self.payload = self._open_payload()
        except BaseException:
            self._fp.close()
            raise

    def _find_form(self) -> Form:
        if self.header.form is not None:
            return self.header.form
        with fork_waits:
            from ds4kv.file import mid  # here: such files are rare

        return mid.form_of(self._fp, self.header.payload_bytes, chunk_size=self.header.chunk_size)

    def _open_payload(self) -> PayloadReader | RawReader:
        size, sums = self.header.payload_bytes, self._noted_sums()
        if self.form is Form.RAW and sums is None:
            return RawReader(self._fp, size)
        return PayloadReader(
            self._fp, size, chunk_size=self._chunk_size, form=self.form, workers=self._workers, sums=sums
        )

    @property
    def _chunk_size(self) -> int:
        return CHUNK_SIZE if self.form is Form.RAW else self.header.chunk_size

    def _noted_sums(self) -> array[int] | None:
        if self.note is None:
            return None
        sums = self.note.region_sums
        if self.form is not Form.RAW:
            count_at = self._region_start + 8
            count = int.from_bytes(self._fp.read_exactly(count_at, 4), "little")
            if count != len(sums):
                raise CorruptError(f"{count} chunks, and {len(sums)} were saved", offset=count_at, field="chunk_count")
        return sums

    def make_note(self) -> Note | None:
        """Reads and decodes all of it, for the note of what it is; None if somebody else is rewriting it.

        Sets the file's mtime. Raises as reads do.
        """
        fd = self._fp.fileno()
        with judging(self._fp):
            head = self._fp.read_exactly(0, _layout.PREFIX_SIZE)
        self.verify()
        trailer = self.trailer
        note = Note.of(fd, head, text_sum=_core.hash64(self.text), trailer=trailer, region_sums=self._region_sums())
        return note.rewritten(fd)

    def _region_sums(self) -> array[int]:
        self._fp.seek(self._region_start)
        with judging(self._fp):
            return region_sums(self._fp, self.header.payload_bytes, chunk_size=self._chunk_size, form=self.form)

    def _find_note(self, ledger: Ledger | None) -> Note | None:
        directory, name = os.path.split(self._path)
        if ledger is not None:
            return ledger.applying(name, self._fp.fileno())
        with contextlib.closing(Ledger(directory)) as own:
            return own.applying(name, self._fp.fileno())

    @property
    def text_bytes(self) -> int:
        """Size of the text."""
        return len(self.text)

    @property
    def file_size(self) -> int:
        """Size of the whole file when it was opened."""
        return self._fp.status.st_size

    @property
    def trailer_bytes(self) -> int:
        """Size of the trailer that is there now; other programs may rewrite it at any time."""
        return max(os.fstat(self._fp.fileno()).st_size - self._region_end, 0)

    @property
    def trailer(self) -> bytes:
        """What follows the region now; b"" if nothing does, or it is being rewritten all the time."""
        return self._read_trailer()[0]

    def verify(self) -> Verdict:
        """Reads all of it. OK: it is what was saved; UNKNOWN: it decodes, and nothing else is known, of the trailer at
        least. Raises CorruptError for damage, and as reads do.
        """
        scratch = memoryview(bytearray(min(max(self.payload.raw_total, 1), CHUNK_SIZE)))
        self.payload.seek(0)
        while self.payload.readinto(scratch):
            pass
        return self.verify_trailer()

    def verify_trailer(self) -> Verdict:
        """Reads the trailer. OK: it is what was saved; UNKNOWN: it may be anything. Raises CorruptError for damage."""
        return self._read_trailer()[1]

    def _read_trailer(self) -> tuple[bytes, Verdict]:
        fd, start = self._fp.fileno(), self._region_end
        is_flagged = bool(self.header.ext_flags & _TOOL_MAP) or (self.note is not None and self.note.has_tool_map)
        trailer = read_at_rest(fd, start, lambda size, _: self._fp.read_at(start, size), is_flagged=is_flagged)
        if trailer is None:
            return b"", Verdict.UNKNOWN
        if self.note is None:
            return trailer, Verdict.UNKNOWN
        with judging(self._fp):
            return trailer, self.note.check_trailer(trailer, fd, offset=start)

    def close(self) -> None:
        """Closes the stream and the file.

        While another thread reads the payload: RuntimeError, and nothing is closed.
        """
        try:
            self.payload.close()
        finally:
            if self.payload.closed:  # else another thread reads on, by the descriptor's number
                self._fp.close()

    def cancel(self) -> None:
        """Ends what another thread is reading of the payload, which raises CancelledError there within 50 ms, as does
        every later read of it. It says nothing about the file.
        """
        self.payload.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        if exc_type is not None:
            self.payload.abandon()
        self.close()


def examine(fp: RegularFile) -> tuple[Header, int]:
    """Header and size of the text; all that is claimed lies within the file, as large as it was when it was opened."""
    file_size = fp.status.st_size
    header, text_bytes = _layout.examine(fp.read_at, file_size)
    left = file_size - _layout.PREFIX_SIZE
    if text_bytes > left:
        raise TruncatedError(
            f"a text of {text_bytes} bytes is claimed, the file has {left} left", offset=48, field="text_bytes"
        )
    left -= text_bytes
    if header.payload_bytes > left:
        raise TruncatedError(
            f"a region of {header.payload_bytes} bytes is claimed, the file has {left} left",
            offset=40,
            field="payload_bytes",
        )
    return header, text_bytes


@contextlib.contextmanager
def judging(fp: RegularFile) -> Iterator[None]:
    """Errors raised within name the file; a proof of damage holds only if nobody wrote to it since it was opened."""
    try:
        yield
    except Ds4kvError as error:
        error.path = fp.name
        if isinstance(error, CorruptError):
            fp.check_unchanged()
        raise
