"""The file that has no name yet: what is written beside its target, and takes the target's name when it is whole.

A draft is named after its target: ``NAME.tmp.PID.`` and 8 hex digits. From its making to its end it holds flock, which
says in every container that its writer lives; a process id says so only where that process can be seen. A killed
process leaves its draft without the lock. :func:`sweep` removes what is not held.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import io
import os
import stat
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from ds4kv.core import native as _core
from ds4kv.file.leftovers import NO_LOCKS, held_drafts, stem_of, sweep, sweep_now_and_then

if sys.platform == "linux":
    from select import epoll as Owner
else:
    from select import kqueue as Owner

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

__all__ = ["Draft", "MakeFile", "OutputFile", "held_drafts", "sweep", "sync_directory"]

_ATTEMPTS = 100
_PRIVATE = 0o600
_CAN_BE_EFFECTIVE = os.access in os.supports_effective_ids

_open_private = functools.partial(os.open, mode=_PRIVATE)


class OutputFile(io.FileIO):
    """A file that is being written. An ``eager`` one sends what is written to the disk at once, so that an fsync at the
    end has little left to wait for. Errors name ``target``, and how much there was to write.
    """

    eager = False
    given_up = False  # it will not be published, and takes and drops what comes
    target: str | None = None

    def begin_payload(self, final_size: int | None, *, is_exact: bool) -> None:
        """Is told when header and text are there. ``final_size`` is that of the whole file in bytes, at most where it
        isn't ``is_exact``; None if nobody knows.
        """

    def end_payload(self) -> None:
        """Is told when region and trailer are there. Only the header is still to come, over the first one."""

    def write(self, b: ReadableBuffer, /) -> int:
        start = self.tell()
        try:
            n = super().write(b)
        except OSError as error:
            size = memoryview(b).nbytes
            why = f"{error.strerror}: {size} bytes were to be written at byte {start}"
            raise OSError(error.errno, why, self.target or self.name) from error
        if self.eager:
            _core.write_out(self.fileno(), start, n)
        return n


MakeFile: TypeAlias = Callable[..., OutputFile]
""":class:`OutputFile`, or what makes one of a class of its own, from the same arguments."""


class Draft:
    """A new file for the path that it is given: ``file`` is to be written to. Its own ``path`` is a name beside
    ``target``, which is the given path with all links followed; :meth:`publish` gives it the target's name.

    Its mode is ``mode``, whatever the umask. By default it gets the mode of the file that it replaces, and owner and
    group where that is allowed; 0600 where there is none. Only a regular file is replaced.

    A forked child can neither publish nor remove it. But the child has the descriptor, and with it the lock: if the
    parent is killed, the draft looks alive until the child ends or execs.

    Now and then, making one removes what dead processes left of the same name. Raises OSError, which names the target.
    """

    file: OutputFile
    path = ""
    is_published = False
    _ended = True  # until there may be a file

    def __init__(
        self, path: str | os.PathLike[str], *, mode: int | None = None, make_file: MakeFile = OutputFile
    ) -> None:
        if mode is not None and not 0 <= mode <= 0o777:
            raise ValueError(f"mode is {mode:#o}, outside 0..0o777")
        self.target, replaced = _resolve(os.fsdecode(path))
        self._owner = os.getpid()
        directory, _, name = self.target.rpartition("/")
        self.directory = directory or "/"
        sweep_now_and_then(self.directory, name)
        try:
            self._make(f"{directory}/{stem_of(name)}.tmp.{self._owner}.", make_file)
            self.mode = _dress(self.file.fileno(), replaced, mode)
        except BaseException as error:
            self.discard()
            if isinstance(error, OSError):
                error.filename = self.target  # the name that the caller knows
            raise

    def _make(self, begin: str, make_file: MakeFile) -> None:
        for _ in range(_ATTEMPTS):
            self.path = begin + os.urandom(4).hex()
            self._ended = False  # before there is a file, as an interrupt may come any time
            try:
                # The descriptor has its owner at once: no bytecode lies between, where a signal could lose it.
                self.file = make_file(self.path, "x+", opener=_open_private)
            except FileExistsError:
                self._ended = True  # somebody else's
                continue
            self.file.target = self.target
            if self._hold():
                return
            self.discard()
        raise OSError(errno.EAGAIN, "every new file was taken for a dead process's", self.target)

    def _hold(self) -> bool:
        """Locks the file; False if a sweeper was faster, who saw it before it was locked."""
        fd = self.file.fileno()
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
        # Nobody else makes a file of this name, so one that is there is this one.
        return os.access(self.path, os.F_OK, effective_ids=_CAN_BE_EFFECTIVE)

    @property
    def fd(self) -> int:
        """The descriptor, until it is published or discarded."""
        return self.file.fileno()

    def check_owner(self) -> None:
        """Raises RuntimeError in a forked child, whose file is the parent's."""
        if os.getpid() != self._owner:
            raise RuntimeError("a checkpoint is published by the process that created it")

    def sync(self) -> None:
        """Waits until what was written is on the disk."""
        try:
            os.fsync(self.file.fileno())
        except OSError as error:
            raise _named(error, self.target) from error

    def publish(self) -> None:
        """Takes the target's name, in place of the file that has it.

        After an error the target is what it was, and the draft is only to be discarded. A power cut may undo it: for
        good it is with :meth:`sync` before and :func:`sync_directory` after.
        """
        self.check_owner()
        if self.is_published:
            return
        if self._ended:
            raise ValueError("the draft was discarded: there is nothing to publish")
        try:
            # Closing is where some file systems tell that they could not write, so it comes before the name. The lock
            # has to last until after it: else a sweeper elsewhere could come between. Hence another descriptor.
            with next(map(io.FileIO, map(os.dup, (self.file.fileno(),)))):  # whose owner has it at once
                self.file.close()
                os.replace(self.path, self.target)
                self._ended = self.is_published = True
        except OSError as error:
            raise _named(error, self.target) from error

    def discard(self) -> None:
        """Removes the file, unless it has its name."""
        if self._ended:
            return
        try:
            if os.getpid() == self._owner:
                with contextlib.suppress(FileNotFoundError):  # an interrupt may come right after the rename
                    os.unlink(self.path)
            self._ended = True
        except OSError as error:
            self._ended = True
            raise _named(error, self.target) from error
        finally:
            if hasattr(self, "file"):
                with contextlib.suppress(OSError):  # nobody has to know that what is thrown away was not written
                    self.file.close()

    def __del__(self) -> None:
        self.discard()


def _resolve(path: str) -> tuple[str, os.stat_result | None]:
    """The path without links and from the root, so that it means the same file later, and the status of the file that
    has it. Raises OSError if no file can be made there, or put in its place.
    """
    target = path
    directory, name = os.path.split(path)
    try:
        # On the way to these directories there are no links: that spares a look at each part of the path.
        if directory in _real_directories and name not in ("", ".", ".."):
            status = os.lstat(path)
            if not stat.S_ISLNK(status.st_mode):
                return path, _regular(path, status)
        target = os.path.realpath(path)
        if os.path.dirname(target) == directory:
            if len(_real_directories) >= 1000:
                _real_directories.clear()
            _real_directories.add(directory)
        return target, _regular(target, os.stat(target))
    except FileNotFoundError:
        return target, None


def _regular(path: str, status: os.stat_result) -> os.stat_result:
    if not stat.S_ISREG(status.st_mode):
        kind = errno.EISDIR if stat.S_ISDIR(status.st_mode) else errno.EEXIST
        raise OSError(kind, "not a regular file, and not to be replaced by one", path)
    return status


_real_directories: set[str] = set()


def _dress(fd: int, replaced: os.stat_result | None, mode: int | None) -> int:
    """Gives the new file the owner and mode that it should have; the mode."""
    wanted = _PRIVATE if replaced is None else replaced.st_mode & 0o777
    if mode is not None:
        wanted = mode
    if replaced is None or (wanted == _PRIVATE and replaced.st_uid == os.geteuid()):  # no group has a part in it
        if wanted != _PRIVATE:
            os.fchmod(fd, wanted)
        return wanted
    ours = os.fstat(fd)
    if (ours.st_uid, ours.st_gid) != (replaced.st_uid, replaced.st_gid):
        try:
            os.fchown(fd, replaced.st_uid, replaced.st_gid)
        except PermissionError:  # only root gives files away; a group that one is in can be had
            with contextlib.suppress(PermissionError):
                os.fchown(fd, -1, replaced.st_gid)
        if mode is None and os.fstat(fd).st_gid != replaced.st_gid:
            wanted = wanted & 0o707 | (wanted & 0o007) << 3  # what was a group's is not for another one
    if stat.S_IMODE(ours.st_mode) != wanted:
        os.fchmod(fd, wanted)
    return wanted


def _named(error: OSError, target: str) -> OSError:
    """The same error, of the file that the caller knows."""
    return OSError(error.errno, error.strerror, target)


def sync_directory(path: str) -> None:
    """Waits until the names in a directory are on the disk. Raises OSError."""
    # A number would be lost if a signal came between its making and its use. This is the one class that takes the
    # descriptor of a directory for its own, and closes it whatever comes; what else it could do is of no use here.
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    with contextlib.closing(next(map(Owner.fromfd, map(os.open, (path,), (flags,))))) as directory:
        os.fsync(directory.fileno())
