"""A checkpoint while it is written: to a temporary file beside the target, which takes its name when it is whole."""

from __future__ import annotations

import contextlib
import errno
import io
import os

from ds4kv import _core
from ds4kv import layout as _layout
from ds4kv import workers as _workers
from ds4kv.errors import Ds4kvError
from ds4kv.files import RegularFile
from ds4kv.header import Codec, Form, Header, Layout
from ds4kv.integrity import Ledger, Note
from ds4kv.naming import sha1_mismatch
from ds4kv.stream import Finishable, PayloadReader, PayloadWriter, RawWriter, write_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from _typeshed import ReadableBuffer

    StrPath = str | os.PathLike[str]

__all__ = ["CheckpointWriter", "OutputFile", "codec_for", "saves_enough", "sync_directory"]

_PIECE_SIZE = 1 << 22
_LEAST_SAVING = 64  # layout v2-checked saves one byte of so many, or isn't used


class OutputFile(io.FileIO):
    """A file that is being written; where it is ``eager``, what is written goes on to the disk at once, so that an
    fsync at the end has little left to wait for.
    """

    eager = False

    def write(self, b: ReadableBuffer, /) -> int:
        start = self.tell()
        n = super().write(b)
        if self.eager:
            _core.write_out(self.fileno(), start, n)
        return n


class _CheckedWriter(PayloadWriter):
    """The payload's stream for layout v2-checked. If the first write has a chunk at least, and samples of it say that
    little can be saved, the payload is written as it is: better than to find that out in the end.
    """

    _as_it_is: RawWriter | None = None

    @property
    def is_raw(self) -> bool:
        """Whether the payload is written as it is."""
        return self._as_it_is is not None

    @property
    def region_bytes(self) -> int:
        return super().region_bytes if self._as_it_is is None else self._as_it_is.region_bytes

    def cancel(self) -> None:
        super().cancel()
        if self._as_it_is is not None:
            self._as_it_is.cancel()

    def _put(self, payload: Any) -> None:
        chunk_size = self._frame.chunk_size
        if self.tell() == 0 and len(payload) >= chunk_size and _core.is_hopeless(payload, chunk_size):
            self._free()
            self._as_it_is = RawWriter(self._fp, raw_total=self._raw_total, sums=self._with_sums)
            self.sums = self._as_it_is.sums
            self._look()  # cancel() may have come before there was another to pass it on to
        if self._as_it_is is None:
            super()._put(payload)
        else:
            with _core.view(payload, 0, len(payload)) as data:
                self._as_it_is.write(data)

    def _finish(self) -> None:
        if self._as_it_is is None:
            super()._finish()
        else:
            self._as_it_is.close()

    def _free(self) -> None:
        super()._free()
        if self._as_it_is is not None:
            self._as_it_is.abandon()


class CheckpointWriter(Finishable):
    """A checkpoint that is being written: ``payload`` is its stream. Made by :func:`ds4kv.create`.

    ``header`` is final once it is published; ``trailer`` may be set up to then. Layout ``v2-checked`` becomes ``v1`` if
    it would save less than 1/64 of the payload.
    """

    payload: PayloadWriter | RawWriter
    _is_cancelled = False

    def __init__(
        self,
        path: StrPath,
        header: Header,
        text: bytes,
        trailer: bytes,
        *,
        level: int | None,
        workers: int | None,
        nice: int,
        raw_total: int | None,
        fsync: bool,
        ledger: Ledger | None = None,
    ) -> None:
        if header.layout is Layout.V2_MID:
            raise ValueError("layout v2-mid is read, not written: use v2-checked")
        self._path = os.path.realpath(os.fsdecode(path))  # whatever becomes of the working directory; links stay
        if len(text) >= 1 << 32:
            raise ValueError(f"the text is {len(text)} bytes; its length has 32 bits")
        if (key := sha1_mismatch(os.fsdecode(path), text)) is not None:
            raise ValueError(f"{os.fsdecode(path)} is named by a SHA-1 that isn't the text's, which is {key}")
        if os.path.exists(self._path) and not os.path.isfile(self._path):
            kind = errno.EISDIR if os.path.isdir(self._path) else errno.EEXIST
            raise OSError(kind, "not a regular file, and not to be replaced by one", self._path)
        is_empty = header.layout is Layout.V2_CHECKED and raw_total == 0
        self.header = _in_v1(header) if is_empty else header
        self.trailer = trailer
        self._text = text
        self._fsync = fsync
        self._ledger = ledger
        self._name = os.path.basename(os.fsdecode(path))
        self._has_trailer = False
        self._owner = os.getpid()
        self._begin(level, workers, nice, raw_total)

    def _begin(self, level: int | None, workers: int | None, nice: int, raw_total: int | None) -> None:
        """Opens a temporary file, with header and text in it, and the stream for its payload."""
        self._temporary = f"{self._path}.tmp.{self._owner}.{os.urandom(4).hex()}"
        self._unfinished = True  # before there is a file, as an interrupt may come any time
        try:
            try:
                self._fp = OutputFile(self._temporary, "x", opener=_open_private)
            except OSError as error:
                error.filename = self._path  # the name that the caller knows
                raise
            self._fp.eager = self._fsync
            text_bytes = len(self._text).to_bytes(4, "little")
            write_all(self._fp, memoryview(self.header.pack() + text_bytes + self._text))
            self.payload = self._open_payload(level, workers, nice, raw_total)
            if self._is_cancelled:  # while the payload is copied to another file
                self.payload.cancel()
        except BaseException:
            self.abandon()
            raise

    def _open_payload(
        self, level: int | None, workers: int | None, nice: int, raw_total: int | None
    ) -> PayloadWriter | RawWriter:
        form, sums = self.header.form, self._ledger is not None
        if form is None or form is Form.RAW:  # None: of v2-mid, which isn't written
            return RawWriter(self._fp, raw_total=raw_total, sums=sums)
        stream = _CheckedWriter if form is Form.CHECKED else PayloadWriter
        return stream(
            self._fp,
            chunk_size=self.header.chunk_size,
            form=form,
            workers=workers,
            nice=nice,
            codec=self.header.codec,
            level=level,
            raw_total=raw_total,
            sums=sums,
        )

    def close(self) -> None:
        """Finishes the payload and publishes the file under its name.

        If that can't be done the temporary file is removed and the error raised: what was at the target stays. Only an
        error of the last step of ``fsync``, which is the directory's, comes after the file has its name.
        """
        if not self._unfinished:
            return
        try:
            self._publish()
        except BaseException:
            self.abandon()
            raise

    def _finish_payload(self) -> None:
        """Closes the payload's stream; what layout v2-checked saves too little of is then stored as it is."""
        payload = self.payload
        is_checked = self.header.layout is Layout.V2_CHECKED
        is_empty = is_checked and not payload.closed and payload.tell() == 0 and payload.raw_total is None
        if is_empty:
            payload.abandon()  # there is no empty region of this layout
        else:
            payload.close()
        if isinstance(payload, _CheckedWriter) and payload.is_raw:
            self.header = _in_v1(self.header)
        elif is_empty or (is_checked and payload.complete and not self._saves_enough()):
            self._store_raw()

    def _saves_enough(self) -> bool:
        return saves_enough(self.payload.tell(), self.payload.region_bytes)

    def _store_raw(self) -> None:
        """Copies the payload to another temporary file, of layout v1, which takes the place of this one."""
        header, compressed, fp, temporary = self.header, self.payload, self._fp, self._temporary
        raw_total = compressed.tell()
        self.header = _in_v1(header)
        del self._fp
        try:
            self._begin(None, None, 0, raw_total)
            if raw_total:
                with RegularFile(temporary) as source:
                    source.seek(_layout.PREFIX_SIZE + len(self._text))
                    with PayloadReader(
                        source, compressed.region_bytes, chunk_size=header.chunk_size, form=Form.CHECKED
                    ) as payload:
                        while piece := payload.read(_PIECE_SIZE):
                            self.payload.write(piece)
            self.payload.close()
        finally:
            fp.close()
            os.unlink(temporary)

    def cancel(self) -> None:
        """Ends what another thread is writing or closing, which raises CancelledError there within 50 ms, as does every
        later use: nothing is published. What is published already stays.
        """
        self._is_cancelled = True
        self.payload.cancel()

    def _publish(self) -> None:
        if os.getpid() != self._owner:
            raise RuntimeError("a checkpoint is published by the process that created it")
        self._finish_payload()
        if not self.payload.complete:
            raise Ds4kvError("the payload was abandoned: there is nothing to publish", path=self._path)
        self._write_trailer()
        header = self.header._replace(payload_bytes=self.payload.region_bytes)
        self._fp.seek(0)
        write_all(self._fp, memoryview(header.pack()))
        note = self._note(header)
        if self._fsync:
            os.fsync(self._fp.fileno())
        self._fp.close()
        if self._ledger is None:
            with contextlib.closing(Ledger(os.path.dirname(self._path))) as ledger:
                ledger.remove(os.path.basename(self._path))  # it was about what had this name until now
        os.replace(self._temporary, self._path)
        self._unfinished = False
        self.header = header
        if self._ledger is not None and note is not None:
            self._ledger.put(self._name, note)
        if self._fsync:
            sync_directory(os.path.dirname(self._path) or ".")

    def _write_trailer(self) -> None:
        if not self._has_trailer:
            self._has_trailer = True
            write_all(self._fp, memoryview(self.trailer))

    def _note(self, header: Header) -> Note | None:
        if self._ledger is None:
            return None
        return Note.of(
            self._fp.fileno(),
            header.pack() + len(self._text).to_bytes(4, "little"),
            text_sum=_core.hash64(self._text),
            trailer=self.trailer,
            region_sums=self.payload.sums,
        )

    def abandon(self) -> None:
        """Removes the temporary file; what was at the target stays."""
        if not self._unfinished:
            return
        self._unfinished = False
        try:
            if hasattr(self, "payload"):
                self.payload.abandon()
        finally:
            if hasattr(self, "_fp"):
                self._fp.close()
                if os.getpid() == self._owner:
                    with contextlib.suppress(FileNotFoundError):  # an interrupt may come right after the rename
                        os.unlink(self._temporary)


def codec_for(layout: Layout, codec: str | Codec | None) -> Codec:
    """The codec of a new file, by its name; None is the default that :func:`ds4kv.create` describes."""
    if codec is None and layout is Layout.V2_CHECKED:
        return Codec.LZ4
    if codec is None:
        return Codec.NONE if layout is Layout.V1 or _workers.compression_is_off() else Codec.LZ4
    if isinstance(codec, int):
        return Codec(codec)
    try:
        return Codec[codec.upper()]
    except KeyError:
        raise ValueError(f"codec {codec!r} is none of {', '.join(c.name.lower() for c in Codec)}") from None


def saves_enough(raw_total: int, region_bytes: int) -> bool:
    """Whether a region of v2-checked is worth its while: it is 1/64 smaller than the payload, at least."""
    return _LEAST_SAVING * (raw_total - region_bytes) >= raw_total


def _in_v1(header: Header) -> Header:
    return header._replace(layout=Layout.V1, codec=Codec.NONE, chunk_size=0)


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


def sync_directory(path: str) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
