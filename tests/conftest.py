"""The tests are of the installed package: what the wheel carries, or an editable install while one works on it."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest
from helpers import is_editable
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parent.parent
INSTALL = "run `make test`, or `.venv/bin/pip install '.[cli,test]' && .venv/bin/pytest`, in the repo's root"

# Of chance in CI too, where Hypothesis would leave it out; and a busy machine is no fault of a test.
settings.register_profile(
    "ds4kv", settings.get_profile("default"), deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("ds4kv")


def pytest_configure() -> None:
    # Flat layout: with the repo's root on sys.path, `import ds4kv` is the source folder. Python puts
    # it there for `python -m pytest`, and for any child process that a test starts from the root.
    os.environ["PYTHONSAFEPATH"] = "1"
    found = importlib.util.find_spec("ds4kv")
    if found is None:
        raise pytest.UsageError(f"ds4kv is not installed: {INSTALL}")
    if not Path(found.origin).is_relative_to(ROOT / "ds4kv"):
        return
    if not is_editable():
        raise pytest.UsageError(f"these tests want the installed ds4kv, not the source folder: {INSTALL}")
    if os.environ.get("CI"):
        raise pytest.UsageError("in CI the tests want what the wheel carries, not an editable install")
