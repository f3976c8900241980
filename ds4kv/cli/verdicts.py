"""The verdicts of ``ds4kv verify`` in a file, so that a run which was interrupted can be taken up again.

One JSON object a line, after a line that says what the file is. Each line is one write at the end of the file: a run
that is killed leaves whole lines, or one that is cut short and counts for nothing.
"""

from __future__ import annotations

import json
import os
from typing import Any, Self

from ds4kv.cli.arguments import UsageError
from ds4kv.cli.messages import printable

__all__ = ["State"]

_FIRST_LINE = b'{"ds4kv verify": 1}\n'
_FIELDS = ("verdict", "why", "proof")


class State:
    """The verdicts of earlier runs and of this one, in the file ``path``."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        try:
            with open(path, "rb") as fp:
                content = fp.read()
            if not content.startswith(_FIRST_LINE[: len(content)]):
                raise UsageError(f"{printable(path)} holds something else than verdicts: name another file to --resume")
            end = content.rfind(b"\n") + 1
            os.ftruncate(self._fd, end)
            if end == 0:
                self._append(_FIRST_LINE)
            self._rows: dict[str, dict[str, Any]] = {}
            for line in content[len(_FIRST_LINE) : end].splitlines():
                row = json.loads(line)
                self._rows[row["path"]] = row
        except (ValueError, KeyError, TypeError) as error:
            os.close(self._fd)
            raise UsageError(f"{printable(path)} holds a line that is no verdict: {error}") from error
        except BaseException:
            os.close(self._fd)
            raise

    def find(self, path: str) -> dict[str, Any] | None:
        """What was said of a file that is as it was then; None if it has to be judged."""
        row = self._rows.get(os.path.abspath(path))
        if row is None:
            return None
        try:
            status = os.stat(path)
        except OSError:
            return None
        if (row["size"], row["mtime_ns"]) != (status.st_size, status.st_mtime_ns):
            return None
        said = {name: row[name] for name in _FIELDS}
        return {"path": path, **said, "file_bytes": status.st_size, "resumed": True, "stamp": None}

    def note(self, row: dict[str, Any]) -> None:
        """Writes a verdict of this run down, unless it is about a file that could not be read."""
        if row["stamp"] is None or row["verdict"] == "unreadable":
            return
        size, mtime_ns = row["stamp"]
        said = {name: row[name] for name in _FIELDS}
        line = {"path": os.path.abspath(row["path"]), "size": size, "mtime_ns": mtime_ns, **said}
        self._append(json.dumps(line).encode() + b"\n")

    def _append(self, line: bytes) -> None:
        try:
            os.write(self._fd, line)
        except OSError as error:
            raise OSError(error.errno, f"{error.strerror}: {len(line)} bytes were to be written", self._path) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        os.close(self._fd)
