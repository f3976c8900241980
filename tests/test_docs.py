"""The pages in docs/ do what they say: their examples run, in their order, each page in a folder of its own.

A ``python`` block prints the ``text`` block that follows it at once, if one does. In a ``console`` block each command
behind ``$ `` prints the lines up to the next. ``...`` stands for what is another each time, as in a doctest. The blocks
of a page share their variables.
"""

from __future__ import annotations

import contextlib
import doctest
import io
import os
import re
import subprocess
import sysconfig
from pathlib import Path

import pytest
from processes import DEADLINE

import ds4kv

DOCS = Path(__file__).parent.parent / "docs"
BLOCK = re.compile(r"^```(python|console)\n(.*?)^```\n(?:\n```text\n(.*?)^```)?", re.M | re.S)
PAGES = [
    pytest.param(str(page.relative_to(DOCS)), marks=pytest.mark.slow if "```console" in page.read_text() else ())
    for page in sorted(DOCS.rglob("*.md"))
    if BLOCK.search(page.read_text())
]


def check(shown: str, printed: str) -> None:
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    if not doctest.OutputChecker().check_output(shown, printed, flags):
        assert printed == shown


def run_console(block: str) -> None:
    environ = {**os.environ, "PATH": f"{sysconfig.get_path('scripts')}:{os.environ['PATH']}", "COLUMNS": "120"}
    for command, shown in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block, re.M):
        ran = subprocess.run(
            ["bash", "-c", command],
            env=environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=DEADLINE,
        )
        check(shown, ran.stdout)


@pytest.mark.parametrize("page", PAGES)
def test_examples_do_what_they_say(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    variables: dict[str, object] = {}
    for kind, block, shown in BLOCK.findall((DOCS / page).read_text()):
        if kind == "console":
            run_console(block)
            continue
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(block, page, "exec"), variables)
        check(shown, printed.getvalue())


def test_every_block_is_of_a_kind_that_somebody_checks() -> None:
    kinds = {kind for page in DOCS.rglob("*.md") for kind in re.findall(r"^```([\w{}-]+)$", page.read_text(), re.M)}
    assert kinds == {"python", "console", "text", "c", "{eval-rst}", "{toctree}", "{command-line}", "{rooms}"}


@pytest.mark.parametrize("name", ds4kv.__all__)
def test_every_public_name_is_in_the_reference(name: str) -> None:
    assert re.search(rf"^\.\. auto\w+:: {name}\b", (DOCS / "reference" / "python.md").read_text(), re.M)


@pytest.mark.parametrize("room", ["core", "format", "stream", "file", "store"])
def test_every_module_has_its_line_in_the_architecture(room: str) -> None:
    [lines] = re.findall(rf"^    ds4kv/{room}/ .*\n((?: {{8}}.*\n)*)", (DOCS / "architecture.md").read_text(), re.M)
    modules = {path.stem for path in (DOCS.parent / "ds4kv" / room).glob("*.py")} - {"__init__"}
    assert sorted(re.findall(r"^ {8}(\w+) ", lines, re.M)) == sorted(modules)
