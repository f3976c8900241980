"""One checkpoint file: opened, written, changed in place, salvaged; and what is noted of it beside it."""

from ds4kv.file.api import Checkpoint, CheckpointReader, CheckpointWriter, create, dump, load, open, read_header
from ds4kv.file.ledger import DATABASE_NAME, DIRECTORY_NAME, Ledger
from ds4kv.file.note import Note
from ds4kv.file.verdict import Verdict

__all__ = [
    "DATABASE_NAME",
    "DIRECTORY_NAME",
    "Checkpoint",
    "CheckpointReader",
    "CheckpointWriter",
    "Ledger",
    "Note",
    "Verdict",
    "create",
    "dump",
    "load",
    "open",
    "read_header",
]
