"""A checkpoint while it is written: to a draft beside the target, which takes its name when it is whole."""

from __future__ import annotations

import contextlib
import functools
import os

from ds4kv.core import native as _core
from ds4kv.core import workers as _workers
from ds4kv.errors import Ds4kvError
from ds4kv.file.draft import Draft, MakeFile, OutputFile, sync_directory
from ds4kv.file.ledger import Ledger
from ds4kv.file.note import Note
from ds4kv.file.sealed import header_over, seal_of, with_sum
from ds4kv.format import layout as _layout
from ds4kv.format.header import Codec, Form, Header, Layout
from ds4kv.format.naming import sha1_mismatch
from ds4kv.stream.checked import CheckedWriter
from ds4kv.stream.encoding import Encoding
from ds4kv.stream.fileobj import write_all
from ds4kv.stream.lifetime import Finishable
from ds4kv.stream.reader import PayloadReader
from ds4kv.stream.regular import RegularFile
from ds4kv.stream.writer import PayloadWriter, RawWriter

__all__ = ["CheckpointWriter", "TooLittleSavedError", "codec_for", "encoding_for", "saves_enough"]

_PIECE_SIZE = 1 << 22
_LEAST_SAVING = 64  # layout v2-checked saves one byte of so many, or isn't used


class TooLittleSavedError(Exception):
    """The payload would have to be stored as it is, in layout v1, and that was not wanted."""


class CheckpointWriter(Finishable):
    """A checkpoint that is being written: ``payload`` is its stream. Made by :func:`ds4kv.create`.

    ``header`` is final when it is published; ``trailer`` may be set until then. Layout ``v2-checked`` becomes ``v1`` if
    it would save less than 1/64 of the payload; with ``keeps_layout`` that is a TooLittleSavedError instead. With
    ``needs_payload`` an empty payload is a ValueError, and nothing is published.

    In layout ``packed`` header and text are sealed before the payload begins: of the header only hits, last use and the
    flag of a tool map may be changed after, which close() holds it to, with a ValueError. Without a trailer
    that flag goes.

    ``draft`` is the file that it is written to, of a class that ``make_file`` may name. ``encoding`` is
    ``encoding_for()`` the header. With a ``ledger`` the file is noted there, see :mod:`ds4kv.file.note`, unless it is
    its own proof.
    """

    payload: PayloadWriter | RawWriter
    draft: Draft
    needs_payload = False
    keeps_layout = False
    note: Note | None = None
    """What the ledger is to know of the file, once it is whole."""
    _is_cancelled = False

    def __init__(
        self,
        path: str | os.PathLike[str],
        header: Header,
        text: bytes,
        trailer: bytes,
        encoding: Encoding | None,
        *,
        raw_total: int | None,
        fsync: bool,
        ledger: Ledger | None = None,
        mode: int | None = None,
        make_file: MakeFile = OutputFile,
    ) -> None:
        if len(text) >= 1 << 32:
            raise ValueError(f"the text is {len(text)} bytes; its length has 32 bits")
        path = os.fsdecode(path)
        if (key := sha1_mismatch(path, text)) is not None:
            raise ValueError(f"{path} is named by a SHA-1 that isn't the text's, which is {key}")
        is_empty = header.layout is Layout.V2_CHECKED and raw_total == 0
        self.header = _in_v1(header) if is_empty else header
        self.trailer = trailer
        self._text = text
        self._encoding = encoding
        self._raw_total = raw_total
        self._fsync = fsync
        self._ledger = ledger
        self._path = path
        self._make_draft = functools.partial(Draft, path, mode=mode, make_file=make_file)
        self._has_trailer = False
        self._begin()

    def _begin(self) -> None:
        """Makes a draft, with header and text in it, and the stream for its payload."""
        self.unfinished = True  # before there is a file, as an interrupt may come any time
        try:
            self.draft = self._make_draft()
            file = self.draft.file
            file.eager = self._fsync
            text_bytes = len(self._text).to_bytes(4, "little")
            write_all(file, memoryview(self.header.pack() + text_bytes + self._text))
            self._seal = seal_of(self.header, self._text)
            form, final_size = self.header.form or Form.RAW, None
            if self._raw_total is not None:
                region_bytes = _core.region_bound(self._raw_total, self.header.chunk_size, form)
                final_size = file.tell() + region_bytes + len(self.stored(self.trailer))
            file.begin_payload(final_size, is_exact=form is Form.RAW)
            self.payload = self._open_payload()
            if self._is_cancelled:  # while the payload is copied to another file
                self.payload.cancel()
        except BaseException:
            self.abandon()
            raise

    def _open_payload(self) -> PayloadWriter | RawWriter:
        file, raw_total, sums = self.draft.file, self._raw_total, self._is_to_note
        if self._encoding is None or self.header.form is Form.RAW:
            return RawWriter(file, raw_total=raw_total, sums=sums)
        if self._encoding.form is Form.CHECKED:
            return CheckedWriter(file, self._encoding, raw_total=raw_total, sums=sums)
        return PayloadWriter(file, encoding=self._encoding, raw_total=raw_total, sums=sums, seal=self._seal or 0)

    @property
    def _is_to_note(self) -> bool:
        return self._ledger is not None and self._seal is None

    def stored(self, trailer: bytes) -> bytes:
        """What follows the region of this file, if it has this trailer."""
        return with_sum(trailer, self._seal)

    def __repr__(self) -> str:
        state = "open" if self.unfinished else "published" if self.draft.is_published else "abandoned"
        written = self.payload.encoder.raw_bytes if hasattr(self, "payload") else 0  # else an interrupt came before
        return f"<{type(self).__name__} of {self._path!r}: {state}, {written} bytes written>"

    @property
    def file_size(self) -> int:
        """Size in bytes of the whole file, once region and trailer are written."""
        return _layout.PREFIX_SIZE + len(self._text) + self.payload.region_bytes + len(self.stored(self.trailer))

    def close(self) -> None:
        """Finishes the payload and publishes the file under its name.

        After an error the draft is removed, and what was at the target stays. With one exception: where ``fsync`` can't
        send the directory to the disk, which is the last step, the file has its name already.
        """
        if not self.unfinished:
            return
        try:
            self.make_whole()
            self.publish()
        except BaseException:
            self.abandon()
            raise

    def finish(self) -> None:
        """Finishes region and trailer, which is all that takes time or space."""
        self.draft.check_owner()
        self.finish_payload()
        if not self.payload.complete:
            raise Ds4kvError("the payload was abandoned: there is nothing to publish", path=self.draft.target)
        if not self._has_trailer:
            self._has_trailer = True
            write_all(self.draft.file, memoryview(self.stored(self.trailer)))
            self.draft.file.end_payload()

    def make_whole(self) -> None:
        """Makes the draft the whole file, with its final header. Only its name is missing then."""
        self.finish()
        header = header_over(self.header._replace(payload_bytes=self.payload.region_bytes), self.trailer)
        if not self.may_become(header):
            raise ValueError("layout packed seals the header when the payload begins: it can't be changed after")
        self.draft.file.seek(0)
        write_all(self.draft.file, memoryview(header.pack()))
        if self._is_to_note:
            self.note = Note.of(
                self.draft.fd,
                header.pack() + len(self._text).to_bytes(4, "little"),
                text_sum=_core.hash64(self._text),
                trailer=self.trailer,
                region_sums=self.payload.sums,
            )
        if self._fsync:
            self.draft.sync()
        self.header = header

    def may_become(self, header: Header) -> bool:
        """Whether the file is whole with this header; False of a sealed one with another in it."""
        return seal_of(header, self._text) == self._seal

    def publish(self) -> None:
        """Gives the file its name. To be called after :meth:`make_whole`."""
        directory = self.draft.directory
        if self.note is None:  # and what is there is about the file before this one
            self._forget(directory)
        self.draft.publish()
        self.unfinished = False
        if self._ledger is not None and self.note is not None:
            self._ledger.put(os.path.basename(self._path), self.note)
        if self._fsync:
            sync_directory(directory)

    def _forget(self, directory: str) -> None:
        if self._ledger is not None:
            self._ledger.remove(os.path.basename(self._path))
            return
        with contextlib.closing(Ledger(directory)) as ledger:
            ledger.remove(os.path.basename(self.draft.target))

    def finish_payload(self) -> None:
        """Closes the payload's stream. If layout v2-checked saves too little, the payload is then stored as it is."""
        payload = self.payload
        if self.needs_payload and payload.tell() == 0:
            raise ValueError("nothing was written: there is no payload to publish")
        is_checked = self.header.layout is Layout.V2_CHECKED
        is_empty = is_checked and not payload.closed and payload.tell() == 0 and not self._raw_total
        if is_empty:
            payload.abandon()  # there is no empty region of this layout
        else:
            payload.close()
        is_raw = is_checked and payload.is_raw
        if not is_raw and not is_empty and not (is_checked and payload.complete and not self._saves_enough()):
            return
        if self.keeps_layout:
            raise TooLittleSavedError
        if is_raw:
            self.header = _in_v1(self.header)
        else:
            self._store_raw()

    def _saves_enough(self) -> bool:
        return self.draft.file.given_up or saves_enough(self.payload.tell(), self.payload.region_bytes)

    def _store_raw(self) -> None:
        """Copies the payload to another draft, of layout v1, which takes the place of this one."""
        header, compressed, draft = self.header, self.payload, self.draft
        self._raw_total = compressed.tell()
        self.header = _in_v1(header)
        try:
            self._begin()
            if self._raw_total:
                with RegularFile(draft.path) as source:
                    source.seek(_layout.PREFIX_SIZE + len(self._text))
                    with PayloadReader(
                        source, compressed.region_bytes, chunk_size=header.chunk_size, form=Form.CHECKED
                    ) as payload:
                        while piece := payload.read(_PIECE_SIZE):
                            self.payload.write(piece)
            self.payload.close()
        finally:
            draft.discard()

    def cancel(self) -> None:
        """Ends what another thread is writing or closing: that raises CancelledError there within 50 ms, and so does
        every later use. Nothing is published; what is published already stays.
        """
        self._is_cancelled = True
        self.payload.cancel()

    def abandon(self) -> None:
        """Removes the draft; what was at the target stays."""
        if not self.unfinished:
            return
        self.unfinished = False
        try:
            if hasattr(self, "payload"):
                self.payload.abandon()
        finally:
            if hasattr(self, "draft"):
                self.draft.discard()


def codec_for(layout: Layout, codec: str | Codec | None) -> Codec:
    """The codec of a new file, by its name; None is the default that :func:`ds4kv.create` describes."""
    if codec is None and layout in (Layout.V2_CHECKED, Layout.PACKED):
        return Codec.LZ4
    if codec is None:
        return Codec.NONE if layout is Layout.V1 or _workers.compression_is_off() else Codec.LZ4
    if isinstance(codec, int):
        return Codec(codec)
    try:
        return Codec[codec.upper()]
    except KeyError:
        raise ValueError(f"codec {codec!r} is none of {', '.join(c.name.lower() for c in Codec)}") from None


def encoding_for(header: Header, *, level: int | None, workers: int | None, nice: int) -> Encoding | None:
    """How the payload of a new file with this header is encoded; None: it is stored as it is. ValueError as
    :class:`ds4kv.PayloadWriter` has it, for a layout that isn't written, and for a level where nothing is encoded.
    """
    if header.layout is Layout.V2_MID:
        raise ValueError("layout v2-mid is read, not written: use v2-checked")
    if header.form is None or header.form is Form.RAW:
        if level is not None:
            raise ValueError(f"level is {level}, but codec none has no levels")
        return None
    return Encoding.checked(
        form=header.form, chunk_size=header.chunk_size, codec=header.codec, level=level, workers=workers, nice=nice
    )


def saves_enough(raw_total: int, region_bytes: int) -> bool:
    """Whether a region of v2-checked is smaller than the payload by 1/64 at least; else it isn't worth decoding."""
    return _LEAST_SAVING * (raw_total - region_bytes) >= raw_total


def _in_v1(header: Header) -> Header:
    return header._replace(layout=Layout.V1, codec=Codec.NONE, chunk_size=0)
