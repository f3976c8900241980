"""Names of modules without their rooms: ``ds4kv.policy`` is ``ds4kv.store.policy``.

That of ``arrays`` is for users, as ``policy`` is; the others are those that modules had before there were rooms, and go
on to work. Nothing in the package uses them.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType

__all__ = ["MOVED", "Finder"]

MOVED = {
    "_core": "core.native",
    "_native": "core._native",
    "arguments": "store.options",
    "arrays": "format.arrays",
    "background": "store.background",
    "c_files": "core.c_file",
    "checkpoint": "file.api",
    "claims": "store.claims",
    "ctrl_c": "core.ctrl_c",
    "database": "file.database",
    "directory": "store.directory",
    "draft": "file.draft",
    "facts": "format.facts",
    "fileobj": "stream.fileobj",
    "files": "stream.regular",
    "forks": "core.forks",
    "header": "format.header",
    "index": "store.index",
    "integrity": "file",
    "layout": "format.layout",
    "ledger": "file.ledger",
    "leftovers": "file.leftovers",
    "lifetime": "stream.lifetime",
    "loading": "store.load",
    "lock": "file.lock",
    "log": "store.log",
    "lookup": "store.lookup",
    "naming": "format.naming",
    "native_files": "core.install",
    "note": "file.note",
    "policy": "store.policy",
    "quarantine": "store.quarantine",
    "reading": "file.reader",
    "rewrite": "file.inplace",
    "room": "store.room",
    "salvage": "file.salvage",
    "saves": "store.admission",
    "saving": "store.save",
    "sessions": "store.sessions",
    "settings": "store.settings",
    "synthetic": "cli.synthetic",
    "trailer": "format.toolmap",
    "upgrade": "store.upgrade",
    "upkeep": "store.upkeep",
    "workers": "core.workers",
    "writing": "file.writer",
}
"""Short names, and the real ones; both within ds4kv."""


class Finder:
    """Finds old names for ``import``. Asked last, and only of what nobody else has found."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        package, _, old = name.rpartition(".")
        if package != "ds4kv" or old not in MOVED:
            return None
        return ModuleSpec(name, Finder())  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> None:
        """None: a module to be filled, in whose place exec_module() puts the real one."""

    def exec_module(self, module: ModuleType) -> None:
        sys.modules[module.__name__] = import_module(f"ds4kv.{MOVED[module.__name__.rpartition('.')[2]]}")
