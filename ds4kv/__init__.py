"""ds4kv: compressed on-disk KV cache checkpoints for LLM inference engines.

Reads and writes ds4's ``.kv`` files bit for bit, in parallel, without the GIL: one by one, or as a store with prefix
lookup and a budget.
"""

from ds4kv import ctrl_c as _ctrl_c  # noqa: F401  before all that takes time
from ds4kv.checkpoint import (
    Checkpoint,
    CheckpointReader,
    CheckpointWriter,
    create,
    dump,
    load,
    open,
    read_header,
)
from ds4kv.errors import CancelledError, CorruptError, Ds4kvError, TruncatedError, UnsupportedError
from ds4kv.header import Codec, Ext, Header, Layout, Reason
from ds4kv.native_files import get_include, get_library
from ds4kv.stream import PayloadReader, PayloadWriter, RawReader, RawWriter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ds4kv.arguments import add_cli_arguments
    from ds4kv.index import Entry
    from ds4kv.sessions import Sessions
    from ds4kv.store import Store

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

_LATER = {"Entry": "index", "Sessions": "sessions", "Store": "store", "add_cli_arguments": "arguments"}
"""Names and their modules, which take longer to import than all else here, and not every program has a store."""


def __getattr__(name: str) -> object:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    value: object = getattr(importlib.import_module(f"{__name__}.{_LATER[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER})
