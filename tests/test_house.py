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
    "ctrl_c": set(),
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
    "fileobj": set(),
    "lifetime": {"c_files", "errors"},
    "stream": {"_core", "fileobj", "files", "lifetime", "workers", "errors", "header"},
    "mid": {"stream", "files", "header", "errors"},
    "facts": {"layout"},
    "note": {"facts", "_core", "files", "layout", "header", "errors"},
    "database": {"forks"},
    "ledger": {"database", "note", "lock"},
    "integrity": {"ledger", "note"},
    "naming": {"forks"},
    "salvage": {"_core", "files", "integrity", "layout", "naming", "workers", "header", "errors"},
    "reading": {
        "forks",
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
    "writing": {"draft", "integrity", "stream", "_core", "files", "layout", "naming", "header", "workers", "errors"},
    "checkpoint": {"reading", "writing", "salvage", "integrity", "_core", "files", "header"},
    "native_files": set(),
    "lock": set(),
    "leftovers": {"forks"},
    "draft": {"_core", "leftovers"},
    "quarantine": set(),
    "background": {"index", "saving"},
    "forks": set(),
    "claims": {"forks"},
    "rewrite": {"files", "layout", "header", "errors"},
    "index": {"files", "layout", "naming", "header", "errors"},
    "lookup": {"directory", "index", "naming"},
    "directory": {"errors", "forks", "index", "integrity", "lock", "log", "policy", "quarantine", "rewrite"},
    "loading": {
        "directory",
        "reading",
        "integrity",
        "index",
        "files",
        "lock",
        "log",
        "rewrite",
        "trailer",
        "errors",
    },
    "settings": {"policy", "workers", "header", "stream", "writing"},
    "room": {"directory", "draft", "header", "policy", "settings", "writing"},
    "saving": {"claims", "directory", "index", "lock", "log", "rewrite", "room", "stream"},
    "saves": {
        "claims",
        "directory",
        "draft",
        "header",
        "index",
        "layout",
        "log",
        "policy",
        "room",
        "saving",
        "settings",
        "trailer",
    },
    "upkeep": {
        "directory",
        "draft",
        "errors",
        "files",
        "header",
        "index",
        "layout",
        "loading",
        "lock",
        "log",
        "reading",
        "rewrite",
    },
    "store": {
        "_core",
        "arguments",
        "background",
        "directory",
        "errors",
        "header",
        "index",
        "integrity",
        "loading",
        "log",
        "lookup",
        "policy",
        "reading",
        "saves",
        "saving",
        "settings",
        "upkeep",
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
        "draft",
        "layout",
        "header",
        "errors",
    },
    "sessions": {
        "directory",
        "draft",
        "checkpoint",
        "files",
        "layout",
        "reading",
        "writing",
        "index",
        "integrity",
        "lock",
        "header",
        "errors",
    },
    "synthetic": set(),
    "__init__": {
        "arguments",
        "checkpoint",
        "ctrl_c",
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
    "checkpoint.c": {"checkpoint.h", "ds4kv_stdio.h"},
    "open.c": {"checkpoint.h", "ds4kv_stdio.h"},
    "create.c": {"checkpoint.h", "ds4kv_stdio.h"},
    "checkpoint.h": {"draft.h", "internal.h"},
    "draft.c": {"draft.h", "leftovers.h", "internal.h"},
    "draft.h": set(),
    "leftovers.c": {"leftovers.h", "internal.h"},
    "leftovers.h": set(),
    "internal.h": {"ds4kv.h", "ds4kv_file.h"},
    "ds4kv_file.h": {"ds4kv.h"},
    "ds4kv.h": set(),
    "python_file.h": set(),
    "python_owned.h": set(),
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


TAKES_NAMES_AWAY = {"unlink", "remove", "rename", "renames", "replace", "rmdir", "removedirs", "rmtree", "move"}
MAY_TAKE_NAMES_AWAY = {
    "draft": "of drafts, by who made them",
    "leftovers": "of drafts, after who made them",
    "directory": "of checkpoints",
    "quarantine": "of damaged checkpoints",
    "database": "of the ledger's own database",
}


def takes_names_away(path: Path) -> bool:
    return any(
        isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id in ("os", "shutil")
        and node.attr in TAKES_NAMES_AWAY
        for node in ast.walk(ast.parse(path.read_text()))
    )


def test_a_file_loses_its_name_in_few_places() -> None:
    users = {str(path.relative_to(PACKAGE).with_suffix("")) for path in PACKAGE.rglob("*.py") if takes_names_away(path)}
    assert users == set(MAY_TAKE_NAMES_AWAY)
