"""The machine that ``ds4kv ab`` measures: what a reader of the numbers has to know about it."""

from __future__ import annotations

import dataclasses
import os
from typing import Self

from ds4kv.core import workers

__all__ = ["Machine"]


@dataclasses.dataclass(frozen=True)
class Machine:
    """``file_system`` is the type of the one that the directory is on; None on systems that don't say it cheaply."""

    cpus: int
    workers: int
    directory: str
    file_system: str | None

    @classmethod
    def look(cls, directory: str, threads: int | None) -> Self:
        """This machine, with files in that directory and so many worker threads."""
        directory = os.path.abspath(directory)
        return cls(os.cpu_count() or 1, workers.resolve(threads), directory, _file_system(directory))


def _file_system(directory: str) -> str | None:
    path = os.path.realpath(directory)
    found, kind = "", None
    try:
        with open("/proc/self/mounts", encoding="utf-8", errors="surrogateescape") as fp:
            for line in fp:
                _, mount_point, mount_type, *_ = line.split()
                # The deepest mount point holds the directory; of those on one place, the latest.
                if len(mount_point) >= len(found) and os.path.commonpath([path, mount_point]) == mount_point:
                    found, kind = mount_point, mount_type
    except OSError:
        return None
    return kind
