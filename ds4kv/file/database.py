"""The SQLite database that a ledger keeps its notes in. It may be anybody's: copied with its directory, cut short,
made by an enemy, or not there.

Nothing here may end or hold up an engine. No part of the file is ever mapped: if another program cut it short, that
would be a SIGBUS. So SQLite opens it by ``unix-none``, which has neither shared memory nor locks, and ``flock`` on the
directory keeps processes apart. Only a file with our one table and nothing else is read. A statement has 0.25 s, a
value 16 MiB. Links are not followed.

What it holds is help, and says itself whether it is whole. So it is written in place, without a journal, and never sent
to the disk: a process that is killed in those microseconds, or a power cut, may cost the whole database, and then it is
made anew. A journal would cost every load and save more than the rest of this does.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import threading
import time
from typing import TYPE_CHECKING, TypeAlias

from ds4kv.core.forks import fork_waits

if TYPE_CHECKING:
    import sqlite3

Row: TypeAlias = tuple[bytes | int | float | None, ...]

__all__ = ["Database", "UnusableError"]

_TIMEOUT = 0.25  # seconds; whoever holds the lock does so for less than a millisecond, and so long may a statement take
_LONGEST_NAP = 0.01
_OPCODES = 2000  # of SQLite's machine, between two looks at the clock
_MAX_VALUE_BYTES = 16 << 20

_SCHEMA_VERSION = 2
_TABLE = "CREATE TABLE notes (name BLOB PRIMARY KEY, note BLOB NOT NULL) WITHOUT ROWID"
_SETTINGS = "PRAGMA trusted_schema=OFF; PRAGMA cell_size_check=ON; PRAGMA mmap_size=0"
_SETTINGS_TO_WRITE = "PRAGMA synchronous=OFF; PRAGMA journal_mode=MEMORY"
_WRITE_AHEAD = b"\2\2"  # bytes 18 and 19 of a database whose newest pages are in another file

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
        self._is_to_write = False
        self._lock_fd = -1  # of the directory, while there is a connection
        self._file: tuple[int, int] | None = None  # which the connection is to
        self._deadline = _Deadline()

    def run(self, sql: str, *parameters: bytes, makes: bool = False) -> tuple[list[Row], Exception | None]:
        """The rows of a statement, none where there is no database; and why it was made anew, if it was.

        Raises UnusableError for whatever is wrong with the database, ImportError in a Python without SQLite, OSError.
        """
        self._leave_parent()
        with self._mutex:
            if not self._is_there() and not makes:
                return [], None
            is_read = sql.startswith("SELECT")
            with fork_waits:  # a module that is half imported stays so in a child
                import sqlite3  # here, as it takes as long to import as half of this package

            try:
                self._lock(makes)
                try:
                    with fork_waits:
                        return self._execute(sql, parameters, makes, is_read)
                finally:
                    fcntl.flock(self._lock_fd, fcntl.LOCK_UN)
            except (sqlite3.Error, sqlite3.Warning, ValueError, OverflowError, MemoryError) as error:
                # ValueError: of a name in the schema that isn't UTF-8, among others.
                self._drop()
                raise UnusableError(str(error)) from error
            except (UnusableError, OSError):
                self._drop()
                raise

    def _execute(
        self, sql: str, parameters: tuple[bytes, ...], makes: bool, is_read: bool
    ) -> tuple[list[Row], Exception | None]:
        import sqlite3

        try:
            return self._connected(makes, is_read).execute(sql, parameters).fetchall(), None
        except (_ForeignError, sqlite3.DatabaseError) as error:
            if not makes or not self._is_damage(error):
                raise
            self._set_aside()
            return self._connected(makes, is_read).execute(sql, parameters).fetchall(), error

    def _is_there(self) -> bool:
        """Whether there is a database. A connection to one that was removed or replaced is closed.

        Raises OSError if it is no regular file: a FIFO would be waited for, and links lead anywhere.
        """
        try:
            status = os.lstat(self.path)
        except (FileNotFoundError, NotADirectoryError):
            self._drop()
            return False
        if self._file != (status.st_dev, status.st_ino):
            self._drop()
            if not stat.S_ISREG(status.st_mode):
                raise OSError(errno.EINVAL, "not a regular file", self.path)
            self._file = status.st_dev, status.st_ino
        return status.st_size > 0  # else somebody is making it

    def _lock(self, makes: bool) -> None:
        """Holds the database, against other processes and connections alike."""
        if self._lock_fd < 0:
            if makes:
                _make_directory(self._directory)
            self._lock_fd = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        deadline = time.monotonic() + _TIMEOUT
        nap = 0.0005
        while True:
            try:
                return fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise UnusableError(f"it was locked by another process for {_TIMEOUT:g} s") from None
                time.sleep(nap)
                nap = min(2 * nap, _LONGEST_NAP)

    def _connected(self, makes: bool, is_read: bool) -> sqlite3.Connection:
        """A connection to what is proven to be ours; for who holds the lock."""
        self._deadline.begin()
        if self._connection is None:
            self._connection = self._connect(makes)
            self._is_to_write = makes
        if not self._is_to_write and not is_read:
            self._connection.executescript(_SETTINGS_TO_WRITE)
            self._is_to_write = True
        return self._connection

    def _connect(self, makes: bool) -> sqlite3.Connection:
        import sqlite3

        if makes:
            self._file = _make_file(self.path, self._directory)
        if os.path.lexists(f"{self.path}-journal"):
            # SQLite would undo what it says, and remove the files that it names.
            raise _ForeignError("it has a journal, which is not ours")
        connection = sqlite3.connect(
            _uri(self.path), uri=True, timeout=0, isolation_level=None, check_same_thread=False
        )
        try:
            connection.text_factory = bytes
            connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _MAX_VALUE_BYTES)
            connection.set_progress_handler(self._deadline, _OPCODES)
            connection.executescript(f"{_SETTINGS}; {_SETTINGS_TO_WRITE}" if makes else _SETTINGS)
            _check_schema(connection, makes)
        except BaseException:
            connection.close()
            raise
        return connection

    def _is_damage(self, error: Exception) -> bool:
        """Whether the database is no good, and not only not to be had now."""
        name = getattr(error, "sqlite_errorname", "")
        if isinstance(error, _ForeignError) or name == "SQLITE_NOTADB" or name.startswith("SQLITE_CORRUPT"):
            return True
        with open(self.path, "rb", buffering=0) as fp:  # which is a regular file
            return fp.read(20)[18:] == _WRITE_AHEAD or os.path.lexists(f"{self.path}-wal")

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
            with fork_waits:
                connection.close()
        if lock_fd >= 0:
            os.close(lock_fd)

    def close(self) -> None:
        """Closes it; the next statement opens it again."""
        self._leave_parent()
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


def _uri(path: str) -> bytes:
    name = os.fsencode(path)
    for special in b"%?#":  # in this order
        name = name.replace(b"%c" % special, b"%%%02x" % special)
    return b"file:%s%s?vfs=unix-none&mode=rw" % (b"//" if name.startswith(b"/") else b"", name)


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


def _make_directory(path: str) -> None:
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        return
    _give(path, os.path.dirname(path) or ".", 0o700)


def _make_file(path: str, directory: str) -> tuple[int, int]:
    """Makes an empty file if there is none; which one it is."""
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        _give(path, directory, 0o600)
    status = os.lstat(path)
    return status.st_dev, status.st_ino


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
