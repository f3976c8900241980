"""The docs site: `sphinx-build -W --keep-going docs build/docs`, with the extra `docs` installed.

The Python reference comes from the docstrings of the ds4kv that is installed, that of the command from its own parsers,
that of C from the headers. Nothing is fetched, neither to build the site nor to read it.
"""

import re
import sys
from pathlib import Path

from docutils import nodes
from pygments.lexers.special import TextLexer
from sphinx import addnodes
from sphinx.application import Sphinx

import ds4kv

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_ext"))

project = "ds4kv"
author = "the ds4kv authors"
version = release = ds4kv.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "command_line", "rooms"]
exclude_patterns = ["_ext"]
smartquotes = False  # of --json they would make a dash
html_theme = "furo"
html_title = f"ds4kv {release}"
html_copy_source = False
html_show_copyright = False

myst_heading_anchors = 4  # the anchors that a forge gives to headings
myst_enable_extensions = ["deflist"]

autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
autodoc_preserve_defaults = True
autodoc_mock_imports = ["llama_cpp", "numpy", "torch", "transformers"]  # the docs are made without engines
python_maximum_signature_line_length = 100

nitpicky = True
nitpick_ignore_regex = [
    ("py:class", r"(argparse|collections\.abc|io|os)\..*|array"),  # no inventory is fetched of the standard library
    # Aliases of types, whose names say what they are.
    ("py:class", r"StrPath|\w+Buffer|BinaryFile|Payload|Into|Readable|Writeable|Ids"),
    ("py:class", r"Ledger|ds4kv\.file\.note\.Note|States"),  # of arguments that are not for users to make
]

PAGES = {
    "README": "index",
    "FORMAT": "reference/format",
    "CHANGELOG": "changelog",
    "CONTRIBUTING": "contributing",
    "bench/README": "benchmarks",
}
"""Files outside of this folder that are pages of the site, and where."""


def lead_from_here(app: Sphinx, file: Path, docname: str, content: list[str]) -> None:
    """Links in an included file are relative to where it lies: from now on to this folder."""
    content[0] = re.sub(r"\]\((?![a-z]+:|#)", f"](/{file.parent}/", content[0])


def lead_to_pages(app: Sphinx, page: nodes.document) -> None:
    """Pages link to files as a forge wants it, ``../FORMAT.md``: where that is a page, the link leads to it."""
    pages = {str(HERE.parent / file): docname for file, docname in PAGES.items()}
    for link in page.findall(addnodes.pending_xref):
        link["reftarget"] = pages.get(link["reftarget"], link["reftarget"])


def say_nothing_of_fields(app: Sphinx, what: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    """A named tuple says of each of its fields that it is an alias for a number; its own docstring says more."""
    if lines and lines[0].startswith("Alias for field number"):
        lines.clear()


def setup(app: Sphinx) -> None:
    app.add_lexer("hexdump", TextLexer)  # FORMAT.md's have words in them
    app.connect("autodoc-process-docstring", say_nothing_of_fields)
    app.connect("include-read", lead_from_here)
    app.connect("doctree-read", lead_to_pages)
