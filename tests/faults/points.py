"""Points: one scenario, one fault, and what came of it. Each runs in a forked child, and is judged in another one.

Only within a process that has the shim in LD_PRELOAD, see run.py; it forks after its imports, so a point costs
milliseconds. It must have no threads of its own.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import json
import os
import select
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from faults.scenario import Scenario
from faults.shim import KINDS, Fault, Shim

import ds4kv
from ds4kv.core import native

DEADLINE = 8.0
"""Seconds for a child. Nothing here takes one; but a machine may have more to do."""

DOCUMENTED = (OSError, MemoryError)

ONCE = {
    "write": [("fail", "ENOSPC"), ("fail", "EIO"), ("fail", "EINTR"), ("short", ""), ("kill", ""), ("kill short", "")],
    "pwrite": [("fail", "ENOSPC"), ("fail", "EIO"), ("fail", "EINTR"), ("short", ""), ("kill", ""), ("kill short", "")],
    "read": [("fail", "EIO"), ("fail", "EINTR"), ("short", ""), ("end", "")],
    "pread": [("fail", "EIO"), ("fail", "EINTR"), ("short", ""), ("end", "")],
    "fsync": [("fail", "EIO"), ("kill", "")],
    "rename": [("fail", "EACCES"), ("kill", "")],
    "open": [("fail", "EMFILE"), ("fail", "EACCES"), ("fail", "EIO"), ("kill", "")],
    "unlink": [("fail", "EPERM"), ("fail", "EIO"), ("kill", "")],
    "ftruncate": [("fail", "EIO"), ("kill", "")],
    "fallocate": [("fail", "ENOSPC"), ("fail", "EOPNOTSUPP"), ("kill", "")],
    "flock": [("fail", "ENOLCK"), ("kill", "")],
    "fcntl": [("fail", "EAGAIN"), ("fail", "EIO"), ("kill", "")],
    "malloc": [("fail", "ENOMEM")],
    "mmap": [("fail", "ENOMEM")],
    "thread": [("fail", "EAGAIN")],
    "mkdir": [("fail", "EACCES"), ("kill", "")],
    "utime": [("fail", "EPERM"), ("kill", "")],
    "close": [("fail", "EIO"), ("kill", "")],
    "opendir": [("fail", "EACCES"), ("fail", "EMFILE")],
    "stat": [("fail", "EIO"), ("fail", "EACCES")],
    "chmod": [("fail", "EPERM"), ("kill", "")],
}
FROM_THEN_ON = {
    "write": ["ENOSPC", "EIO"],
    "pwrite": ["ENOSPC"],
    "pread": ["EIO"],
    "open": ["EMFILE"],
    "unlink": ["EPERM"],
    "rename": ["EROFS"],
    "flock": ["ENOLCK"],
    "fcntl": ["ENOLCK"],
    "malloc": ["ENOMEM"],
    "thread": ["EAGAIN"],
    "fsync": ["EIO"],
}


def faults_of(counts: dict[str, int]) -> Iterator[Fault]:
    """Every fault for a scenario that makes so many calls."""
    for kind in KINDS:
        for n in range(1, counts[kind] + 1):
            for mode, error in ONCE[kind]:
                yield Fault(kind, n, mode, error)
            for error in FROM_THEN_ON.get(kind, []):
                yield Fault(kind, n, "fail", error, sticky=True)
            if kind == "pread":
                yield Fault(kind, n, "end", sticky=True)


class Result(NamedTuple):
    """``problems``: what is wrong, a line each; ``fired``: whether the fault was met; ``counts``: calls by kind."""

    problems: list[str]
    fired: bool
    counts: dict[str, int]


class Points:
    """Runs points in a folder of its own, on this process's shim."""

    def __init__(self, folder: Path, *, deadline: float = DEADLINE) -> None:
        self._folder = folder
        self._deadline = deadline
        self.shim = Shim()
        self.shim.end_with_parent()

    def run(self, scenario: Scenario, fault: Fault | None) -> Result:
        directory = self._folder / "point" / "d"
        shutil.rmtree(directory.parent, ignore_errors=True)
        directory.mkdir(parents=True)
        ended, told = self.forked(lambda: self._act(scenario, directory, fault))
        problems: list[str] = told.get("problems", [])
        was_killed = ended == -signal.SIGKILL and fault is not None and fault.kills
        if ended is None:
            problems.append(f"hang: no end after {self._deadline:g} s; {self._last_words()}")
        elif not was_killed and ended != 0:
            problems.append(f"crash: exit status {ended}; {self._last_words()}")
        if not told and not was_killed and ended == 0:
            problems.append("crash: it ended without a word")
        raised = told.get("raised")
        if (was_killed or told) and ended is not None:
            ended, judged = self.forked(lambda: self._judge(scenario, directory, raised, was_killed, fault))
            if ended is None:
                problems.append(f"hang: of who looks at it afterwards; {self._last_words()}")
            elif ended != 0:
                problems.append(f"crash: of who looks at it afterwards, {ended}; {self._last_words()}")
            problems += judged.get("problems", [])
        return Result(problems, was_killed or bool(told.get("fired")), told.get("counts", {}))

    def forked(self, act: Callable[[], dict[str, object]]) -> tuple[int | None, dict]:
        """What a forked child returns, as JSON; and how it ended: None if it had to be ended."""
        ours, theirs = os.pipe()
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            self._be_a_child(ours, theirs, act)
        os.close(theirs)
        try:
            told, is_over = _drain(ours, self._deadline)
            if not is_over:
                os.kill(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
        finally:
            os.close(ours)
        return os.waitstatus_to_exitcode(status) if is_over else None, json.loads(told) if told else {}

    def _be_a_child(self, ours: int, theirs: int, act: Callable[[], dict[str, object]]) -> None:
        status = 1
        try:
            self.shim.end_with_parent()
            os.close(ours)
            log = os.open(self._folder / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(log, 1)
            os.dup2(log, 2)
            os.close(log)
            faulthandler.enable(file=2)
            faulthandler.dump_traceback_later(self._deadline * 0.75, exit=False, file=2)
            told = json.dumps(act()).encode()
            faulthandler.cancel_dump_traceback_later()
            os.write(theirs, told)
            status = 0
        except BaseException:  # noqa: BLE001 - a child says what it has, and ends
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(status)

    def _last_words(self) -> str:
        """The end of what it has written: of one that hangs, where its threads are."""
        lines = (self._folder / "log").read_text(errors="replace").split("\n")
        return " / ".join(line.strip() for line in lines if line.strip())[-600:] or "it said nothing"

    def _act(self, scenario: Scenario, directory: Path, fault: Fault | None) -> dict[str, object]:
        scenario.prepare(directory)
        gc.collect()
        descriptors, threads = _descriptors(), _threads()
        problems, raised = [], None
        self.shim.arm(directory, fault)
        try:
            scenario.run(directory)
        except DOCUMENTED as error:
            raised = f"{type(error).__name__}: {error}"
        except ds4kv.CorruptError as error:
            raised = f"{type(error).__name__}: {error}"
            problems.append(f"condemned: {_told(error)}")
        except AssertionError as error:
            raised = "AssertionError"
            problems.append(f"wrong: {_told(error)}")
        except BaseException as error:  # noqa: BLE001 - any other is a finding
            raised = f"{type(error).__name__}: {error}"
            problems.append(f"undocumented: {_told(error)}")
        self.shim.disarm()
        if fault is None and raised is not None:
            problems.append(f"without a fault: {raised}")
        if fault is not None and fault.costs_nothing and raised is not None and not problems:
            problems.append(f"costs: what may cost nothing raised {raised}")
        gc.collect()
        left = {place: what for place, what in _descriptors().items() if place not in descriptors}
        if left:
            problems.append(f"descriptors left: {sorted(left.values())}")
        end = time.monotonic() + 0.2
        while (more := _threads() - threads) > 0 and time.monotonic() < end:
            time.sleep(0.001)  # the system counts a thread for a moment after it was joined
        if more > 0:
            problems.append(f"threads left: {more}")
        return {"problems": problems, "raised": raised, "fired": self.shim.fired(), "counts": self.shim.counts()}

    def _judge(
        self, scenario: Scenario, directory: Path, raised: str | None, was_killed: bool, fault: Fault | None
    ) -> dict[str, object]:
        problems = []
        may_leave = was_killed or (fault is not None and fault.kind in ("unlink", "stat", "rename"))
        if not may_leave and (left := temporaries(directory)):
            problems.append(f"temporaries left: {left}")
        try:
            scenario.check(directory, failed=was_killed or raised is not None, fault=fault)
        except AssertionError as error:
            problems.append(f"{_told(error)} (it had raised {raised})")
        except Exception as error:  # noqa: BLE001 - any is a finding
            problems.append(f"wrong: the directory can't be used: {_told(error)} (it had raised {raised})")
        return {"problems": problems}


def temporaries(directory: Path) -> list[str]:
    return [name for name in os.listdir(directory) if ".tmp." in name]


def _told(error: BaseException) -> str:
    places = [f"{Path(place.filename).name}:{place.lineno}" for place in traceback.extract_tb(error.__traceback__)]
    return (
        f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''} [{' '.join(places[-4:])}]"
    )


def _drain(fd: int, seconds: float) -> tuple[bytes, bool]:
    told, end = b"", time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        if select.select([fd], [], [], left)[0]:
            piece = os.read(fd, 1 << 16)
            if not piece:
                return told, True
            told += piece
    return told, False


def _descriptors() -> dict[str, str]:
    found = {}
    for place in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the one that lists them
            found[place] = os.readlink(f"/proc/self/fd/{place}")
    return found


def _threads() -> int:
    """Without those that wait for somebody's next load or save."""
    native.trim()
    return len(os.listdir("/proc/self/task"))
