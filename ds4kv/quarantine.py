"""Where proven-corrupt checkpoints go: out of the store's sight, into the operator's.

A store that left them would find them again at every lookup, instead of the shorter good ones behind them, and would
never save their text anew. Nothing is deleted here.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["DIRECTORY_NAME", "set_aside"]

DIRECTORY_NAME = "quarantine"


def set_aside(path: str, is_same: Callable[[os.stat_result], bool]) -> str | None:
    """Moves a file to ``quarantine/`` beside it and returns where it is now; a name taken there gets a number.

    None, and nothing is moved, if the file is gone or ``is_same`` says of its os.stat that it isn't the file that was
    proven corrupt. The caller holds the lock of the store. Raises OSError.
    """
    try:
        if not is_same(os.stat(path)):
            return None
    except FileNotFoundError:
        return None
    directory, name = os.path.split(path)
    target = os.path.join(directory, DIRECTORY_NAME, name)
    os.makedirs(os.path.dirname(target), mode=0o700, exist_ok=True)
    number = 0
    free = target
    while os.path.lexists(free):
        number += 1
        free = f"{target}.{number}"
    os.rename(path, free)
    return free
