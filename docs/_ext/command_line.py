"""The directive ``command-line``: every subcommand of ``ds4kv``, as its own parser explains it."""

from __future__ import annotations

import argparse
import importlib

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from ds4kv.cli import COMMANDS
from ds4kv.cli.arguments import Parser


def described(name: str, summary: str) -> list[str]:
    """A section of Markdown."""
    parser = Parser(prog=f"ds4kv {name}")
    importlib.import_module(f"ds4kv.cli.{name}").configure(parser)
    usage = " ".join(parser.format_usage().removeprefix("usage: ").split())
    lines = [f"## ds4kv {name}", "", f"{summary[0].upper()}{summary[1:]}.", "", "```text", usage, "```", ""]
    formatter = parser._get_formatter()
    for action in parser._actions:
        if action.help is argparse.SUPPRESS or isinstance(action, argparse._HelpAction):
            continue
        lines += [f"`{formatter._format_action_invocation(action)}`", f": {formatter._expand_help(action)}", ""]
    return [*lines, parser.epilog or "", ""]


class CommandLine(SphinxDirective):
    def run(self) -> list[nodes.Node]:
        lines = [line for name, summary in COMMANDS.items() for line in described(name, summary)]
        return self.parse_text_to_nodes("\n".join(lines), allow_section_headings=True)


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("command-line", CommandLine)
    return {"parallel_read_safe": True}
