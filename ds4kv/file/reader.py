"""A checkpoint while it is read: header, text, payload as a stream, trailer.

What is proven wrong is refused before anything is allocated for it. Where a store has noted what the file was, all that
is read is held against that.
"""

from __future__ import annotations

import os
from array import array
from types import TracebackType
from typing import Self

from ds4kv.core import native
from ds4kv.core import workers as _workers
from ds4kv.core.region import PREFIX_SIZE, frame_at, mid_form
from ds4kv.errors import CorruptError
from ds4kv.file.ledger import Ledger
from ds4kv.file.note import Note
from ds4kv.file.opening import OpenFile
from ds4kv.file.verdict import Proof, Verdict
from ds4kv.format.header import CHUNK_SIZE, Form
from ds4kv.stream.lifetime import Single
from ds4kv.stream.reader import PayloadReader, RawReader
from ds4kv.stream.sums import region_sums

__all__ = ["CheckpointReader"]


class CheckpointReader(Single):
    """An open checkpoint: ``header``, ``text``, ``payload`` as a stream, ``trailer``. Made by :func:`ds4kv.open`.

    ``form`` is how its region holds the chunks of the payload; ``file`` is the open file, and what is noted of it.

    A file that somebody writes to while it is read is not judged: where bytes would be proven wrong, reads, verify and
    opening then raise OSError, with ESTALE.
    """

    payload: PayloadReader | RawReader

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        workers: int | None = None,
        verify: bool = True,
        ledger: Ledger | None = None,
        known_text: bytes | None = None,
    ) -> None:
        """``ledger`` and ``known_text`` as :class:`ds4kv.file.opening.OpenFile` has them."""
        self._workers = _workers.resolve(workers)
        self.file = OpenFile(os.fsdecode(path), verify=verify, ledger=ledger, known_text=known_text)
        self.header, self.text = self.file.outline.header, self.file.text
        try:
            with self.file.judging:
                self.file.fp.seek(self.file.outline.region_start)
                self.form = self._find_form()
                self.payload = self._open_payload()
        except BaseException:
            self.file.close()
            raise

    def __repr__(self) -> str:
        state = "closed" if self.payload.closed else "open"
        place = f"at {self.payload.tell()} of {self.payload.raw_total} bytes"
        return f"<{type(self).__name__} of {self.file.path!r}: {state}, {place}>"

    @property
    def note(self) -> Note | None:
        """What reads are held against, see :mod:`ds4kv.file.note`; None if nothing is known of the file."""
        return self.file.note

    def _find_form(self) -> Form:
        header = self.header
        if header.form is not None:
            return header.form
        start = self.file.outline.region_start
        return Form(mid_form(self.file.fp.fileno(), start, header.payload_bytes, header.chunk_size))

    def _open_payload(self) -> PayloadReader | RawReader:
        fp, size, sums = self.file.fp, self.header.payload_bytes, self._noted_sums()
        if self.form is Form.RAW and sums is None:
            return RawReader(fp, size, workers=self._workers)
        return PayloadReader(fp, size, chunk_size=self._chunk_size, form=self.form, workers=self._workers, sums=sums)

    def _noted_sums(self) -> array[int] | None:
        if self.note is None or self.form is Form.RAW:
            return None if self.note is None else self.note.region_sums
        start, sums = self.file.outline.region_start, self.note.region_sums
        frame = frame_at(self.file.fp.fileno(), start, self.header.payload_bytes, self.header.chunk_size, self.form)
        if frame.chunk_count != len(sums):
            raise CorruptError(
                f"{frame.chunk_count} chunks, and {len(sums)} were saved", offset=start + 8, field="chunk_count"
            )
        return sums

    @property
    def _chunk_size(self) -> int:
        return CHUNK_SIZE if self.form is Form.RAW else self.header.chunk_size

    def make_note(self) -> Note | None:
        """Reads and decodes all of it, for the note of what it is; None if somebody else is rewriting it.

        Sets the file's mtime. Raises as reads do. A file in layout packed needs no note, and isn't read: None.
        """
        if self.file.seal is not None:
            return None
        fd = self.file.fp.fileno()
        with self.file.judging:
            head = self.file.fp.read_exactly(0, PREFIX_SIZE)
        self.verify()
        trailer = self.trailer
        note = Note.of(fd, head, text_sum=native.hash64(self.text), trailer=trailer, region_sums=self._region_sums())
        return note.rewritten(fd)

    def _region_sums(self) -> array[int]:
        fp = self.file.fp
        fp.seek(self.file.outline.region_start)
        with self.file.judging:
            return region_sums(fp, self.header.payload_bytes, chunk_size=self._chunk_size, form=self.form)

    @property
    def text_bytes(self) -> int:
        """Size of the text."""
        return len(self.text)

    @property
    def file_size(self) -> int:
        """Size of the whole file when it was opened."""
        return self.file.fp.status.st_size

    @property
    def trailer_bytes(self) -> int:
        """Size of the trailer that is there now; other programs may rewrite it at any time. In layout packed it is read
        for that, and raises CorruptError if it is proven wrong.
        """
        return self.file.trailer_bytes

    @property
    def trailer(self) -> bytes:
        """What follows the region now; b"" if nothing does, or it is being rewritten all the time."""
        return self.file.read_trailer()[0]

    def verify(self) -> Verdict:
        """Reads all of it. OK: it is what was saved; UNKNOWN: it decodes, and nothing else is known, of the trailer at
        least. Raises CorruptError for damage, and as reads do.
        """
        scratch = memoryview(bytearray(min(max(self.payload.raw_total, 1), CHUNK_SIZE)))
        self.payload.seek(0)
        while self.payload.readinto(scratch):
            pass
        return self.proof().verdict

    def proof(self) -> Proof:
        """By what the file is whole, for who has read all of the payload; the trailer is read here.

        Raises CorruptError if that is proven wrong, and OSError.
        """
        if self.verify_trailer() is Verdict.OK:
            return Proof.SIDECAR if self.file.seal is None else Proof.SEALED
        return Proof.CHECKSUMS if self.form in (Form.CHECKED, Form.PACKED) else Proof.DECODES

    def verify_trailer(self) -> Verdict:
        """Reads the trailer. OK: it is what was saved; UNKNOWN: it may be anything. Raises CorruptError for damage."""
        return self.file.read_trailer()[1]

    def close(self) -> None:
        """Closes the stream and the file.

        While another thread reads the payload: RuntimeError, and nothing is closed.
        """
        try:
            self.payload.close()
        finally:
            if self.payload.closed:  # else another thread reads on, by the descriptor's number
                self.file.close()

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
