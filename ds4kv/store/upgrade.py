"""Checkpoints of a directory written again in another layout, each in its place, while servers go on using them.

Each file in six steps, so that a process killed at any moment leaves the old file or the new one:

1. convert it to a draft beside it, and put that on the disk;
2. read the draft back from the disk, and hold it against what was converted;
3. take the directory's lock;
4. look whether the old file still has its name, and carry over hits and a tool map that came meanwhile;
5. look once more whether the old file changed since, and if so do 4 again;
6. give the draft the old file's name.

ds4-server takes no lock. What it writes between 5 and 6 is lost: one hit, or one tool map. Who has the old file open
reads on in it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
import time
from collections.abc import Iterator
from typing import NamedTuple

from ds4kv.core import native as _core
from ds4kv.errors import Ds4kvError
from ds4kv.file.draft import sweep, sync_directory
from ds4kv.file.inplace import identity, write_at
from ds4kv.file.ledger import Ledger
from ds4kv.file.lock import OnWait, locked
from ds4kv.file.note import Note
from ds4kv.file.reader import CheckpointReader
from ds4kv.file.sealed import header_over, seal_of, with_sum
from ds4kv.file.writer import CheckpointWriter, TooLittleSavedError, encoding_for, saves_enough
from ds4kv.format import layout
from ds4kv.format.header import HEADER_SIZE, Codec, Form, Header, Layout, default_chunk_size
from ds4kv.format.layout import PREFIX_SIZE
from ds4kv.format.naming import is_entry_name
from ds4kv.store.entry import read_entry, stamp
from ds4kv.stream import Encoding, Nowhere, PayloadWriter, RawWriter

__all__ = ["Outcome", "Upgrade"]

_PIECE_SIZE = 1 << 20
_ATTEMPTS = 2
_COARSEST_TICK_NS = 2_000_000_000  # between two times of a file, on the file systems with the coarsest clocks


class Outcome(NamedTuple):
    """What became of one file: its sizes in bytes, the same where it stayed as it was.

    ``action`` is ``upgraded``, or would be by a dry run; ``current``, of that layout already; ``kept``, because it is
    as good as it was; ``skipped``, because somebody else is at it; ``failed``, with its ``error``. ``why`` says more.
    """

    path: str
    action: str
    before: int
    after: int
    why: str | None = None
    error: Exception | None = None


class _ChangedError(Exception):
    """The file is not the one any more that was converted."""


class Upgrade:
    """An upgrade of a directory to ``layout``; ``level``, ``chunk_size``, ``workers`` and ``nice`` as for
    :func:`ds4kv.create`. Where a chunk size is given, files of that layout with another one are upgraded, too. From
    ``packed`` to ``v2`` a file becomes the very one that a writer of ``v2`` would have made.

    A dry run does all the work and writes nothing. ``on_wait`` is called with the process id of who has the lock of the
    directory, before it is waited for. Raises ValueError for what can't be written.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        layout: str = "v2-checked",
        level: int | None = None,
        chunk_size: int | None = None,
        workers: int | None = None,
        nice: int = 0,
        dry_run: bool = False,
        on_wait: OnWait | None = None,
    ) -> None:
        self._directory = os.fsdecode(directory)
        self._layout = Layout(layout)
        if self._layout in (Layout.V2_MID, Layout.V2_CRC):
            raise ValueError(f"layout {layout} isn't written: use v1, v2, v2-checked or packed")
        if self._layout is Layout.V1 and level is not None:
            raise ValueError(f"level is {level}, but layout v1 has no levels")
        if self._layout is Layout.V1 and chunk_size is not None:
            raise ValueError(f"chunk_size is {chunk_size}, but layout v1 has no chunks")
        self._level = level
        self._chunk_size = chunk_size
        self._workers = workers
        self._nice = nice
        self._dry_run = dry_run
        self._on_wait = on_wait
        _ = self._encoding(self._header(Header(tokens=1, ctx_size=0)))  # which checks them
        Encoding.checked(nice=nice)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._directory!r}, layout={str(self._layout)!r})"

    def run(self) -> Iterator[Outcome]:
        """Goes over every checkpoint that is there now, in the order of names. Raises OSError if it can't be listed."""
        names = sorted(filter(is_entry_name, os.listdir(self._directory)))
        if not self._dry_run:
            sweep(self._directory)
        with contextlib.closing(Ledger(self._directory)) as ledger:
            for name in names:
                yield self._upgrade(os.path.join(self._directory, name), ledger)

    def _upgrade(self, path: str, ledger: Ledger) -> Outcome:
        size = 0
        try:
            size = os.lstat(path).st_size
            if os.path.islink(path):
                return Outcome(path, "skipped", size, size, "a link: upgrade the directory that it leads to")
            for _ in range(_ATTEMPTS):
                entry = read_entry(path)
                size = entry.file_size
                if self._is_current(entry.header):
                    return Outcome(path, "current", size, size)
                try:
                    return self._try(path, ledger)
                except _ChangedError:
                    continue
                except OSError as error:
                    if error.errno != errno.ESTALE:
                        raise
            return Outcome(path, "skipped", size, size, "it was changed or replaced meanwhile, again")
        except FileNotFoundError:
            return Outcome(path, "skipped", size, size, "it was removed meanwhile")
        except (Ds4kvError, OSError, MemoryError, ValueError) as error:
            if isinstance(error, OSError) and error.errno == errno.ESTALE:  # of the reader: it proves nothing
                return Outcome(path, "skipped", size, size, "somebody wrote to it meanwhile")
            return Outcome(path, "failed", size, size, None, error)

    def _is_current(self, header: Header) -> bool:
        if header.layout is not self._layout or (header.codec is Codec.NONE) != (self._layout is Layout.V1):
            return False
        return self._chunk_size in (None, header.chunk_size)

    def _try(self, path: str, ledger: Ledger) -> Outcome:
        with _Source(path, workers=self._workers, ledger=ledger) as source:
            size = source.file_size
            header = self._header(source.header)
            after = None
            if source.payload.raw_total > 0 or header.form is not Form.CHECKED:  # which has no empty region
                after = self._rehearse(source, header) if self._dry_run else self._replace(source, header, ledger)
        if after is None:
            return Outcome(path, "kept", size, size, f"as {self._layout} it would not shrink")
        return Outcome(path, "upgraded", size, after)

    def _header(self, header: Header) -> Header:
        codec = Codec.NONE if self._layout is Layout.V1 else Codec.LZ4
        chunk_size = 0 if codec is Codec.NONE else self._chunk_size
        if chunk_size is None:
            chunk_size = default_chunk_size(self._layout)
        return Header(**header._asdict() | {"layout": self._layout, "codec": codec, "chunk_size": chunk_size})

    def _encoding(self, header: Header) -> Encoding | None:
        return encoding_for(header, level=self._level, workers=self._workers, nice=self._nice)

    def _rehearse(self, source: _Source, header: Header) -> int | None:
        """Size of the file that would be written; None if the old one would be kept."""
        raw_total, encoding = source.payload.raw_total, self._encoding(header)
        payload: PayloadWriter | RawWriter
        if encoding is None:
            payload = RawWriter(Nowhere(), raw_total=raw_total)
        else:
            payload = PayloadWriter(Nowhere(), encoding=encoding, raw_total=raw_total)
        with payload:
            _copy(source, payload)
        _, trailer = source.now()
        if header.form is Form.CHECKED and not saves_enough(raw_total, payload.region_bytes):
            return None
        stored = with_sum(trailer, seal_of(header, source.text))
        return PREFIX_SIZE + source.text_bytes + payload.region_bytes + len(stored)

    def _replace(self, source: _Source, header: Header, ledger: Ledger) -> int | None:
        """Size of the file that was written in its place; None if the old one was kept."""
        # A note says that a file is what was saved. Of an old one without note or seal nobody knows that: no note now.
        is_proven = source.note is not None or source.file.seal is not None
        writer = CheckpointWriter(
            source.path,
            header,
            source.text,
            b"",
            self._encoding(header),
            raw_total=source.payload.raw_total,
            fsync=True,
            ledger=ledger if is_proven else None,
        )
        try:
            writer.keeps_layout = True
            candidate = _Candidate(writer, ledger)
            digest = candidate.fill(source)
            candidate.check(source.text, digest, self._workers)
            with locked(self._directory, on_wait=self._on_wait):
                return candidate.take_over(source)
        except TooLittleSavedError:
            return None
        finally:
            writer.abandon()  # which does nothing to a draft that has its name


class _Source(CheckpointReader):
    """The checkpoint as it was when it was opened, and as it is now."""

    def status(self) -> os.stat_result:
        return os.fstat(self.file.fp.fileno())

    @property
    def path(self) -> str:
        return self.file.path

    def now(self) -> tuple[Header, bytes]:
        """Header and trailer, which are all that is ever changed in a file. Raises _ChangedError if more was."""
        size = self.status().st_size
        header, text_bytes = layout.examine(self.file.fp.fileno(), size)
        for field in ("tokens", "codec", "payload_bytes"):
            if text_bytes != self.text_bytes or getattr(header, field) != getattr(self.header, field):
                raise _ChangedError
        start = self.file.outline.region_end
        if self.file.seal is not None:
            return header, self.file.read_trailer()[0]
        trailer = self.file.fp.read_at(start, max(size - start, 0))
        if self.note is not None:
            self.note.check_trailer(trailer, self.file.fp.fileno(), offset=start)
        return header, trailer


class _Candidate:
    """The new file: written, read back from the disk, and given the name of the old one, or discarded."""

    def __init__(self, writer: CheckpointWriter, ledger: Ledger) -> None:
        self._writer = writer
        self._draft = writer.draft
        self._ledger = ledger

    def fill(self, source: _Source) -> bytes:
        """Makes the draft the whole file; the digest of the payload. Raises TooLittleSavedError."""
        writer = self._writer
        digest = _copy(source, writer.payload)
        _, writer.trailer = source.now()
        writer.make_whole()
        self._header, self._trailer = writer.header, writer.trailer
        return digest

    def check(self, text: bytes, digest: bytes, workers: int | None) -> None:
        """Reads the draft back from the disk. Raises OSError if that isn't what was written."""
        path = self._draft.path
        if hasattr(os, "posix_fadvise"):  # not on macOS
            os.posix_fadvise(self._draft.fd, 0, 0, os.POSIX_FADV_DONTNEED)
        try:
            with CheckpointReader(path, workers=workers) as written:
                same = (written.header, written.text, written.trailer) == (self._header, text, self._trailer)
                same = same and _copy(written, None) == digest
        except Ds4kvError as error:
            raise OSError(errno.EIO, f"what was written reads back damaged: {error.why}", path) from error
        if not same:
            raise OSError(errno.EIO, "what was written does not read back the same", path)

    def take_over(self, source: _Source) -> int:
        """Steps 4 to 6, for who holds the lock; the size of the new file.

        Raises _ChangedError if another file has the old one's name now, FileNotFoundError if none has.
        """
        region_end = os.fstat(self._draft.fd).st_size - len(self._writer.stored(self._trailer))
        while True:
            status = source.status()
            if identity(os.stat(source.path, follow_symlinks=False)) != identity(status):
                raise _ChangedError
            self._carry_over(source, region_end)
            self._look_like(status)
            note = self._noted(status)
            if stamp(source.status()) == stamp(status):
                break
        self._draft.publish()
        if note is not None:
            self._ledger.put(os.path.basename(source.path), note)
        else:  # what is there is about the old file
            self._ledger.remove(os.path.basename(source.path))
        sync_directory(os.path.dirname(source.path) or ".")
        return region_end + len(self._writer.stored(self._trailer))

    def _carry_over(self, source: _Source, region_end: int) -> None:
        now, trailer = source.now()
        header = self._header._replace(hits=now.hits, last_used=now.last_used, ext_flags=now.ext_flags)
        header, stored = header_over(header, trailer), self._writer.stored(trailer)
        if (header, trailer) == (self._header, self._trailer):
            return
        if not self._writer.may_become(header):
            raise _ChangedError
        write_at(self._draft.fd, header.pack(), 0)
        write_at(self._draft.fd, stored, region_end)
        os.ftruncate(self._draft.fd, region_end + len(stored))
        self._draft.sync()
        self._header, self._trailer = header, trailer

    def _noted(self, status: os.stat_result) -> Note | None:
        """The note of what it is now."""
        note = self._writer.note
        if note is None:
            return None
        # The new file gets the old one's mtime. If that is older than a tick of the clock, any later write gives it
        # another. If not, a write within this tick may leave it as it is: then the note has 0, which is no proof.
        is_past = time.time_ns() - status.st_mtime_ns > _COARSEST_TICK_NS
        return note._replace(
            mtime_ns=status.st_mtime_ns if is_past else 0,
            head=self._header.pack() + note.head[HEADER_SIZE:],
            trailer_bytes=len(self._trailer),
            trailer_sum=_core.hash64(self._trailer),
        )

    def _look_like(self, status: os.stat_result) -> None:
        """Gives the draft the owner, mode and times of the old file."""
        fd = self._draft.fd
        ours = os.fstat(fd)
        if (ours.st_uid, ours.st_gid) != (status.st_uid, status.st_gid):
            os.fchown(fd, status.st_uid, status.st_gid)
        os.fchmod(fd, stat.S_IMODE(status.st_mode))
        os.utime(fd, ns=(status.st_atime_ns, status.st_mtime_ns))


def _copy(source: CheckpointReader, payload: PayloadWriter | RawWriter | None) -> bytes:
    """Copies the payload, if there is a place for it; its digest."""
    digest = hashlib.blake2b()
    buffer = memoryview(bytearray(_PIECE_SIZE))
    while n := source.payload.readinto(buffer):
        digest.update(buffer[:n])
        if payload is not None:
            payload.write(buffer[:n])
    return digest.digest()
