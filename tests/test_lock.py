"""The lock of a directory: one at a time, everybody in turn, and done without where there is none to be had."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import signal
import stat
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import Child, started

from ds4kv.file import lock, trouble
from ds4kv.file.lock import LOCK_NAME, locked, tried
from ds4kv.store.store import Store

HOLD = "import sys; from ds4kv.file.lock import locked\n"
HOLD += "with locked(sys.argv[1]): print('held', flush=True); sys.stdin.read()"
SAVE = {"tokens": 600, "ctx_size": 100}
PAYLOAD = b"payload" * 1000
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")


@contextlib.contextmanager
def holder(directory: Path) -> Iterator[Child]:
    with started([sys.executable, "-c", HOLD, directory], stdin=-1) as child:
        assert child.line() == b"held\n"
        yield child


@contextlib.contextmanager
def as_user(uid: int) -> Iterator[None]:
    """The effective user, and no groups of root's."""
    groups, gid = os.getgroups(), os.getegid()
    os.setgroups([])
    os.setegid(uid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(gid)
        os.setgroups(groups)


@pytest.fixture
def users_directory() -> Iterator[Path]:
    """Another user's directory, where that user gets to: pytest's own are root's."""
    with tempfile.TemporaryDirectory() as name:
        os.chown(name, 4321, 4321)
        yield Path(name)


@pytest.fixture(autouse=True)
def _nothing_said_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trouble, "_told", set())


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# ------------------------------------------------------------------------------ one at a time


def test_it_is_held_by_one_thread_at_a_time(tmp_path: Path) -> None:
    inside, most = 0, 0

    def work() -> None:
        nonlocal inside, most
        for _ in range(20):
            with locked(str(tmp_path)) as is_held:
                assert is_held
                inside += 1
                most = max(most, inside)
                time.sleep(0.0002)
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert most == 1


def test_programs_that_only_flock_are_kept_out_and_keep_out(tmp_path: Path) -> None:
    with locked(str(tmp_path)):
        fd = os.open(tmp_path / LOCK_NAME, os.O_RDWR)
        with pytest.raises(BlockingIOError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with tried(str(tmp_path)) as is_free:
        assert not is_free
    with pytest.raises(TimeoutError), locked(str(tmp_path), timeout=0.01):
        pass
    os.close(fd)
    with tried(str(tmp_path)) as is_free:
        assert is_free


def test_who_waits_is_told_once_for_whom(tmp_path: Path) -> None:
    told: list[str] = []
    with locked(str(tmp_path), on_wait=told.append):
        pass
    assert told == []
    with holder(tmp_path) as child:
        with pytest.raises(TimeoutError, match=f"process {child.pid} for 0.05 s"):
            with locked(str(tmp_path), timeout=0.05, on_wait=told.append):
                pass
        assert told == [str(child.pid)]
        with tried(str(tmp_path)) as is_free:
            assert not is_free


# ------------------------------------------------------------------------------ in turn

GREEDY = """
import sys, time
from ds4kv.file.lock import locked
print("begun", flush=True)
while True:
    with locked(sys.argv[1]):
        time.sleep(0.02)
"""


def test_who_takes_it_again_at_once_starves_nobody(tmp_path: Path) -> None:
    with started([sys.executable, "-c", GREEDY, tmp_path]) as greedy:
        assert greedy.line() == b"begun\n"
        waits = []
        for _ in range(10):
            begun = time.monotonic()
            with locked(str(tmp_path), timeout=20):
                waits.append(time.monotonic() - begun)
    assert sorted(waits)[5] < 1  # the holder's 20 ms, a few naps, and a busy machine


def test_the_greedy_one_would_starve_others_without_a_turnstile(tmp_path: Path) -> None:
    """The control: flock alone, polled, gets its turn by luck."""
    gate, end = threading.Event(), time.monotonic() + 0.5
    got = 0

    def poll() -> None:
        nonlocal got
        fd = os.open(tmp_path / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o600)
        gate.set()
        while time.monotonic() < end:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                got += 1
                fcntl.flock(fd, fcntl.LOCK_UN)
            time.sleep(0.001)
        os.close(fd)

    thread = threading.Thread(target=poll)
    thread.start()
    gate.wait(10)
    mine = 0
    while time.monotonic() < end:
        with locked(str(tmp_path)):
            mine += 1
            time.sleep(0.01)
    thread.join(10)
    assert got < mine


def test_one_that_was_stopped_while_it_waits_is_passed_by(tmp_path: Path) -> None:
    waiting = HOLD.replace("locked(sys.argv[1])", "locked(sys.argv[1], on_wait=lambda _: print('waits', flush=True))")
    with contextlib.ExitStack() as held:
        held.enter_context(locked(str(tmp_path)))
        with started([sys.executable, "-c", waiting, tmp_path], stdin=-1) as child:
            assert child.line() == b"waits\n"
            time.sleep(0.05)
            os.kill(child.pid, signal.SIGSTOP)
            held.close()
            with tried(str(tmp_path)) as is_free:
                assert not is_free  # it is the stopped one's turn
            with locked(str(tmp_path), timeout=10) as is_held:
                assert is_held


def test_a_hit_and_a_save_beside_a_stopped_holder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with Store(tmp_path, workers=1) as store:
        entry = store.save_buffer(b"text", PAYLOAD, **SAVE)
        assert entry is not None
        with holder(tmp_path) as child:
            os.kill(child.pid, signal.SIGSTOP)
            begun = time.monotonic()
            for _ in range(2):
                found = store.find(b"text and more", ctx_size=100, quant_bits=2)
                assert found is not None
                with store.load(found) as checkpoint:
                    assert checkpoint.payload.read() == PAYLOAD
                    assert checkpoint.tool_map == {}
            assert store.import_tool_maps([b"id"]) == {}
            assert time.monotonic() - begun < 0.2
            monkeypatch.setattr(lock, "_TIMEOUT", 0.05)
            assert store.save_buffer(b"other", PAYLOAD, **SAVE) is not None
            assert re.search(rf"without the lock, and evicts nothing .*: \[Errno {errno.ETIMEDOUT}\]", caplog.text)
            with pytest.raises(TimeoutError):
                store.remove(entry)
            hits = {found.sha: found.header.hits for found in store.entries()}
            assert hits[entry.sha] == 0
        # The hits are in the file as soon as the lock is had: by a save, the next hit, or close().
    hits = {found.sha: found.header.hits for found in Store(tmp_path, evict_on_open=False).entries()}
    assert hits[entry.sha] == 2


# ------------------------------------------------------------------------------ forks


def test_a_child_that_outlives_its_parent_keeps_no_lock(tmp_path: Path) -> None:
    code = (
        "import os, sys, time\nfrom ds4kv.lock import locked\n"
        "with locked(sys.argv[1]):\n"
        "    child = os.fork()\n"
        "    if child == 0:\n"
        "        os.close(1); os.close(2); time.sleep(60); os._exit(0)\n"
        "    print(child, flush=True); os._exit(0)\n"
    )
    with started([sys.executable, "-c", code, tmp_path]) as parent:
        orphan = int(parent.line())
        try:
            parent.finish()
            with locked(str(tmp_path), timeout=5) as is_held:
                assert is_held
            os.kill(orphan, 0)  # it is there still
        finally:
            os.kill(orphan, signal.SIGKILL)


# ------------------------------------------------------------------------------ what is no lock file


@pytest.mark.parametrize("kind", ["hard link", "link", "dangling link", "directory", "fifo"])
def test_a_foreign_thing_of_its_name_is_never_written_to(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    kv, victim = tmp_path / "kv", tmp_path / "victim"
    kv.mkdir()
    victim.write_bytes(b"precious")
    path = kv / LOCK_NAME
    match kind:
        case "hard link":
            os.link(victim, path)
        case "link":
            path.symlink_to(victim)
        case "dangling link":
            path.symlink_to(tmp_path / "absent")
        case "directory":
            path.mkdir()
        case "fifo":
            os.mkfifo(path)
    with Store(kv, workers=1, budget_bytes=3 * len(PAYLOAD), layout="v1") as store:
        for n in range(6):
            assert store.save_buffer(b"text %d" % n, PAYLOAD, **SAVE) is not None
        entry = store.find(b"text 5", ctx_size=100, quant_bits=2)
        assert entry is not None
        with store.load(entry) as checkpoint:
            assert checkpoint.payload.read() == PAYLOAD
        assert len(store.entries()) == 2  # evicted all the same
        assert store.remove(entry)
    assert victim.read_bytes() == b"precious"
    assert not (tmp_path / "absent").exists()
    assert caplog.text.count("goes without its lock") == 1


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_flock(
    tmp_path: Path, code: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = fcntl.flock

    def flock(file: object, operation: int) -> None:
        if getattr(file, "name", "") == os.path.join(tmp_path, LOCK_NAME):
            raise OSError(code, os.strerror(code))
        real(file, operation)  # type: ignore[arg-type]

    monkeypatch.setattr(lock.fcntl, "flock", flock)
    with locked(str(tmp_path)) as is_held:
        assert not is_held
    with Store(tmp_path, workers=1, budget_bytes=3 * len(PAYLOAD), layout="v1") as store:
        for n in range(4):
            assert store.save_buffer(b"text %d" % n, PAYLOAD, **SAVE) is not None
        assert len(store.entries()) == 2
    assert caplog.text.count("goes without its lock") == 1


def test_a_failure_of_the_lock_does_not_cost_a_finished_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with Store(tmp_path, workers=1) as store, store.save(b"text", **SAVE) as saving:
        saving.payload.write(PAYLOAD)

        def fail(path: str, directory: str) -> None:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), path)

        monkeypatch.setattr(lock, "_open", fail)
        saving.close()
        assert saving.entry is not None
    assert "without the lock" in caplog.text
    assert [entry.sha for entry in store.entries()] == [saving.entry.sha]


# ------------------------------------------------------------------------------ whose it is


@pytest.mark.parametrize(
    ("of_directory", "of_lock"), [(0o700, 0o600), (0o755, 0o600), (0o770, 0o660), (0o2775, 0o660), (0o1777, 0o666)]
)
def test_who_may_write_to_the_directory_may_lock_it(tmp_path: Path, of_directory: int, of_lock: int) -> None:
    kv = tmp_path / "kv"
    kv.mkdir()
    kv.chmod(of_directory)
    old = os.umask(0o077)
    try:
        with locked(str(kv)) as is_held:
            assert is_held
    finally:
        os.umask(old)
    assert mode(kv / LOCK_NAME) == of_lock
    assert (kv / LOCK_NAME).stat().st_gid == kv.stat().st_gid or of_lock == 0o600


@needs_root
def test_what_root_makes_is_the_owners(users_directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    with locked(str(users_directory)) as is_held:
        assert is_held
    with as_user(4321), locked(str(users_directory)) as is_held:
        assert is_held
    assert "goes without" not in caplog.text


@needs_root
def test_roots_lock_file_is_done_without(users_directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    (users_directory / LOCK_NAME).touch(mode=0o600)
    with as_user(4321), Store(users_directory, workers=1, budget_bytes=3 * len(PAYLOAD), layout="v1") as store:
        for n in range(4):
            assert store.save_buffer(b"text %d" % n, PAYLOAD, **SAVE) is not None
        assert len(store.entries()) == 2
    assert caplog.text.count("goes without its lock") == 1
