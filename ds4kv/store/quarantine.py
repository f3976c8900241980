"""Where proven-corrupt checkpoints go: out of the store's sight, into the operator's.

A store that left them would find them again at every lookup, instead of the shorter good ones behind them, and would
never save their text anew. At most 64 files stay here, of a tenth of the budget together; beyond that the oldest are
removed. The newest stays, whatever its size.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Container
from typing import NamedTuple

from ds4kv.store import log

__all__ = ["DIRECTORY_NAME", "MAX_FILES", "Quarantine", "Quarantined"]

DIRECTORY_NAME = "quarantine"
MAX_FILES = 64


class Quarantined(NamedTuple):
    """A file that was set aside: its size in bytes, and since when, in Unix seconds."""

    name: str
    path: str
    file_size: int
    since: float


class Quarantine:
    """The quarantine of a store's directory, of at most ``max_bytes`` and MAX_FILES files.

    Hold the lock of the store for all but :meth:`files`. A link of its name could lead anywhere, so it is not followed:
    NotADirectoryError.
    """

    def __init__(self, directory: str, *, max_bytes: int) -> None:
        self.path = os.path.join(directory, DIRECTORY_NAME)
        self.max_bytes = max_bytes

    def files(self) -> list[Quarantined]:
        """What is there, the oldest first; nothing where there is no quarantine. Raises OSError."""
        try:
            with os.scandir(self._real()) as names:
                found = [(entry.name, entry.path, entry.stat(follow_symlinks=False)) for entry in names]
        except FileNotFoundError:
            return []
        # A rename is a change of the file: so this is when it came here, on nearly all file systems.
        files = [
            Quarantined(name, path, status.st_size, status.st_ctime)
            for name, path, status in found
            if not stat.S_ISDIR(status.st_mode)
        ]
        return sorted(files, key=lambda file: (file.since, file.name))

    def take(self, path: str) -> str:
        """Moves a file here and returns where it is now; a name that is taken gets a number. Raises OSError."""
        os.makedirs(self.path, mode=0o700, exist_ok=True)
        self._real()
        target = os.path.join(self.path, os.path.basename(path))
        number = 0
        free = target
        while os.path.lexists(free):
            number += 1
            free = f"{target}.{number}"
        os.rename(path, free)
        self._trim(free)
        return free

    def clear(self, names: Container[str] | None = None) -> list[Quarantined]:
        """Removes what is here, or those of these names; what was removed. Raises OSError."""
        removed = []
        for file in self.files():
            if names is None or file.name in names:
                os.unlink(file.path)
                removed.append(file)
        return removed

    def _trim(self, newest: str) -> None:
        files = self.files()
        count, total = len(files), sum(file.file_size for file in files)
        for file in files:
            if count <= MAX_FILES and total <= self.max_bytes:
                break
            if file.path == newest:
                continue
            try:
                os.unlink(file.path)
            except OSError as error:  # and the next one goes in its place
                log.trouble("could not remove from quarantine", file.path, error)
                continue
            count, total = count - 1, total - file.file_size

    def _real(self) -> str:
        if not stat.S_ISDIR(os.lstat(self.path).st_mode):
            raise NotADirectoryError(errno.ENOTDIR, "a quarantine is a directory, and not a link to one", self.path)
        return self.path
