"""What is known of a checkpoint file, in the words of the API and of the command line.

A verdict is given to a file that was read to its end, or as far as it could be. A *proof* says by what one is whole:

    proof       says                                                          verdict     ``ds4kv verify``
    sealed      all of it is what was saved, by the file alone                OK          ok: sealed
    sidecar     all of it is what a store saved, by the sums in .ds4kv/       OK          ok: sidecar
    checksums   its chunks are what was written, by its own checksums         UNKNOWN     ok: checksums
    decodes     it decodes to the right size; a changed byte may be unseen    UNKNOWN     ok: decodes

The command line says ``ok`` of all four, as a reader gets a whole payload from each.
"""

from __future__ import annotations

import enum

from ds4kv.errors import CorruptError, UnsupportedError

__all__ = ["Proof", "Verdict"]


class Proof(enum.StrEnum):
    """By what a file that was read to its end is whole."""

    SEALED = "sealed"
    SIDECAR = "sidecar"
    CHECKSUMS = "checksums"
    DECODES = "decodes"

    @property
    def verdict(self) -> Verdict:
        """What is known of such a file."""
        return Verdict.OK if self in (Proof.SEALED, Proof.SIDECAR) else Verdict.UNKNOWN


class Verdict(enum.StrEnum):
    """What is known of a file.

    OK: it is what was saved. UNKNOWN: it can be read, and nobody has noted what it was. CORRUPT, or DAMAGED as it was
    called before: bytes are proven wrong, and nothing else is a reason to remove a file. UNSUPPORTED: of a layout,
    version or codec that isn't read, and perhaps perfect. UNREADABLE: the system, or missing memory, kept it from being
    judged.
    """

    OK = "ok"
    UNKNOWN = "unknown"
    CORRUPT = "corrupt"
    UNSUPPORTED = "unsupported"
    UNREADABLE = "unreadable"
    DAMAGED = "corrupt"

    @classmethod
    def of(cls, error: Exception) -> Verdict:
        """What an error that reading a file has raised says of it."""
        if isinstance(error, CorruptError):
            return cls.CORRUPT
        return cls.UNSUPPORTED if isinstance(error, UnsupportedError) else cls.UNREADABLE

    @classmethod
    def _missing_(cls, value: object) -> Verdict | None:
        return cls.CORRUPT if value == "damaged" else None
