"""A store among others: files of other models, directories that go, saves that meet, one file that can't be read."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from processes import started

import ds4kv
from ds4kv.format import naming
from ds4kv.store import admission as saves
from ds4kv.store import entry as entry_module
from ds4kv.store import lookup, upkeep
from ds4kv.store.store import Store

SAVE: dict[str, Any] = {"tokens": 600, "ctx_size": 100}
PROMPT: dict[str, Any] = {"ctx_size": 100, "quant_bits": 2}
PAYLOAD = b"payload" * 500
LAYOUTS = ["v1", "v2", "v2-checked"]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "kv", workers=1) as store:
        yield store


def put(store: Store, text: bytes, payload: Any = PAYLOAD, **options: Any) -> ds4kv.Entry:
    entry = store.save_buffer(text, payload, **SAVE | options)
    assert entry is not None
    return entry


def restore(store: Store, prompt: bytes, state: bytearray) -> bytes | None:
    """The loop of an engine: the text of the checkpoint that its state now is of."""
    tried: list[ds4kv.Entry] = []
    while (entry := store.find(prompt, exclude=tried, **PROMPT)) is not None:
        tried.append(entry)
        try:
            with store.load(entry) as checkpoint:
                checkpoint.payload.readinto_exactly(state)
            return checkpoint.text
        except (ds4kv.Ds4kvError, OSError, ValueError):
            continue
    return None


def refusal(store: Store, text: bytes, **options: Any) -> str | None:
    """Why it would not be saved."""
    saving = store.save(text, **SAVE | options)
    saving.abandon()
    return saving.refusal if not saving.needed else None


def hits(store: Store) -> dict[str, int]:
    return {entry.sha: entry.header.hits for entry in store.entries()}


# ------------------------------------------------------------------------------ what is found


@pytest.mark.parametrize("layout", ["v1", "v2-checked"])
def test_another_models_state_is_not_found(tmp_path: Path, layout: str) -> None:
    with Store(tmp_path, workers=1, layout=layout) as store:
        entry = put(store, b"text", model_id=7, payload_abi=3)
        for wanted in ({}, {"model_id": 7}, {"payload_abi": 3}, {"model_id": 7, "payload_abi": 3}):
            assert store.find(b"text and more", **PROMPT, **wanted) == entry
        for other in ({"model_id": 8}, {"payload_abi": 4}, {"model_id": 0}, {"model_id": 7, "payload_abi": 0}):
            assert store.find(b"text and more", **PROMPT, **other) is None
        # One that this engine can't load is no reason not to save.
        with store.save(b"text", model_id=7, **SAVE) as same, store.save(b"text", **SAVE) as any_model:
            assert not same.needed and not any_model.needed
        assert put(store, b"text", model_id=8).header.model_id == 8
        assert store.find(b"text", **PROMPT, model_id=7) is None


def test_a_layout_without_room_for_the_model_counts_as_none(store: Store) -> None:
    with pytest.raises(ValueError, match="v2 has no room for model_id and payload_abi: v1, v2-checked and packed have"):
        store.save_buffer(b"text", PAYLOAD, model_id=7, **SAVE)
    entry = put(store, b"text")
    assert store.find(b"text", **PROMPT, model_id=0, payload_abi=0) == entry
    assert store.find(b"text", **PROMPT, model_id=7) is None


class CollidingHash:
    """SHA-1, but for two texts of one hash, as there are for who pays for them."""

    TEXTS = (b"collides: good", b"collides: evil")

    def __init__(self, text: bytes = b"", **options: object) -> None:
        self.text = bytes(text)

    def update(self, text: bytes) -> None:
        self.text += bytes(text)

    def hexdigest(self) -> str:
        text = self.TEXTS[0] if self.text in self.TEXTS else self.text
        return hashlib.new("sha1", text).hexdigest()


def test_a_text_of_the_same_hash_is_another_text(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    good, evil = CollidingHash.TEXTS
    for module in (lookup, saves, naming):
        monkeypatch.setattr(module, "hashlib", type("hashlib", (), {"sha1": CollidingHash}), raising=False)
    monkeypatch.setattr(hashlib, "sha1", CollidingHash)
    put(store, b"collides")
    put(store, evil, b"evil" * 100)
    state = bytearray(len(PAYLOAD))
    assert restore(store, evil + b" and more", bytearray(400)) == evil  # the control
    assert restore(store, good + b" and more", state) == b"collides"
    assert state == PAYLOAD
    assert len(store.entries()) == 2  # nothing is moved for it
    assert put(store, good, b"good" * 100).text_bytes == len(good)
    assert restore(store, good + b" and more", bytearray(400)) == good


@pytest.mark.parametrize("code", [errno.EIO, errno.EACCES, errno.ESTALE])
def test_a_file_that_can_not_be_read_does_not_hide_the_others(
    store: Store, code: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    put(store, b"text")
    bad = put(store, b"text and more")
    store.entries()
    real = os.open

    def fail(path: Any, *arguments: Any, **options: Any) -> int:
        if path == bad.path:
            raise OSError(code, os.strerror(code), path)
        return real(path, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", fail)
        state = bytearray(len(PAYLOAD))
        for _ in range(3):
            assert restore(store, b"text and more and more", state) == b"text"
        with pytest.raises(OSError) as caught:
            store.load(bad)
        assert caught.value.errno == code
    assert os.path.exists(bad.path)
    assert restore(store, b"text and more and more", state) == b"text and more"


def test_a_text_that_can_not_be_read_is_logged_once(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    put(store, b"text")
    os.utime(put(store, b"text and more").path, ns=(1, 1))
    store.entries()

    def fail(fd: int, offset: int, size: int) -> bytes:
        if offset == 52:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return os.pread(fd, size, offset)

    monkeypatch.setattr(entry_module, "read_at", fail)
    for _ in range(3):
        assert store.find(b"text and more", **PROMPT) is None
    assert caplog.text.count("text not read") == 2  # files


def test_a_payload_of_another_size_is_passed_over(store: Store) -> None:
    put(store, b"text")
    put(store, b"text and more", PAYLOAD + b"more than the engine has")
    state = bytearray(len(PAYLOAD))
    assert restore(store, b"text and more", state) == b"text"
    assert state == PAYLOAD
    assert sorted(hits(store).values()) == [0, 1]  # a load that failed is no hit
    assert len(store.entries()) == 2


def test_a_load_that_was_cancelled_condemns_nothing(store: Store) -> None:
    entry = put(store, b"text")
    found = store.find(b"text", **PROMPT)
    assert found is not None
    with pytest.raises(ds4kv.CancelledError), store.load(found) as checkpoint:
        checkpoint.cancel()
        checkpoint.payload.read()
    assert hits(store) == {entry.sha: 0}
    assert restore(store, b"text", bytearray(len(PAYLOAD))) == b"text"


# ------------------------------------------------------------------------------ what is saved


@pytest.mark.parametrize("layout", LAYOUTS)
def test_nothing_written_is_nothing_saved(tmp_path: Path, layout: str) -> None:
    with Store(tmp_path, workers=1, layout=layout) as store:
        for nothing in (b"", lambda: b"", bytearray(), np.zeros(0)):
            assert store.save_buffer(b"text", nothing, **SAVE) is None
        for raw_total in (None, 0):
            with store.save(b"text", raw_total=raw_total, **SAVE) as saving:
                assert saving.needed
            assert (saving.entry, saving.refusal) == (None, "nothing was written")
        assert store.entries() == []
        put(store, b"text")  # and nothing is in the way of the good one


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("written", [b"", b"x" * 999, b"x" * 1001])
def test_an_announced_size_holds(tmp_path: Path, layout: str, written: bytes) -> None:
    with Store(tmp_path, workers=1, layout=layout) as store:
        with (
            pytest.raises(ValueError, match="raw_total is 1000"),
            store.save(b"text", raw_total=1000, **SAVE) as saving,
        ):
            saving.payload.write(written)
        assert store.entries() == []
        assert [name for name in os.listdir(tmp_path) if ".kv" in name and not name.startswith(".")] == []


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["float32", "bfloat16", "float8_e4m3fn"])
def test_arrays_of_an_engine(tmp_path: Path, layout: str, name: str) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    array = np.arange(600).astype(getattr(ml_dtypes, name, name))
    ways: list[Callable[[Store, bytes], ds4kv.Entry | None]] = [
        lambda store, text: store.save_buffer(text, array, **SAVE),
        lambda store, text: store.save_buffer(text, lambda: array, **SAVE),
        lambda store, text: store.save_async(text, array, **SAVE).result(20),
    ]
    with Store(tmp_path, workers=1, layout=layout) as store:
        for n, save in enumerate(ways):
            entry = save(store, b"%d" % n)
            assert entry is not None
            with store.load(entry) as checkpoint:
                assert checkpoint.payload.read() == array.tobytes()


def test_a_text_is_saved_by_one_at_a_time(store: Store) -> None:
    other = Store(store.directory, workers=1)
    first = store.save(b"text", **SAVE)
    for second, who in ((store, "another thread"), (other, "another store or process")):
        with second.save(b"text", **SAVE) as saving:
            assert not saving.needed
            saving.payload.write(PAYLOAD)
        assert saving.entry is None
        assert saving.refusal is not None and saving.refusal.startswith(f"the text is being saved by {who}")
        assert refusal(second, b"another text") is None
    first.payload.write(PAYLOAD)
    first.close()
    with other.save(b"text", **SAVE) as saving:
        assert not saving.needed
    assert saving.entry == first.entry


@pytest.mark.parametrize("end", ["close", "abandon", "cancel", "forget", "fail"])
def test_however_a_save_ends_the_next_may_begin(store: Store, end: str) -> None:
    saving: Any = store.save(b"text", **SAVE)
    match end:
        case "close" | "abandon":
            getattr(saving, end)()
        case "cancel":
            saving.payload.write(PAYLOAD)
            saving.cancel()
            with pytest.raises(ds4kv.CancelledError):
                saving.payload.write(PAYLOAD)
            with pytest.raises(ds4kv.CancelledError):
                saving.close()
        case "fail":
            with pytest.raises(ZeroDivisionError), saving:
                raise ZeroDivisionError
        case "forget":
            with pytest.warns(ResourceWarning):
                del saving
    put(store, b"text")
    assert not [name for name in os.listdir(store.directory) if ".tmp." in name]


def test_what_another_process_saves_is_not_saved_beside_it(store: Store) -> None:
    code = (
        "import sys, ds4kv\nstore = ds4kv.Store(sys.argv[1])\n"
        "saving = store.save(b'text', tokens=600, ctx_size=100)\nprint('begun', flush=True); sys.stdin.read()"
    )
    with started([sys.executable, "-c", code, store.directory], stdin=-1) as child:
        assert child.line() == b"begun\n"
        assert refusal(store, b"text") == "the text is being saved by another store or process"
    put(store, b"text")  # it was killed


def test_a_save_that_is_evicted_at_once_is_a_success(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.replace

    def replace_and_evict(source: str, target: str) -> None:
        real(source, target)
        os.unlink(target)  # as another program does that is short of room

    monkeypatch.setattr(os, "replace", replace_and_evict)
    entry = put(store, b"text")
    assert (entry.sha, entry.tokens, entry.text_bytes) == (hashlib.sha1(b"text").hexdigest(), 600, 4)
    assert store.entries() == []
    with pytest.raises(FileNotFoundError):
        store.load(entry)  # a miss, as any other


def test_the_entry_of_a_save_is_that_of_its_file(store: Store) -> None:
    """The control: what a save says is what a look says."""
    for layout in LAYOUTS:
        with Store(store.directory, workers=1, layout=layout) as other:
            assert (
                put(other, layout.encode())
                == {entry.sha: entry for entry in store.entries()}[hashlib.sha1(layout.encode()).hexdigest()]
            )


@pytest.mark.parametrize(("mode", "of_directory"), [(None, 0o700), (0o600, 0o700), (0o640, 0o750), (0o664, 0o775)])
def test_new_files_are_for_whom_they_are_meant(tmp_path: Path, mode: int | None, of_directory: int) -> None:
    old = os.umask(0o077)
    try:
        with Store(tmp_path / "kv", workers=1, mode=mode) as store:
            entry = put(store, b"text")
    finally:
        os.umask(old)
    assert stat.S_IMODE(os.stat(entry.path).st_mode) == (0o600 if mode is None else mode)
    assert stat.S_IMODE(os.stat(store.directory).st_mode) == of_directory


# ------------------------------------------------------------------------------ where it is


def test_a_directory_that_was_removed_is_a_miss_and_is_made_again(store: Store) -> None:
    entry = put(store, b"text")
    shutil.rmtree(store.directory)
    assert store.entries() == []
    assert store.find(b"text", **PROMPT) is None
    assert store.evict() == [] and store.rebuild_integrity() == []
    assert store.import_tool_maps([b"id"]) == {}
    assert not store.remove(entry)
    with pytest.raises(FileNotFoundError):
        store.load(entry)
    put(store, b"new")
    assert stat.S_IMODE(os.stat(store.directory).st_mode) == 0o700
    assert restore(store, b"new", bytearray(len(PAYLOAD))) == b"new"
    shutil.rmtree(store.directory)
    assert store.save_async(b"beside", PAYLOAD, **SAVE).result(20) is not None


def test_a_directory_that_is_removed_under_a_save_and_a_load(store: Store) -> None:
    entry = put(store, b"text")
    with store.load(entry) as checkpoint:
        shutil.rmtree(store.directory)
        assert checkpoint.payload.read() == PAYLOAD
    with pytest.raises(FileNotFoundError), store.save(b"text", **SAVE) as saving:
        saving.payload.write(PAYLOAD)
        shutil.rmtree(store.directory)
    put(store, b"text")


def everything(directory: str) -> dict[str, tuple[int, int, int]]:
    found = {}
    for folder, folders, names in os.walk(directory):
        for name in [*folders, *names, "."]:
            status = os.stat(os.path.join(folder, name))
            found[os.path.join(folder, name)] = status.st_size, status.st_mtime_ns, status.st_ctime_ns
    return found


def test_a_read_only_store_changes_nothing(store: Store) -> None:
    tools = {b"id": b"<tool_calls>ls</tool_calls>"}
    texts = [b"%d <tool_calls>ls</tool_calls>" % n for n in range(4)]
    entries = [put(store, text, os.urandom(5000), tool_map=tools) for text in texts]
    store.close()
    status = os.stat(entries[0].path)
    with open(entries[0].path, "r+b") as fp:
        fp.seek(1000)
        fp.write(b"damage")
    os.utime(entries[0].path, ns=(status.st_atime_ns, status.st_mtime_ns))
    stale = Path(store.directory, f"{entries[1].sha}.kv.tmp.999999999.01234567")
    stale.write_bytes(b"left by a dead process")
    before = everything(store.directory)
    reader = Store(store.directory, read_only=True, budget_bytes=8000, workers=1, consume=True)
    assert len(reader.entries()) == 4
    for entry in reader.entries():
        assert reader.verify(entry) is not None
        try:
            with reader.load(entry) as checkpoint:
                checkpoint.payload.read()
                assert checkpoint.tool_map == tools
        except ds4kv.CorruptError:
            assert entry.sha == entries[0].sha
    assert [entry.sha for entry in reader.entries()].count(entries[0].sha) == 0  # found no more
    assert reader.import_tool_maps([b"id"]) == tools
    with reader.save(b"new", **SAVE) as saving:
        saving.payload.write(PAYLOAD)
    assert (saving.needed, saving.refusal, saving.entry) == (False, "the store is read only", None)
    for forbidden in (reader.evict, lambda: reader.remove(entries[1]), reader.rebuild_integrity):
        with pytest.raises(PermissionError, match="read only"):
            forbidden()
    reader.close()
    assert everything(store.directory) == before


def test_a_read_only_store_of_nothing(tmp_path: Path) -> None:
    with Store(tmp_path / "absent", read_only=True) as store:
        assert store.entries() == [] and store.find(b"text", **PROMPT) is None
    assert os.listdir(tmp_path) == []


def test_looking_evicts_nothing_unless_it_is_meant_to(store: Store) -> None:
    for n in range(4):
        put(store, b"text %d" % n, os.urandom(5000))
    with Store(store.directory, budget_bytes=8000, evict_on_open=False) as looking:
        assert len(looking.entries()) == 4
    with Store(store.directory, budget_bytes=8000) as store:
        assert len(store.entries()) == 1


@pytest.mark.skipif(os.geteuid() == 0 and not hasattr(os, "seteuid"), reason="nothing is forbidden to root")
def test_a_directory_that_is_not_ours_to_write(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for n in range(4):
        put(store, b"text %d" % n, os.urandom(5000))
    real = os.access
    monkeypatch.setattr(
        upkeep.os, "access", lambda path, mode, **options: mode != os.W_OK and real(path, mode, **options)
    )
    monkeypatch.setattr(os, "supports_effective_ids", {upkeep.os.access})
    with Store(store.directory, budget_bytes=8000) as opened:
        assert len(opened.entries()) == 4
    assert caplog.text.count("not ours to write") == 1


def test_threads_that_save_one_text_write_it_once(store: Store) -> None:
    written = []

    def payload() -> bytes:
        written.append(1)
        return PAYLOAD

    barrier = threading.Barrier(6)

    def work() -> None:
        barrier.wait(20)
        store.save_buffer(b"text", payload, **SAVE)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(written) == 1
    assert restore(store, b"text", bytearray(len(PAYLOAD))) == b"text"
