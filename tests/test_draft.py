"""The file that has no name yet: nobody sweeps it while its writer lives, and nothing is left of it but the target."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import gc
import os
import shutil
import stat
import subprocess
import sys
import textwrap
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import dead_pid
from processes import started, status_of_fork

import ds4kv
from ds4kv.cli import main
from ds4kv.file import draft as draft_module
from ds4kv.file import leftovers
from ds4kv.file.draft import Draft, held_drafts, sweep
from ds4kv.store.sessions import Sessions
from ds4kv.store.store import Store
from ds4kv.store.upgrade import Upgrade

FACTS: dict[str, Any] = {"tokens": 600, "ctx_size": 32768}
PAYLOAD = bytes(range(256)) * 64
KEY = "da39a3ee5e6b4b0d3255bfef95601890afd80709.kv"  # the SHA-1 of no text


@pytest.fixture(autouse=True)
def _no_pause() -> None:
    """Every draft sweeps, however long the sweep before took."""
    leftovers._last_sweeps.clear()


def names(directory: Path) -> list[str]:
    return sorted(name for name in os.listdir(directory) if not name.startswith(".ds4kv"))


def drafts(directory: Path) -> list[str]:
    return [name for name in names(directory) if ".tmp." in name]


# ---- its life


def test_it_takes_the_name_or_is_gone(tmp_path: Path) -> None:
    target = tmp_path / "a.kv"
    draft = Draft(target)
    draft.file.write(b"new")
    assert draft.path.startswith(f"{target}.tmp.{os.getpid()}.")
    assert names(tmp_path) == [os.path.basename(draft.path)]
    draft.publish()
    draft.publish()
    draft.discard()
    assert target.read_bytes() == b"new"
    other = Draft(target)
    other.discard()
    other.discard()
    with pytest.raises(ValueError, match="discarded"):
        other.publish()
    del other
    Draft(target)  # and dropped
    gc.collect()
    assert names(tmp_path) == ["a.kv"]
    assert target.read_bytes() == b"new"


def writers(directory: Path) -> list[Callable[[], Any]]:
    """All that writes a checkpoint in Python, each up to where its draft is there."""
    store = Store(directory / "store", min_tokens=0)
    sessions = Sessions(directory / "sessions")
    (directory / "one").mkdir()
    return [
        lambda: ds4kv.create(directory / "one" / "a.kv", **FACTS),
        lambda: store.save(b"text", **FACTS),
        lambda: sessions.save_sysprompt(b"text", **FACTS),
        lambda: Draft(directory / "one" / KEY),
    ]


def test_every_writer_holds_its_draft_until_it_has_its_name(tmp_path: Path) -> None:
    for begin in writers(tmp_path):
        writing = begin()
        [path] = [path for path in tmp_path.rglob("*") if ".tmp." in path.name]
        with open(path, "rb") as fp, pytest.raises(BlockingIOError):
            fcntl.flock(fp, fcntl.LOCK_SH | fcntl.LOCK_NB)
        # As a sweeper in another container sees it: the process id means nothing there.
        gone = path.with_name(path.name.replace(f".{os.getpid()}.", f".{dead_pid()}."))
        path.rename(gone)
        os.utime(gone, (0, 0))
        name = path.name.partition(".tmp.")[0]
        assert sweep(str(path.parent), name) == sweep(str(path.parent)) == []
        gone.rename(path)
        (writing.abandon if hasattr(writing, "abandon") else writing.discard)()
        assert drafts(path.parent) == []


def test_the_lock_lasts_until_the_name_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweeper that comes between the draft's last byte and its name finds it held."""
    swept = []
    replace = os.replace

    def late(source: str, target: str) -> None:
        monkeypatch.setattr(leftovers, "_is_alive", lambda pid: False)
        swept.append(sweep(str(tmp_path), "a.kv"))
        monkeypatch.setattr(leftovers, "_is_alive", lambda pid: True)
        replace(source, target)

    monkeypatch.setattr(os, "replace", late)
    ds4kv.dump(tmp_path / "a.kv", PAYLOAD, **FACTS)
    assert swept == [[]]
    assert ds4kv.load(tmp_path / "a.kv").payload == PAYLOAD


def test_held_drafts_are_those_that_are_being_written(tmp_path: Path) -> None:
    (tmp_path / f"a.kv.tmp.{os.getpid()}.01234567").touch()
    (tmp_path / "a.kv.tmp.1.01234567").mkdir()
    assert held_drafts(str(tmp_path), "a.kv") == []
    first, second, other = Draft(tmp_path / "a.kv"), Draft(tmp_path / "a.kv"), Draft(tmp_path / "b.kv")
    assert set(held_drafts(str(tmp_path), "a.kv")) == {first.path, second.path}
    first.publish()
    assert held_drafts(str(tmp_path), "a.kv") == [second.path]
    second.discard()
    other.discard()


# ---- other processes


IN_A_NAMESPACE = ["unshare", "--pid", "--fork", "--mount-proc"]


def can_unshare() -> bool:
    if shutil.which("unshare") is None:
        return False
    return subprocess.run([*IN_A_NAMESPACE, "true"], capture_output=True, timeout=30).returncode == 0


def test_a_container_beside_leaves_it_alone(tmp_path: Path) -> None:
    """In a PID namespace of its own a sweeper sees none of the writers outside: only the lock tells that they live."""
    if not can_unshare():
        pytest.skip("no PID namespaces here: unshare --pid needs root")
    code = """
        import sys
        from ds4kv.file.draft import sweep
        from ds4kv.store.sessions import Sessions
        from ds4kv.store.store import Store
        from ds4kv.store.upgrade import Upgrade
        Store(sys.argv[1]).close()
        Sessions(sys.argv[1])
        for _ in Upgrade(sys.argv[1]).run():
            pass
        print(sweep(sys.argv[1], sys.argv[2]))
    """
    with ds4kv.create(tmp_path / KEY, **FACTS) as checkpoint:
        [name] = drafts(tmp_path)
        pid = dead_pid()
        (tmp_path / f"{KEY}.tmp.{pid}.01234567").touch()  # the control: nobody holds this one
        command = [*IN_A_NAMESPACE, sys.executable, "-c", textwrap.dedent(code), str(tmp_path), KEY]
        with started(command) as child:
            out, errors = child.finish()
        assert (child.returncode, errors) == (0, b"")
        assert out == b"[]\n"
        assert drafts(tmp_path) == [name]
        checkpoint.payload.write(PAYLOAD)
    assert ds4kv.load(tmp_path / KEY).payload == PAYLOAD


BEGIN = {
    "create": "w = ds4kv.create(path, tokens=1, ctx_size=1)",
    "store": "w = Store(os.path.dirname(path), min_tokens=0).save(b'', tokens=1, ctx_size=1)",
    "sessions": "w = Sessions(os.path.dirname(path)).save(b'', tokens=1, ctx_size=1); w.__enter__()",
}


@pytest.mark.slow
@pytest.mark.parametrize("how", ["create", "store", "sessions"])
def test_what_a_killed_writer_left_goes_with_the_next_one_of_that_name(how: str, tmp_path: Path) -> None:
    code = f"""
        import os, sys, time
        import ds4kv
        from ds4kv.store.sessions import Sessions
        from ds4kv.store.store import Store
        path = sys.argv[1]
        {BEGIN[how]}
        print("begun", flush=True)
        time.sleep(60)
    """
    for again in (
        lambda: ds4kv.dump(tmp_path / KEY, PAYLOAD, **FACTS),
        lambda: ds4kv.create(tmp_path / KEY, **FACTS).abandon(),
        lambda: main(["convert", str(tmp_path / "other.kv"), str(tmp_path / KEY)]),
        lambda: Store(tmp_path, min_tokens=0).save_buffer(b"", PAYLOAD, **FACTS),
        lambda: Sessions(tmp_path),
        lambda: [*Upgrade(tmp_path).run()],
    ):
        ds4kv.dump(tmp_path / "other.kv", PAYLOAD, **FACTS)
        (tmp_path / KEY).unlink(missing_ok=True)
        with started([sys.executable, "-c", textwrap.dedent(code), str(tmp_path / KEY)]) as child:
            assert child.line() == b"begun\n"
            ds4kv.dump(tmp_path / KEY, PAYLOAD, **FACTS)
            assert len(drafts(tmp_path)) == 1  # while it lives
            child.process.kill()
            child.process.wait()
        leftovers._last_sweeps.clear()
        ds4kv.dump(tmp_path / "other.kv", PAYLOAD, **FACTS)
        assert len(drafts(tmp_path)) == 1  # another name's dump looks for its own only
        (tmp_path / KEY).unlink()
        leftovers._last_sweeps.clear()
        again()
        assert drafts(tmp_path) == []


def test_a_forked_child_has_no_part_in_it(tmp_path: Path) -> None:
    draft = Draft(tmp_path / "a.kv")
    in_child = [draft]  # the only reference that the child will have

    def publish() -> None:
        with pytest.raises(RuntimeError):
            in_child[0].publish()
        in_child.pop().discard()
        gc.collect()

    assert status_of_fork(publish) == 0
    assert names(tmp_path) == [os.path.basename(draft.path)]
    assert held_drafts(str(tmp_path), "a.kv") == [draft.path]
    draft.publish()
    assert names(tmp_path) == ["a.kv"]


def test_sweeping_takes_one_percent_of_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def slow(directory: str, name: str | None = None) -> list[str]:
        calls.append(name)
        clock[0] += 0.005
        return []

    clock = [1000.0]
    monkeypatch.setattr(leftovers.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(leftovers, "sweep", slow)
    for _ in range(1000):
        Draft(tmp_path / "a.kv").discard()
        clock[0] += 0.01
    assert 15 <= len(calls) <= 21
    calls.clear()
    (tmp_path / "other").mkdir()
    Draft(tmp_path / "other" / "a.kv").discard()
    assert calls == ["a.kv"]


# ---- the moment between a file's making and its lock


def test_a_draft_that_a_sweeper_was_faster_to_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flock = fcntl.flock
    made = []

    def faster(fd: int, how: int) -> None:
        made.append(os.readlink(f"/proc/self/fd/{fd}"))
        if len(made) == 1:  # it is at it
            raise BlockingIOError(errno.EWOULDBLOCK, "held")
        if len(made) == 2:  # it has been there
            os.unlink(made[-1])
        flock(fd, how)

    monkeypatch.setattr(fcntl, "flock", faster)
    ds4kv.dump(tmp_path / "a.kv", PAYLOAD, **FACTS)
    assert len(set(made)) == len(made) == 3
    assert names(tmp_path) == ["a.kv"]
    assert ds4kv.load(tmp_path / "a.kv").payload == PAYLOAD


def test_a_draft_that_is_never_ours_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def held(fd: int, how: int) -> None:
        raise BlockingIOError(errno.EWOULDBLOCK, "held")

    monkeypatch.setattr(fcntl, "flock", held)
    with pytest.raises(OSError, match="dead process") as caught:
        Draft(tmp_path / "a.kv")
    assert caught.value.filename == str(tmp_path / "a.kv")
    assert names(tmp_path) == []


# ---- where there are no locks


@pytest.mark.parametrize("kind", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_without_flock(kind: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drafts are made as ever; and a dead-looking process id proves nothing before an hour has passed."""

    def none(fd: int, how: int) -> None:
        raise OSError(kind, os.strerror(kind))

    monkeypatch.setattr(fcntl, "flock", none)
    gone = f"a.kv.tmp.{dead_pid()}.01234567"
    kept = [f"a.kv.tmp.{dead_pid()}.01234568", f"a.kv.tmp.{os.getppid()}.01234567", f"a.kv.tmp.{os.getpid()}.01234567"]
    for name in (gone, *kept):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (time.time() - (3500 if name == kept[0] else 7200),) * 2)
    ds4kv.dump(tmp_path / "a.kv", PAYLOAD, **FACTS)
    assert names(tmp_path) == sorted(["a.kv", *kept])
    assert held_drafts(str(tmp_path), "a.kv") == []


def test_a_lock_that_fails_otherwise_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(fd: int, how: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    (tmp_path / f"a.kv.tmp.{dead_pid()}.01234567").touch()
    monkeypatch.setattr(fcntl, "flock", fail)
    with pytest.raises(OSError, match="Input/output") as caught:
        ds4kv.dump(tmp_path / "a.kv", PAYLOAD, **FACTS)
    assert caught.value.filename == str(tmp_path / "a.kv")
    assert len(names(tmp_path)) == 1


# ---- modes and owners


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0o077)
    yield
    os.umask(before)


@pytest.mark.usefixtures("umask")
def test_a_replaced_file_keeps_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "a.kv"
    for mode in (0o664, 0o640, 0o600, 0o400, 0o4755):
        ds4kv.dump(path, PAYLOAD, **FACTS)
        path.chmod(mode)
        ds4kv.dump(path, PAYLOAD, **FACTS)
        assert stat.S_IMODE(path.stat().st_mode) == mode & 0o777
        assert main(["convert", str(path), str(path)]) == 0
        assert stat.S_IMODE(path.stat().st_mode) == mode & 0o777
        path.unlink()


@pytest.mark.usefixtures("umask")
def test_a_mode_that_is_given_is_the_mode(tmp_path: Path) -> None:
    path = tmp_path / "a.kv"
    for mode in (0o640, 0o600, 0o664, 0o666):
        with ds4kv.create(path, mode=mode, **FACTS) as checkpoint:
            [name] = drafts(tmp_path)
            assert stat.S_IMODE((tmp_path / name).stat().st_mode) == checkpoint.draft.mode == mode
        assert stat.S_IMODE(path.stat().st_mode) == mode
    for mode in (-1, 0o1000):
        with pytest.raises(ValueError, match="mode is"):
            ds4kv.dump(path, PAYLOAD, mode=mode, **FACTS)
    assert names(tmp_path) == ["a.kv"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_root_leaves_a_file_to_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "a.kv"
    for mode, owner in ((0o660, (1234, 5678)), (0o600, (1234, 5678)), (0o660, (0, 5678))):
        ds4kv.dump(path, PAYLOAD, **FACTS)
        os.chown(path, *owner)
        path.chmod(mode)
        ds4kv.dump(path, PAYLOAD, **FACTS)
        status = path.stat()
        assert (status.st_uid, status.st_gid) == owner
        assert stat.S_IMODE(status.st_mode) == mode


def test_a_group_that_can_not_be_had_gives_its_rights_to_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.kv"
    real = os.stat

    def of_another_group(path: Any, **options: Any) -> os.stat_result:
        status = list(real(path, **options))
        status[5] += 1
        return os.stat_result(status)

    def refuse(fd: int, uid: int, gid: int) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    for mode, expected in ((0o660, 0o600), (0o664, 0o644), (0o640, 0o600)):
        ds4kv.dump(path, PAYLOAD, mode=mode, **FACTS)
        draft_module._real_directories.clear()
        with monkeypatch.context() as patch:
            patch.setattr(os, "stat", of_another_group)
            patch.setattr(os, "fchown", refuse)
            ds4kv.dump(path, PAYLOAD, **FACTS)
        assert stat.S_IMODE(path.stat().st_mode) == expected


# ---- names and errors


@pytest.mark.parametrize("size", [230, 231, 232, 240, 255])
def test_a_long_name(size: int, tmp_path: Path) -> None:
    for name in ("a" * (size - 3) + ".kv", "\u00e9" * (size // 2 - 2) + "x" * (size % 2) + "y.kv"):
        path = tmp_path / name
        assert len(os.fsencode(name)) == size
        twin = "b" + name[1:]
        left = [tmp_path / f"{leftovers.stem_of(each)}.tmp.{dead_pid()}.01234567" for each in (name, twin)]
        for each in left:
            each.touch()
        leftovers._last_sweeps.clear()
        with ds4kv.create(path, **FACTS) as checkpoint:
            checkpoint.payload.write(PAYLOAD)
            [one] = held_drafts(str(tmp_path), name)
            assert one == checkpoint.draft.path
            assert held_drafts(str(tmp_path), twin) == []
        assert ds4kv.load(path).payload == PAYLOAD
        assert names(tmp_path) == sorted([name, left[1].name])
        path.unlink()
        left[1].unlink()


def test_names_that_begin_alike_are_not_one(tmp_path: Path) -> None:
    names_ = ["a" * 250 + end for end in ("1", "2")]
    assert len({leftovers.stem_of(name) for name in names_}) == 2
    assert leftovers.stem_of("\udcff" * 250).startswith("\udcff" * 200)  # no UTF-8


def test_errors_name_the_target(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    for name, kind in {
        "a" * 256: errno.ENAMETOOLONG,
        "no/a.kv": errno.ENOENT,
        "file/a.kv": errno.ENOTDIR,
        "loop": errno.ELOOP,
        "folder": errno.EISDIR,
        "fifo": errno.EEXIST,
    }.items():
        for _ in range(2):
            with pytest.raises(OSError) as caught:
                ds4kv.dump(tmp_path / name, PAYLOAD, **FACTS)
            assert (caught.value.errno, caught.value.filename) == (kind, str(tmp_path / name))
            assert caught.value.filename2 is None


def test_a_directory_that_is_removed_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "a.kv"
    for _ in range(2):  # it is known the second time
        path.parent.mkdir()
        with pytest.raises(FileNotFoundError) as caught, ds4kv.create(path, **FACTS) as checkpoint:
            checkpoint.payload.write(PAYLOAD)
            shutil.rmtree(path.parent)
        assert caught.value.filename == str(path)
        with pytest.raises(FileNotFoundError) as caught:
            ds4kv.dump(path, PAYLOAD, **FACTS)
        assert caught.value.filename == str(path)


def test_a_link_stays_and_what_it_leads_to_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "a.kv").symlink_to("b.kv")
    (tmp_path / "folder").symlink_to(".")
    for content in (b"first", b"second"):
        for path in (tmp_path / "a.kv", tmp_path / "folder" / "a.kv"):
            ds4kv.dump(path, content, **FACTS)
            assert (tmp_path / "a.kv").is_symlink()
            assert ds4kv.load(tmp_path / "b.kv").payload == content
            assert names(tmp_path) == ["a.kv", "b.kv", "folder"]


def test_a_full_disk_says_where_and_how_much(tmp_path: Path) -> None:
    code = f"""
        import os, resource, signal
        import ds4kv
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
        try:
            ds4kv.dump({str(tmp_path / "a.kv")!r}, bytes(100_000), tokens=1, ctx_size=1, codec="none")
        except OSError as error:
            print(error)
    """
    with started([sys.executable, "-c", textwrap.dedent(code)]) as child:
        out, errors = child.finish()
    assert errors == b""
    expected = f"[Errno 27] File too large: 50052 bytes were to be written at byte 50000: '{tmp_path / 'a.kv'}'\n"
    assert out.decode() == expected
    assert names(tmp_path) == []


# ---- nothing is left, wherever it is broken off


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


class BrokenOffError(BaseException):
    """As of a signal's handler: it may come between any two bytecodes."""


def break_off(act: Callable[[], object], at: int, modules: tuple[str, ...]) -> bool:
    """Whether ``act`` came to its end before the bytecode of this number, in these modules, was reached."""
    count = 0

    def trace(frame: Any, event: str, arg: object) -> Any:
        nonlocal count
        if os.path.basename(frame.f_code.co_filename) not in modules:
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event == "opcode":
            count += 1
            if count == at:
                raise BrokenOffError
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        act()
    except BrokenOffError:
        return False
    finally:
        sys.settrace(before)
    return count < at  # else it was in a __del__


def writes(directory: Path) -> dict[str, Callable[[], object]]:
    path = directory / KEY

    def create(end: str) -> None:
        checkpoint = ds4kv.create(path, workers=0, fsync=True, mode=0o640, **FACTS)
        checkpoint.payload.write(b"payload")
        getattr(checkpoint, end)()

    def upgrade() -> None:
        ds4kv.dump(path, b"payload", layout="v1", **FACTS)
        assert [outcome.error for outcome in Upgrade(directory, layout="v2", workers=0).run()] == [None]

    return {
        "close": lambda: create("close"),
        "abandon": lambda: create("abandon"),
        "dump": lambda: ds4kv.dump(path, bytes(range(100)), layout="v2-checked", workers=0, **FACTS),
        "convert": lambda: main(["convert", str(directory / "source.kv"), str(path), "--threads", "0"]),
        "upgrade": upgrade,
    }


@pytest.mark.slow
@pytest.mark.parametrize("how", ["close", "abandon", "dump", "convert", "upgrade"])
@pytest.mark.timeout(180)
def test_broken_off_anywhere_it_leaves_nothing(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: None)  # from a __del__
    ds4kv.dump(tmp_path / "source.kv", PAYLOAD, **FACTS)
    act = writes(tmp_path)[how]
    act()
    modules = ("draft.py", "writing.py")
    at, step = 1, {"upgrade": 7, "convert": 11}.get(how, 3)
    gc.collect()  # what earlier tests have left
    before = descriptors()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        while not break_off(act, at, modules):
            if descriptors() != before or drafts(tmp_path):
                gc.collect()
            assert (descriptors(), drafts(tmp_path)) == (before, []), f"at bytecode {at}"
            at += step
    assert at > 300


CALLS = {
    "close": ["dup", "replace", "fsync", "fchmod", "flock", "access", "urandom"],
    "abandon": ["unlink", "fchmod", "flock"],
    "dump": ["dup", "replace", "flock", "lstat"],
    "convert": ["dup", "replace", "fsync", "flock"],
    "upgrade": ["dup", "replace", "fsync", "flock", "pwrite", "fchmod", "utime"],
}


@pytest.mark.slow
@pytest.mark.parametrize(("how", "call"), [(how, call) for how, calls in CALLS.items() for call in calls])
def test_whatever_fails_it_leaves_nothing_open(
    how: str, call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ds4kv.dump(tmp_path / "source.kv", PAYLOAD, **FACTS)
    act = writes(tmp_path)[how]
    act()
    module: Any = fcntl if call == "flock" else os
    real = getattr(module, call)
    kind = errno.ENOSPC
    gc.collect()  # what earlier tests have left
    before = descriptors()
    for nth in range(1, 100):
        count = 0

        def fail(*arguments: Any, nth: int = nth, **options: Any) -> Any:
            nonlocal count
            count += 1
            if count == nth:
                raise OSError(kind, os.strerror(kind))
            return real(*arguments, **options)

        with monkeypatch.context() as patch, warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            patch.setattr(module, call, fail)
            with contextlib.suppress(OSError, AssertionError):
                act()
        gc.collect()
        assert descriptors() == before
        if call != "unlink":
            assert drafts(tmp_path) == []
        if count < nth:
            return
    raise AssertionError
