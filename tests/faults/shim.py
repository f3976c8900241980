"""The shim's Python side: how it is built, what it can be told, and what it has recorded."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import signal
import struct
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

SOURCE = Path(__file__).with_name("shim.c")

# The places in these are the numbers that shim.c has for them.
KINDS = [
    *(
        "write",
        "pwrite",
        "read",
        "pread",
        "fsync",
        "rename",
        "open",
        "unlink",
        "ftruncate",
        "fallocate",
        "flock",
        "fcntl",
    ),
    *("malloc", "mmap", "thread", "mkdir", "utime", "close", "opendir", "stat", "chmod"),
]
MODES = ["count", "fail", "short", "end", "kill", "kill short"]


class Fault(NamedTuple):
    """What happens to the ``n``-th call of a kind, or from it on. ``short``: half of it is done; ``end``: 0 bytes are
    read; ``kill``: the process dies before it, ``kill short``: after half of it."""

    kind: str
    n: int
    mode: str = "fail"
    error: str = ""
    sticky: bool = False

    def __str__(self) -> str:
        what = " ".join(filter(None, [self.mode, self.error]))
        return f"{self.kind} {self.n}{' and on' if self.sticky else ''}: {what}"

    @property
    def kills(self) -> bool:
        return self.mode.startswith("kill")

    @property
    def costs_nothing(self) -> bool:
        """Whether what was asked for has to go well all the same."""
        return self.mode == "short" or self.error in ("EINTR", "ENOLCK") or self.kind == "thread"


def compiler() -> str | None:
    """A compiler for the shim; None if there is none, or this is no Linux."""
    return shutil.which("gcc") or shutil.which("cc") if sys.platform == "linux" else None


def build(folder: Path) -> Path:
    """The shim, compiled. Raises CalledProcessError with the compiler's words, where the C library isn't glibc too."""
    target = folder / "shim.so"
    options = ["-O2", "-shared", "-fPIC", "-pthread"]
    options += ["-fno-builtin", "-fno-delete-null-pointer-checks", "-Wno-nonnull-compare"]  # as it is the C library
    subprocess.run([compiler(), *options, "-o", target, SOURCE, "-ldl"], check=True, capture_output=True, text=True)
    return target


class Shim:
    """The shim in this process, which was started with it in LD_PRELOAD."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(os.environ["LD_PRELOAD"])
        self._library.shim_arm.argtypes = [
            ctypes.c_char_p,
            ctypes.c_int,
            ctypes.c_long,
            ctypes.c_int,
            ctypes.c_int,
            ctypes.c_int,
        ]
        self._library.shim_count.restype = ctypes.c_long
        self._library.shim_fired.restype = ctypes.c_long
        self._library.shim_device.argtypes = [ctypes.c_uint64, ctypes.c_uint64]
        self._library.shim_alias.argtypes = [ctypes.c_uint64, ctypes.c_uint64, ctypes.c_int64]

    @staticmethod
    def end_with_parent() -> None:
        """This process is killed when its parent ends, however that does."""
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG

    def arm(self, directory: Path, fault: Fault | None) -> None:
        """From now on calls below ``directory`` count, and one of them is hit; none of them without a fault."""
        kind, n, mode, error, sticky = fault or Fault("write", 0, "count")
        number = getattr(errno, error) if error else 0
        self._library.shim_arm(os.fsencode(directory), KINDS.index(kind), n, MODES.index(mode), number, sticky)

    def disarm(self) -> None:
        self._library.shim_disarm()

    def counts(self) -> dict[str, int]:
        """How many calls there were of each kind, since it was armed."""
        return {kind: self._library.shim_count(place) for place, kind in enumerate(KINDS)}

    def fired(self) -> int:
        """How many calls were hit."""
        fired: int = self._library.shim_fired()
        return fired

    def record(self, directory: Path, fd: int) -> None:
        """From now on what changes below ``directory`` is written to ``fd``; never again with -1."""
        self._library.shim_record(os.fsencode(directory), fd)

    def alias(self, inode: int, shown: int, birth_ns: int) -> None:
        """The file of this inode is shown as another one."""
        self._library.shim_alias(inode, shown, birth_ns)

    def device(self, number: int, shown: int) -> None:
        """Files of this device are shown as those of another one."""
        self._library.shim_device(number, shown)

    def boot_id(self, path: Path) -> None:
        """Who reads the boot's id reads this file."""
        self._library.shim_boot_id(os.fsencode(path))


class Event(NamedTuple):
    """A change of the record. ``size`` is of what was cut or reserved, ``mtime_ns`` what the file had after it."""

    what: str
    path: str
    target: str
    truncates: bool
    inode: int
    offset: int
    size: int
    mtime_ns: int
    birth_ns: int
    data: bytes


_EVENTS = ["", "created", "written", "truncated", "renamed", "unlinked", "synced", "timed", "made", "reserved"]
_EVENT = struct.Struct("=IIIIQqqqqQ")


def read_record(path: Path) -> list[Event]:
    recorded, at, events = path.read_bytes(), 0, []

    def take(size: int) -> bytes:
        nonlocal at
        at += size
        return recorded[at - size : at]

    while at < len(recorded):
        what, path_bytes, target_bytes, flags, inode, offset, size, mtime, birth, data_bytes = _EVENT.unpack(
            take(_EVENT.size)
        )
        where, target = os.fsdecode(take(path_bytes)), os.fsdecode(take(target_bytes))
        data = take(data_bytes)
        events.append(Event(_EVENTS[what], where, target, bool(flags), inode, offset, size, mtime, birth, data))
    return events
