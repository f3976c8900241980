"""ds4kv: compressed on-disk KV cache checkpoints for LLM inference engines.

Reads and writes ds4's ``.kv`` files bit for bit, in parallel, without the GIL.
"""

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
from ds4kv.errors import CorruptError, Ds4kvError, TruncatedError, UnsupportedError
from ds4kv.header import Codec, Ext, Header, Layout, Reason
from ds4kv.stream import PayloadReader, PayloadWriter, RawReader, RawWriter

__all__ = [
    "Checkpoint",
    "CheckpointReader",
    "CheckpointWriter",
    "Codec",
    "CorruptError",
    "Ds4kvError",
    "Ext",
    "Header",
    "Layout",
    "PayloadReader",
    "PayloadWriter",
    "RawReader",
    "RawWriter",
    "Reason",
    "TruncatedError",
    "UnsupportedError",
    "create",
    "dump",
    "load",
    "open",
    "read_header",
]

__version__ = "0.1.0"
