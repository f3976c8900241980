"""The notes of a directory's files, by file name, in a database beside them: ``.ds4kv/integrity.sqlite``."""

from __future__ import annotations

import os

from ds4kv.file.database import Database, UnusableError
from ds4kv.file.lock import tried
from ds4kv.file.note import Note
from ds4kv.file.trouble import trouble, trouble_once

__all__ = ["DATABASE_NAME", "DIRECTORY_NAME", "Ledger"]

DIRECTORY_NAME = ".ds4kv"
DATABASE_NAME = "integrity.sqlite"

_MAX_NAME_BYTES = 255


class Ledger:
    """The notes of one directory, by file name. For all threads, and for forked children too.

    No method raises for what is wrong with the database: the first such thing in a directory is logged, and then it is
    as if there were no notes. Made by the first :meth:`put`; until then a :meth:`get` costs one lstat.
    """

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self._database = Database(os.path.join(directory, DIRECTORY_NAME, DATABASE_NAME))

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
        rows = self._run("SELECT name FROM notes")
        return {os.fsdecode(key) for (key,) in rows if isinstance(key, bytes) and len(key) <= _MAX_NAME_BYTES}

    def forget_absent(self) -> None:
        """Forgets the files that others have removed, unless somebody has the lock: then it is the next one's to do."""
        try:
            if self.names() <= set(os.listdir(self.directory)):
                return
            with tried(self.directory) as is_free:  # or a file might get name and note between the two looks
                for name in self.names() - set(os.listdir(self.directory)) if is_free else ():
                    self.remove(name)
        except FileNotFoundError:
            pass  # the directory itself is gone
        except OSError as error:
            self._complain(error)

    def applying(self, name: str, fd: int) -> Note | None:
        """As :meth:`get`, of a note that is about the open file ``fd``. Raises what :meth:`Note.applying` does."""
        note = self.get(name)
        return None if note is None else note.applying(fd)

    def renew(
        self, path: str, trailer: bytes | None = None, *, note: Note | None = None, is_original: bool = False
    ) -> None:
        """Notes that the caller has touched a file or, with ``trailer``, written this one to it.

        ``note`` is what was known of it before, where the caller has that: it needn't be looked up then. Nor is the
        region looked at where the file ``is_original``: it had the noted stamp right before.
        """
        name = os.path.basename(path)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            try:
                later = None
                if note is not None and note.is_of(os.fstat(fd)):
                    later = note.rewritten(fd, trailer, is_original=is_original)
                if later is None and (stored := self.get(name)) is not None:
                    later = stored.rewritten(fd, trailer)  # it has been renewed since
            finally:
                os.close(fd)
        except OSError as error:
            self._complain(error)
            return
        if later is not None:
            self.put(name, later)

    def close(self) -> None:
        """Closes the database; the next call opens it again."""
        self._database.close()

    def _run(self, sql: str, *parameters: bytes, makes: bool = False) -> list[tuple[bytes | int | float | None, ...]]:
        try:
            rows, why = self._database.run(sql, *parameters, makes=makes)
        except (UnusableError, OSError, ImportError) as error:
            self._complain(error)
            return []
        if why is not None:
            trouble("integrity index made anew", self._database.path, why)
        return rows

    def _complain(self, error: Exception) -> None:
        trouble_once("goes without its integrity index", self._database.path, error)
