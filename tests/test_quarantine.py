"""Where proven-corrupt checkpoints go: bounded, and never through a link."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import ds4kv
from ds4kv.store import quarantine
from ds4kv.store.directory import Directory
from ds4kv.store.entry import Entry
from ds4kv.store.store import Store

SAVE = {"tokens": 600, "ctx_size": 100}
PROMPT = {"ctx_size": 100, "quant_bits": 2}
SIZE = 20_000


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "kv", workers=1, layout="v1", budget_bytes=100 * SIZE) as store:
        yield store


def damage(path: str) -> None:
    """What a failing disk does: other bytes, and no sign of a write."""
    status = os.stat(path)
    with open(path, "r+b") as fp:
        fp.seek(SIZE // 2)
        fp.write(b"damage")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def lose(store: Store, text: bytes, size: int = SIZE) -> Entry:
    """A checkpoint that was found damaged by its load."""
    entry = store.save_buffer(text, os.urandom(size), **SAVE)
    assert entry is not None
    damage(entry.path)
    found = store.find(text, **PROMPT)
    assert found is not None
    with pytest.raises(ds4kv.CorruptError), store.load(found) as checkpoint:
        checkpoint.payload.read()
    return found


def kept(store: Store) -> list[str]:
    path = Path(store.directory) / quarantine.DIRECTORY_NAME
    return sorted(os.listdir(path)) if path.is_dir() else []


def test_it_takes_a_tenth_of_the_budget_and_the_oldest_go(store: Store) -> None:
    lost = [lose(store, b"text %02d" % n) for n in range(14)]
    names = kept(store)
    assert 8 <= len(names) <= 10
    assert set(names) == {os.path.basename(entry.path) for entry in lost[-len(names) :]}
    total = sum(file.file_size for file in Directory(store.directory).quarantine.files())
    assert total <= store.budget_bytes // 10


def test_it_takes_so_many_files(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quarantine, "MAX_FILES", 3)
    lost = [lose(store, b"text %02d" % n) for n in range(5)]
    assert set(kept(store)) == {os.path.basename(entry.path) for entry in lost[2:]}


def test_the_newest_stays_whatever_its_size(store: Store) -> None:
    lose(store, b"small")
    large = lose(store, b"large", 15 * SIZE)
    assert kept(store) == [os.path.basename(large.path)]


def test_one_that_can_not_be_removed_is_passed_over(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(quarantine, "MAX_FILES", 2)
    first, second = lose(store, b"first"), lose(store, b"second")
    stuck = os.path.join(store.directory, quarantine.DIRECTORY_NAME, os.path.basename(first.path))
    real = os.unlink

    def unlink(path: str) -> None:
        if path == stuck:
            raise PermissionError(1, "Operation not permitted", path)
        real(path)

    monkeypatch.setattr(quarantine.os, "unlink", unlink)
    third = lose(store, b"third")
    assert set(kept(store)) == {os.path.basename(entry.path) for entry in (first, third)}, second
    assert "could not remove from quarantine" in caplog.text
    assert third.sha not in {entry.sha for entry in store.entries()}


def test_a_name_that_is_taken_gets_a_number(store: Store) -> None:
    name = os.path.basename(lose(store, b"text").path)
    lose(store, b"text")
    assert kept(store) == [name, f"{name}.1"]


@pytest.mark.parametrize("kind", ["link", "dangling link", "file"])
def test_what_is_no_directory_is_not_followed(
    store: Store, tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    path = Path(store.directory) / quarantine.DIRECTORY_NAME
    match kind:
        case "link":
            path.symlink_to(elsewhere)
        case "dangling link":
            path.symlink_to(tmp_path / "absent")
        case "file":
            path.write_bytes(b"precious")
    entry = lose(store, b"text")
    assert os.path.exists(entry.path)  # left in place, and left out
    assert store.find(b"text", **PROMPT) is None
    assert os.listdir(elsewhere) == [] and not (tmp_path / "absent").exists()
    assert "could not move corrupt file" in caplog.text
    assert store.save_buffer(b"text", b"good" * 100, **SAVE) is not None  # in its place
    found = store.find(b"text", **PROMPT)
    assert found is not None
    with store.load(found) as checkpoint:
        assert checkpoint.payload.read() == b"good" * 100


def test_it_is_looked_into_and_cleared(store: Store) -> None:
    lost = [lose(store, b"text %d" % n) for n in range(3)]
    found = Directory(store.directory).quarantine
    assert [file.name for file in found.files()] == [os.path.basename(entry.path) for entry in lost]
    assert {file.file_size for file in found.files()} == {lost[0].file_size}
    first = found.files()[0].name
    assert [file.name for file in found.clear({first})] == [first]
    assert len(found.clear()) == 2
    assert found.files() == [] and kept(store) == []


def test_a_file_that_somebody_wrote_to_stays(store: Store) -> None:
    """The control: the same bytes, and a time that says so."""
    entry = store.save_buffer(b"text", os.urandom(SIZE), **SAVE)
    assert entry is not None
    damage(entry.path)
    found = store.find(b"text", **PROMPT)
    assert found is not None
    with pytest.raises((ds4kv.CorruptError, OSError)), store.load(found) as checkpoint:
        os.utime(entry.path)
        checkpoint.payload.read()
    assert os.path.exists(entry.path)
    assert kept(store) == []
