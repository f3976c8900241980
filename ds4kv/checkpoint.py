"""One checkpoint file: header, text, payload region, trailer.

:func:`load` and :func:`dump` move a whole payload between a file and memory; :func:`open` and :func:`create` give it as
a stream. Reading refuses what is proven wrong before anything is allocated for it. Writing goes to a temporary file
beside the target, which takes its name only when it is whole.
"""

from __future__ import annotations

import contextlib
import errno
import io
import mmap
import os
import time
from collections import namedtuple

from ds4kv import _core
from ds4kv import layout as _layout
from ds4kv import workers as _workers
from ds4kv.errors import CorruptError, Ds4kvError, TruncatedError
from ds4kv.files import RegularFile
from ds4kv.header import CHUNK_SIZE, Codec, Form, Header, Layout, Reason
from ds4kv.integrity import Ledger, Note, Verdict
from ds4kv.stream import Finishable, PayloadReader, PayloadWriter, RawReader, RawWriter, Single, region_sums, write_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    from array import array
    from collections.abc import Iterator
    from typing import Self

    from _typeshed import ReadableBuffer, WriteableBuffer

    from ds4kv.salvage import Damage

    StrPath = str | os.PathLike[str]

__all__ = ["Checkpoint", "CheckpointReader", "CheckpointWriter", "create", "dump", "load", "open", "read_header"]

_HEX_DIGITS = frozenset("0123456789abcdefABCDEF")
_HUGE_PAGE = 1 << 21
_PIECE_SIZE = 1 << 22
_LEAST_SAVING = 64  # layout v2-checked saves one byte of so many, or isn't used


class Checkpoint(namedtuple("Checkpoint", "header text payload trailer damage", defaults=((),))):
    """A whole checkpoint in memory. ``payload`` is a view of its bytes: of ``into`` if that was given to load.

    ``damage`` says what a salvage could not save: ``payload`` then ends at the first byte that is lost.
    """

    __slots__ = ()
    header: Header
    text: bytes
    payload: memoryview
    trailer: bytes
    damage: tuple[Damage, ...]


def read_header(path: StrPath) -> Header:
    """The header of a checkpoint, held against the file's size. Text and payload are not looked at.

    Raises CorruptError, TruncatedError or UnsupportedError, with path, offset and field, and OSError.
    """
    with RegularFile(os.fsdecode(path)) as fp, _located(path):
        return _examine(fp)[0]


def open(path: StrPath, *, workers: int | None = None, verify: bool = True) -> CheckpointReader:
    """Opens a checkpoint for reading, as a context manager.

    Header, text and frame are read and checked at once, and a file named by a SHA-1 must have it over its text; the
    payload comes by its stream. In a directory where a store has noted the file's sums, all that is read is held
    against them, unless ``verify`` is false. ``workers`` as :func:`ds4kv.workers.resolve` has it.

    Raises CorruptError, TruncatedError or UnsupportedError, with path, offset and field, and OSError.
    """
    return CheckpointReader(path, workers=workers, verify=verify)


def load(
    path: StrPath,
    *,
    workers: int | None = None,
    into: WriteableBuffer | None = None,
    verify: bool = True,
    salvage: bool = False,
) -> Checkpoint:
    """Reads a whole checkpoint.

    The payload is decoded straight into ``into``, a writable C-contiguous buffer of exactly its size, or into fresh
    memory. After an error the contents of ``into`` are undefined. ``verify`` as in :func:`open`.

    With ``salvage`` a damaged file is no error: the payload is what is good from its first byte on, and ``damage`` of
    the result says what is lost. ``into`` may then be larger; what is good behind the first damage is in its place
    there, and the rest is undefined. Without a header to go by it raises as without ``salvage``.

    Raises ValueError if ``into`` has another size, else as :func:`open`.
    """
    if salvage:
        return _salvage(path, workers, into, verify)
    with open(path, workers=workers, verify=verify) as checkpoint:
        raw_total = checkpoint.payload.raw_total
        memory = _fresh_memory(raw_total) if into is None else into
        if (size := _core.size_of(memory)) != raw_total:
            raise ValueError(f"into is {size} bytes, the payload of {os.fsdecode(path)} is {raw_total}")
        checkpoint.payload.readinto(memory)
        return Checkpoint(checkpoint.header, checkpoint.text, _as_bytes(memory), checkpoint.trailer)


def _salvage(path: StrPath, workers: int | None, into: WriteableBuffer | None, verify: bool) -> Checkpoint:
    from ds4kv.salvage import Wreck  # here, because hardly any program needs it

    with Wreck(path, workers=workers, verify=verify) as wreck:
        memory = _fresh_memory(wreck.claimed_bytes) if into is None else into
        if (size := _core.size_of(memory)) < wreck.claimed_bytes:
            raise ValueError(f"into is {size} bytes, the records of {os.fsdecode(path)} claim {wreck.claimed_bytes}")
        view = _as_bytes(memory)
        good_bytes, damage = wreck.examine(into=view)
        return Checkpoint(wreck.header, wreck.text, view[:good_bytes], wreck.trailer, damage)


def create(
    path: StrPath,
    *,
    tokens: int,
    ctx_size: int,
    text: ReadableBuffer = b"",
    quant_bits: int = 2,
    reason: str | int = "cold",
    layout: str = "v2",
    codec: str | Codec | None = None,
    level: int | None = None,
    chunk_size: int = CHUNK_SIZE,
    workers: int | None = None,
    nice: int = 0,
    trailer: ReadableBuffer = b"",
    ext_flags: int = 0,
    hits: int = 0,
    created_at: int | None = None,
    last_used: int | None = None,
    model_id: int = 0,
    payload_abi: int = 0,
    raw_total: int | None = None,
    fsync: bool = False,
    ledger: Ledger | None = None,
) -> CheckpointWriter:
    """Opens a checkpoint for writing, as a context manager that publishes it on a clean exit.

    ``payload`` is the stream to write to. The file is a temporary one beside ``path``, of mode 0600; it takes the name
    when the block ends, and is removed if it ends by an exception. A link at ``path`` stays, what it leads to is
    replaced; a device or a directory there is an OSError. With ``fsync`` the publishing is durable.

    ``layout`` is ``v2``, ``v1``, or ``v2-checked``, which has a checksum of each chunk and is smaller and faster where
    the payload is of 32-bit numbers; a payload of which that would save less than 1/64 is stored as it is, in ``v1``.
    ``codec`` is ``lz4``, ``lz4hc`` or ``none``; by default ``lz4``, and ``none`` for layout ``v1`` or, in ``v2``, where
    the environment asks for 0 threads. ``level`` is as :func:`ds4kv.stream.encoder_level` has it. ``chunk_size`` is in
    payload bytes, 1 to 64 MiB; ``workers`` and ``nice`` are those of :class:`PayloadWriter`. ``created_at`` and
    ``last_used`` are Unix seconds: now, unless given. ``model_id`` and ``payload_abi`` are what newer engines put into
    ``v1`` and ``v2-checked``. In ``ledger`` the file is noted, see :mod:`ds4kv.integrity`.

    Raises ValueError for an argument that no file may hold, such as a text whose SHA-1 isn't the one that ``path`` is
    named by, and OSError.
    """
    kept_layout = Layout(layout)
    kept_codec = codec_for(kept_layout, codec)
    if kept_codec is Codec.NONE and level is not None:
        raise ValueError(f"level is {level}, but codec none has no levels")
    now = int(time.time()) if created_at is None else created_at
    header = Header(
        layout=kept_layout,
        codec=kept_codec,
        tokens=tokens,
        ctx_size=ctx_size,
        quant_bits=quant_bits,
        reason_code=Reason.from_word(reason) if isinstance(reason, str) else reason,
        ext_flags=ext_flags,
        hits=hits,
        chunk_size=0 if kept_codec is Codec.NONE else chunk_size,
        created_at=now,
        last_used=now if last_used is None else last_used,
        model_id=model_id,
        payload_abi=payload_abi,
    )
    return CheckpointWriter(
        path,
        header,
        bytes(memoryview(text)),
        bytes(memoryview(trailer)),
        level=level,
        workers=workers,
        nice=nice,
        raw_total=raw_total,
        fsync=fsync,
        ledger=ledger,
    )


def dump(
    path: StrPath,
    payload: ReadableBuffer,
    *,
    tokens: int,
    ctx_size: int,
    text: ReadableBuffer = b"",
    quant_bits: int = 2,
    reason: str | int = "cold",
    layout: str = "v2",
    codec: str | Codec | None = None,
    level: int | None = None,
    chunk_size: int = CHUNK_SIZE,
    workers: int | None = None,
    nice: int = 0,
    trailer: ReadableBuffer = b"",
    ext_flags: int = 0,
    hits: int = 0,
    created_at: int | None = None,
    last_used: int | None = None,
    model_id: int = 0,
    payload_abi: int = 0,
    fsync: bool = False,
) -> Header:
    """Writes a whole checkpoint and returns its header.

    ``payload`` is any C-contiguous buffer, and is compressed where it lies. Everything else as :func:`create`.
    """
    if layout == Layout.V2_CHECKED and _core.is_hopeless(payload, chunk_size):
        layout, codec, level = Layout.V1, None, None  # what it would come to in the end
    with create(
        path,
        tokens=tokens,
        ctx_size=ctx_size,
        text=text,
        quant_bits=quant_bits,
        reason=reason,
        layout=layout,
        codec=codec,
        level=level,
        chunk_size=chunk_size,
        workers=workers,
        nice=nice,
        trailer=trailer,
        ext_flags=ext_flags,
        hits=hits,
        created_at=created_at,
        last_used=last_used,
        model_id=model_id,
        payload_abi=payload_abi,
        raw_total=_core.size_of(payload),
        fsync=fsync,
    ) as checkpoint:
        checkpoint.payload.write(payload)
    return checkpoint.header


class CheckpointReader(Single):
    """An open checkpoint: ``header``, ``text``, ``payload`` as a stream, ``trailer``. Made by :func:`open`.

    ``form`` is how its region holds the chunks of the payload. ``note`` is what reads are held against, see
    :mod:`ds4kv.integrity`; None if nothing is known of the file.
    """

    payload: PayloadReader | RawReader
    note: Note | None = None
    _reader = PayloadReader
    _raw_reader = RawReader

    def __init__(
        self, path: StrPath, *, workers: int | None = None, verify: bool = True, ledger: Ledger | None = None
    ) -> None:
        self._path = os.fsdecode(path)
        self._workers = _workers.resolve(workers)
        self._fp = RegularFile(self._path)
        try:
            with _located(path):
                if verify:
                    self.note = self._find_note(ledger)
                self.header, text_bytes, self._file_size = _examine(self._fp)
                self.text = self._read(_layout.PREFIX_SIZE, text_bytes)
                if (key := _sha1_mismatch(self._path, self.text)) is not None:
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
        from ds4kv import mid  # here: such files are rare

        try:
            return mid.form_of(self._fp, self.header.payload_bytes, chunk_size=self.header.chunk_size)
        finally:
            self._fp.seek(self._region_start)

    def _open_payload(self) -> PayloadReader | RawReader:
        size, sums = self.header.payload_bytes, self._noted_sums()
        if self.form is Form.RAW and sums is None:
            return self._raw_reader(self._fp, size)
        return self._reader(
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
            count = int.from_bytes(self._fp.read_at(count_at, 4), "little")
            if count != len(sums):
                raise CorruptError(f"{count} chunks, and {len(sums)} were saved", offset=count_at, field="chunk_count")
        return sums

    def make_note(self) -> Note | None:
        """Reads and decodes all of it, for the note of what it is; None if somebody else is rewriting it.

        Sets the file's mtime. Raises as reads do.
        """
        fd = self._fp.fileno()
        head = self._read(0, _layout.PREFIX_SIZE)
        self.verify()
        trailer = self.trailer
        note = Note.of(fd, head, text_sum=_core.hash64(self.text), trailer=trailer, region_sums=self._region_sums())
        return note.rewritten(fd)

    def _region_sums(self) -> array[int]:
        self._fp.seek(self._region_start)
        with _located(self._path):
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
        return self._file_size

    @property
    def trailer_bytes(self) -> int:
        """Size of the trailer."""
        return self._file_size - self._region_end

    @property
    def trailer(self) -> bytes:
        """What follows the region; b"" if nothing does."""
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
        with _located(self._path):
            trailer = self._read(self._region_end, self.trailer_bytes)
            if self.note is None:
                return trailer, Verdict.UNKNOWN
            mtime_ns = os.fstat(self._fp.fileno()).st_mtime_ns  # now that it is read
            return trailer, self.note.check_trailer(trailer, mtime_ns=mtime_ns, offset=self._region_end)

    def _read(self, offset: int, size: int) -> bytes:
        data = self._fp.read_at(offset, size)
        if len(data) < size:
            raise TruncatedError("the file became shorter while it was read", offset=offset + len(data), field="file")
        return data

    def close(self) -> None:
        """Closes the stream and the file."""
        try:
            self.payload.close()
        finally:
            self._fp.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


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


class CheckpointWriter(Finishable):
    """A checkpoint that is being written: ``payload`` is its stream. Made by :func:`create`.

    ``header`` is final once it is published; ``trailer`` may be set up to then. Layout ``v2-checked`` becomes ``v1`` if
    it would save less than 1/64 of the payload.
    """

    payload: PayloadWriter | RawWriter

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
        if (key := _sha1_mismatch(os.fsdecode(path), text)) is not None:
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
        except BaseException:
            self.abandon()
            raise

    def _open_payload(
        self, level: int | None, workers: int | None, nice: int, raw_total: int | None
    ) -> PayloadWriter | RawWriter:
        form, sums = self.header.form, self._ledger is not None
        if form is None or form is Form.RAW:  # None: of v2-mid, which isn't written
            return RawWriter(self._fp, raw_total=raw_total, sums=sums)
        return PayloadWriter(
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
        is_empty = is_checked and not payload.closed and payload.tell() == 0
        if is_empty:
            payload.abandon()  # there is no empty region of this layout
        else:
            payload.close()
        if is_empty or (is_checked and payload.complete and self._saves_too_little()):
            self._store_raw()

    def _saves_too_little(self) -> bool:
        raw_total = self.payload.tell()
        return _LEAST_SAVING * (raw_total - self.payload.region_bytes) < raw_total

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
            _sync_directory(os.path.dirname(self._path) or ".")

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
    """The codec of a new file, by its name; None is the default that :func:`create` describes."""
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


def _in_v1(header: Header) -> Header:
    return header._replace(layout=Layout.V1, codec=Codec.NONE, chunk_size=0)


def _examine(fp: RegularFile) -> tuple[Header, int, int]:
    """Header, size of the text, size of the file; all that is claimed lies within the file."""
    file_size = os.fstat(fp.fileno()).st_size
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
    return header, text_bytes, file_size


def _sha1_mismatch(path: str, text: bytes) -> str | None:
    """The text's SHA-1 if the file is named by another one, else None."""
    name = os.path.basename(path)
    if len(name) != 43 or not name.endswith(".kv") or not _HEX_DIGITS.issuperset(name[:40]):
        return None
    import hashlib  # here, because it costs as much to import as half of this package

    key = hashlib.sha1(text, usedforsecurity=False).hexdigest()
    return key if key != name[:40].lower() else None


@contextlib.contextmanager
def _located(path: StrPath) -> Iterator[None]:
    """Errors raised within name the file."""
    try:
        yield
    except Ds4kvError as error:
        error.path = os.fsdecode(path)
        raise


def _fresh_memory(size: int) -> WriteableBuffer:
    """Memory that nobody has touched yet: its pages come when a worker writes them, huge ones where granted."""
    if size < _HUGE_PAGE:
        return bytearray(size)
    try:
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        if error.errno != errno.ENOMEM:
            raise
        raise MemoryError(f"no memory for a payload of {size} bytes") from error
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a wish, which kernels without huge pages refuse
            memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def _as_bytes(memory: WriteableBuffer) -> memoryview:
    try:
        return memoryview(memory).cast("B")
    except (TypeError, ValueError):  # formats that Python has no name for, and shapes of no bytes
        target = _core.target(memory)
        return _core.view(target, 0, len(target))


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


def _sync_directory(path: str) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
