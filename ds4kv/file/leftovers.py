"""What writers that were killed left in a directory, and which of it may be removed.

A draft of ours, ``NAME.tmp.PID.`` and 8 hex digits, is held by its writer: one without a lock is a dead writer's.
ds4-server and ds4-agent hold no lock. Theirs end in ``.tmp.PID``, and are judged by whether that process lives, or in
``.tmp.`` and 6 characters, and are judged by their age.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import os
import stat
import time
from collections.abc import Iterable, Iterator

from ds4kv.core.forks import fork_waits

__all__ = ["NO_LOCKS", "held_drafts", "stem_of", "sweep", "sweep_now_and_then"]

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""What flock says where there are no locks."""

_LONGEST_NAME = 255  # bytes, of a file in a directory
_LONGEST_STEM = _LONGEST_NAME - len(".tmp.4294967295.01234567")
_END = r"\.tmp\.([0-9]{1,10})\.[0-9a-f]{8}"
_OF_STORES = r"(?:[0-9a-fA-F]{40}|sysprompt)\.kv(?:\.tmp\.(?:([0-9]{1,9})|[0-9A-Za-z_]{6})|(\.tmp\..*))"
_QUIET_SECONDS = 60.0  # without a write, where the process id tells most of it
_UNKNOWN_SECONDS = 3600.0  # where nothing does
_SWEEP_SHARE = 100  # time that passes between two sweeps of a directory, by what the first one took


def stem_of(name: str) -> str:
    """What the names of all drafts of ``name`` begin with: itself; if that is too long, a part of it and its hash."""
    if len(name) <= _LONGEST_STEM // 4:
        return name  # whatever its characters are
    raw = os.fsencode(name)
    if len(raw) <= _LONGEST_STEM:
        return name
    with fork_waits:
        import hashlib  # here, because it costs as much to import as half of this package

    end = _LONGEST_STEM - 9
    while raw[end] & 0xC0 == 0x80:  # within a character of UTF-8
        end -= 1
    return f"{os.fsdecode(raw[:end])}~{hashlib.sha1(raw, usedforsecurity=False).hexdigest()[:8]}"


def sweep(directory: str, name: str | None = None) -> list[str]:
    """Removes what dead processes left of ``name``, or of all names that stores use; the paths of what was removed.

    A file that can't be removed stays. Raises OSError if the directory can't be read.
    """
    return [path for path, pid, is_draft in _leftovers(directory, name) if _sweep_one(path, pid, is_draft)]


def held_drafts(directory: str, name: str, names: Iterable[str] | None = None) -> list[str]:
    """The drafts of ``name`` that are being written, by any process, this one included: their paths.

    ``names`` are those in the directory, where the caller has them. Where files can't be locked nobody knows of drafts,
    and none is returned. Raises OSError if the directory can't be read.
    """
    return [path for path, _, _ in _leftovers(directory, name, names) if _is_held(path)]


def sweep_now_and_then(directory: str, name: str) -> None:
    """Sweeps one name, unless this would take more than 1 % of the time: a directory may have many names."""
    started = time.monotonic()
    ended, seconds = _last_sweeps.get(directory, (0.0, 0.0))
    if started - ended < _SWEEP_SHARE * seconds:
        return
    with contextlib.suppress(OSError):  # one that can't be listed; whether it can be written to, the writing tells
        sweep(directory, name)
    now = time.monotonic()
    if len(_last_sweeps) >= 1000:
        _last_sweeps.clear()
    _last_sweeps[directory] = now, now - started


_last_sweeps: dict[str, tuple[float, float]] = {}
"""When the sweep of a directory ended, by the monotonic clock, and how many seconds it took."""


def _leftovers(
    directory: str, name: str | None, names: Iterable[str] | None = None
) -> Iterator[tuple[str, int | None, bool]]:
    """Paths of temporary files, each with the process id in its name, if any, and whether it is a draft."""
    begin = ".tmp." if name is None else f"{stem_of(name)}.tmp."
    for found in os.listdir(directory) if names is None else names:
        # This spares the ten thousand names of a large store what follows.
        if begin not in found:
            continue
        with fork_waits:
            import re  # here, for who imports this package and meets no such name

        if name is None:
            match = re.fullmatch(_OF_STORES, found)
            draft = match and re.fullmatch(_END, match[2] or "")
        else:
            match = None
            draft = re.fullmatch(_END, found[len(begin) - 5 :]) if found.startswith(begin) else None
        if draft:
            yield os.path.join(directory, found), int(draft[1]), True
        elif match and match[2] is None:
            yield os.path.join(directory, found), int(match[1]) if match[1] else None, False


def _sweep_one(path: str, pid: int | None, is_draft: bool) -> bool:
    is_alive = pid is not None and _is_alive(pid)
    if is_alive and not is_draft and pid != os.getpid():
        return False
    try:
        if not stat.S_ISREG(os.lstat(path).st_mode):
            return False
        with _opened(path) as file:
            seconds = time.time() - os.fstat(file.fileno()).st_mtime
            if seconds < _wait(pid, is_draft, is_alive):
                return False
            try:
                fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False  # its writer lives, or another sweeper is at it
            except OSError as error:
                # No lock proves anything here.
                if error.errno not in NO_LOCKS or is_alive or seconds < _UNKNOWN_SECONDS:
                    return False
            os.unlink(path)
    except OSError:
        return False  # finished meanwhile, somebody else's, or not to be removed
    return True


def _wait(pid: int | None, is_draft: bool, is_alive: bool) -> float:
    """How many seconds a file that nobody holds has to be left alone after the last write to it."""
    if is_draft:
        # A process of this id lives: another one than its writer, or one with an older ds4kv, which held only some.
        return _QUIET_SECONDS if is_alive else 0.0
    # This process's own number may be that of an earlier one: in a container every start has the same.
    return _UNKNOWN_SECONDS if pid is None or is_alive else _QUIET_SECONDS


def _is_held(path: str) -> bool:
    try:
        if not stat.S_ISREG(os.lstat(path).st_mode):
            return False
        with _opened(path) as file:
            fcntl.flock(file.fileno(), fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False  # finished meanwhile, somebody else's, or not to be locked
    return False


def _opened(path: str) -> io.FileIO:
    """A file that somebody else made. The descriptor has its owner at once: no bytecode lies between the two calls,
    where a signal could lose it.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    return next(map(io.FileIO, map(os.open, (path,), (flags,))))


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True  # and somebody else's, or no number of this system
    return True
