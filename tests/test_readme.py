"""What README.md tells a stranger to type works as it stands."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from processes import DEADLINE

import ds4kv

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.M | re.S)


def run_python(code: str, directory: Path) -> list[str]:
    command = [sys.executable, "-c", code]
    ran = subprocess.run(command, cwd=directory, check=True, capture_output=True, text=True, timeout=DEADLINE)
    return ran.stdout.splitlines()


def test_the_python_example_runs(tmp_path: Path) -> None:
    first, second = run_python(blocks("python")[0], tmp_path)
    assert first.startswith("22016000 bytes became ")
    assert second == "1000 b'' 22016000"


def test_the_example_for_engines_runs(tmp_path: Path) -> None:
    code = blocks("python")[1]
    assert run_python(code, tmp_path) == ["1000 tokens, 19 bytes of the prompt, need no prefill"]
    [path] = (tmp_path / "cache").glob("*.kv")
    assert ds4kv.read_header(path).hits == 1
    path.write_bytes(path.read_bytes()[:-1])  # damaged, it is no entry, and saved anew
    assert run_python(code, tmp_path) == ["1000 tokens, 19 bytes of the prompt, need no prefill"]


def test_the_commands_are_two_to_set_up_one_for_the_job_one_for_the_tests() -> None:
    setup, job, tests = ([shlex.split(line, comments=True) for line in block.splitlines()] for block in blocks("sh"))
    assert [command[0] for command in setup] == ["python3", ".venv/bin/pip"]
    assert [command[:2] for command in job] == [[".venv/bin/ds4kv", "ab"]]
    assert tests == [[".venv/bin/pytest"]]


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)#:]+)\)", README))))
def test_links_lead_somewhere(link: str) -> None:
    assert (ROOT / link).exists()


def test_every_subcommand_it_names_exists() -> None:
    command = [sys.executable, "-m", "ds4kv", "--help"]
    shown = subprocess.run(command, check=True, capture_output=True, text=True, timeout=DEADLINE).stdout
    directory = {"ls", "find", "upgrade", "evict", "rm", "sessions"}
    every = {"ab", "info", "verify", "convert", "salvage", "cat", *directory}
    named = set(re.findall(rf"`(?:ds4kv )?({'|'.join(every)})\b", README))
    assert named == every
    for name in named:
        assert re.search(rf"\b{name}\b", shown)
