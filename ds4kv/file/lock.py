"""The lock of a directory: who holds it may rewrite and remove checkpoints, and nobody else does so meanwhile.

Readers take no lock. What they open stays whole until they close it, whoever removes or replaces it meanwhile.

It is flock on one file. That alone is not fair: who takes it again at once always beats who looks every
millisecond. So there is a turnstile, a lock of the open file description on the same file. Who wants the lock passes
the turnstile first and stands in it until it has the lock, so the next one that comes waits behind it.

A lock that can't be had is done without, and the log says so once: a file of root's or of another user's, a directory
that is read only, a file system without flock. Checkpoints appear whole, by a rename, with the lock or without.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import os
import stat
import struct
import time
import weakref
from collections.abc import Callable
from typing import TypeAlias

from ds4kv.file.trouble import trouble_once

__all__ = ["LOCK_NAME", "Lock", "OnWait", "locked", "tried"]

OnWait: TypeAlias = Callable[[str], object]
"""on_wait(holder): the process id of who has the lock, or "unknown"; called once, before the first wait."""

LOCK_NAME = ".ds4kv.lock"
_TIMEOUT = 30.0  # seconds; what is done under the lock takes milliseconds, but disks stall
_NAP = 0.001
_LONGEST_NAP = 0.02
_FOREIGN = "not a regular file, and not followed"
_PATIENCE = 0.5  # seconds at the turnstile; who stands in it may be stopped, and then it is passed by

_NOT_TO_BE_HAD = frozenset(
    getattr(errno, name)
    for name in (
        *("EACCES", "EPERM", "EROFS", "ENOSPC", "EDQUOT"),  # the file can't be made or opened
        *("ELOOP", "EISDIR", "ENXIO", "ENODEV", "ENOTSOCK"),  # it is no regular file
        *("ENOLCK", "ENOSYS", "EOPNOTSUPP", "ENOTSUP", "EINVAL", "EBADF"),  # the file system has no flock
    )
    if hasattr(errno, name)
)

_files: dict[int, weakref.ref[io.FileIO]] = {}
"""The lock files that are open, by their ids; a WeakSet takes ten times as long."""


def _leave_to_parent() -> None:
    """A forked child shares the parent's lock files, and with them the locks, for as long as it has them open."""
    for found in list(_files.values()):
        if (file := found()) is not None:
            file.close()
    _files.clear()


os.register_at_fork(after_in_child=_leave_to_parent)


def locked(directory: str, timeout: float | None = None, on_wait: OnWait | None = None) -> Lock:
    """Holds the directory's lock, against other processes and other threads alike; not to be nested.

    False, and nothing is held, where there is no lock to be had. Raises TimeoutError, which is an OSError, when someone
    else holds it for ``timeout`` seconds, by default 30; FileNotFoundError if there is no such directory; and OSError.
    """
    return Lock(directory, _TIMEOUT if timeout is None else timeout, on_wait)


def tried(directory: str) -> Lock:
    """As :func:`locked`, but one try. False while someone else has the lock or waits for it; True where it is held, and
    where there is none to be had.
    """
    return Lock(directory, None, None)


class Lock:
    """The lock of a directory, for one ``with`` block. Made by :func:`locked` and :func:`tried`."""

    _file: io.FileIO | None = None

    def __init__(self, directory: str, seconds: float | None, on_wait: OnWait | None) -> None:
        self._directory = directory
        self._seconds = seconds
        self._on_wait = on_wait

    def __enter__(self) -> bool:
        try:
            # Whatever exception of a signal handler comes, the file goes with this object, and the lock with the file.
            file = self._file = _open(f"{self._directory}/{LOCK_NAME}", self._directory)
            if self._seconds is None:
                is_held = _is_turnstile_free(file) and _flock(file)
            else:
                is_held = _wait(file, time.monotonic() + self._seconds, self._on_wait)
        except OSError as error:
            self._close()
            if error.errno not in _NOT_TO_BE_HAD:
                raise
            path = os.path.join(self._directory, LOCK_NAME)
            trouble_once("goes without its lock", path, error.strerror or error)
            return self._seconds is None
        if is_held:
            with contextlib.suppress(OSError):  # room is made on a full disk with this lock held
                os.pwrite(file.fileno(), b"%-20d\n" % os.getpid(), 0)  # for the message that others may have to give
            return True
        holder = _holder(file)
        self._close()
        if self._seconds is None:
            return False
        why = f"the lock of the store was held by process {holder} for {self._seconds:g} s"
        raise TimeoutError(errno.ETIMEDOUT, why, file.name)

    def __exit__(self, *exc: object) -> None:
        file = self._file
        if file is not None and not file.closed:  # by a fork within the block
            with contextlib.suppress(OSError):  # nothing was locked
                # By itself, and not by closing: a child that was forked by other means has this opening too.
                fcntl.flock(file, fcntl.LOCK_UN)
            self._close()

    def _close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()
            _files.pop(id(file), None)


def _open(path: str, directory: str) -> io.FileIO:
    while True:
        with contextlib.suppress(FileNotFoundError):
            file = _owned(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            status = os.fstat(file.fileno())
            if stat.S_ISREG(status.st_mode) and status.st_nlink <= 1:
                return file
            file.close()
            if stat.S_ISREG(status.st_mode):
                raise OSError(errno.EPERM, "the file has other names too, and is not written to", path)
            raise OSError(errno.ELOOP, _FOREIGN, path)
        with contextlib.suppress(FileExistsError):  # made since
            file = _owned(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC)
            _hand_over(file.fileno(), directory)
            return file


def _owned(path: str, flags: int) -> io.FileIO:
    try:
        # The descriptor has its owner at once: no bytecode lies between the calls, where a signal could lose it.
        file = next(map(io.FileIO, map(os.open, (path,), (flags,), (0o600,)), ("r+",)))
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise
        raise OSError(error.errno, _FOREIGN, path) from None
    _files[id(file)] = weakref.ref(file)
    file.name = path
    return file


def _hand_over(fd: int, directory: str) -> None:
    """Lets those have a new file who may write to its directory: a group, or the user that root has acted for."""
    status = os.stat(directory)
    writers = status.st_mode & 0o022
    acts_for = status.st_uid if os.geteuid() == 0 else -1
    with contextlib.suppress(OSError):  # of a group that one isn't in, and file systems without owners
        if writers or acts_for > 0:
            os.fchown(fd, acts_for, status.st_gid)
    with contextlib.suppress(OSError):  # of file systems without modes
        if writers:
            os.fchmod(fd, 0o600 | writers << 1 | writers)


def _wait(file: io.FileIO, deadline: float, on_wait: OnWait | None) -> bool:
    """Whether the lock was had before the deadline."""
    if _is_turnstile_free(file) and _flock(file):
        return True
    try:
        return _wait_in_turn(file, deadline, on_wait)
    finally:
        _set_turnstile(file, fcntl.F_UNLCK)


def _wait_in_turn(file: io.FileIO, deadline: float, on_wait: OnWait | None) -> bool:
    is_first = _pass_turnstile(file)
    patience = time.monotonic() + _PATIENCE
    nap = _NAP
    while True:
        if (is_first or time.monotonic() > patience) and _flock(file):
            return True
        left = deadline - time.monotonic()
        if left <= 0:
            return False
        if on_wait is not None:
            on_wait(_holder(file))
            on_wait = None
        # Only the first looks often: a hundred that do take all the CPUs from the one that has the lock.
        nap = _NAP if is_first else min(nap * 1.5, _LONGEST_NAP)
        time.sleep(min(nap, left))
        is_first = is_first or _pass_turnstile(file)


def _flock(file: io.FileIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


_FLOCK = struct.Struct("hhqqi4x")  # struct flock of 64-bit systems: type, whence, start, size, pid
_SET_LOCK = getattr(fcntl, "F_OFD_SETLK", None) if struct.calcsize("P") == 8 else None  # Linux has it
_TURNSTILE_AT = 1 << 40  # a byte that the file doesn't have
_TURNSTILE = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, _TURNSTILE_AT, 1, 0)
_FREE = struct.pack("h", fcntl.F_UNLCK)


def _pass_turnstile(file: io.FileIO) -> bool:
    """Whether this is the next one to have the lock; everybody is where there is no turnstile."""
    return _set_turnstile(file, fcntl.F_WRLCK)


def _is_turnstile_free(file: io.FileIO) -> bool:
    """Whether nobody stands in it, and so nobody waits."""
    if _SET_LOCK is None:
        return True
    try:
        found = fcntl.fcntl(file, fcntl.F_OFD_GETLK, _TURNSTILE)
    except OSError as error:
        if error.errno not in _NOT_TO_BE_HAD:
            raise
        return True
    return found[: len(_FREE)] == _FREE


def _set_turnstile(file: io.FileIO, kind: int) -> bool:
    if _SET_LOCK is None:
        return True
    try:
        fcntl.fcntl(file, _SET_LOCK, _FLOCK.pack(kind, os.SEEK_SET, _TURNSTILE_AT, 1, 0))
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno == errno.EACCES:  # the other word for it
            return False
        if error.errno not in _NOT_TO_BE_HAD:
            raise
    return True


def _holder(file: io.FileIO) -> str:
    return os.pread(file.fileno(), 20, 0).decode("ascii", "replace").strip() or "unknown"
