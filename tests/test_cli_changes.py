"""What subcommands change in a directory: through the store's own ways, beside others, and what they say of it."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import answer
from processes import DEADLINE

from ds4kv.cli import main
from ds4kv.file import lock
from ds4kv.file.ledger import Ledger
from ds4kv.file.lock import LOCK_NAME, locked
from ds4kv.store.quarantine import Quarantine
from ds4kv.store.store import Store

TEXTS = (b"one", b"two", b"three")


@pytest.fixture
def kv(tmp_path: Path) -> Path:
    """A directory as a store leaves it: three checkpoints that are noted, and one that was set aside."""
    directory = tmp_path / "kv"
    with Store(directory, workers=1, codec="none") as store:
        for text in (*TEXTS, b"damaged"):
            path = Path(store.save_buffer(text, bytes(1 << 20), tokens=600, ctx_size=4096).path)
    with locked(str(directory)):
        Quarantine(str(directory), max_bytes=1 << 30).take(str(path))
    return directory


def noted(kv: Path) -> set[str]:
    with contextlib.closing(Ledger(str(kv))) as ledger:
        return ledger.names()


def checkpoints(kv: Path) -> list[Path]:
    return sorted(kv.glob("*.kv"))


def refuse(monkeypatch: pytest.MonkeyPatch, *paths: Path) -> None:
    unlink = os.unlink

    def refusing(path: str) -> None:
        if Path(path) in paths:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), path)
        unlink(path)

    monkeypatch.setattr(os, "unlink", refusing)


def test_rm_goes_on_and_forgets_the_notes(
    kv: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second, third = checkpoints(kv)
    assert noted(kv) >= {first.name, second.name, third.name}
    refuse(monkeypatch, first)
    assert main(["rm", str(kv), first.stem, second.stem]) == 1
    assert capsys.readouterr() == (
        f"removed {second}, 1.0 MiB\n",
        f"{first}: not removed: Operation not permitted\n",
    )
    assert noted(kv) & {path.name for path in (first, second, third)} == {first.name, third.name}


def test_evict_forgets_the_notes(kv: Path) -> None:
    before = set(checkpoints(kv))
    assert main(["evict", str(kv), "--budget-mb", "2"]) == 0
    left = set(checkpoints(kv))
    gone = {path.name for path in before - left}
    assert len(gone) == 2
    assert not noted(kv) & gone
    assert noted(kv) >= {path.name for path in left}


@pytest.mark.parametrize("command", ["evict --budget-mb 1", "rm {sha}", "upgrade", "quarantine --clear"])
def test_what_waits_says_for_whom(
    command: str, kv: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name, *options = command.format(sha=checkpoints(kv)[0].stem).split()
    argv = [name, str(kv), *options]
    before = [*checkpoints(kv), *(kv / "quarantine").iterdir()]
    waits = f"ds4kv: waiting for process {os.getpid()}, which holds {kv / LOCK_NAME}"
    monkeypatch.setattr(lock, "_TIMEOUT", 0.05)
    with locked(str(kv)):
        assert main(argv) == 1
        out, err = capsys.readouterr()
        assert err.splitlines()[0] == waits
        assert f"the lock of the store was held by process {os.getpid()}" in out + err
    assert [*checkpoints(kv), *(kv / "quarantine").iterdir()] == before
    assert main(argv) == 0  # the control: nobody has it
    assert waits not in capsys.readouterr().err


def test_a_lock_that_is_not_to_be_had_is_told(kv: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (kv / LOCK_NAME).unlink()
    (kv / LOCK_NAME).symlink_to("elsewhere")
    assert main(["rm", str(kv), checkpoints(kv)[0].stem]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("removed ")
    assert err == f"ds4kv: kv cache goes without its lock {kv / LOCK_NAME}: not a regular file, and not followed\n"
    assert not (kv / "elsewhere").exists()


# ---------------------------------------------------------------------------------------- quarantine


def set_aside(kv: Path, *names: str) -> None:
    for name in names:
        (kv / "quarantine" / name).write_bytes(bytes(1 << 20))


def test_quarantine_is_shown_and_cleared(kv: Path, capsys: pytest.CaptureFixture[str]) -> None:
    [damaged] = (kv / "quarantine").iterdir()
    size = damaged.stat().st_size
    assert main(["quarantine", str(kv)]) == 0
    heading, row, total = capsys.readouterr().out.splitlines()
    assert (heading.split(), row.split()[::2]) == (["MiB", "age", "name"], ["1.0", damaged.name])
    assert total == "1 file in quarantine, 1.0 MiB"
    assert main(["ls", str(kv)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "3 checkpoints, 3.0 MiB; in quarantine 1 file, 1.0 MiB"
    assert main(["ls", str(kv), "--json"]) == 0
    assert answer(capsys)["quarantine"] == {"files": 1, "file_bytes": size}

    set_aside(kv, "second", "third\n")
    assert main(["quarantine", str(kv), "--clear", "second", "--json"]) == 0
    told = answer(capsys)
    assert (told["cleared"], told["file_bytes"]) == (True, 1 << 20)
    assert [(row["name"], row["path"]) for row in told["files"]] == [("second", str(kv / "quarantine" / "second"))]
    assert main(["quarantine", str(kv), "--clear"]) == 0
    *_, last, total = capsys.readouterr().out.splitlines()
    assert total == "2 files removed, 2.0 MiB"
    assert last.endswith("'third\\n'")  # which can't fake a line
    assert list((kv / "quarantine").iterdir()) == []
    assert len(checkpoints(kv)) == 3
    assert main(["quarantine", str(kv)]) == 0
    assert capsys.readouterr().out == "0 files in quarantine, 0.0 MiB\n"


def test_quarantine_removes_nothing_unless_all_names_are_there(kv: Path, capsys: pytest.CaptureFixture[str]) -> None:
    [damaged] = (kv / "quarantine").iterdir()
    assert main(["quarantine", str(kv), "--clear", damaged.name, "other"]) == 1
    assert capsys.readouterr().err == f"ds4kv: error: no file other in {kv / 'quarantine'}\n"
    for name in ("../one.kv", "", "a/b"):
        assert main(["quarantine", str(kv), "--clear", name]) == 1
    assert damaged.exists()
    assert main(["quarantine", str(kv / "missing")]) == 1
    assert "No such file or directory" in capsys.readouterr().err


def test_quarantine_goes_on_where_a_file_stays(
    kv: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    [damaged] = (kv / "quarantine").iterdir()
    set_aside(kv, "second")
    refuse(monkeypatch, damaged)
    assert main(["quarantine", str(kv), "--clear"]) == 1
    out, err = capsys.readouterr()
    assert out.splitlines()[-1] == "1 file removed, 1.0 MiB"
    assert err == f"{damaged}: not removed: Operation not permitted\n"
    assert list((kv / "quarantine").iterdir()) == [damaged]


def test_a_quarantine_that_leads_elsewhere_is_not_followed(
    kv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (kv / "quarantine").rename(tmp_path / "elsewhere")
    (kv / "quarantine").symlink_to(tmp_path / "elsewhere")
    why = "a quarantine is a directory, and not a link to one"
    assert main(["quarantine", str(kv), "--clear"]) == 1
    assert capsys.readouterr().err == f"ds4kv: error: {kv / 'quarantine'}: {why}\n"
    assert main(["ls", str(kv)]) == 1
    out, err = capsys.readouterr()
    assert out.splitlines()[-1] == "3 checkpoints, 3.0 MiB"
    assert err == f"{kv / 'quarantine'}: unreadable: {why}\n"
    assert len(list((tmp_path / "elsewhere").iterdir())) == 1


# ----------------------------------------------------------------------------------------- who looks


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        "ls {kv}",
        "ls --json {kv}",
        "find {kv} --prompt-file {prompt}",
        "info {file}",
        "verify {kv}",
        "verify {file} {aside}",
        "cat {file}",
        "cat --text {file}",
        "sessions {kv}",
        "evict {kv} --budget-mb 1 --dry-run",
        "upgrade {kv} --dry-run",
        "quarantine {kv}",
        "quarantine {kv} --json",
    ],
)
def test_who_looks_changes_nothing(command: str, kv: Path, tmp_path: Path) -> None:
    """In a directory with all that a store makes, and what a killed process left."""
    (kv / f"{'0' * 40}.kv.tmp.999999999.01234567").write_bytes(b"left by a dead process")
    prompt = tmp_path / "prompt"
    prompt.write_bytes(b"one and more")
    [aside] = (kv / "quarantine").iterdir()
    argv = command.format(kv=kv, file=checkpoints(kv)[0], prompt=prompt, aside=aside).split()

    def state() -> dict[str, tuple[int, ...]]:
        found = [kv, *sorted(kv.rglob("*"))]
        return {str(path): (s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for path in found if (s := path.stat())}

    before = state()
    assert len(before) >= 9
    done = subprocess.run([sys.executable, "-m", "ds4kv", *argv], capture_output=True, timeout=DEADLINE)
    assert done.returncode == 0, done.stderr
    assert state() == before
    assert main(["rm", str(kv), checkpoints(kv)[0].stem]) == 0  # the control: a change is seen
    assert state() != before
