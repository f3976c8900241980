"""What the kernel tells of a directory, and a store that relies on it."""

from __future__ import annotations

import gc
import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import reference
from helpers import sha1
from processes import status_of_fork

from ds4kv.core import watch as watch_module
from ds4kv.core.watch import Watch
from ds4kv.store import index as index_module
from ds4kv.store.entry import read_entry
from ds4kv.store.index import Index
from ds4kv.store.store import Store

SAVE: dict[str, Any] = {"tokens": 600, "ctx_size": 100}


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Watched from the first look on."""
    monkeypatch.setattr(index_module, "_LOOKS_BEFORE_WATCH", 0)


def put(directory: Path, text: bytes, tokens: int = 700) -> Path:
    path = directory / f"{sha1(text)}.kv"
    path.write_bytes(reference.build(b"payload", text=text, tokens=tokens, codec=0, chunk_size=0))
    return path


def test_names(tmp_path: Path) -> None:
    (tmp_path / "old").write_bytes(b"")
    watch = Watch(str(tmp_path))
    assert watch.changed() == set()
    (tmp_path / "new").write_bytes(b"x")
    (tmp_path / "new").rename(tmp_path / "renamed")
    os.utime(tmp_path / "old")
    assert watch.changed() == {"new", "renamed", "old"}
    (tmp_path / "old").read_bytes()
    assert watch.changed() == set()
    with open(tmp_path / "old", "r+b") as fp:
        fp.write(b"y")
    (tmp_path / "renamed").unlink()
    odd = tmp_path / os.fsdecode(b"\xff odd")
    odd.touch()
    assert watch.changed() == {"old", "renamed", odd.name}
    watch.close()
    assert watch.changed() is None


def test_more_news_than_one_read_has_room_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch_module, "_READ_SIZE", 300)
    watch = Watch(str(tmp_path))
    names = {f"{i:04}" * 20 for i in range(50)}
    for name in names:
        (tmp_path / name).touch()
    assert watch.changed() == names


def test_a_directory_that_goes(tmp_path: Path) -> None:
    for end in (shutil.rmtree, lambda path: path.rename(tmp_path / "elsewhere")):
        (tmp_path / "kv").mkdir()
        watch = Watch(str(tmp_path / "kv"))
        end(tmp_path / "kv")
        assert watch.changed() is None
        assert watch.changed() is None


@pytest.mark.parametrize("path", ["/proc", "/nowhere/at/all", __file__])
def test_what_is_not_watched(path: str) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match="can't be watched"):
        Watch(path)
    assert len(os.listdir("/proc/self/fd")) == before


def test_descriptors_are_given_back(tmp_path: Path) -> None:
    Store(tmp_path).close()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        with Store(tmp_path) as store:
            store.entries()
        Index(str(tmp_path)).scan()  # which nobody closes
    assert len(os.listdir("/proc/self/fd")) == before


def test_too_much_news(tmp_path: Path) -> None:
    """The kernel drops what is too much, and says so."""
    watch = Watch(str(tmp_path))
    one, other = tmp_path / "one", tmp_path / "other"
    most = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    for _ in range(most // 2 + 2):  # the same event twice is one
        one.touch()
        other.touch()
    assert watch.changed() is None


# ------------------------------------------------------------------------------- an index that is told


def test_only_what_changed_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [put(tmp_path, b"%d" % i) for i in range(20)]
    index = Index(str(tmp_path))
    index.scan()
    opened: list[str] = []
    real = os.open

    def opening(path: Any, *arguments: Any) -> int:
        opened.append(path)
        return real(path, *arguments)

    def refuse(*arguments: object) -> None:
        raise AssertionError("the directory was read")

    monkeypatch.setattr(os, "open", opening)
    monkeypatch.setattr(os, "scandir", refuse)
    for _ in range(3):
        assert len(index.scan()) == 20
    assert opened == []
    paths[3].unlink()
    with paths[4].open("r+b") as fp:
        fp.seek(8)
        fp.write((999).to_bytes(4, "little"))
    opened.clear()
    assert sorted(entry.tokens for entry in index.scan()) == [700] * 18 + [999]
    assert set(opened) == {str(paths[3]), str(paths[4])}


def test_a_burst_of_saves_looks_at_each_file_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[str] = []
    real = index_module.look_at

    def looking(path: str) -> Any:
        looked.append(path)
        return real(path)

    monkeypatch.setattr(index_module, "look_at", looking)
    with Store(tmp_path, codec="none") as store:
        saved = [store.save_buffer(b"%d" % i, b"payload", **SAVE) for i in range(20)]
        assert len(store.entries()) == 20
    assert sorted(looked) == sorted(entry.path for entry in saved)


@pytest.mark.parametrize("how", ["symlink", "hard link"])
def test_a_file_that_is_written_to_elsewhere(tmp_path: Path, how: str) -> None:
    (tmp_path / "kv").mkdir()
    real = put(tmp_path, b"text")
    link = tmp_path / "kv" / real.name
    link.symlink_to(real) if how == "symlink" else link.hardlink_to(real)
    index = Index(str(tmp_path / "kv"))
    assert [entry.tokens for entry in index.scan()] == [700]
    with real.open("r+b") as fp:
        fp.seek(8)
        fp.write((999).to_bytes(4, "little"))
    assert [entry.tokens for entry in index.scan()] == [999]


def test_another_directory_takes_the_name(tmp_path: Path) -> None:
    kv, other = tmp_path / "kv", tmp_path / "other"
    kv.mkdir(), other.mkdir()
    put(kv, b"one")
    put(other, b"two")
    index = Index(str(kv))
    assert len(index.scan()) == 1
    kv.rename(tmp_path / "old")
    with pytest.raises(FileNotFoundError):
        index.scan()
    assert index.entries() == [] and index.total_bytes == 0
    other.rename(kv)
    assert [entry.sha for entry in index.scan()] == [sha1(b"two")]
    put(kv, b"three")
    assert len(index.scan()) == 2


def test_the_same_by_a_link_that_leads_elsewhere(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        put(tmp_path / name, name.encode())
    link = tmp_path / "kv"
    link.symlink_to("one")
    index = Index(str(link))
    assert [entry.sha for entry in index.scan()] == [sha1(b"one")]
    link.unlink()
    link.symlink_to("two")
    assert [entry.sha for entry in index.scan()] == [sha1(b"two")]


def test_a_minute_is_the_most_that_nobody_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(tmp_path, b"text")
    index = Index(str(tmp_path))
    index.scan()
    monkeypatch.setattr(Watch, "changed", lambda self: set())  # as if the kernel had nothing to tell
    with path.open("r+b") as fp:
        fp.write(b"none")
    assert len(index.scan()) == 1
    monkeypatch.setattr(index_module, "_FULL_LOOK_SECONDS", 0)
    assert index.scan() == []


def test_an_exception_in_the_middle_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal's, at any call: the next look sees all there is."""
    real = index_module.look_at
    paths = [put(tmp_path, b"%d" % i) for i in range(4)]
    index = Index(str(tmp_path))
    index.scan()
    for path in paths:
        path.write_bytes(reference.build(b"payload", text=b"other", tokens=800, codec=0, chunk_size=0))

    def interrupt(path: str) -> Any:
        if path == str(paths[2]):
            raise KeyboardInterrupt
        return real(path)

    with monkeypatch.context() as patch:
        patch.setattr(index_module, "look_at", interrupt)
        with pytest.raises(KeyboardInterrupt):
            index.scan()
    assert {entry.tokens for entry in index.scan()} == {800}
    assert index.total_bytes == sum(path.stat().st_size for path in paths)


def test_a_forked_child_has_a_watch_of_its_own(tmp_path: Path) -> None:
    index = Index(str(tmp_path))
    assert index.scan() == []

    def child() -> None:
        put(tmp_path, b"of the child")
        assert len(index.scan()) == 1

    assert status_of_fork(child) == 0
    put(tmp_path, b"of the parent")
    assert len(index.scan()) == 2


@pytest.mark.parametrize("is_watched", [True, False])
def test_whatever_happens_it_shows_what_is_there(
    tmp_path: Path, is_watched: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not is_watched:
        monkeypatch.setattr(index_module, "Watch", lambda directory: (_ for _ in ()).throw(OSError("none")))
    numbers = random.Random(1)
    index = Index(str(tmp_path))
    known: dict[str, Any] = {}
    number = 0
    for step in range(300):
        name = b"%d" % numbers.randrange(12)
        path = tmp_path / f"{sha1(name)}.kv"
        match numbers.randrange(5):
            case 0:
                put(tmp_path, name, tokens=step + 1)
            case 1:
                path.unlink(missing_ok=True)
            case 2:
                if path.exists():
                    path.rename(tmp_path / f"{sha1(name + b'x')}.kv")
            case 3:
                path.write_bytes(b"no checkpoint")
            case 4:
                (tmp_path / f"{sha1(name)}.kv.tmp.1.00000000").touch()
        if numbers.randrange(3) == 0:
            continue
        index.look()
        expected = {}
        for found in tmp_path.glob("*.kv"):
            if found.read_bytes() != b"no checkpoint":
                expected[found.name] = read_entry(str(found))
        assert {os.path.basename(entry.path): entry for entry in index.entries()} == expected
        assert index.total_bytes == sum(entry.file_size for entry in expected.values())
        assert index.temporaries == {found.name for found in tmp_path.iterdir() if ".tmp." in found.name}
        for entry in expected.values():
            assert entry in index.of(entry.sha)
        news = index.news(number)
        known = {} if news.is_all else known
        known = {name: entry for name, entry in {**known, **news.entries}.items() if entry is not None}
        number = news.number
        assert known == expected


def test_who_looks_twice_has_no_watch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    begun: list[str] = []
    monkeypatch.setattr(index_module, "Watch", lambda directory: begun.append(directory) or Watch(directory))
    index = Index(str(tmp_path))
    for looks in range(1, 6):
        index.look()
        assert len(begun) == (looks > 2)
    index.close()


def test_who_drops_a_store_has_its_descriptors_back(tmp_path: Path) -> None:
    """At once: what stands in a circle would wait for the garbage collector."""
    gc.collect()  # what earlier tests have left
    before = len(os.listdir("/proc/self/fd"))
    gc.disable()
    try:
        store = Store(tmp_path, codec="none")
        store.save_buffer(b"text", b"payload", **SAVE)
        entry, _ = store.nearest(b"text and more", ctx_size=1000)
        with store.load(entry):
            pass
        assert store.save_async(b"more", b"payload", **SAVE).result(20) is not None
        assert store.load_async(entry).result(20).payload == b"payload"
        assert len(os.listdir("/proc/self/fd")) > before
        store.close()
        store.entries()  # of one that is closed, too
        del store
        assert len(os.listdir("/proc/self/fd")) == before
    finally:
        gc.enable()
