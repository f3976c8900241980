"""Ctrl-C for ``python -m ds4kv``, which imports the whole package before it runs a line of the command.

Nothing has begun then, so the process just ends, as the system has it: without a traceback, and for a shell with 130.
Any other import of the package leaves Ctrl-C as it was.
"""

from __future__ import annotations

import sys

__all__ = ["hear"]


def _is_for_command() -> bool:
    """Whether Python is looking for what ``-m ds4kv`` names: until it has that, it says ``-m`` in its place."""
    words = sys.orig_argv
    return sys.argv[:1] == ["-m"] and "-m" in words and words[words.index("-m") + 1 :][:1] == ["ds4kv"]


_is_hushed = False
if _is_for_command():
    import signal

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        _is_hushed = True


def hear() -> None:
    """Has Ctrl-C raise KeyboardInterrupt again."""
    if _is_hushed:
        signal.signal(signal.SIGINT, signal.default_int_handler)
