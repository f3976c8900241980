"""Locks that a forked child gets anew: one that another thread of the parent held would never be let go there."""

from __future__ import annotations

import os
import threading
import weakref

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["renew_lock"]

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


os.register_at_fork(after_in_child=_renew_all)
