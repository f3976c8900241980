"""An SQLite database that may be anybody's: copied with its directory, cut short, made by an enemy, or not there.

Nothing here may end or hold up an engine. No part of the file is ever mapped, as a mapped file that another program
cuts short is a signal: so it is opened by SQLite's ``unix-none``, which can't have a write-ahead log with its shared
memory, and ``flock`` on the directory keeps processes apart. Only a file with our one table and nothing else is read;
a statement has 0.25 s, and a value 16 MiB. Links are not followed.

What a process that is killed had begun is rolled back by the next one, from the journal. A power cut may cost the whole
database, as it is never sent to the disk: what it holds is help, and says itself whether it is whole.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import threading
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator

    Row = tuple[bytes | int | float | None, ...]

__all__ = ["Database", "UnusableError"]

_TIMEOUT = 0.25  # seconds; whoever holds the lock does so for less than a millisecond, and so long may a statement take
_LONGEST_NAP = 0.01
_OPCODES = 2000  # of SQLite's machine, between two looks at the clock
_MAX_VALUE_BYTES = 16 << 20

_SCHEMA_VERSION = 2
_TABLE = "CREATE TABLE notes (name BLOB PRIMARY KEY, note BLOB NOT NULL) WITHOUT ROWID"
_MAGIC = b"SQLite format 3\0"
_LEGACY_FORMAT = b"\1\1"  # without a write-ahead log
_SUPER_JOURNAL_MAGIC = bytes.fromhex("d9d505f920a163d7")  # ends a journal that names another file

_COMPANIONS = ("-journal", "-wal", "-shm")


class UnusableError(Exception):
    """The database can't be used, now or at all."""


class _ForeignError(UnusableError):
    """It isn't one of ours, or no database: a new one may take its place."""


class Database:
    """The table ``notes`` of ``name`` and ``note``, in the file ``path``. For all threads, and forked children too.

    Its directory is made with it, by the first statement that ``makes``; both belong to who the directory above belongs
    to, and are open to its group if that is. Until then a statement costs one lstat.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._directory = os.path.dirname(path)
        self._owner = os.getpid()
        self._mutex = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._lock_fd = -1  # of the directory, while there is a connection
        self._file: tuple[int, int] | None = None  # which the connection is to
        self._deadline = _Deadline()
        self._has_journal = False  # an empty one stays between statements: to make it anew each time takes longer

    def run(self, sql: str, *parameters: bytes, makes: bool = False) -> tuple[list[Row], Exception | None]:
        """The rows of a statement, none where there is no database; and why it was made anew, if it was.

        Raises UnusableError for whatever is wrong with the database, ImportError in a Python without SQLite, OSError.
        """
        self._leave_parent()
        with self._mutex:
            if not self._is_there() and not makes:
                return [], None
            import sqlite3  # here, as it takes as long to import as half of this package

            try:
                with self._held(makes):
                    try:
                        return self._execute(sql, parameters, makes), None
                    except (_ForeignError, sqlite3.DatabaseError) as error:
                        if not makes or not _is_damage(error):
                            raise
                        self._set_aside()
                        return self._execute(sql, parameters, makes), error
            except (sqlite3.Error, sqlite3.Warning, ValueError, OverflowError, MemoryError) as error:
                # ValueError: of a name in the schema that isn't UTF-8, among others.
                self._drop()
                raise UnusableError(str(error)) from error
            except (UnusableError, OSError):
                self._drop()
                raise

    def _is_there(self) -> bool:
        """Whether there is a database. A connection to one that was removed or replaced is closed."""
        try:
            status = os.lstat(self.path)
        except (FileNotFoundError, NotADirectoryError):
            self._drop()
            return False
        if status.st_size == 0 and stat.S_ISREG(status.st_mode):
            return False  # somebody is making it
        if self._file != (status.st_dev, status.st_ino):
            self._drop()
        return True

    @contextlib.contextmanager
    def _held(self, makes: bool) -> Iterator[None]:
        """Holds the database, against other processes and connections alike."""
        if self._lock_fd < 0:
            if makes:
                _make_directory(self._directory)
            self._lock_fd = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        deadline = time.monotonic() + _TIMEOUT
        nap = 0.0005
        while True:
            try:
                fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise UnusableError(f"it was locked by another process for {_TIMEOUT:g} s") from None
                time.sleep(nap)
                nap = min(2 * nap, _LONGEST_NAP)
        fd = self._lock_fd
        try:
            yield
        finally:
            if self._lock_fd == fd:  # else it is closed
                fcntl.flock(fd, fcntl.LOCK_UN)

    def _execute(self, sql: str, parameters: tuple[bytes, ...], makes: bool) -> list[Row]:
        connection = self._connection
        if connection is None:
            connection = self._connect(makes)
        self._deadline.begin()
        self._has_journal |= makes
        return connection.execute(sql, parameters).fetchall()

    def _connect(self, makes: bool) -> sqlite3.Connection:
        """A connection to what is proven to be ours; for who holds the lock."""
        import sqlite3

        if makes:
            _make_file(self.path, self._directory)
        self._file = _check_files(self.path, makes)
        name = "".join(f"%{byte:02x}" for byte in os.fsencode(os.path.abspath(self.path)))
        uri = f"file:{name}?vfs=unix-none&mode=rw"
        connection = sqlite3.connect(uri, uri=True, timeout=0, isolation_level=None, check_same_thread=False)
        try:
            connection.text_factory = bytes
            connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _MAX_VALUE_BYTES)
            connection.set_progress_handler(self._deadline, _OPCODES)
            self._deadline.begin()
            for pragma in ("trusted_schema=OFF", "cell_size_check=ON", "mmap_size=0", "synchronous=OFF"):
                connection.execute(f"PRAGMA {pragma}")
            connection.execute("PRAGMA journal_mode=TRUNCATE")
            _check_schema(connection, makes)
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        return connection

    def _set_aside(self) -> None:
        """Makes way for a new database; of those that are no good, the last is kept."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
        for companion in _COMPANIONS:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path + companion)
        os.replace(self.path, f"{self.path}.damaged")

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        lock_fd, self._lock_fd = self._lock_fd, -1
        self._file = None
        if connection is not None:
            connection.close()
        if lock_fd >= 0:
            os.close(lock_fd)

    def close(self) -> None:
        """Closes it; the next statement opens it again. Raises UnusableError and OSError."""
        self._leave_parent()
        if self._has_journal:
            self._has_journal = False
            self.run("PRAGMA journal_mode=DELETE")
        with self._mutex:
            self._drop()

    def __del__(self) -> None:
        if self._owner == os.getpid():
            self._drop()
        elif self._connection is not None:
            _inherited.append(self._connection)

    def _leave_parent(self) -> None:
        """In a forked child: SQLite's connections are not to be used there, nor closed."""
        if self._owner != os.getpid():
            _inherited.append(self._connection)
            self._connection = None
            self._mutex = threading.Lock()  # another thread of the parent may have held it
            self._owner = os.getpid()
            self._drop()


_inherited: list[sqlite3.Connection | None] = []


class _Deadline:
    """Ends a statement that takes too long: SQLite asks every so many opcodes."""

    def __init__(self) -> None:
        self._end = 0.0

    def begin(self) -> None:
        self._end = time.monotonic() + _TIMEOUT

    def __call__(self) -> bool:
        return time.monotonic() > self._end


def _check_files(path: str, makes: bool) -> tuple[int, int]:
    """Looks at the files before SQLite does; which file the database is.

    Raises _ForeignError for one of another kind or version: to a journal that names other files SQLite would lend a
    hand in removing them.
    """
    status = os.lstat(path)
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.ELOOP if stat.S_ISLNK(status.st_mode) else errno.EINVAL, "not a regular file", path)
    head = _read(path, 0, 100)
    if not (makes and not head):
        if not head.startswith(_MAGIC) or len(head) < 100:
            raise _ForeignError("it is no database")
        version = int.from_bytes(head[60:64], "big")
        if head[18:20] != _LEGACY_FORMAT or version != _SCHEMA_VERSION:
            raise _ForeignError(f"its schema is version {version}, not {_SCHEMA_VERSION}")
    if os.path.lexists(f"{path}-wal"):
        raise _ForeignError("it has a write-ahead log, which is not ours")
    journal = f"{path}-journal"
    try:
        size = os.lstat(journal).st_size
    except FileNotFoundError:
        pass
    else:
        if not stat.S_ISREG(os.lstat(journal).st_mode) or _read(journal, max(size - 8, 0), 8) == _SUPER_JOURNAL_MAGIC:
            raise _ForeignError("it has a journal that is not ours")
    return status.st_dev, status.st_ino


def _read(path: str, offset: int, size: int) -> bytes:
    # No locks are lost by the closing, which SQLite would have to fear: unix-none has none.
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        return os.pread(fd, size, offset)
    finally:
        os.close(fd)


def _check_schema(connection: sqlite3.Connection, makes: bool) -> None:
    """Sees to it that there is our table and nothing else: a view, a trigger or an index can hang or fill an engine."""
    found = _schema(connection)
    if not found and makes:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute(_TABLE)
        connection.execute(f"PRAGMA user_version={_SCHEMA_VERSION}")
        connection.execute("COMMIT")
        found = _schema(connection)
    if found != [(b"table", b"notes", b"notes", _TABLE.encode())]:
        raise _ForeignError("it holds something else than notes")


def _schema(connection: sqlite3.Connection) -> list[Row]:
    # One more than there should be is enough to know.
    return connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_master LIMIT 2").fetchall()


def _is_damage(error: Exception) -> bool:
    """Whether the database is no good, and not only not to be had now."""
    name = getattr(error, "sqlite_errorname", "")
    return isinstance(error, _ForeignError) or name == "SQLITE_NOTADB" or name.startswith("SQLITE_CORRUPT")


def _make_directory(path: str) -> None:
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        return
    _give(path, os.path.dirname(path) or ".", 0o700)


def _make_file(path: str, directory: str) -> None:
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        return
    _give(path, directory, 0o600)


def _give(path: str, directory: str, mode: int) -> None:
    """Has a new file belong to the directory's owner, if root made it, and to its group, if that may write there."""
    above, status = os.stat(directory), os.lstat(path)
    uid = above.st_uid if os.geteuid() == 0 else status.st_uid
    is_shared = bool(above.st_mode & stat.S_IWGRP)
    gid = above.st_gid if is_shared or uid != status.st_uid else status.st_gid
    if (uid, gid) != (status.st_uid, status.st_gid):
        with contextlib.suppress(PermissionError):  # of a group that isn't ours to give to
            os.chown(path, uid, gid, follow_symlinks=False)
    if is_shared:
        os.chmod(path, stat.S_IMODE(status.st_mode) | mode | mode >> 3)
