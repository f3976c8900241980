"""Which texts this process is saving now.

Two threads that save one text at a time would write the whole payload twice. So the first one claims the text, and the
second is refused. Other stores and processes see the draft that the first one holds.
"""

from __future__ import annotations

import os
import threading

from ds4kv.core.forks import renew_lock

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

    def __init__(self) -> None:
        self._owners: dict[str, tuple[int, int]] = {}  # process and id of the claim
        self._mutex: threading.Lock
        renew_lock(self, "_mutex")

    def claim(self, name: str) -> Claim | None:
        """The claim on a file's name; None if it is taken."""
        with self._mutex:
            owner = self._owners.get(name)
            if owner is not None and owner[0] == os.getpid():  # a forked child has a copy of its parent's
                return None
            claim = Claim(self, name)
            self._owners[name] = os.getpid(), id(claim)
            return claim

    def forget(self, name: str, claim: Claim) -> None:
        """Has the name be free again, if this is the claim on it."""
        if self._owners.get(name) == (os.getpid(), id(claim)):
            del self._owners[name]
