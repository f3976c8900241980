"""What threads of a parent leave to a forked child, and what a fork waits for.

A lock that another thread of the parent held at the fork would never be let go in the child. So the child gets a new
one. That helps only with locks of ours: SQLite has some of its own, so a fork waits until no thread is in SQLite.
"""

from __future__ import annotations

import os
import threading
import weakref
from typing import Any

__all__ = ["fork_waits", "renew_lock"]

fork_waits = threading.RLock()
"""To be held within a library that has locks of its own, and where a function imports a module: one that a thread was
importing at the fork is locked for ever in the child. For no longer than a fork may take.
"""

_owners: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()


def renew_lock(owner: object, attribute: str) -> None:
    """Gives ``owner`` a ``threading.Lock`` as ``attribute``, and a new one in every child that is forked.

    The owner is held weakly and has to be hashable; one lock an owner. What the lock guards has to be whole at every
    moment, as a fork may come in the middle of a change.
    """
    setattr(owner, attribute, threading.Lock())
    _owners[owner] = attribute


def _renew_all() -> None:
    for owner, attribute in list(_owners.items()):
        setattr(owner, attribute, threading.Lock())


os.register_at_fork(before=fork_waits.acquire, after_in_parent=fork_waits.release, after_in_child=fork_waits.release)
os.register_at_fork(after_in_child=_renew_all)
