"""No test hangs for ever: every child process has a deadline, drained pipes, and its end in ``finally``."""

from __future__ import annotations

import ast
import fnmatch
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import DEADLINE, Fork, forked, started, status_of_fork

TESTS = Path(__file__).parent
TEST_FILES = [*TESTS.glob("test_*.py"), *TESTS.glob("engines/test_*.py")]
FORBIDDEN = {
    "subprocess": {"Popen", "call", "check_call", "check_output", "getoutput", "getstatusoutput"},
    "os": {"fork", "forkpty", "system", "popen", "posix_spawn", "posix_spawnp", "wait", "waitpid"},
    "pty": {"fork", "spawn"},
}


def loose_ends(code: str) -> list[int]:
    """The lines that start a process which nobody may ever end."""
    lines = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            lines += [node.lineno] * any(name.partition(".")[0] == "multiprocessing" for name in names)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            lines += [node.lineno] * (node.attr in FORBIDDEN.get(node.value.id, ()))
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "subprocess.run":
            lines += [node.lineno] * ("timeout" not in {keyword.arg for keyword in node.keywords})
    return lines


@pytest.mark.parametrize("path", sorted([*TESTS.glob("*.py"), *TESTS.glob("engines/*.py")]), ids=lambda path: path.name)
def test_processes_are_started_by_the_helpers(path: Path) -> None:
    if path.name != "processes.py":
        assert loose_ends(path.read_text()) == []


def test_make_knows_every_test_file_by_one_room() -> None:
    makefile = (TESTS.parent / "Makefile").read_text().replace("\\\n", " ")
    rooms = re.search(r"^ROOMS += (.*)", makefile, re.M)[1].split()
    named = [name for room in rooms for name in re.search(rf"^{room} += (.*)", makefile, re.M)[1].split()]
    assert len(set(named)) == len(named)
    missing = {path.stem.removeprefix("test_") for path in TEST_FILES} - set(named)
    assert missing == set(), "give them a room in Makefile"


def test_newcomers_are_told_what_each_test_is_for() -> None:
    table = [line for line in (TESTS.parent / "CONTRIBUTING.md").read_text().splitlines() if line.startswith("|")]
    named = re.findall(r"`(test_[\w*]+)`", "".join(table))
    names = {path.stem for path in TEST_FILES}
    missing = {name for name in names if not any(fnmatch.fnmatch(name, pattern) for pattern in named)}
    assert missing == set(), "name them in the table of CONTRIBUTING.md"


@pytest.mark.slow
@pytest.mark.parametrize("is_required", [False, True])
def test_without_an_engine_its_tests_are_skipped_by_name_but_not_where_it_is_required(
    is_required: bool, tmp_path: Path
) -> None:
    """The engine is another one, that nobody has; an import that fails for another reason is never a skip."""
    conftest = (TESTS / "engines/conftest.py").read_text().replace('"torch"', '"no_such_engine"')
    (tmp_path / "conftest.py").write_text(conftest)
    (tmp_path / "test_engine.py").write_text("import no_such_engine\n")
    (tmp_path / "test_control.py").write_text("def test_it() -> None: ...\n")
    environ = {**os.environ, "DS4KV_ENGINES": "required" if is_required else ""}
    command = [sys.executable, "-m", "pytest", "-rs", "--import-mode=importlib", "--rootdir", tmp_path, tmp_path]

    def run() -> tuple[int, str]:
        ran = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=DEADLINE)
        return ran.returncode, ran.stdout

    code, printed = run()
    assert (code, "1 error" in printed) == ((2, True) if is_required else (0, False)), printed
    assert ("1 passed, 1 skipped" in printed) is not is_required
    assert ("test_engine.py: no no_such_engine;" in printed) is not is_required
    (tmp_path / "test_engine.py").write_text("import pytest\npytest.importorskip('no_such_engine')\n")
    assert run()[0] == (2 if is_required else 0)
    (tmp_path / "test_engine.py").write_text("import no_such_helper\n")
    assert run()[0] == 2


def test_the_rule_sees_what_it_forbids() -> None:
    code = "import multiprocessing\nos.fork()\nsubprocess.run(a)\nsubprocess.run(a, timeout=1)\nsubprocess.Popen(a)\n"
    assert sorted(loose_ends(code)) == [1, 2, 3, 5]


@pytest.mark.parametrize("path", sorted((TESTS.parent / "csrc/tests").glob("*.c")), ids=lambda path: path.name)
def test_tests_in_c_end_and_so_do_their_children(path: Path) -> None:
    code = path.read_text()
    assert re.search(r"^int main\(.*\)\n\{\n    watchdog\(\);", code, re.M)
    assert re.findall(r"\b(?:fork|waitpid|system|popen)\(", code) == []


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


FOREVER = [sys.executable, "-c", "while True: print('x' * 1000)"]


def test_a_child_that_prints_for_ever_ends_with_its_block() -> None:
    with pytest.raises(ZeroDivisionError), started(FOREVER) as child:
        assert child.line() == b"x" * 1000 + b"\n"
        raise ZeroDivisionError
    assert is_gone(child.pid)


def test_a_child_that_does_not_end_in_time_is_named_and_ended() -> None:
    with pytest.raises((AssertionError, subprocess.TimeoutExpired), match=r"x' \* 1000"):
        with started(FOREVER, deadline=0.2) as child:
            child.finish()
    assert is_gone(child.pid)


def test_a_fork_ends_with_its_block() -> None:
    for error, work in ((ZeroDivisionError, lambda child: 1 / 0), (AssertionError, Fork.finish)):
        with pytest.raises(error), forked(lambda: time.sleep(60), deadline=0.2) as child:
            work(child)
        assert is_gone(child.pid)


def test_a_fork_tells_how_it_ended(capfd: pytest.CaptureFixture[str]) -> None:
    assert status_of_fork(lambda: None) == 0
    assert capfd.readouterr().err == ""
    assert status_of_fork(lambda: 1 / 0) == 1
    assert "ZeroDivisionError" in capfd.readouterr().err
    assert status_of_fork(lambda: os.kill(os.getpid(), signal.SIGKILL)) == -signal.SIGKILL


def test_children_hear_ctrl_c_whoever_runs_the_tests() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with started([sys.executable, "-c", "print('begun', flush=True)\nwhile True: pass"]) as child:
            assert child.line() == b"begun\n"
            child.process.send_signal(signal.SIGINT)
            assert b"KeyboardInterrupt" in child.finish()[1]
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
