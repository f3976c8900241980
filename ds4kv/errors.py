"""What can be wrong with a checkpoint.

Only bytes that are proven wrong are a :class:`CorruptError`; a failing disk stays an :class:`OSError`, missing memory a
:class:`MemoryError`, and a wrong argument a :class:`ValueError`. So a caller may remove a file on CorruptError, and on
nothing else.
"""

from __future__ import annotations

__all__ = ["CancelledError", "CorruptError", "Ds4kvError", "TruncatedError", "UnsupportedError"]


class Ds4kvError(Exception):
    """Base of the errors that ds4kv defines.

    ``path``, ``offset`` (bytes from the start of the file, or of the region where there is no file) and ``field`` say
    where; each is None where it isn't known.
    """

    def __init__(
        self, why: str, *, path: str | None = None, offset: int | None = None, field: str | None = None
    ) -> None:
        super().__init__(why)
        self.why = why
        self.path = path
        self.offset = offset
        self.field = field

    def __str__(self) -> str:
        where = []
        if self.path is not None:
            where.append(self.path)
        if self.offset is not None:
            where.append(f"at byte {self.offset}")
        if self.field is not None:
            where.append(f"({self.field})")
        return f"{' '.join(where)}: {self.why}" if where else self.why

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions with keyword arguments don't pickle by themselves, and worker processes send theirs home.
        return (_rebuild, (type(self), self.why, self.path, self.offset, self.field))


class CorruptError(Ds4kvError, ValueError):
    """The bytes are proven wrong: no correct writer made them, or they changed since."""


class TruncatedError(CorruptError):
    """The file ends before what it claims to hold."""


class UnsupportedError(Ds4kvError):
    """A layout, version or codec that this release doesn't read; the file may well be good."""


class CancelledError(Ds4kvError):
    """Another thread has cancelled the load or save. It says nothing about a file."""


def _rebuild(kind: type[Ds4kvError], why: str, path: str | None, offset: int | None, field: str | None) -> Ds4kvError:
    return kind(why, path=path, offset=offset, field=field)
