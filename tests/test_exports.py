"""The names of ``ds4kv``: all that a signature shows a user, and those of the store only when they are asked for."""

from __future__ import annotations

import ast
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest
from processes import DEADLINE

import ds4kv

LATER = [
    *("Damage", "Entry", "LoadFuture", "LoadingCheckpoint", "Save", "SaveFuture"),
    *("Score", "Session", "Sessions", "Store", "Victim"),
]


def test_every_name_is_there() -> None:
    assert set(ds4kv.__all__) <= set(dir(ds4kv))
    assert all(getattr(ds4kv, name) is not None for name in ds4kv.__all__)


def test_a_name_that_is_not_there() -> None:
    assert not hasattr(ds4kv, "Shop")
    with pytest.raises(AttributeError, match="'ds4kv' has no attribute 'Shop'"):
        ds4kv.Shop  # noqa: B018


def test_the_store_is_imported_when_it_is_asked_for() -> None:
    code = f"""
import sys
import ds4kv
def late():
    return [name for name in sys.modules if name.startswith("ds4kv.store") or name == "ds4kv.file.salvage"]
assert set({LATER}) <= set(dir(ds4kv)) and not late(), late()
assert ds4kv.Store.__name__ == "Store" and late()
from ds4kv import *
assert set(ds4kv.__all__) <= set(globals())
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=DEADLINE)


def test_type_checkers_are_told_of_the_same_names() -> None:
    """Where the module finds a name when it is asked for, is where a type checker looks for it."""
    tree = ast.parse(inspect.getsource(ds4kv))
    [block] = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    told = {alias.name: node.module for node in block.body for alias in node.names}  # type: ignore[attr-defined]
    assert (told.pop("policy"), told.pop("arrays")) == ("ds4kv.store", "ds4kv.format")
    assert sorted(told) == sorted([*LATER, "add_cli_arguments"])
    for name, module in told.items():
        assert getattr(importlib.import_module(module), name) is getattr(ds4kv, name)


def test_what_a_store_gives_has_its_name_here(tmp_path: Path) -> None:
    with ds4kv.Store(tmp_path) as store:
        saving = store.save(b"text", tokens=600, ctx_size=100)
        with saving:
            saving.payload.write(b"payload")
        [entry] = store.entries()
        assert type(entry) is ds4kv.Entry
        assert isinstance(saving, ds4kv.Save)
        assert type(store.verify(entry)) is ds4kv.Verdict
        assert type(store.save_async(b"text", b"payload", tokens=600, ctx_size=100)) is ds4kv.SaveFuture
        assert type(store.load_async(entry)) is ds4kv.LoadFuture
        with store.load(entry) as checkpoint:
            assert type(checkpoint) is ds4kv.LoadingCheckpoint
        assert [type(victim) for victim in store.plan_eviction(0)] == [ds4kv.Victim]
    assert [type(session) for session in ds4kv.Sessions(tmp_path).list()] == [ds4kv.Session]
    Path(entry.path).write_bytes(Path(entry.path).read_bytes()[:-1])
    assert {type(damage) for damage in ds4kv.load(entry.path, salvage=True).damage} == {ds4kv.Damage}


def test_dump_has_the_arguments_of_create() -> None:
    """They are handed on by name."""
    of_create, of_dump = (dict(inspect.signature(f).parameters) for f in (ds4kv.create, ds4kv.dump))
    of_create = {name: given for name, given in of_create.items() if name not in ("raw_total", "ledger")}
    del of_dump["payload"]
    assert of_dump == of_create
