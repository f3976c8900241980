"""Errors in words: what to tell the user."""

from __future__ import annotations

from ds4kv.errors import Ds4kvError
from ds4kv.file.trouble import printable
from ds4kv.file.verdict import Verdict

__all__ = ["describe", "printable", "reason"]


def reason(error: Exception) -> str:
    """What is wrong, without the path."""
    if isinstance(error, Ds4kvError):
        where = [error.field] if error.field is not None else []
        where += [f"byte {error.offset}"] if error.offset is not None else []
        return f"{error.why} ({', '.join(where)})" if where else error.why
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or "not enough memory"


def describe(error: Exception) -> str:
    """What is wrong, with the path if one is known."""
    if isinstance(error, Ds4kvError) and error.path is not None:
        return f"{printable(error.path)}: {Verdict.of(error)}: {reason(error)}"
    if isinstance(error, OSError) and error.filename is not None:
        # The second one, where there are two, is the target of a rename: the name that the user gave.
        name = error.filename if error.filename2 is None else error.filename2
        return f"{printable(str(name))}: {reason(error)}"
    return reason(error)
