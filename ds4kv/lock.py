"""The lock of a directory: who holds it may rewrite and remove checkpoints, and nobody else does so meanwhile.

Readers take no lock. What they open stays whole until they close it, whoever removes or replaces it meanwhile.

It is flock on one file. That alone is not fair: who lets go and takes it again at once is always before who looks every
millisecond. So there is a turnstile, a lock of the open file description on the same file. Who wants the lock passes
the turnstile first and stands in it until it has the lock, so the next one that comes waits behind it.

A lock that can't be had is done without, and the log says so once: a file of root's or of another user's, a directory
that is read only, a file system without flock. Checkpoints appear whole, by a rename, with the lock or without.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import io
import os
import stat
import struct
import time
import weakref

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    OnWait = Callable[[str], object]
    """on_wait(holder): the process id of who has the lock, or "unknown"; called once, before the first wait."""

__all__ = ["LOCK_NAME", "locked", "tried"]

LOCK_NAME = ".ds4kv.lock"
_TIMEOUT = 30.0  # seconds; what is done under the lock takes milliseconds, but disks stall
_NAP = 0.001
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

_files: weakref.WeakSet[io.FileIO] = weakref.WeakSet()
_told: set[str] = set()


def _leave_to_parent() -> None:
    """A forked child shares the parent's lock files, and with them the locks, for as long as it has them open."""
    for file in list(_files):
        file.close()


os.register_at_fork(after_in_child=_leave_to_parent)


@contextlib.contextmanager
def locked(directory: str, timeout: float | None = None, on_wait: OnWait | None = None) -> Iterator[bool]:
    """Holds the directory's lock, against other processes and other threads alike; not to be nested.

    False, and nothing is held, where there is no lock to be had. Raises TimeoutError, which is an OSError, when someone
    else holds it for ``timeout`` seconds, by default 30; FileNotFoundError if there is no such directory; and OSError.
    """
    seconds = _TIMEOUT if timeout is None else timeout
    with _opened(directory) as file:
        yield file is not None and _acquire(file, directory, seconds, on_wait) is not None


@contextlib.contextmanager
def tried(directory: str) -> Iterator[bool]:
    """As :func:`locked`, but one try. False while someone else has the lock or waits for it; True where it is held, and
    where there is none to be had.
    """
    with _opened(directory) as file:
        if file is None:
            yield True
            return
        try:
            _acquire(file, directory, None, None)
        except BlockingIOError:
            is_free = False
        else:
            is_free = True
        yield is_free


@contextlib.contextmanager
def _opened(directory: str) -> Iterator[io.FileIO | None]:
    """The lock file, made if need be; None where it can't be had."""
    file = None
    try:
        file = _open(os.path.join(directory, LOCK_NAME), directory)
    except OSError as error:
        if error.errno not in _NOT_TO_BE_HAD:
            raise
        _tell(directory, error)
    try:
        yield file
    finally:
        if file is not None and not file.closed:  # by a fork within the block
            # By itself, and not by closing: a child that was forked by other means has this opening too.
            with contextlib.suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_UN)
            file.close()


def _open(path: str, directory: str) -> io.FileIO:
    # A FileIO owns its descriptor from the moment that there is one: no exception of a signal handler loses it.
    while True:
        try:
            found = os.lstat(path)
        except FileNotFoundError:
            found = None
        if found is not None:
            if not stat.S_ISREG(found.st_mode):
                raise OSError(errno.ELOOP, "not a regular file, and not followed", path)
            if found.st_nlink > 1:
                raise OSError(errno.EPERM, "the file has other names too, and is not written to", path)
            try:
                file = io.FileIO(path, "r+")
            except FileNotFoundError:
                continue  # removed since
            if not os.path.samestat(found, os.fstat(file.fileno())):
                file.close()
                continue
        else:
            try:
                file = io.FileIO(path, "x+", opener=functools.partial(os.open, mode=0o600))
            except FileExistsError:
                continue  # made since
            _hand_over(file.fileno(), directory)
        _files.add(file)
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


def _acquire(file: io.FileIO, directory: str, timeout: float | None, on_wait: OnWait | None) -> io.FileIO | None:
    """The file, locked; None where it can't be. Raises TimeoutError, or BlockingIOError if there was no ``timeout``."""
    try:
        if timeout is not None:
            is_held = _wait(file, time.monotonic() + timeout, on_wait)
        else:
            is_held = _pass_turnstile(file) and _flock(file)
    except OSError as error:
        if error.errno not in _NOT_TO_BE_HAD:
            raise
        _tell(directory, error)
        return None
    if is_held:
        _leave_turnstile(file)
        with contextlib.suppress(OSError):  # room is made on a full disk with this lock held
            os.pwrite(file.fileno(), b"%-20d\n" % os.getpid(), 0)  # for the message that others may have to give
        return file
    why = f"the lock of the store was held by process {_holder(file)}"
    if timeout is None:
        raise BlockingIOError(errno.EAGAIN, why, file.name)
    raise TimeoutError(errno.ETIMEDOUT, f"{why} for {timeout:g} s", file.name)


def _wait(file: io.FileIO, deadline: float, on_wait: OnWait | None) -> bool:
    """Whether the lock was had before the deadline."""
    is_first = _pass_turnstile(file)
    patience = time.monotonic() + _PATIENCE
    while True:
        if (is_first or time.monotonic() > patience) and _flock(file):
            return True
        left = deadline - time.monotonic()
        if left <= 0:
            return False
        if on_wait is not None:
            on_wait(_holder(file))
            on_wait = None
        time.sleep(min(_NAP, left))
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


def _pass_turnstile(file: io.FileIO) -> bool:
    """Whether this is the next one to have the lock; everybody is where there is no turnstile."""
    return _set_turnstile(file, fcntl.F_WRLCK)


def _leave_turnstile(file: io.FileIO) -> None:
    _set_turnstile(file, fcntl.F_UNLCK)


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


def _tell(directory: str, error: OSError) -> None:
    if directory not in _told and len(_told) < 1000:
        _told.add(directory)
        import logging  # here, for who opens a file and no store

        logging.getLogger("ds4kv").warning(
            "kv cache goes without its lock %s: %s", os.path.join(directory, LOCK_NAME), error.strerror or error
        )
