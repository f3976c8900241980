"""ds4kv: compressed on-disk KV cache checkpoints for LLM inference engines.

Reads and writes ds4's ``.kv`` files bit for bit, in parallel, without the GIL: one by one, or as a store with prefix
lookup and a budget.
"""

from ds4kv.core import ctrl_c as _ctrl_c  # noqa: F401  before all that takes time

# isort: split
import sys
from importlib import import_module as _import_module
from typing import TYPE_CHECKING

from ds4kv._moved import MOVED, Finder
from ds4kv.core.forks import fork_waits as _fork_waits
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
from ds4kv.file.verdict import Verdict
from ds4kv.format.header import Codec, Ext, Header, Layout, Reason
from ds4kv.stream import PayloadReader, PayloadWriter, RawReader, RawWriter

if TYPE_CHECKING:
    from ds4kv.file.salvage import Damage
    from ds4kv.format import arrays as arrays
    from ds4kv.store import policy as policy
    from ds4kv.store.ahead import LoadFuture
    from ds4kv.store.background import SaveFuture
    from ds4kv.store.entry import Entry
    from ds4kv.store.load import LoadingCheckpoint
    from ds4kv.store.options import add_cli_arguments
    from ds4kv.store.policy import Victim
    from ds4kv.store.save import Save
    from ds4kv.store.sessions import Session, Sessions
    from ds4kv.store.settings import Score
    from ds4kv.store.store import Store

__all__ = [
    "CancelledError",
    "Checkpoint",
    "CheckpointReader",
    "CheckpointWriter",
    "Codec",
    "CorruptError",
    "Damage",
    "Ds4kvError",
    "Entry",
    "Ext",
    "Header",
    "Layout",
    "LoadFuture",
    "LoadingCheckpoint",
    "PayloadReader",
    "PayloadWriter",
    "RawReader",
    "RawWriter",
    "Reason",
    "Save",
    "SaveFuture",
    "Score",
    "Session",
    "Sessions",
    "Store",
    "TruncatedError",
    "UnsupportedError",
    "Verdict",
    "Victim",
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
    "Damage": "file.salvage",
    "Entry": "store.entry",
    "LoadFuture": "store.ahead",
    "LoadingCheckpoint": "store.load",
    "Save": "store.save",
    "SaveFuture": "store.background",
    "Score": "store.settings",
    "Session": "store.sessions",
    "Sessions": "store.sessions",
    "Store": "store.store",
    "Victim": "store.policy",
    "add_cli_arguments": "store.options",
}
"""Names and their modules, which take longer to import than all else here, and not every program has a store."""

sys.meta_path.append(Finder)


def __getattr__(name: str) -> object:
    place = MOVED.get(name) or _LATER.get(name)
    if place is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with _fork_waits:
        module = _import_module(f"ds4kv.{place}")
    value: object = module if name in MOVED else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER})
