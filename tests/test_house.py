"""The floors: which module may import which. What stands higher is never imported from below."""

from __future__ import annotations

import ast
import functools
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
from processes import DEADLINE

from ds4kv._moved import MOVED

PACKAGE = Path(importlib.util.find_spec("ds4kv").origin).parent
CSRC = Path(__file__).parent.parent / "csrc"

ROOMS = ["core", "format", "stream", "file", "store", "engines", "cli"]
"""From the ground up. A module imports from its own room and from those below, ``errors`` is below all."""

PUBLIC = {"ds4kv.h", "ds4kv_file.h", "ds4kv_stdio.h"}
"""For programs, and for any room."""

VENDORED = {"lz4.h": {"block"}, "lz4hc.h": {"block"}, "xxhash.h": {"hash", "transpose"}}


def c_rooms() -> list[str]:
    """The rooms of C as the architecture shows them, from the ground up: a room uses those before it."""
    _, _, tree = (CSRC.parent / "docs" / "architecture.md").read_text().partition("\n    csrc/ ")
    lines = tree.partition("\n\n")[0].splitlines()[1:]
    return [room for line in lines for room in line[:24].replace(",", " ").split()]


C_ROOMS = c_rooms()


def module_of(path: Path) -> str:
    """``store.index``; of a room's door, ``store``."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in PACKAGE.rglob("*.py") if module_of(path)}


def imported(path: Path) -> set[str]:
    """The modules of the package that this one imports, to run or to check its types."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "ds4kv":
            base = node.module.partition(".")[2]
            inner = {f"{base}.{alias.name}".lstrip(".") for alias in node.names}
            found |= inner & MODULES.keys() or {base}
        elif isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[2] for alias in node.names if alias.name.partition(".")[0] == "ds4kv"}
    return found


def room_of(module: str) -> str:
    return module.partition(".")[0]


def test_the_package_is_its_rooms() -> None:
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert folders == set(ROOMS)
    assert {path.stem for path in PACKAGE.glob("*.py")} == {"__init__", "__main__", "errors", "_moved"}


def test_the_architecture_shows_the_rooms_in_their_order() -> None:
    text = (CSRC.parent / "docs" / "architecture.md").read_text()
    assert " < ".join(ROOMS) in text


@pytest.mark.parametrize("module", [module for module in MODULES if room_of(module) in ROOMS])
def test_imports_go_down(module: str) -> None:
    room = room_of(module)
    allowed = {"errors", *ROOMS[: ROOMS.index(room) + 1]}
    if room == "cli":
        allowed.add("")  # what users import
    assert {room_of(name) for name in imported(MODULES[module])} <= allowed


def test_no_circle_within_a_room() -> None:
    left = {module: imported(path) & MODULES.keys() - {module} for module, path in MODULES.items()}
    while ground := {module for module, needs in left.items() if not needs & left.keys()}:
        left = {module: needs for module, needs in left.items() if module not in ground}
    assert left == {}


@pytest.mark.slow
@pytest.mark.parametrize(("old", "new"), MOVED.items())
def test_modules_have_their_old_names_too(old: str, new: str) -> None:
    code = f"import sys, ds4kv.{old} as a, ds4kv.{new} as b; assert a is b; from ds4kv import {old}; assert {old} is b"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=DEADLINE)


def code_of(room: str) -> str:
    """The room's header and source, without comments and strings."""
    text = "".join(path.read_text() for path in sorted(CSRC.glob(f"{room}.[ch]")))
    text = re.sub(r"/\*.*?\*/", " ", text, flags=re.DOTALL)
    return re.sub(r'^(?!#include)(.*?)"(?:[^"\\]|\\.)*"', r"\1", text, flags=re.MULTILINE)


def included(text: str) -> set[str]:
    return set(re.findall(r'^#include "(.*)"', text, flags=re.MULTILINE))


def defined(room: str) -> set[str]:
    """The functions that a room has for others."""
    return set(re.findall(r"^(?!static|typedef)\w[^;{}()=]*?\b(\w+)\([^;{}]*\)\n\{", code_of(room), flags=re.MULTILINE))


def test_every_c_file_is_a_room() -> None:
    files = {path.name for path in CSRC.glob("*.[ch]")} - PUBLIC
    assert {Path(name).stem for name in files} == set(C_ROOMS)
    assert len(C_ROOMS) == len(set(C_ROOMS))


@pytest.mark.parametrize("path", sorted(CSRC.glob("*.[ch]")), ids=lambda path: path.name)
def test_a_c_file_is_of_one_idea(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400
    assert path.read_text().startswith(f"/*\n * {path.name} - ")


@pytest.mark.parametrize("room", C_ROOMS)
def test_includes_go_down(room: str) -> None:
    text = code_of(room)
    below = {f"{name}.h" for name in C_ROOMS[: C_ROOMS.index(room) + 1]}
    vendored = {name for name, rooms in VENDORED.items() if room in rooms}
    assert included(text) <= below | PUBLIC | vendored
    assert "Python.h" not in text


@pytest.mark.parametrize("room", C_ROOMS)
def test_calls_go_down(room: str) -> None:
    """A public header has functions of many rooms, so that includes alone don't tell what stands on what."""
    above = set().union(*(defined(name) for name in C_ROOMS[C_ROOMS.index(room) + 1 :]))
    assert set(re.findall(r"\w+", code_of(room))) & above == set()


def test_the_rooms_of_c_have_all_that_is_public() -> None:
    """So that the test above sees what it should."""
    prototypes = "".join((CSRC / name).read_text() for name in PUBLIC)
    public = set(re.findall(r"^DS4KV_API [^;]*?\b(ds4kv_\w+)\(", prototypes, flags=re.MULTILINE))
    assert len(public) > 40
    assert public <= set().union(*map(defined, C_ROOMS))


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_a_public_header_stands_alone(name: str) -> None:
    assert included((CSRC / name).read_text()) <= {"ds4kv.h"} - {name}


def test_only_core_touches_ffi() -> None:
    users = {module for module, path in MODULES.items() if re.search(r"\bffi\b|_native", path.read_text())}
    assert {room_of(module) for module in users - {"_moved"}} == {"core"}


TAKES_NAMES_AWAY = {"unlink", "remove", "rename", "renames", "replace", "rmdir", "removedirs", "rmtree", "move"}
MAY_TAKE_NAMES_AWAY = {
    "file.draft": "of drafts, by who made them",
    "file.leftovers": "of drafts, after who made them",
    "store.directory": "of checkpoints",
    "store.quarantine": "of damaged checkpoints",
    "file.database": "of the ledger's own database",
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
    users = {module for module, path in MODULES.items() if takes_names_away(path)}
    assert users == set(MAY_TAKE_NAMES_AWAY)


NOT_PRIVATE = {"_replace", "_asdict", "_make", "_fields", "_exit"}
"""Of named tuples, and of os."""


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__") and name not in NOT_PRIVATE


def is_own(node: ast.expr) -> bool:
    """Whether it is ``self``, ``cls`` or ``super()``."""
    return ast.unparse(node) in ("self", "cls", "super()")


def names_of(tree: ast.AST) -> set[str]:
    """What is defined, assigned or imported somewhere in it."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            found.add(node.attr)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.alias):
            found.add(node.asname or node.name)
    return found


@functools.cache
def classes_of(tree: ast.AST) -> list[ast.ClassDef]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]


def attributes_of(tree: ast.AST) -> list[ast.Attribute]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and is_private(node.attr)]


def inherited(trees: dict[str, ast.Module], module: str, node: ast.ClassDef) -> set[str]:
    """What bases from other modules define, found by their names."""
    names = {ast.unparse(base).rpartition(".")[2] for base in node.bases}
    bases = [
        (where, base) for where, tree in trees.items() for base in classes_of(tree) if base.name in names - {node.name}
    ]
    return set().union(
        *(names_of(base) for where, base in bases if where != module),
        *(inherited(trees, module, base) for _, base in bases),
    )


def foreign(trees: dict[str, ast.Module], module: str) -> set[str]:
    """Where a module uses a private name of something that isn't its own, or of a base class from elsewhere."""
    tree = trees[module]
    own = names_of(tree)
    found = {use for use in attributes_of(tree) if not is_own(use.value) and use.attr not in own}
    for node in classes_of(tree):
        names = inherited(trees, module, node)
        found |= {use for use in attributes_of(node) if is_own(use.value) and use.attr in names}
    return {f"{use.lineno}: {ast.unparse(use)}" for use in found}


TREES = {module: ast.parse(path.read_text()) for module, path in MODULES.items()}


@pytest.mark.parametrize("module", MODULES)
def test_nobody_touches_what_is_private_elsewhere(module: str) -> None:
    assert foreign(TREES, module) == set()


BASE = """
class Base:
    def __init__(self):
        self._a = self.b = 1
"""
USER = """
class Middle(base.Base): pass
class User(Middle):
    def f(self, x):
        self._own = x._other
        return super()._a + self._a + self.b + x._own
"""


def test_what_is_private_elsewhere_is_found() -> None:
    trees = {"base": ast.parse(BASE), "user": ast.parse(USER)}
    assert foreign(trees, "base") == set()
    assert foreign(trees, "user") == {"5: x._other", "6: super()._a", "6: self._a"}
