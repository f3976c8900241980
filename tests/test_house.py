"""The floors: which module may import which. What stands higher is never imported from below."""

from __future__ import annotations

import ast
import importlib.util
import re
from pathlib import Path

import pytest

PACKAGE = Path(importlib.util.find_spec("ds4kv").origin).parent
CSRC = Path(__file__).parent.parent / "csrc"

FLOORS = {
    "errors": set(),
    "workers": set(),
    "header": {"errors"},
    "policy": {"header"},
    "trailer": set(),
    "log": {"policy", "header", "errors"},
    "arguments": {"policy", "trailer", "workers"},
    "layout": {"errors", "header"},
    "files": {"errors"},
    "_core": {"errors", "_native"},
    "c_files": {"errors", "_native"},
    "stream": {"_core", "c_files", "files", "workers", "errors", "header"},
    "mid": {"stream", "files", "header", "errors"},
    "facts": {"layout"},
    "note": {"facts", "_core", "files", "layout", "header", "errors"},
    "database": set(),
    "ledger": {"database", "note", "lock"},
    "integrity": {"ledger", "note"},
    "naming": set(),
    "salvage": {"_core", "files", "integrity", "layout", "naming", "workers", "header", "errors"},
    "reading": {
        "integrity",
        "mid",
        "stream",
        "rewrite",
        "_core",
        "files",
        "layout",
        "naming",
        "header",
        "workers",
        "errors",
    },
    "writing": {"integrity", "stream", "_core", "files", "layout", "naming", "header", "workers", "errors"},
    "checkpoint": {"reading", "writing", "salvage", "integrity", "_core", "files", "header"},
    "native_files": set(),
    "lock": set(),
    "temporary": set(),
    "quarantine": set(),
    "background": set(),
    "rewrite": {"files", "layout", "header", "errors"},
    "index": {"files", "layout", "naming", "header", "errors"},
    "lookup": {"index"},
    "directory": {"index", "integrity", "lock", "log", "policy", "quarantine", "rewrite"},
    "loading": {
        "directory",
        "reading",
        "stream",
        "integrity",
        "index",
        "files",
        "lock",
        "log",
        "rewrite",
        "trailer",
        "errors",
    },
    "saving": {
        "directory",
        "integrity",
        "writing",
        "stream",
        "index",
        "lock",
        "log",
        "policy",
        "rewrite",
        "temporary",
        "layout",
        "header",
    },
    "store": {
        "arguments",
        "reading",
        "stream",
        "writing",
        "files",
        "rewrite",
        "loading",
        "lock",
        "saving",
        "lookup",
        "background",
        "directory",
        "index",
        "integrity",
        "log",
        "policy",
        "temporary",
        "trailer",
        "layout",
        "workers",
        "header",
        "errors",
    },
    "upgrade": {
        "reading",
        "writing",
        "naming",
        "stream",
        "index",
        "integrity",
        "_core",
        "lock",
        "rewrite",
        "temporary",
        "layout",
        "header",
        "errors",
    },
    "sessions": {"directory", "checkpoint", "reading", "writing", "index", "integrity", "lock", "header", "errors"},
    "synthetic": set(),
    "__init__": {
        "arguments",
        "checkpoint",
        "index",
        "native_files",
        "sessions",
        "store",
        "stream",
        "header",
        "errors",
    },
}
INCLUDES = {
    "frame.c": {"internal.h"},
    "file.c": {"internal.h"},
    "codec.c": {"internal.h", "lz4.h", "lz4hc.h"},
    "transpose.c": {"internal.h", "xxhash.h"},
    "hash.c": {"internal.h", "xxhash.h"},
    "mid.c": {"internal.h"},
    "ring.c": {"internal.h"},
    "writer.c": {"internal.h"},
    "reader.c": {"internal.h"},
    "oneshot.c": {"internal.h"},
    "stdio.c": {"ds4kv_stdio.h"},
    "ds4kv_stdio.h": {"ds4kv.h"},
    "header.c": {"internal.h"},
    "layout.c": {"internal.h"},
    "sha1.c": {"internal.h"},
    "checkpoint.c": {"internal.h", "ds4kv_stdio.h"},
    "internal.h": {"ds4kv.h", "ds4kv_file.h"},
    "ds4kv_file.h": {"ds4kv.h"},
    "ds4kv.h": set(),
    "python_file.h": set(),
}


def imported(path: Path) -> set[str]:
    """The modules of the package that this one imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "ds4kv":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ds4kv."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("ds4kv.")}
    return found


def test_every_module_has_a_floor() -> None:
    modules = {path.stem for path in PACKAGE.glob("*.py")} - {"__main__"}
    assert modules == set(FLOORS)


@pytest.mark.parametrize("module", FLOORS)
def test_imports_go_down(module: str) -> None:
    assert imported(PACKAGE / f"{module}.py") <= FLOORS[module]


@pytest.mark.parametrize("name", INCLUDES)
def test_includes_go_down(name: str) -> None:
    text = (CSRC / name).read_text()
    assert set(re.findall(r'#include "(.*)"', text)) == INCLUDES[name]
    assert "Python.h" not in text


def test_only_two_modules_touch_ffi() -> None:
    users = {path.stem for path in PACKAGE.rglob("*.py") if re.search(r"\bffi\b|_native", path.read_text())}
    assert users == {"_core", "c_files"}
