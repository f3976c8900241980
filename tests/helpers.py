"""What many tests need."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from processes import started

from ds4kv.core import native

MIB = 1 << 20
GOLDEN = Path(__file__).parent / "golden"
MANIFEST = json.loads((GOLDEN / "manifest.json").read_text(encoding="utf-8"))


def is_editable() -> bool:
    """Whether what is installed is the source folder: ``pip install -e``."""
    origin = importlib.metadata.distribution("ds4kv").read_text("direct_url.json")
    return origin is not None and json.loads(origin).get("dir_info", {}).get("editable", False)


def golden(name: str | None) -> bytes:
    return (GOLDEN / name).read_bytes() if name else b""


def sha1(text: bytes) -> str:
    """What the file of a text is named after."""
    return hashlib.sha1(text).hexdigest()


def text_like(size: int, seed: int = 1) -> bytes:
    """Compressible bytes that are not all alike."""
    words = np.random.default_rng(seed).integers(0, 12, size // 4 + 1, dtype=np.uint32) << 20
    return words.tobytes()[:size]


def damage_quietly(path: Path, offset: int) -> None:
    """Changes a byte as a disk does, without a trace in the file's times."""
    status, content = path.stat(), bytearray(path.read_bytes())
    content[offset] ^= 1
    with path.open("r+b") as fp:
        fp.write(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def state(directory: Path) -> dict[str, tuple[int, ...]]:
    """All that a change in the directory would change."""
    paths = [directory, *sorted(directory.rglob("*"))]
    return {str(path): (s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for path in paths if (s := path.lstat())}


def answer(capsys: pytest.CaptureFixture[str]) -> Any:
    """What a command printed with ``--json``."""
    return json.loads(capsys.readouterr().out)


def thread_count() -> int:
    """Threads of this process, without those that wait for somebody's next load or save."""
    native.trim()
    return len(os.listdir("/proc/self/task"))


def dead_pid() -> int:
    """The id of a process that has ended."""
    with started([sys.executable, "-c", ""]) as child:
        child.finish()
    return child.pid
