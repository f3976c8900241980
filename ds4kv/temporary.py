"""Temporary files that a killed process left in a directory of checkpoints.

Their names end in ``.tmp.`` and the process id, in ds4kv's case also in 8 hex digits; ds4-agent's end in 6 characters
that say nothing. A process that lives keeps its files. One in another container looks dead from here, so a store locks
the files that it writes.
"""

from __future__ import annotations

import fcntl
import os
import re
import stat
import time

__all__ = ["hold", "remove_stale"]

_NAME = re.compile(r"(?:[0-9a-fA-F]{40}|sysprompt)\.kv\.tmp\.(?:([0-9]{1,9})(?:\.[0-9a-f]{8})?|[0-9A-Za-z_]{6})")
_UNKNOWN_SECONDS = 3600.0  # without a change, where the name doesn't tell whether the writer lives


def hold(fd: int) -> None:
    """Marks an open temporary file as being written, until it is closed or its process ends."""
    fcntl.flock(fd, fcntl.LOCK_EX)  # which nobody else holds for longer than it takes to see that it is free


def remove_stale(directory: str) -> list[str]:
    """Removes what dead processes left; the paths of what was removed.

    A file that can't be removed stays. Raises OSError if the directory can't be read.
    """
    # The first test is part of the second one, and spares it the ten thousand names of a large store.
    suspects = [name for name in os.listdir(directory) if ".tmp." in name and _NAME.fullmatch(name)]
    return [path for name in suspects if _remove_if_stale(path := os.path.join(directory, name))]


def _remove_if_stale(path: str) -> bool:
    match = _NAME.fullmatch(os.path.basename(path))
    pid = int(match[1]) if match is not None and match[1] else None
    # This process's own number may be that of an earlier one: in a container every start has the same.
    is_known = pid is not None and pid != os.getpid()
    if pid is not None and is_known and _is_alive(pid):
        return False
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False  # finished meanwhile, or somebody else's
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            return False
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not is_known and time.time() - status.st_mtime < _UNKNOWN_SECONDS:
            return False
        os.unlink(path)
    except OSError:
        return False  # held by its writer, finished meanwhile, or not to be removed
    finally:
        os.close(fd)
    return True


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # and somebody else's
    return True
