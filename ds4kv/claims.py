"""Who is saving which text: a second save of a text that is being saved would write all of it again, for nothing."""

from __future__ import annotations

import os
import threading

from ds4kv.draft import held_drafts
from ds4kv.forks import renew_lock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Claim", "Claims"]


class Claim:
    """The right to save one text, until :meth:`end` or the end of this object."""

    def __init__(self, claims: Claims, name: str) -> None:
        self._claims = claims
        self._name = name

    def end(self) -> None:
        """Gives it up; nothing happens if that was done."""
        self._claims.forget(self._name, self)

    def __del__(self) -> None:
        self.end()


class Claims:
    """The texts that are being saved into a directory, by the names of their files."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._owners: dict[str, tuple[int, int]] = {}  # process and id of the claim
        self._mutex: threading.Lock
        renew_lock(self, "_mutex")

    def claim(self, name: str, names: Iterable[str]) -> Claim | str:
        """The claim on a file's name, or in words who has it; ``names`` are those of the directory's temporary files.

        Raises OSError.
        """
        with self._mutex:
            owner = self._owners.get(name)
            if owner is not None and owner[0] == os.getpid():
                return "another thread of this process"
            claim = Claim(self, name)
            self._owners[name] = os.getpid(), id(claim)
        if held_drafts(self._directory, name, names):
            claim.end()
            return "another store or process"
        return claim

    def forget(self, name: str, claim: Claim) -> None:
        if self._owners.get(name) == (os.getpid(), id(claim)):
            del self._owners[name]
