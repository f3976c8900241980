"""What is done to all of a directory: the tidying up when a store is opened, notes of what has none, tool maps."""

from __future__ import annotations

import os
from collections.abc import Iterable

from ds4kv.errors import CorruptError
from ds4kv.file.draft import sweep
from ds4kv.file.inplace import identity
from ds4kv.file.lock import locked
from ds4kv.file.reader import CheckpointReader
from ds4kv.file.sealed import seal_in
from ds4kv.format.header import Ext
from ds4kv.format.layout import Outline
from ds4kv.store import log
from ds4kv.store.directory import Directory
from ds4kv.store.entry import Entry
from ds4kv.store.load import read_noted_tool_map
from ds4kv.stream.regular import RegularFile

__all__ = ["import_tool_maps", "make_notes", "tidy"]


def tidy(directory: Directory, *, evict: bool) -> None:
    """Removes what killed processes left half written, and what is over the budget, if that is wanted.

    Where the directory isn't ours to write, or somebody has its lock, the log says so. Raises OSError.
    """
    if not os.access(directory.path, os.W_OK, effective_ids=os.access in os.supports_effective_ids):
        log.trouble("evicts nothing in", directory.path, "it is not ours to write")
        return
    sweep(directory.path)
    try:
        if evict:
            directory.evict()
    except TimeoutError as error:  # the next save evicts
        log.trouble("not evicted", directory.path, error)
    directory.ledger.forget_absent()


def make_notes(directory: Directory, *, workers: int) -> list[Entry]:
    """As :meth:`ds4kv.Store.rebuild_integrity`."""
    directory.ledger.forget_absent()
    return [entry for entry in directory.entries() if _note(directory, entry, workers)]


def _note(directory: Directory, entry: Entry, workers: int) -> bool:
    name = os.path.basename(entry.path)
    try:
        with CheckpointReader(entry.path, workers=workers, ledger=directory.ledger) as reader:
            note = reader.make_note() if reader.note is None else None
            if note is None:
                return False
            with locked(directory.path):
                if identity(os.stat(entry.path)) != (note.device, note.inode):
                    return False
                directory.ledger.put(name, note)
                return directory.ledger.get(name) == note
    except TimeoutError:
        raise  # of the lock, and it would be so with every file
    except FileNotFoundError:
        return False  # evicted since it was listed
    except (CorruptError, OSError) as error:  # an OSError is of this file, and no reason to stop at it
        log.load_failed(entry.path, error, 0)
        if isinstance(error, CorruptError):
            directory.set_aside(entry.path, entry.stamp[:4])
        return False


def import_tool_maps(directory: Directory, ids: Iterable[bytes]) -> dict[bytes, bytes]:
    """As :meth:`ds4kv.Store.import_tool_maps`."""
    missing = set(ids)
    found: dict[bytes, bytes] = {}
    for entry in directory.entries():
        if missing and entry.ext_flags & Ext.TOOL_MAP:
            found |= _read_tool_map(directory, entry, missing)
            missing -= found.keys()
    return found


def _read_tool_map(directory: Directory, entry: Entry, wanted: set[bytes]) -> dict[bytes, bytes]:
    outline = Outline(entry.header, entry.text_bytes)
    try:
        with RegularFile(entry.path) as fp:
            if identity(os.fstat(fp.fileno())) != entry.file:
                return {}  # replaced since it was listed
            note = directory.ledger.applying(os.path.basename(entry.path), fp.fileno())
            seal = seal_in(fp.fileno(), outline)
            return read_noted_tool_map(fp, outline.region_end, note, seal, wanted=wanted)
    except FileNotFoundError:
        return {}  # evicted since it was listed
    except (CorruptError, OSError) as error:
        log.trouble("tool map not imported", entry.path, error)  # and the file is the next load's to judge
        return {}
