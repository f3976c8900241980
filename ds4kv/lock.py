"""The lock of a directory: who holds it may publish, rewrite and remove checkpoints.

Readers take no lock. What they open stays whole until they close it, whoever removes or replaces it meanwhile.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["LOCK_NAME", "locked"]

LOCK_NAME = ".ds4kv.lock"
_TIMEOUT = 30.0  # seconds; what is done under the lock takes milliseconds, but disks stall
_LONGEST_NAP = 0.05


@contextlib.contextmanager
def locked(directory: str, timeout: float | None = None) -> Iterator[None]:
    """Holds the directory's lock, against other processes and other threads alike; not to be nested.

    Raises TimeoutError, which is an OSError, when it can't be had for ``timeout`` seconds, by default 30; and OSError
    where the lock file can't be made, such as in a directory that is read only.
    """
    path = os.path.join(directory, LOCK_NAME)
    # The lock belongs to this opening of the file: threads don't share it, and it ends with a killed process.
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        _acquire(fd, path, _TIMEOUT if timeout is None else timeout)
        with contextlib.suppress(OSError):  # room is made on a full disk with this lock held
            os.pwrite(fd, b"%-20d\n" % os.getpid(), 0)  # for the message that others may have to give
        try:
            yield
        finally:
            fcntl.flock(fd, fcntl.LOCK_UN)  # a forked child has this opening too, and would go on holding it
    finally:
        os.close(fd)


def _acquire(fd: int, path: str, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    nap = 0.001
    while True:
        try:
            return fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            left = deadline - time.monotonic()
            if left <= 0:
                holder = os.pread(fd, 20, 0).decode("ascii", "replace").strip() or "unknown"
                raise TimeoutError(
                    errno.ETIMEDOUT, f"the lock of the store was held by process {holder} for {timeout:g} s", path
                ) from None
            time.sleep(min(nap, left))
            nap = min(2 * nap, _LONGEST_NAP)
