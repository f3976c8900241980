"""The short form of the faults: a sample of the calls that fail, and of the power cuts. See README.md here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import processes
import pytest
from faults import run, shim

HERE = Path(run.__file__).parent
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def library() -> Iterator[Path]:
    if shim.compiler() is None:
        pytest.skip("no compiler, or no Linux: the shim can't be built")
    with tempfile.TemporaryDirectory(prefix="ds4kv-faults-", dir=run.memory()) as folder:
        try:
            yield shim.build(Path(folder))
        except subprocess.CalledProcessError as error:
            pytest.skip(f"the shim can't be built here: {error.stderr}")


def test_who_looks_for_faults_finds_them(library: Path) -> None:
    """Each control has one, which is named; and one has none."""
    expected = {
        "Good": [],
        "Leaks": ["descriptors left"],
        "LeavesAThread": ["threads left"],
        "Hangs": ["hang"],
        "Crashes": ["crash"],
        "RaisesWhatItLikes": ["undocumented", "without a fault"],
        "Loses": ["lost"],
        "Condemns": ["condemned"],
        "Damages": ["condemned"],
        "LeavesATemporary": ["temporaries left"],
        "Renames": [],
        "Saving": [],
    }
    environment = os.environ | {"LD_PRELOAD": str(library)}
    (library.parent / "work").mkdir()
    with processes.started(
        [sys.executable, HERE / "controls.py", library.parent / "work"], env=environment, deadline=30
    ) as child:
        out, errors = child.finish()
    assert child.returncode == 0, errors.decode()
    found = [json.loads(line) for line in out.splitlines()]
    assert {name for name, _, _ in found} == set(expected)
    for name, _, problems in found:
        assert [problem.removeprefix("AssertionError: ").split(":")[0] for problem in problems] == expected[name]
    assert [fired for name, fired, _ in found if name in ("Renames", "Saving")] == [True, False, True]


@pytest.mark.parametrize(
    "words", [["--sample", "140", "--cuts", "0"], ["--sample", "0", "--cuts", "80"]], ids=["calls", "cuts"]
)
def test_a_sample(words: list[str]) -> None:
    """What is printed names the scenario and the fault; `run.py --only SCENARIO --at FAULT` does it again."""
    with processes.started([sys.executable, HERE / "run.py", "--jobs", "2", *words], deadline=55) as child:
        out, errors = child.finish()
    if child.returncode == run.NOT_HERE:
        pytest.skip(out.decode())
    assert child.returncode == 0, (out + errors).decode()
