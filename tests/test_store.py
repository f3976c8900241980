"""The store over a directory: what is found, what a load and a save leave behind, what goes and what never does."""

from __future__ import annotations

import argparse
import contextlib
import errno
import fcntl
import hashlib
import io
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import reference
from helpers import dead_pid, sha1
from processes import forked, started

import ds4kv
from ds4kv.file import lock
from ds4kv.file.ledger import DIRECTORY_NAME
from ds4kv.file.lock import LOCK_NAME, locked
from ds4kv.file.note import Verdict
from ds4kv.format.toolmap import pack_tool_map
from ds4kv.store import hits, room, upkeep
from ds4kv.store import options as arguments
from ds4kv.store.entry import Entry
from ds4kv.store.store import Store

PAYLOAD = bytes(range(256)) * 64
NOISE = hashlib.shake_256(b"noise").digest(100_000)
BLOCK = b"<tool_calls>ls</tool_calls>"
CHAT = b"Q" + BLOCK + b"A"
PROMPT: dict[str, Any] = {"ctx_size": 32768, "quant_bits": 2}
SAVE: dict[str, Any] = {"tokens": 600, "ctx_size": 32768}


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[Store]:
    with Store(tmp_path / "kv", clock=clock, workers=1) as store:
        yield store


def path_of(store: Store, text: bytes) -> Path:
    return Path(store.directory, f"{sha1(text)}.kv")


def names(store: Store) -> set[str]:
    return set(os.listdir(store.directory)) - {LOCK_NAME, DIRECTORY_NAME}


def load(store: Store, prompt: bytes) -> bytes | None:
    entry = store.find(prompt, **PROMPT)
    if entry is None:
        return None
    with store.load(entry) as checkpoint:
        return checkpoint.payload.read()


def damage(path: Path, text: bytes) -> None:
    """Breaks the first block of a compressed region."""
    with open(path, "r+b") as fp:
        fp.seek(52 + len(text) + 12 + 8)
        fp.write(b"\xff" * 40)


# ------------------------------------------------------------------------------ opening


def test_the_directory_is_made(tmp_path: Path) -> None:
    Store(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError):
        Store(tmp_path / "file")


def test_a_store_keeps_to_its_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = Store("kv")
    monkeypatch.chdir("/")
    store.save_buffer(b"text", PAYLOAD, **SAVE)
    assert (tmp_path / "kv" / f"{sha1(b'text')}.kv").is_file()


@pytest.mark.parametrize(
    "options",
    [
        {"budget_mb": -1},
        {"budget_bytes": -1},
        {"min_tokens": -1},
        {"layout": "v3"},
        {"layout": "v1", "codec": "lz4"},
        {"codec": "zstd"},
        {"workers": -1},
        {"on_full": "panic"},
        {"nice": -1},
        {"nice": 20},
    ],
)
def test_arguments_out_of_range(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=str(next(reversed(options.values())))):
        Store(tmp_path / "kv", **options)
    assert not (tmp_path / "kv").exists()


def test_budgets(tmp_path: Path) -> None:
    assert Store(tmp_path).budget_bytes == 4096 << 20
    assert Store(tmp_path, budget_mb=0).budget_bytes == 4096 << 20
    assert Store(tmp_path, budget_mb=3).budget_bytes == 3 << 20
    assert Store(tmp_path, budget_mb=3, budget_bytes=77).budget_bytes == 77


def test_from_args(tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    arguments.add_cli_arguments(parser)
    assert Store.from_args(parser.parse_args([])) is None
    given = ["--kv-disk-dir", str(tmp_path), "--kv-disk-space-mb", "7", "--kv-cache-compression-threads", "0"]
    store = Store.from_args(parser.parse_args(given))
    assert store is not None
    assert (store.directory, store.budget_bytes) == (str(tmp_path), 7 << 20)
    entry = store.save_buffer(b"text", PAYLOAD, **SAVE)
    assert entry.header.codec is ds4kv.Codec.NONE


def test_what_dead_processes_left_is_removed(tmp_path: Path) -> None:
    pid = dead_pid()
    key = f"{sha1(b'text')}.kv"
    other = f"{sha1(b'other')}.kv"
    # Names, and for how many seconds nobody wrote to the file.
    gone = {
        f"{key}.tmp.{pid}.0123abcd": 0,
        f"{key}.tmp.{pid}": 70,  # ds4's: it may be in another container, where it lives
        f"sysprompt.kv.tmp.{pid}": 70,
        f"{key}.tmp.aB3x_Z": 7200,
        "sysprompt.kv.tmp.qwerty": 7200,
        f"{key}.tmp.{os.getpid()}.0123abcd": 70,  # nobody holds it, so it is of an earlier process of this number
        f"{key}.tmp.{os.getppid()}.0123abcd": 70,
        f"{other}.tmp.{os.getpid()}": 7200,
    }
    kept = {
        f"{key}.tmp.{os.getpid()}.0123abce": 50,
        f"{key}.tmp.{os.getppid()}.0123abce": 50,
        f"{key}.tmp.{os.getpid()}": 3500,
        f"{key}.tmp.{os.getppid()}": 7200,
        f"{other}.tmp.{pid}": 50,
        f"{key}.tmp.aB3x_Y": 3500,
        f"{key}.tmp.{pid}.bak": 7200,
        f"notes.tmp.{pid}": 7200,
        f"notes.tmp.{pid}.0123abcd": 7200,  # the next dump of that name removes it
        key: 7200,
    }
    for name, seconds in {**gone, **kept}.items():
        (tmp_path / name).write_bytes(b"half")
        os.utime(tmp_path / name, (time.time() - seconds,) * 2)
    Store(tmp_path)
    assert set(os.listdir(tmp_path)) == set(kept)


def test_only_regular_files_are_temporary_ones(tmp_path: Path) -> None:
    pid = dead_pid()
    names = [f"{sha1(text)}.kv.tmp.{pid}" for text in (b"directory", b"fifo", b"link", b"file")]
    (tmp_path / names[0]).mkdir()
    os.mkfifo(tmp_path / names[1])
    (tmp_path / names[2]).symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").write_bytes(b"somebody's")
    (tmp_path / names[3]).write_bytes(b"half")
    for name in (names[0], names[1], names[3]):
        os.utime(tmp_path / name, (0, 0))
    Store(tmp_path)
    assert set(os.listdir(tmp_path)) == {*names[:3], "elsewhere"}


def test_a_temporary_file_that_is_held_stays(tmp_path: Path) -> None:
    """Its writer may be in another container, where the number means another process."""
    pid = dead_pid()
    path = tmp_path / f"{sha1(b'text')}.kv.tmp.{pid}.0123abcd"
    with open(path, "wb") as fp:
        fcntl.flock(fp, fcntl.LOCK_EX)
        Store(tmp_path)
        assert path.exists()
    Store(tmp_path)
    assert not path.exists()


def test_a_save_under_way_is_held(store: Store) -> None:
    with store.save(b"text", **SAVE) as saving_:
        saving_.payload.write(PAYLOAD)
        (name,) = names(store)
        with open(Path(store.directory, name), "rb") as fp, pytest.raises(BlockingIOError):
            fcntl.flock(fp, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.utime(Path(store.directory, name), (0, 0))
        Store(store.directory)
    assert load(store, b"text") == PAYLOAD


# ------------------------------------------------------------------------------ save, find, load


@pytest.mark.parametrize(("layout", "codec"), [("v1", None), ("v2", "none"), ("v2", None), ("v2", "lz4hc")])
@pytest.mark.parametrize("fsync", [False, True])
def test_round_trip(tmp_path: Path, clock: Clock, layout: str, codec: str | None, fsync: bool) -> None:
    store = Store(tmp_path, layout=layout, codec=codec, clock=clock, fsync=fsync)
    with store.save(CHAT, tool_map={b"call_1": BLOCK, b"call_2": b"elsewhere"}, ext_flags=0xF5, **SAVE) as saving_:
        assert saving_.needed
        saving_.payload.write(PAYLOAD)
    entry = saving_.entry
    assert entry == store.find(CHAT + b" and more", **PROMPT)
    data = Path(entry.path).read_bytes()
    parsed = reference.parse(data, os.path.basename(entry.path))
    assert (parsed.payload, parsed.text, parsed.trailer) == (PAYLOAD, CHAT, pack_tool_map({b"call_1": BLOCK}))
    assert (parsed.tokens, parsed.hits, parsed.created_at, parsed.last_used) == (600, 0, 1_000_000, 1_000_000)
    assert (parsed.version, parsed.ext_flags) == (1 if layout == "v1" else 2, 0xF5)
    clock.now += 5
    with store.load(entry) as checkpoint:
        assert checkpoint.payload.read() == PAYLOAD
        assert checkpoint.tool_map == {b"call_1": BLOCK}
    touched = Path(entry.path).read_bytes()
    assert reference.parse(touched).hits == 1
    assert reference.parse(touched).last_used == 1_000_005
    assert [at for at in range(len(data)) if data[at] != touched[at]] == [12, 32]
    assert names(store) == {f"{sha1(CHAT)}.kv"}


def test_without_a_tool_map_the_flag_is_off(store: Store) -> None:
    entry = store.save_buffer(CHAT, PAYLOAD, ext_flags=0xF5, tool_map={b"call_1": b"elsewhere"}, **SAVE)
    assert entry.ext_flags == 0xF4
    with store.load(entry) as checkpoint:
        assert checkpoint.tool_map == {}


def test_find_filters(tmp_path: Path, store: Store) -> None:
    store.save_buffer(b"ab", b"short", **SAVE)
    store.save_buffer(b"abcd", b"long", tokens=600, ctx_size=50000, quant_bits=4)
    assert load(store, b"abcde") == b"short"  # the long one has a larger context
    prompt = {"ctx_size": 50000, "quant_bits": 2}
    assert store.find(b"abcde", **prompt).text_bytes == 4
    assert store.find(b"abc", **prompt).text_bytes == 2
    assert store.find(b"a", **prompt) is None
    assert store.find(b"xabcd", **prompt) is None
    assert store.find(b"abcde", ctx_size=50000, quant_bits=3) is None
    assert store.find(b"abcde", exclude=[store.find(b"abcde", **prompt)], **prompt).text_bytes == 2
    strict = Store(store.directory, reject_different_quant=True)
    assert strict.find(b"abcde", **prompt).text_bytes == 2
    assert strict.find(b"abcde", ctx_size=50000, quant_bits=4).text_bytes == 4
    assert Store(store.directory, min_tokens=601).find(b"abcde", **prompt) is None
    assert Store(store.directory, min_tokens=600).find(b"abcde", **prompt) is not None


@pytest.mark.parametrize(
    "options",
    [{"tokens": 511}, {"tokens": 0}, {"tokens": -1}, {"quant_bits": 3}, {"quant_bits": 0}],
)
def test_a_refusal_is_no_error(store: Store, options: dict[str, Any]) -> None:
    with store.save(b"text", **{**SAVE, **options}) as saving_:
        assert not saving_.needed
        assert saving_.payload.write(PAYLOAD) == len(PAYLOAD)
    assert saving_.entry is None
    assert str(next(iter(options.values()))) in saving_.refusal
    assert names(store) == set()


def test_a_text_is_not_saved_twice(store: Store, clock: Clock) -> None:
    first = store.save_buffer(b"text", PAYLOAD, **SAVE)
    before = Path(first.path).read_bytes()
    clock.now += 9
    with store.save(b"text", **SAVE) as saving_:
        assert not saving_.needed
        saving_.payload.write(b"other")
    assert (saving_.entry, saving_.refusal) == (first, None)
    assert store.save_buffer(b"text", lambda: pytest.fail("not needed"), **SAVE) == first
    assert Path(first.path).read_bytes() == before


def test_a_text_under_an_upper_case_name_is_not_saved_twice(store: Store) -> None:
    entry = store.save_buffer(b"text", PAYLOAD, **SAVE)
    upper = Path(store.directory, f"{sha1(b'text').upper()}.kv")
    Path(entry.path).rename(upper)
    assert store.save_buffer(b"text", b"other", **SAVE).path == str(upper)
    assert load(store, b"text") == PAYLOAD
    assert names(store) == {upper.name}
    # One that this engine can't load is replaced, not doubled.
    assert store.save_buffer(b"text", b"other", tokens=600, ctx_size=1).path == entry.path
    assert names(store) == {os.path.basename(entry.path)}


@pytest.mark.parametrize("own", [{"ctx_size": 32767}, {"quant_bits": 4}])
def test_an_incompatible_checkpoint_is_replaced(
    tmp_path: Path, own: dict[str, int], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "ds4kv")
    store = Store(tmp_path, reject_different_quant=True)
    old = store.save_buffer(b"text", PAYLOAD, **SAVE)
    with contextlib.suppress(KeyError), store.save(b"text", **{**SAVE, **own}) as saving_:
        saving_.payload.write(b"new")
        raise KeyError
    assert load(store, b"text") == PAYLOAD  # nothing is removed before the new one is there
    assert "replaced" not in caplog.text
    new = store.save_buffer(b"text", b"new", **{**SAVE, **own})
    assert new.path == old.path
    assert f"kv cache replaced incompatible file {old.path}" in caplog.text
    with store.load(new) as checkpoint:
        assert checkpoint.payload.read() == b"new"


def test_a_file_of_the_name_that_is_no_checkpoint_is_replaced(store: Store) -> None:
    path_of(store, b"text").write_bytes(b"no checkpoint")
    assert store.find(b"text", **PROMPT) is None
    store.save_buffer(b"text", PAYLOAD, **SAVE)
    assert load(store, b"text") == PAYLOAD


def test_a_checkpoint_of_the_size_and_name_and_another_text_is_replaced(store: Store) -> None:
    entry = store.save_buffer(b"text", PAYLOAD, **SAVE)
    path = Path(entry.path)
    path.write_bytes(corrupt_text(path.read_bytes()))
    store.save_buffer(b"text", PAYLOAD, **SAVE)
    assert load(store, b"text") == PAYLOAD


def test_the_tool_map_of_a_present_text_is_rewritten(store: Store, clock: Clock) -> None:
    entry = store.save_buffer(CHAT, PAYLOAD, **SAVE)
    clock.now += 9
    again = store.save_buffer(CHAT, PAYLOAD, tool_map={b"call_1": BLOCK}, **SAVE)
    assert (again.header.hits, again.header.last_used) == (0, 1_000_009)
    assert again.ext_flags == 1
    assert store.import_tool_maps([b"call_1", b"call_2"]) == {b"call_1": BLOCK}
    clock.now += 9
    assert store.save_buffer(CHAT, PAYLOAD, tool_map={}, **SAVE) == again  # no calls: the old map stays
    with store.load(entry) as checkpoint:
        assert checkpoint.payload.read() == PAYLOAD


def test_a_present_text_that_is_removed_meanwhile(store: Store) -> None:
    entry = store.save_buffer(CHAT, PAYLOAD, **SAVE)
    with store.save(CHAT, tool_map={b"call_1": BLOCK}, **SAVE) as saving_:
        os.unlink(entry.path)
    assert saving_.entry is None
    assert "removed" in saving_.refusal


def test_import_tool_maps(store: Store) -> None:
    other = b"<tool_calls>cat</tool_calls>"
    store.save_buffer(CHAT, PAYLOAD, tool_map={b"call_1": BLOCK, b"call_2": BLOCK}, **SAVE)
    store.save_buffer(other, PAYLOAD, tool_map={b"call_3": other}, **SAVE)
    store.save_buffer(b"none", PAYLOAD, **SAVE)
    assert store.import_tool_maps([b"call_1", b"call_3", b"call_9"]) == {b"call_1": BLOCK, b"call_3": other}
    assert store.import_tool_maps([]) == {}


def test_import_tool_maps_ends_when_all_are_known(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for text in (b"1" + BLOCK, b"2" + BLOCK, b"3" + BLOCK):
        store.save_buffer(text, PAYLOAD, tool_map={b"call_1": BLOCK}, **SAVE)
    read = []
    real = upkeep.read_noted_tool_map
    monkeypatch.setattr(upkeep, "read_noted_tool_map", lambda *a, **o: read.append(a) or real(*a, **o))
    assert store.import_tool_maps([b"call_1"]) == {b"call_1": BLOCK}
    assert len(read) == 1
    assert store.import_tool_maps([b"call_1", b"call_2"]) == {b"call_1": BLOCK}
    assert len(read) == 4


def test_an_engine_that_fails_saves_nothing(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ZeroDivisionError), store.save(b"text", **SAVE) as saving_:
        saving_.payload.write(PAYLOAD)
        raise ZeroDivisionError("the engine's")
    assert names(store) == set()
    assert "kv cache store failed (cold): the engine's" in caplog.text
    assert saving_.entry is None


def test_a_payload_that_was_abandoned_is_not_published(store: Store) -> None:
    with pytest.raises(ds4kv.Ds4kvError, match="abandoned"), store.save(b"text", **SAVE) as saving_:
        saving_.payload.abandon()
    assert names(store) == set()


def test_what_is_foreign_is_seen(store: Store) -> None:
    other = Store(store.directory)
    assert store.find(b"text", **PROMPT) is None
    other.save_buffer(b"text", PAYLOAD, **SAVE)
    entry = store.find(b"text", **PROMPT)
    os.unlink(entry.path)
    with pytest.raises(FileNotFoundError):
        store.load(entry)
    assert store.find(b"text", **PROMPT) is None


def test_a_checkpoint_that_changed_since_it_was_found_is_a_miss(store: Store) -> None:
    entry = store.save_buffer(b"text", PAYLOAD, **SAVE)
    os.unlink(entry.path)
    store.save_buffer(b"text", PAYLOAD, tokens=601, ctx_size=32768)
    with pytest.raises(FileNotFoundError, match="took its place"):
        store.load(entry)
    assert load(store, b"text") == PAYLOAD


# ------------------------------------------------------------------------------ loads that fail


def test_a_corrupt_checkpoint_is_set_aside_and_the_next_best_is_found(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    store.save_buffer(b"te", b"shorter", **SAVE)
    store.save_buffer(b"text", PAYLOAD, **SAVE)
    damage(path_of(store, b"text"), b"text")
    damaged = path_of(store, b"text").read_bytes()
    with pytest.raises(ds4kv.CorruptError):
        load(store, b"text")
    assert load(store, b"text") == b"shorter"
    aside = Path(store.directory, "quarantine", f"{sha1(b'text')}.kv")
    assert aside.read_bytes() == damaged
    assert "kv cache load failed" in caplog.text
    # The key isn't poisoned, and a second one does not push the first out.
    store.save_buffer(b"text", PAYLOAD, **SAVE)
    assert load(store, b"text") == PAYLOAD
    damage(path_of(store, b"text"), b"text")
    with pytest.raises(ds4kv.CorruptError):
        load(store, b"text")
    assert {path.name for path in aside.parent.iterdir()} == {aside.name, f"{aside.name}.1"}
    assert aside.read_bytes() == damaged
    assert len(store.entries()) == 1


def corrupt_text(data: bytes) -> bytes:
    return data[:52] + b"tezt" + data[56:]


def corrupt_frame(data: bytes) -> bytes:
    return data[:56] + b"\xff" * 8 + data[64:]


@pytest.mark.parametrize("change", [corrupt_text, corrupt_frame])
def test_corrupt_before_its_payload(store: Store, change: Callable[[bytes], bytes]) -> None:
    entry = store.save_buffer(b"text", PAYLOAD, **SAVE)
    path = Path(entry.path)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ds4kv.CorruptError):
        store.load(store.find(b"text", **PROMPT))
    assert names(store) == {"quarantine"}
    assert store.find(b"text", **PROMPT) is None


def test_a_good_file_that_took_the_place_of_a_corrupt_one_stays(store: Store) -> None:
    entry = store.save_buffer(b"text", PAYLOAD, **SAVE)
    good = Path(entry.path).read_bytes()
    damage(Path(entry.path), b"text")
    with pytest.raises(ds4kv.CorruptError), store.load(store.find(b"text", **PROMPT)) as checkpoint:
        new = Path(f"{entry.path}.new")
        new.write_bytes(good)
        new.replace(entry.path)
        checkpoint.payload.read()
    assert load(store, b"text") == PAYLOAD
    assert "quarantine" not in names(store)


def test_an_engine_that_hides_the_fault_does_not_keep_it(store: Store) -> None:
    """An engine in C knows of errors, not of exceptions."""
    store.save_buffer(b"text", PAYLOAD, **SAVE)
    damage(path_of(store, b"text"), b"text")
    with store.load(store.find(b"text", **PROMPT)) as checkpoint, contextlib.suppress(ds4kv.CorruptError):
        checkpoint.payload.read()
    assert names(store) == {"quarantine"}


@pytest.mark.parametrize("error", [OSError(5, "I/O error"), MemoryError(), RuntimeError("engine"), KeyboardInterrupt()])
def test_other_failures_leave_the_file_as_it_is(store: Store, error: BaseException) -> None:
    entry = store.save_buffer(b"text", PAYLOAD, **SAVE)
    before = Path(entry.path).read_bytes()
    with pytest.raises(type(error)), store.load(entry) as checkpoint:
        checkpoint.payload.read(10)
        raise error
    assert Path(entry.path).read_bytes() == before
    assert names(store) == {os.path.basename(entry.path)}


def test_a_corrupt_error_of_something_else_is_no_fault_of_the_file(store: Store) -> None:
    entry = store.save_buffer(b"text", PAYLOAD, **SAVE)
    with pytest.raises(ds4kv.CorruptError), store.load(entry):
        raise ds4kv.CorruptError("another file", path=entry.path)
    assert load(store, b"text") == PAYLOAD


def test_a_corrupt_file_that_can_not_be_moved_is_found_no_more(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.save_buffer(b"te", b"shorter", **SAVE)
    store.save_buffer(b"text", PAYLOAD, **SAVE)
    damage(path_of(store, b"text"), b"text")
    Path(store.directory, "quarantine").write_bytes(b"in the way")
    with pytest.raises(ds4kv.CorruptError):
        load(store, b"text")
    assert path_of(store, b"text").exists()
    assert load(store, b"text") == b"shorter"


def test_a_hit_that_can_not_be_noted_is_a_hit(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    entry = store.save_buffer(b"text", PAYLOAD, **SAVE)

    def refuse(path: str, **options: Any) -> bool:
        raise PermissionError(1, "Operation not permitted", path)

    monkeypatch.setattr(hits, "touch", refuse)
    assert load(store, b"text") == PAYLOAD
    assert "hit not noted" in caplog.text
    assert store.entries() == [entry]


@pytest.mark.parametrize("what_comes", ["a hit", "a save", "the end"])
def test_a_hit_that_can_not_be_noted_now_is_noted_later(store: Store, what_comes: str) -> None:
    entry = store.save_buffer(b"text", PAYLOAD, **SAVE)
    with locked(store.directory):
        started = time.monotonic()
        assert [load(store, b"text") for _ in range(3)] == [PAYLOAD] * 3
        assert time.monotonic() - started < 1
        assert store.entries()[0].header.hits == 0
    if what_comes == "a hit":
        load(store, b"text")
    elif what_comes == "a save":
        store.save_buffer(b"another text", PAYLOAD, **SAVE)
    else:
        store.close()
    assert ds4kv.read_header(entry.path).hits == 3 + (what_comes == "a hit")
    assert store.verify(entry) is Verdict.OK


def test_an_evicted_file_is_read_to_its_end(store: Store) -> None:
    entry = store.save_buffer(b"text", NOISE, **SAVE)
    with store.load(entry) as checkpoint:
        assert store.remove(entry)
        assert not store.remove(entry)
        assert checkpoint.payload.read() == NOISE
    assert names(store) == set()


@pytest.mark.parametrize(("tokens", "consume", "stays"), [(2001, True, False), (2000, True, True), (2001, False, True)])
def test_consume(tmp_path: Path, tokens: int, consume: bool, stays: bool) -> None:
    store = Store(tmp_path, cold_max_tokens=2000, consume=consume)
    entry = store.save_buffer(b"text", PAYLOAD, tokens=tokens, ctx_size=32768)
    with pytest.raises(KeyError), store.load(entry):
        raise KeyError  # which consumes nothing
    assert load(store, b"text") == PAYLOAD
    assert Path(entry.path).exists() is stays


# ------------------------------------------------------------------------------ budget and eviction


def test_admission_is_by_the_real_size(tmp_path: Path) -> None:
    text, size = b"text", len(NOISE) + 56
    just = size + -(-size // 100)
    for budget, fits in [(just, True), (just - 1, False)]:
        store = Store(tmp_path / str(budget), budget_bytes=budget, codec="none")
        for raw_total in (None, len(NOISE)):
            with store.save(text, raw_total=raw_total, **SAVE) as saving_:
                assert saving_.needed is (fits or raw_total is None) or saving_.entry is not None
                saving_.payload.write(NOISE)
            assert (saving_.entry is not None) is fits
            assert (saving_.refusal is None) is fits
        assert names(store) == ({f"{sha1(text)}.kv"} if fits else set())
    # 3 MB that compress to 12 kB fit into less than 3 MB.
    store = Store(tmp_path / "small", budget_bytes=20_000)
    assert store.save_buffer(text, bytes(3_000_000), **SAVE) is not None


def test_past_the_budget_nothing_is_kept_on_disk(tmp_path: Path) -> None:
    store = Store(tmp_path, budget_bytes=50_000, codec="none")
    with store.save(b"text", **SAVE) as saving_:
        for _ in range(20):
            saving_.payload.write(NOISE[:10_000])
        (name,) = names(store)
        assert (tmp_path / name).stat().st_size == 0
    assert "200056 bytes" in saving_.refusal
    assert names(store) == set()


def noise(n: int) -> bytes:
    return NOISE[n : n + 10_000]


def test_the_least_worth_goes(tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "ds4kv")
    store = Store(tmp_path, budget_bytes=31_000, clock=clock)
    for n, tokens in enumerate([600, 800, 700]):
        store.save_buffer(b"%d" % n, noise(n), tokens=tokens, ctx_size=32768)
    assert len(store.entries()) == 3
    with store.load(store.find(b"0", **PROMPT)):
        pass  # a hit doubles what it is worth
    assert [victim.entry.sha for victim in store.plan_eviction(0)] == [sha1(b"2"), sha1(b"1"), sha1(b"0")]
    assert len(store.entries()) == 3
    store.save_buffer(b"3", noise(3), **SAVE)  # the lowest score of all, and protected
    assert {entry.sha for entry in store.entries()} == {sha1(b"0"), sha1(b"1"), sha1(b"3")}
    assert "kv cache evicted reason=disk-cache-full tokens=700 hits=0" in caplog.text
    Store(tmp_path, budget_bytes=11_000, clock=clock)  # opening evicts
    assert [entry.sha for entry in store.entries()] == [sha1(b"0")]


def test_score_is_any_function(tmp_path: Path) -> None:
    store = Store(tmp_path, budget_bytes=21_000, score=lambda entry, now: -entry.tokens)
    for n, tokens in enumerate([900, 800, 700]):
        store.save_buffer(b"%d" % n, noise(n), tokens=tokens, ctx_size=32768)
    assert {entry.tokens for entry in store.entries()} == {800, 700}


def test_what_can_not_be_removed_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store(tmp_path)
    entries = [store.save_buffer(b"%d" % n, noise(n), tokens=600 + n, ctx_size=32768) for n in range(4)]
    unlink = os.unlink

    def refuse(path: str, **options: Any) -> None:
        if path == entries[0].path:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), path)
        unlink(path, **options)

    monkeypatch.setattr(os, "unlink", refuse)
    Store(tmp_path, budget_bytes=21_000)
    assert {entry.sha for entry in store.entries()} == {sha1(b"0"), sha1(b"3")}
    assert f"eviction failed {entries[0].path}" in caplog.text


def test_what_is_no_checkpoint_is_neither_counted_nor_evicted(tmp_path: Path) -> None:
    (tmp_path / f"{'a' * 40}.kv").write_bytes(NOISE)
    (tmp_path / "notes.txt").write_bytes(NOISE)
    store = Store(tmp_path, budget_bytes=12_000)
    store.save_buffer(b"text", noise(0), **SAVE)
    assert names(store) == {f"{'a' * 40}.kv", "notes.txt", f"{sha1(b'text')}.kv"}


# ------------------------------------------------------------------------------ a full disk


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """A disk of so many bytes under what saves write."""
    size = {"bytes": 1 << 40}

    class SmallDisk(io.FileIO):
        def write(self, b: Any, /) -> int:
            directory = Path(self._test_directory)
            free = size["bytes"] - sum(path.stat().st_size for path in directory.iterdir() if path.is_file())
            taken = memoryview(b)[: max(free, 0)]
            if not taken:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().write(taken)

    class LimitedFile(room._LimitedFile, SmallDisk):  # super() in the one is the other
        def __init__(self, path: str, mode: str, **options: Any) -> None:
            super().__init__(path, mode, **options)
            self._test_directory = os.path.dirname(path)

    monkeypatch.setattr(room, "_LimitedFile", LimitedFile)
    return size


def filled(directory: Path, on_full: str, codec: str) -> Store:
    store = Store(directory, on_full=on_full, codec=codec, workers=0)
    for n in range(4):
        store.save_buffer(b"%d" % n, noise(n), tokens=600 + n, ctx_size=32768)
    return store


@pytest.mark.parametrize("codec", ["none", "lz4"])
def test_a_full_disk_is_an_error_and_nothing_goes(tmp_path: Path, disk: dict[str, int], codec: str) -> None:
    store = filled(tmp_path, "raise", codec)
    before = names(store)
    disk["bytes"] = 45_000
    with pytest.raises(OSError, match="space") as caught, store.save(b"new", **SAVE) as saving_:
        saving_.payload.write(noise(9))
    assert caught.value.errno == errno.ENOSPC
    assert names(store) == before


@pytest.mark.parametrize("codec", ["none", "lz4"])
@pytest.mark.parametrize("raw_total", [None, 10_000])
def test_on_full_evict_makes_room(tmp_path: Path, disk: dict[str, int], codec: str, raw_total: int | None) -> None:
    store = filled(tmp_path, "evict", codec)
    disk["bytes"] = 45_000
    with store.save(b"new", raw_total=raw_total, **SAVE) as saving_:
        for start in range(0, 10_000, 1000):
            saving_.payload.write(NOISE[start : start + 1000])
    assert {entry.sha for entry in store.entries()} == {sha1(text) for text in (b"1", b"2", b"3", b"new")}
    with store.load(saving_.entry) as checkpoint:
        assert checkpoint.payload.read() == NOISE[:10_000]


def test_on_full_evict_removes_nothing_where_that_would_not_do(tmp_path: Path, disk: dict[str, int]) -> None:
    store = filled(tmp_path, "evict", "none")
    before = names(store)
    disk["bytes"] = 45_000
    with pytest.raises(OSError, match="space"), store.save(b"new", raw_total=90_000, **SAVE) as saving_:
        for start in range(0, 90_000, 10_000):
            saving_.payload.write(NOISE[start : start + 10_000])
    assert names(store) == before


def test_on_full_evict_makes_room_for_the_text_too(
    tmp_path: Path, disk: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = filled(tmp_path, "evict", "none")
    real = room.StoreWriter.__init__
    failures = [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))]

    def init(self: room.StoreWriter, *arguments: Any, **options: Any) -> None:
        if failures:
            raise failures.pop()
        real(self, *arguments, **options)

    monkeypatch.setattr(room.StoreWriter, "__init__", init)
    assert store.save_buffer(b"new", b"payload", **SAVE) is not None
    assert {entry.sha for entry in store.entries()} == {sha1(text) for text in (b"1", b"2", b"3", b"new")}
    failures += [OSError(errno.ENOSPC, "once"), OSError(errno.ENOSPC, "and again")]
    with pytest.raises(OSError, match="once"):
        store.save_buffer(b"newer", b"payload", **SAVE)
    failures.append(OSError(errno.EIO, os.strerror(errno.EIO)))
    before = names(store)
    with pytest.raises(OSError, match="Input/output"):
        store.save_buffer(b"newest", b"payload", **SAVE)
    assert names(store) == before


# ------------------------------------------------------------------------------ in the background


def test_saves_in_the_background_are_done_in_order(tmp_path: Path) -> None:
    done = []
    with Store(tmp_path) as store:
        futures = []
        for n in range(8):
            future = store.save_async(b"%d" % n, NOISE, **SAVE)
            future.add_done_callback(lambda _, n=n: done.append(n))
            futures.append(future)
    assert done == list(range(8))
    assert [future.result().sha for future in futures] == [sha1(b"%d" % n) for n in range(8)]
    with pytest.raises(RuntimeError, match="closed"):
        store.save_async(b"late", NOISE, **SAVE)


def test_a_snapshot_is_taken_when_it_is_its_turn(store: Store) -> None:
    state = bytearray(b"old")
    gate = threading.Event()
    first = store.save_async(b"first", lambda: gate.wait(10) and b"payload", **SAVE)
    second = store.save_async(b"second", lambda: bytes(state), **SAVE)
    state[:] = b"new"
    gate.set()
    assert first.result().sha == sha1(b"first")
    second.result()
    assert load(store, b"second") == b"new"


def test_the_queue_is_bounded(store: Store) -> None:
    gate = threading.Event()
    passed = []

    def submit() -> None:
        for n in range(9):
            store.save_async(b"%d" % n, lambda: gate.wait(10) and b"payload", **SAVE)
            passed.append(n)

    thread = threading.Thread(target=submit)
    thread.start()
    thread.join(0.2)
    assert 4 <= len(passed) < 9
    gate.set()
    thread.join(10)
    store.close()
    assert len(store.entries()) == 9


def test_what_goes_wrong_in_the_background_surfaces(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> bytes:
        raise ZeroDivisionError("the engine's")

    bad = store.save_async(b"bad", fail, **SAVE)
    good = store.save_async(b"good", PAYLOAD, **SAVE)
    refused = store.save_async(b"few", PAYLOAD, tokens=5, ctx_size=32768)
    with pytest.raises(ZeroDivisionError):
        bad.result()
    assert "the engine's" in caplog.text
    assert good.result() is not None
    assert refused.result() is None


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a niceness of one thread")
@pytest.mark.skipif(os.getpriority(os.PRIO_PROCESS, 0) > 18, reason="nothing is nicer than this process")
def test_niceness_is_that_of_the_workers(tmp_path: Path) -> None:
    own = os.getpriority(os.PRIO_PROCESS, 0)
    wanted = min(own + 7, 19)

    def niced() -> int:
        others = [int(tid) for tid in os.listdir("/proc/self/task") if int(tid) != threading.get_native_id()]
        return [os.getpriority(os.PRIO_PROCESS, tid) for tid in others].count(wanted)

    before = niced()
    with Store(tmp_path, nice=7) as store, store.save(b"text", **SAVE) as saving:
        saving.payload.write(bytes(33 << 20))  # three chunks: a thread is worth its start
        end = time.monotonic() + 5
        while niced() == before and time.monotonic() < end:
            time.sleep(0.01)  # a thread makes itself nicer once it runs
        assert niced() > before
    assert os.getpriority(os.PRIO_PROCESS, 0) == own


# ------------------------------------------------------------------------------ several at once


def test_the_lock_of_another_process_is_waited_for_and_named(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    code = (
        "import sys; from ds4kv.file.lock import locked\nwith locked(sys.argv[1]): print('held', flush=True); input()"
    )
    with started([sys.executable, "-c", code, store.directory], stdin=subprocess.PIPE) as child:
        assert child.line() == b"held\n"
        monkeypatch.setattr(lock, "_TIMEOUT", 0.05)
        entry = store.save_buffer(b"text", PAYLOAD, **SAVE)  # never thrown away for want of a lock
        assert load(store, b"text") == PAYLOAD
        assert f"process {child.pid} for 0.05 s" in caplog.text
        with pytest.raises(TimeoutError, match=f"process {child.pid} for 0.05 s.*{LOCK_NAME}"):
            store.remove(entry)
        monkeypatch.setattr(lock, "_TIMEOUT", 10)
        child.process.kill()  # which ends its lock
        assert store.remove(entry)


def test_a_fork_does_not_keep_the_lock(store: Store) -> None:
    with contextlib.ExitStack() as stack:
        with locked(store.directory):
            stack.enter_context(forked(signal.pause))
        with locked(store.directory, timeout=1):
            pass


def test_threads_share_a_store(tmp_path: Path) -> None:
    store = Store(tmp_path, budget_bytes=60_000, workers=1)

    def work(seed: int) -> None:
        for n in range(12):
            key = (seed * 7 + n * 3) % 10
            store.save_buffer(b"%d" % key, noise(key), tokens=600 + key, ctx_size=32768)
            entry = store.find(b"%d" % key, **PROMPT)
            if entry is None:
                continue
            with contextlib.suppress(FileNotFoundError), store.load(entry) as checkpoint:
                assert checkpoint.payload.read() == noise(key)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(work, range(4)))
    assert sum(entry.file_size for entry in store.entries()) <= 60_000
    assert all(name.endswith(".kv") for name in names(store))


def test_an_entry_says_what_it_is(store: Store) -> None:
    entry = store.save_buffer(b"text", PAYLOAD, **SAVE)
    assert isinstance(entry, Entry)
    assert repr(entry) == f"Entry({entry.path!r}, tokens=600, file_size={entry.file_size})"


def test_a_save_and_a_load_say_what_they_are(store: Store) -> None:
    with store.save(b"text", **SAVE) as save:
        assert repr(save).startswith(f"<NewSave: <PayloadWriter to '{path_of(store, b'text')}.tmp.")
        save.payload.write(PAYLOAD)
    assert f": complete, {len(PAYLOAD)} bytes written>, entry={save.entry!r}, refusal=None>" in repr(save)
    with store.save(b"text", **SAVE) as present:
        assert repr(present).startswith("<PresentSave: <RawWriter to <ds4kv.stream.fileobj.Nowhere object")
        assert repr(present).endswith(f": open, 0 bytes written>, entry={save.entry!r}, refusal=None>")
    with store.save(b"other", **SAVE | {"tokens": 1}) as refused:
        pass
    assert repr(refused).endswith(f"entry=None, refusal={refused.refusal!r}>")
    with store.load(save.entry) as checkpoint:
        checkpoint.payload.read()
        path = str(path_of(store, b"text"))
        assert repr(checkpoint) == f"<LoadingCheckpoint of {path!r}: open, at {len(PAYLOAD)} of {len(PAYLOAD)} bytes>"
