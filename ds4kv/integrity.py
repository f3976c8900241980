"""What the files of a directory were when they were saved, noted beside them: a proof for layouts without a checksum.

The *ledger* of a directory is an SQLite database in its ``.ds4kv/``, with a *note* a file; the files stay as every
engine writes them. A note holds the sum (XXH3-64) of the text, of each record and of the trailer. Sums are over bytes
as they are stored: what a chunk decodes to follows from its record, and hashing 143 MiB of blocks that were just read
costs a fraction of hashing the 246 MiB of their payload.

A ledger is help, never a condition: where there is none, or it is locked, full, damaged or not ours to write, saves and
loads go on without it, and say so once in the log.

For who checks files (``ds4kv.open`` and ``Store.load`` do all of this):

    with contextlib.closing(Ledger(directory)) as ledger:
        note = ledger.get(name)                       # None: nothing is known
        note = note and note.applying(fd)             # None: about another file; CorruptError: this one, and damaged
        PayloadReader(..., sums=note.region_sums)     # and hash64(text) == note.text_sum, note.check_trailer(...)
    reader.verify() -> Verdict                        # of a CheckpointReader: reads all; CorruptError for damage
"""

from __future__ import annotations

import contextlib
import enum
import os
import struct
import sys
import threading
import time
from array import array
from collections import namedtuple

from ds4kv import _core
from ds4kv.errors import CorruptError
from ds4kv.header import CHUNK_SIZE, MAX_CHUNK_SIZE, Form
from ds4kv.layout import PREFIX_SIZE
from ds4kv.lock import locked

TYPE_CHECKING = False
if TYPE_CHECKING:
    import sqlite3
    from typing import Self

__all__ = ["DATABASE_NAME", "DIRECTORY_NAME", "Ledger", "Note", "Verdict"]

DIRECTORY_NAME = ".ds4kv"
DATABASE_NAME = "integrity.sqlite"

_SCHEMA_VERSION = 1
_MAX_RECORD_SIZE = MAX_CHUNK_SIZE + MAX_CHUNK_SIZE // 255 + 32
_TIMEOUT = 0.25  # seconds; whoever writes holds the database for less than a millisecond


class Verdict(enum.Enum):
    """What is known of a file. UNKNOWN: there is no note that is about it."""

    OK = "ok"
    DAMAGED = "damaged"
    UNKNOWN = "unknown"


# SQLite has no checksums of its pages, and a rotten note would condemn a good file: so a note is one value, with its
# own sum at the end.
_NOTE = struct.Struct(f"<QQQq{PREFIX_SIZE}s4xQQQ")


class Note(namedtuple("Note", "device inode birth_ns mtime_ns head text_sum trailer_bytes trailer_sum region_sums")):
    """What a file was when it was noted.

    ``device``, ``inode`` and ``birth_ns`` (0 where the system can't say) tell the very file from a copy; ``head`` is
    header and text length, 52 bytes; ``region_sums`` has one sum a record, of a raw region one for each 16 MiB.
    """

    __slots__ = ()
    device: int
    inode: int
    birth_ns: int
    mtime_ns: int
    head: bytes
    text_sum: int
    trailer_bytes: int
    trailer_sum: int
    region_sums: array[int]

    @classmethod
    def of(cls, fd: int, head: bytes, *, text_sum: int, trailer: bytes, region_sums: array[int]) -> Self:
        """The note of an open file that holds these. Sets the file's mtime, see :func:`_pin_mtime`."""
        mtime_ns = _pin_mtime(fd)
        status = os.fstat(fd)
        return cls(
            device=status.st_dev,
            inode=status.st_ino,
            birth_ns=_core.file_birth(fd),
            mtime_ns=mtime_ns,
            head=head,
            text_sum=text_sum,
            trailer_bytes=len(trailer),
            trailer_sum=_core.hash64(trailer),
            region_sums=region_sums,
        )

    @property
    def has_tool_map(self) -> bool:
        """Whether the trailer was flagged to be one."""
        return bool(self.head[_EXT_FLAGS_AT] & _TOOL_MAP)

    def pack(self, name: bytes) -> bytes:
        """The note as it is stored under ``name``."""
        *fixed, region_sums = self
        packed = _NOTE.pack(*fixed) + _little_endian(region_sums).tobytes()
        return packed + _core.hash64(name + packed).to_bytes(8, "little")

    @classmethod
    def unpack(cls, name: bytes, stored: bytes) -> Self | None:
        """The note; None if it isn't what was stored."""
        packed, own_sum = stored[:-8], stored[-8:]
        if len(packed) < _NOTE.size or _core.hash64(name + packed) != int.from_bytes(own_sum, "little"):
            return None
        region_sums = array("Q", packed[_NOTE.size :])
        return cls._make((*_NOTE.unpack_from(packed), _little_endian(region_sums)))

    def applying(self, fd: int) -> Self | None:
        """Itself if it is about this open file or the original of it, else None: another one has its name.

        Raises CorruptError if it is the very file that was noted, and its header differs although nobody wrote to it,
        or by what nobody writes in place; if it is a copy, and its header reads the bytes of the original otherwise;
        and OSError.
        """
        head = os.pread(fd, PREFIX_SIZE, 0)
        if head == self.head:
            return self
        status = os.fstat(fd)
        is_same = (self.device, self.inode) == (status.st_dev, status.st_ino)
        is_same = is_same and self.birth_ns != 0 and self.birth_ns == _core.file_birth(fd)
        if is_same and status.st_mtime_ns == self.mtime_ns:
            raise _other_header(self.head, head, "nobody wrote to the file")
        facts, noted = _facts(head), _facts(self.head)
        if facts in _later_facts(noted):
            return self
        if is_same:
            raise _other_header(noted, facts, "nobody changes it in place")
        if _structure(facts) != _structure(noted) and self._is_original(fd, status.st_size):
            raise _other_header(noted, facts, "what it says of its region is not true of the one that was saved")
        return None

    def _is_original(self, fd: int, file_size: int) -> bool:
        """Whether a file has the size of the noted one, and its first record."""
        start = PREFIX_SIZE + int.from_bytes(self.head[48:52], "little")
        region_bytes = int.from_bytes(self.head[40:48], "little")
        if file_size != start + region_bytes + self.trailer_bytes or not self.region_sums:
            return False
        first = start + _core.FRAME_SIZE
        block_size = int.from_bytes(os.pread(fd, 4, first + 4), "little")
        places = [(start, CHUNK_SIZE)]  # of a raw region; the others by the sizes of record heads
        places += [(first, _core.record_head_size(form) + block_size) for form in (Form.PLAIN, Form.CHECKED)]
        return any(
            _core.hash64(os.pread(fd, min(size, region_bytes), at)) == self.region_sums[0]
            for at, size in places
            if size <= _MAX_RECORD_SIZE
        )

    def check_text(self, text: bytes) -> None:
        """Raises CorruptError if this isn't the text that was noted."""
        if _core.hash64(text) != self.text_sum:
            raise CorruptError("the text is not the one that was saved", offset=PREFIX_SIZE, field="text")

    def check_trailer(self, trailer: bytes, *, mtime_ns: int, offset: int) -> Verdict:
        """OK for the trailer that was noted, UNKNOWN for one that may have been written since.

        ``mtime_ns`` is that of the file that ``trailer`` was read from, where it begins at ``offset``. Raises
        CorruptError if it is another trailer and nobody wrote to the file.
        """
        if self._has_trailer(trailer):
            return Verdict.OK
        if mtime_ns != self.mtime_ns:
            return Verdict.UNKNOWN
        raise CorruptError(
            "the trailer is not the one that was saved, and nobody has written to the file",
            offset=offset,
            field="trailer",
        )

    def _has_trailer(self, trailer: bytes) -> bool:
        return len(trailer) == self.trailer_bytes and _core.hash64(trailer) == self.trailer_sum

    def rewritten(self, fd: int, trailer: bytes | None = None) -> Self | None:
        """The note of the same open file after a hit or, with ``trailer``, a trailer was written to it.

        None if the file isn't as that leaves it: then someone else wrote to it, too. Raises OSError.
        """
        note = self._replace(mtime_ns=_pin_mtime(fd))  # before all looks: who writes after them changes the mtime
        if trailer is not None:
            note = note._replace(trailer_bytes=len(trailer), trailer_sum=_core.hash64(trailer))
        head = os.pread(fd, PREFIX_SIZE, 0)
        if _facts(head) not in _later_facts(_facts(self.head)):
            return None
        start = PREFIX_SIZE + int.from_bytes(head[48:52], "little") + int.from_bytes(head[40:48], "little")
        size = os.fstat(fd).st_size - start
        is_noted = size == note.trailer_bytes and note._has_trailer(os.pread(fd, size, start))
        return note._replace(head=head) if is_noted else None


def _other_header(noted: bytes, found: bytes, why: str) -> CorruptError:
    at = next(i for i in range(PREFIX_SIZE) if noted[i : i + 1] != found[i : i + 1])
    return CorruptError(f"byte {at} of the header is not what was saved, and {why}", offset=at, field=_field_at(at))


def _pin_mtime(fd: int) -> int:
    """Sets the file's mtime to one that no later write gives it, and returns that.

    Writes have times that are whole ticks of a coarse clock: two of them, by two programs, may get the same. A file
    system that can't keep it to the nanosecond has another mtime than this, which then proves nothing.
    """
    now = time.time_ns()
    with contextlib.suppress(OSError):
        os.utime(fd, ns=(os.fstat(fd).st_atime_ns, now))
    return now


def _little_endian(sums: array[int]) -> array[int]:
    if sys.byteorder == "big":
        sums = sums[:]
        sums.byteswap()
    return sums


# What ds4 changes in a header in place: hits and last use at a hit, the flag of a trailer; and, as it writes all of the
# header back, what it didn't know is gone: an unknown reason, bytes 7 and 20 to 23 and the version of a raw region.

_VERSION_AT, _REASON_AT, _EXT_FLAGS_AT, _CODEC_AT = 3, 5, 6, 7
_HITS = slice(12, 16)
_CHUNK_SIZE = slice(20, 24)
_LAST_USED = slice(32, 40)
_TOOL_MAP = 1
_LAST_KNOWN_REASON = 6

_FIELDS = (
    (0, "magic"),
    (3, "version"),
    (4, "quant_bits"),
    (5, "reason"),
    (6, "ext_flags"),
    (7, "codec"),
    (8, "tokens"),
    (12, "hits"),
    (16, "ctx_size"),
    (20, "chunk_size"),
    (24, "created_at"),
    (32, "last_used"),
    (40, "payload_bytes"),
    (48, "text_bytes"),
)


def _field_at(offset: int) -> str:
    return [field for start, field in _FIELDS if start <= offset][-1]


def _facts(head: bytes) -> bytes:
    """A head without what every hit and every trailer changes."""
    if len(head) < PREFIX_SIZE:
        return head
    facts = bytearray(head)
    facts[_EXT_FLAGS_AT] &= ~_TOOL_MAP
    facts[_HITS] = bytes(4)
    facts[_LAST_USED] = bytes(8)
    return bytes(facts)


def _structure(facts: bytes) -> tuple[bytes, ...]:
    """What of the facts says how to read the file: none of it is another one's by chance."""
    sizes = facts[40:]
    return (sizes,) if _is_raw(facts) else (sizes, facts[_VERSION_AT : _VERSION_AT + 1], facts[7:8], facts[_CHUNK_SIZE])


def _is_raw(facts: bytes) -> bool:
    return facts[_VERSION_AT] == 1 or (facts[_CODEC_AT] == 0 and facts[21] not in (1, 2))


def _later_facts(facts: bytes) -> set[bytes]:
    """What these facts may be after any number of rewrites in place."""
    later = {facts}
    if facts[_REASON_AT] > _LAST_KNOWN_REASON:
        later.add(facts[:_REASON_AT] + b"\0" + facts[_REASON_AT + 1 :])
    if _is_raw(facts):
        for known in tuple(later):
            for version in (1, 2):
                raw = bytearray(known)
                raw[_VERSION_AT] = version
                raw[_CODEC_AT] = 0
                raw[_CHUNK_SIZE] = bytes(4)
                later.add(bytes(raw))
    return later


class Ledger:
    """The notes of one directory, by file name. For all threads, and for forked children too.

    No method raises for what is wrong with the database: the first such thing is logged, and then it is as if there
    were no notes. Made by the first :meth:`put`; until then a :meth:`get` costs one stat.
    """

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self._path = os.path.join(directory, DIRECTORY_NAME, DATABASE_NAME)
        self._owner = os.getpid()
        self._mutex = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None  # which the connection is to
        self._has_complained = False

    def get(self, name: str) -> Note | None:
        """The note of a file, None if there is none."""
        key = os.fsencode(name)
        rows = self._run("SELECT note FROM notes WHERE name = ?", key)
        return Note.unpack(key, rows[0][0]) if rows and isinstance(rows[0][0], bytes) else None

    def put(self, name: str, note: Note) -> None:
        """Notes a file, in place of what was noted of one of this name."""
        key = os.fsencode(name)
        self._run("INSERT OR REPLACE INTO notes (name, note) VALUES (?, ?)", key, note.pack(key), makes=True)

    def remove(self, name: str) -> None:
        """Forgets a file."""
        self._run("DELETE FROM notes WHERE name = ?", os.fsencode(name))

    def names(self) -> set[str]:
        """The files of which there are notes."""
        return {os.fsdecode(key) for (key,) in self._run("SELECT name FROM notes") if isinstance(key, bytes)}

    def forget_absent(self) -> None:
        """Forgets the files that others have removed."""
        try:
            if self.names() <= set(os.listdir(self.directory)):
                return
            with locked(self.directory):  # or a file might get its name, and its note, between the two looks
                for name in self.names() - set(os.listdir(self.directory)):
                    self.remove(name)
        except OSError as error:
            self._complain(error)

    def applying(self, name: str, fd: int) -> Note | None:
        """As :meth:`get`, of a note that is about the open file ``fd``. Raises what :meth:`Note.applying` does."""
        note = self.get(name)
        return None if note is None else note.applying(fd)

    def renew(self, path: str, trailer: bytes | None = None) -> None:
        """Notes that the caller has touched a file or, with ``trailer``, written this one to it."""
        note = self.get(os.path.basename(path))
        if note is None:
            return
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
            try:
                note = note.applying(fd)
                note = note and note.rewritten(fd, trailer)
            finally:
                os.close(fd)
        except CorruptError:
            return  # which the next load finds
        except OSError as error:
            self._complain(error)
            return
        if note is not None:
            self.put(os.path.basename(path), note)

    def close(self) -> None:
        """Closes the database; the next call opens it again."""
        self._leave_parent()
        with self._mutex:
            self._drop()

    def __del__(self) -> None:
        if self._owner == os.getpid():
            self._drop()
        elif self._connection is not None:
            _inherited.append(self._connection)

    def _run(self, sql: str, *parameters: bytes, makes: bool = False) -> list[tuple[object, ...]]:
        self._leave_parent()
        with self._mutex:
            try:
                if not self._is_there() and not makes:
                    return []
                import sqlite3  # here, as it takes as long to import as half of this package
            except (OSError, ImportError) as error:
                self._complain(error)
                return []
            try:
                try:
                    return self._connected(makes).execute(sql, parameters).fetchall()
                except sqlite3.DatabaseError as error:
                    if not makes or not _is_damage(error):
                        raise
                    self._set_aside(error)
                    return self._connected(makes).execute(sql, parameters).fetchall()
            except (sqlite3.Error, OSError) as error:
                self._drop()
                self._complain(error)
                return []

    def _is_there(self) -> bool:
        """Whether there is a database. A connection to one that was removed or replaced is closed."""
        try:
            status = os.stat(self._path)
        except (FileNotFoundError, NotADirectoryError):
            self._drop()
            return False
        if status.st_size == 0:
            return False  # somebody is making it
        if self._file != (status.st_dev, status.st_ino):
            self._drop()
        return True

    def _connected(self, makes: bool) -> sqlite3.Connection:
        if self._connection is not None:
            return self._connection
        import sqlite3

        if makes:
            os.makedirs(os.path.dirname(self._path), mode=0o700, exist_ok=True)
        connection = sqlite3.connect(self._path, timeout=_TIMEOUT, isolation_level=None, check_same_thread=False)
        try:
            try:
                _prepare(connection, makes)
            except sqlite3.OperationalError as error:
                if makes or not error.sqlite_errorname.startswith(("SQLITE_CANTOPEN", "SQLITE_READONLY")):
                    raise
                # A directory that isn't ours to write has no place for the files that readers share with a writer.
                connection.close()
                uri = "file:" + "".join(f"%{byte:02x}" for byte in os.fsencode(self._path)) + "?mode=ro&immutable=1"
                connection = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)
                _prepare(connection, makes)
            status = os.stat(self._path)
        except BaseException:
            connection.close()
            raise
        self._connection, self._file = connection, (status.st_dev, status.st_ino)
        return connection

    def _set_aside(self, error: Exception) -> None:
        """Makes way for a new database; of those that are no good, the last is kept."""
        self._drop()
        _warn("kv cache integrity index made anew %s: %s", self._path, error)
        os.replace(self._path, f"{self._path}.damaged")
        for companion in (f"{self._path}-wal", f"{self._path}-shm"):
            if os.path.lexists(companion):
                os.unlink(companion)

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        self._file = None
        if connection is not None:
            connection.close()

    def _leave_parent(self) -> None:
        """In a forked child: SQLite's connections are not to be used there, nor closed."""
        if self._owner != os.getpid():
            _inherited.append(self._connection)
            self._connection, self._file = None, None
            self._mutex = threading.Lock()  # another thread of the parent may have held it
            self._owner = os.getpid()

    def _complain(self, error: Exception) -> None:
        if not self._has_complained:
            self._has_complained = True
            _warn("kv cache goes without its integrity index %s: %s", self._path, error)


_inherited: list[sqlite3.Connection | None] = []


def _warn(message: str, path: str, error: Exception) -> None:
    import logging  # here, for who opens a file and no store

    logging.getLogger("ds4kv").warning(message, path, error)


def _prepare(connection: sqlite3.Connection, makes: bool) -> None:
    """Sees to it that it is a ledger. Raises sqlite3.Error; one that :func:`_is_damage` holds for, if it never is."""
    import sqlite3

    connection.execute("PRAGMA synchronous=NORMAL")
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version == 0 and makes and not connection.execute("SELECT 1 FROM sqlite_master").fetchone():
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("CREATE TABLE IF NOT EXISTS notes (name BLOB PRIMARY KEY, note BLOB NOT NULL)")
        connection.execute(f"PRAGMA user_version={_SCHEMA_VERSION}")
        connection.execute("COMMIT")
        connection.execute("PRAGMA journal_mode=WAL")  # last: before it, a reader sees no file or a whole database
    elif version != _SCHEMA_VERSION:
        raise sqlite3.NotSupportedError(f"its schema is version {version}, not {_SCHEMA_VERSION}")


def _is_damage(error: sqlite3.DatabaseError) -> bool:
    """Whether the database is no good, and not only not to be had now."""
    import sqlite3

    name = getattr(error, "sqlite_errorname", "")
    is_foreign = isinstance(error, sqlite3.NotSupportedError) or "no such" in str(error)
    return is_foreign or name == "SQLITE_NOTADB" or name.startswith("SQLITE_CORRUPT")
