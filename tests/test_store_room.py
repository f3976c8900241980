"""A full disk: what ``on_full="evict"`` removes, and what it never does, on a disk that is really full."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import MIB
from processes import DEADLINE

from ds4kv.file.lock import locked
from ds4kv.store import room
from ds4kv.store.store import Store

SAVE = {"tokens": 600, "ctx_size": 100}


@pytest.fixture
def disk() -> Iterator[Path]:
    """A disk of 24 MiB, of our own."""
    if os.geteuid() != 0:
        pytest.skip("only root mounts")
    with tempfile.TemporaryDirectory() as name:
        command = ["mount", "-t", "tmpfs", "-o", "size=24m", "ds4kv-test", name]
        mount = subprocess.run(command, capture_output=True, timeout=DEADLINE)
        if mount.returncode:
            pytest.skip("nothing is mounted here")
        try:
            yield Path(name)
        finally:
            subprocess.run(["umount", "-l", name], check=True, timeout=DEADLINE)


def fill(path: Path, left: int) -> None:
    """What others keep on the disk, all but so many bytes of it."""
    free = os.statvfs(path)
    (path / "of others").write_bytes(bytes(free.f_bavail * free.f_frsize - left))


def opened(path: Path, count: int = 6, **options: object) -> Store:
    store = Store(path / "kv", workers=1, on_full="evict", **options)  # type: ignore[arg-type]
    for n in range(count):
        assert store.save_buffer(b"text %d" % n, os.urandom(MIB), **SAVE) is not None
    return store


@pytest.mark.parametrize("layout", ["v1", "v2", "v2-checked"])
def test_what_can_not_fit_costs_nothing(disk: Path, layout: str) -> None:
    with opened(disk, layout=layout) as store:
        fill(disk, MIB // 2)
        before = {entry.sha for entry in store.entries()}
        with pytest.raises(OSError) as caught:
            store.save_buffer(b"large", os.urandom(12 * MIB), **SAVE)
        assert caught.value.errno == errno.ENOSPC
        assert {entry.sha for entry in store.entries()} == before
        assert not [name for name in os.listdir(store.directory) if ".tmp." in name]


@pytest.mark.parametrize("layout", ["v1", "v2", "v2-checked"])
def test_what_can_fit_does(disk: Path, layout: str) -> None:
    """The control: as much is removed as is needed, and not all."""
    with opened(disk, layout=layout) as store:
        fill(disk, MIB // 2)
        assert store.save_buffer(b"new", os.urandom(2 * MIB), **SAVE) is not None
        assert 3 <= len(store.entries()) <= 5


@pytest.mark.parametrize("layout", ["v1", "v2", "v2-checked"])
def test_a_save_of_unknown_size_costs_half_at_most(disk: Path, layout: str) -> None:
    with opened(disk, layout=layout) as store:
        fill(disk, MIB // 2)
        with pytest.raises(OSError), store.save(b"endless", **SAVE) as saving:
            for _ in range(40):
                saving.payload.write(os.urandom(MIB // 2))
        assert len(store.entries()) >= 3


def test_a_payload_that_shrinks_needs_no_room(disk: Path) -> None:
    """12 MiB of zeros take a few KiB: the bound says that they might not fit, and nobody asks."""
    with opened(disk) as store:
        fill(disk, MIB // 2)
        assert store.save_buffer(b"zeros", bytes(12 * MIB), **SAVE) is not None
        assert len(store.entries()) == 7


def test_a_stopped_neighbour_does_not_hide_the_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with opened(tmp_path, 2) as store:
        fail_writes(monkeypatch)
        monkeypatch.setattr("ds4kv.file.lock._TIMEOUT", 0.05)
        with locked(store.directory), pytest.raises(OSError) as caught:
            store.save_buffer(b"new", os.urandom(1000), **SAVE)
        assert caught.value.errno == errno.ENOSPC
        assert "no room made" in caplog.text
        assert len(store.entries()) == 2


@pytest.mark.parametrize("code", [errno.EDQUOT, errno.ENOSPC])
def test_what_a_disk_says_that_it_has_free_is_not_believed_after_a_failure(
    tmp_path: Path, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A quota: statvfs has room for all of it, and every write fails."""
    with opened(tmp_path, 3, layout="v1") as store:
        fail_writes(monkeypatch, code)
        with pytest.raises(OSError) as caught:
            store.save_buffer(b"large", os.urandom(4 * MIB), **SAVE)
        assert caught.value.errno == code
        assert len(store.entries()) == 3
        with contextlib.suppress(OSError):
            store.save_buffer(b"small", os.urandom(1000), **SAVE)
        assert len(store.entries()) == 2  # the control: this one may have fitted


def fail_writes(monkeypatch: pytest.MonkeyPatch, code: int = errno.ENOSPC) -> None:
    real = room.OutputFile.write

    def write(file: room.OutputFile, data: bytes) -> int:
        if memoryview(data).nbytes > 500:
            raise OSError(code, os.strerror(code))
        return real(file, data)

    monkeypatch.setattr(room.OutputFile, "write", write)
