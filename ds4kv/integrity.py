"""What the files of a directory were when they were saved, noted beside them: a proof for layouts without a checksum.

The *ledger* of a directory is an SQLite database in its ``.ds4kv/``, with a *note* a file; the files stay as every
engine writes them. A note holds the sum (XXH3-64) of the text, of each record and of the trailer. Sums are over bytes
as they are stored: what a chunk decodes to follows from its record, and hashing 143 MiB of blocks that were just read
costs a fraction of hashing the 246 MiB of their payload.

A ledger is help, never a condition: where there is none, or it is locked, full, damaged or not ours to write, saves and
loads go on without it, and say so once a directory in the log.

For who checks files (``ds4kv.open`` and ``Store.load`` do all of this):

    with contextlib.closing(Ledger(directory)) as ledger:
        note = ledger.get(name)                       # None: nothing is known
        note = note and note.applying(fd)             # None: about another file; CorruptError: this one, and damaged
        PayloadReader(..., sums=note.region_sums)     # and hash64(text) == note.text_sum, note.check_trailer(...)
    reader.verify() -> Verdict                        # of a CheckpointReader: reads all; CorruptError for damage

A CorruptError that arises while another program writes to the file proves nothing: see RegularFile.check_unchanged.
"""

from __future__ import annotations

from ds4kv.ledger import DATABASE_NAME, DIRECTORY_NAME, Ledger
from ds4kv.note import Note, Verdict

__all__ = ["DATABASE_NAME", "DIRECTORY_NAME", "Ledger", "Note", "Verdict"]
