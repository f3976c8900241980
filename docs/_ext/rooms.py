"""The directive ``rooms``: the modules of the package, room by room, each in the words of its own docstring."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

ROOMS = re.compile(r"\*\*(core(?: < \w+)+)\*\*")  # as architecture.md shows them
ROLE = re.compile(r":\w+:(`[^`]+`)")


def described(name: str, path: Path) -> list[str]:
    """Of a module, in reST. What its docstring refers to is no page of the site: names stay names.

    It is read and not imported: an engine's adapter needs its engine.
    """
    docstring = ROLE.sub(r"`\1`", ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "")
    return [f".. py:module:: {name}", "", f".. rubric:: {name}", "", *docstring.splitlines(), ""]


class Rooms(SphinxDirective):
    def run(self) -> list[nodes.Node]:
        lines = []
        page = Path(self.env.srcdir, "architecture.md").read_text(encoding="utf-8")
        for room in ROOMS.search(page)[1].split(" < "):
            package = importlib.import_module(f"ds4kv.{room}")
            names = [module.name for module in pkgutil.iter_modules(package.__path__) if module.name != "_native"]
            lines += [f"## ds4kv.{room}", "", "```{eval-rst}", *(inspect.getdoc(package) or "").splitlines(), ""]
            folder = Path(package.__path__[0])
            lines += [line for name in names for line in described(f"ds4kv.{room}.{name}", folder / f"{name}.py")]
            lines += ["```", ""]
        return self.parse_text_to_nodes("\n".join(lines), allow_section_headings=True)


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("rooms", Rooms)
    return {"parallel_read_safe": True}
