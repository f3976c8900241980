"""ds4kv: compressed on-disk KV cache checkpoints for LLM inference engines.

Reads and writes ds4's ``.kv`` files bit for bit, in parallel, without the GIL: one by one, or as a store with prefix
lookup and a budget.
"""

import sys

from ds4kv._moved import MOVED, Finder
from ds4kv.core import ctrl_c as _ctrl_c  # noqa: F401  before all that takes time
from ds4kv.core.install import get_include, get_library
from ds4kv.errors import CancelledError, CorruptError, Ds4kvError, TruncatedError, UnsupportedError
from ds4kv.file.api import (
    Checkpoint,
    CheckpointReader,
    CheckpointWriter,
    create,
    dump,
    load,
    open,
    read_header,
)
from ds4kv.format.header import Codec, Ext, Header, Layout, Reason
from ds4kv.stream.streams import PayloadReader, PayloadWriter, RawReader, RawWriter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ds4kv.store import policy as policy
    from ds4kv.store.index import Entry
    from ds4kv.store.options import add_cli_arguments
    from ds4kv.store.sessions import Sessions
    from ds4kv.store.store import Store

__all__ = [
    "CancelledError",
    "Checkpoint",
    "CheckpointReader",
    "CheckpointWriter",
    "Codec",
    "CorruptError",
    "Ds4kvError",
    "Entry",
    "Ext",
    "Header",
    "Layout",
    "PayloadReader",
    "PayloadWriter",
    "RawReader",
    "RawWriter",
    "Reason",
    "Sessions",
    "Store",
    "TruncatedError",
    "UnsupportedError",
    "add_cli_arguments",
    "create",
    "dump",
    "get_include",
    "get_library",
    "load",
    "open",
    "read_header",
]

__version__ = "0.1.0"

_LATER = {
    "Entry": "ds4kv.store.index",
    "Sessions": "ds4kv.store.sessions",
    "Store": "ds4kv.store",
    "add_cli_arguments": "ds4kv.store.options",
}
"""Names and their modules, which take longer to import than all else here, and not every program has a store."""

sys.meta_path.append(Finder)


def __getattr__(name: str) -> object:
    from importlib import import_module

    if name in MOVED:
        return import_module(f"ds4kv.{MOVED[name]}")
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(_LATER[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER})
