"""What subcommands write where: terminals, pipes, full disks, closed descriptors, and Ctrl-C at any time."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import signal
import subprocess
import sys
import sysconfig
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from processes import DEADLINE, started

import ds4kv
from ds4kv.cli import main

TEXT = b"first\tline\nsecond \x1b[2J\x07\r\xc2\x9b1m \xff \xe2\x80\xae \xc3\xa9\n"
SHOWN = "first\tline\nsecond \\x1b[2J\\x07\\r\\x9b1m \\xff \\u202e \u00e9\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "a.kv"
    ds4kv.dump(path, b"\x1b]0;payload\x07" * 1000, text=TEXT, tokens=1, ctx_size=1)
    return path


def run(*args: object, **options: Any) -> tuple[int, bytes, bytes]:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    done = subprocess.run([sys.executable, "-m", "ds4kv", *map(str, args)], timeout=DEADLINE, **pipes)
    return done.returncode, done.stdout or b"", done.stderr


def on_a_terminal(*args: object) -> tuple[int, bytes, bytes]:
    """Exit code, what the terminal got, stderr."""
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    shown = []

    def drain() -> None:
        with contextlib.suppress(OSError):  # that is how a terminal ends
            while piece := os.read(ours, 1 << 16):
                shown.append(piece)

    drainer = threading.Thread(target=drain, daemon=True)
    drainer.start()
    try:
        code, _, err = run(*args, stdout=theirs, env=os.environ | {"PYTHONIOENCODING": "utf-8"})
    finally:
        os.close(theirs)
        drainer.join(DEADLINE)
        os.close(ours)
    return code, b"".join(shown).replace(b"\r\n", b"\n"), err


# ----------------------------------------------------------------------------------------- terminals


def test_cat_pours_nothing_binary_on_a_terminal(path: Path) -> None:
    code, shown, err = on_a_terminal("cat", path)
    assert (code, shown) == (2, b"")
    assert err.startswith(b"ds4kv: error: the payload of ") and b"> FILE, or --force" in err and err.count(b"\n") == 1
    code, shown, err = on_a_terminal("cat", "--force", path)  # the control
    assert (code, shown, err) == (0, ds4kv.load(path).payload, b"")


def test_cat_escapes_what_a_text_could_do_to_a_terminal(path: Path) -> None:
    assert on_a_terminal("cat", "--text", path) == (0, SHOWN.encode(), b"")
    code, shown, _ = on_a_terminal("cat", "--text", "--force", path)
    assert (code, b"\x1b[2J\x07" in shown) == (0, True)
    assert run("cat", "--text", path) == (0, TEXT, b"")  # a pipe gets it byte for byte


# ------------------------------------------------------------------------------------------- no room


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
@pytest.mark.parametrize("options", [[], ["--text"]])
def test_a_full_disk_below_cat(options: list[str], path: Path) -> None:
    size = len(TEXT) if options else len(ds4kv.load(path).payload)
    with open("/dev/full", "wb") as full:
        code, _, err = run("cat", *options, path, stdout=full)
    why = f"No space left on device: {size:,} bytes were to be written"
    assert (code, err.decode()) == (1, f"ds4kv: error: stdout: {why}\n")


@pytest.mark.slow
@pytest.mark.parametrize("command", ["convert", "salvage", "upgrade", "ab", "verify"])
def test_what_has_no_room_is_named_and_how_much_was_to_be_written(command: str, tmp_path: Path) -> None:
    """By the limit on the size of files: that is met where a full disk is, in the middle of a write."""
    payload = os.urandom(1000)
    directory = tmp_path / "kv"
    directory.mkdir()
    source, target = directory / f"{hashlib.sha1(b'').hexdigest()}.kv", tmp_path / "target.kv"
    ds4kv.dump(source, payload, tokens=1, ctx_size=1, codec="none")
    before = source.read_bytes()
    argv, where = {
        "convert": (["convert", source, target, "--layout", "v1"], target),
        "salvage": (["salvage", source, target], target),
        "upgrade": (["upgrade", directory, "--layout", "v1"], source),
        "verify": (["verify", *[source] * 9, "--resume", target], target),
        "ab": (["ab", "--csv", "--rounds", "1", "--dir", tmp_path, source], "ab.kv"),
    }[command]
    code = """
import resource, signal, sys
from ds4kv.cli import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
sys.exit(main(sys.argv[2:]))
"""
    for limit, expected in ((200, 1), (1 << 20, 0)):
        done = subprocess.run(
            [sys.executable, "-c", code, str(limit), *map(str, argv)], capture_output=True, timeout=DEADLINE, text=True
        )
        assert done.returncode == expected
        told = done.stdout + done.stderr
        assert bool(re.search(rf"{where}: .*File too large: [0-9]+ bytes were to be written", told)) == bool(expected)
        if expected:
            assert source.read_bytes() == before
            assert [name for name in tmp_path.iterdir() if ".tmp." in name.name or "ds4kv-ab-" in name.name] == []
            assert target.exists() == (command == "verify")


# -------------------------------------------------------------------------------- closed descriptors


def in_a_shell(line: str, **names: object) -> tuple[int, bytes, bytes]:
    env = os.environ | {"PYTHON": sys.executable} | {name: str(value) for name, value in names.items()}
    done = subprocess.run(["sh", "-c", line], capture_output=True, env=env, timeout=DEADLINE)
    return done.returncode, done.stdout, done.stderr


def test_messages_of_a_closed_stderr_go_nowhere(path: Path, tmp_path: Path) -> None:
    code, out, err = in_a_shell('"$PYTHON" -m ds4kv info "$DIR/missing" 2>&-', DIR=tmp_path)
    assert (code, out, err) == (1, b"", b"")
    # The new file would have got the number of the stream that is closed, and the message.
    before = path.read_bytes()
    for closed in ("2>&-", "<&- 2>&-", "<&- >/dev/null 2>&-"):
        line = f'"$PYTHON" -m ds4kv convert "$FILE" "$DIR/new.kv" --layout v1 {closed}'
        code, out, err = in_a_shell(line, FILE=path, DIR=tmp_path)
        assert (code, err) == (0, b"")
        assert ds4kv.load(tmp_path / "new.kv").payload == ds4kv.load(path).payload
    code, out, err = in_a_shell('"$PYTHON" -m ds4kv info "$DIR/missing"', DIR=tmp_path)  # the control
    assert (code, out) == (1, b"") and err.startswith(b"ds4kv: error: ")
    assert path.read_bytes() == before


@pytest.mark.slow
@pytest.mark.parametrize("command", ['info "$FILE"', 'cat "$FILE"', 'cat --text "$FILE"', 'verify "$FILE"', "--help"])
def test_results_that_have_nowhere_to_go_are_an_error(command: str, path: Path) -> None:
    code, out, err = in_a_shell(f'"$PYTHON" -m ds4kv {command} >&-', FILE=path)
    assert (code, out) == (1, b"")
    assert err.startswith(b"ds4kv: error: stdout: Bad file descriptor") and err.count(b"\n") == 1
    assert in_a_shell(f'"$PYTHON" -m ds4kv {command} >/dev/null', FILE=path) == (0, b"", b"")  # the control


# -------------------------------------------------------------------------------------------- Ctrl-C


@pytest.mark.parametrize(
    "command",
    [
        pytest.param([os.path.join(sysconfig.get_path("scripts"), "ds4kv")], id="ds4kv"),
        pytest.param([sys.executable, "-m", "ds4kv"], id="python -m ds4kv"),
    ],
)
def test_ctrl_c_while_it_is_imported_is_no_traceback(command: list[str], tmp_path: Path) -> None:
    """What is imported first, and what is imported last, says that it is there and waits for the signal."""
    hook = """
import os, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
class Stop:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == os.environ["STOP_AT"]:
            print("here", flush=True)
            time.sleep(30)
sys.meta_path.insert(0, Stop)
"""
    (tmp_path / "sitecustomize.py").write_text(hook)
    for name in ("ds4kv.file.api", "ds4kv.core._native", "ds4kv.cli", "ds4kv.cli.arguments", "ds4kv.cli.info"):
        env = os.environ | {"PYTHONPATH": str(tmp_path), "STOP_AT": name}
        with started([*command, "info", "x"], env=env) as child:
            assert child.line() == b"here\n"
            child.process.send_signal(signal.SIGINT)
            assert child.finish() == (b"", b""), name
        # A process that ends by the signal is 130 to a shell too.
        assert child.returncode in (130, -signal.SIGINT), name


def test_who_imports_the_package_keeps_ctrl_c(tmp_path: Path) -> None:
    (tmp_path / "other.py").write_text(
        "import signal, ds4kv\nassert signal.getsignal(signal.SIGINT) is signal.default_int_handler\n"
    )
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    (tmp_path / "sitecustomize.py").write_text(code)
    for argv in (["-m", "other", "-m", "ds4kv"], ["-c", "import other", "-m", "ds4kv"]):
        with started([sys.executable, *argv], env=os.environ | {"PYTHONPATH": str(tmp_path)}) as child:
            assert child.finish() == (b"", b"")
        assert child.returncode == 0


# ------------------------------------------------------------------------- what changes while it is read


def test_a_file_that_is_written_to_is_unreadable_and_not_corrupt(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with path.open("r+b") as fp:
        fp.seek(-8, os.SEEK_END)
        fp.write(b"\xff" * 8)
    assert main(["verify", str(path)]) == 1
    assert f"{path}: corrupt: " in capsys.readouterr().out  # the control: nobody writes
    open_checkpoint = ds4kv.open

    def opened(*args: Any, **options: Any) -> ds4kv.CheckpointReader:
        checkpoint = open_checkpoint(*args, **options)
        os.utime(path, ns=(time.time_ns(), time.time_ns()))
        return checkpoint

    monkeypatch.setattr(ds4kv, "open", opened)
    assert main(["verify", str(path)]) == 1
    out = capsys.readouterr().out
    assert f"{path}: unreadable: the file was changed while it was read\n" in out
