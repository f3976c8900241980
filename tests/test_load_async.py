"""Loads beside the engine."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import pytest
from helpers import MIB, damage_quietly, text_like
from processes import started

import ds4kv
from ds4kv.store.store import Store

SAVE: dict[str, Any] = {"tokens": 600, "ctx_size": 100}
SECONDS = 20.0
PAYLOAD = text_like(3 * MIB)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path, workers=1) as store:
        store.save_buffer(b"text", PAYLOAD, **SAVE)
        yield store


def test_a_whole_checkpoint(store: Store) -> None:
    future = store.load_async(store.get(b"text"))
    checkpoint = future.result(SECONDS)
    assert type(checkpoint) is ds4kv.Checkpoint
    assert (checkpoint.text, checkpoint.payload, checkpoint.header.tokens) == (b"text", PAYLOAD, 600)
    assert store.get(b"text").header.hits == 1
    assert not future.cancel() and future.result() is checkpoint


def test_into_memory_of_the_callers(store: Store) -> None:
    into = bytearray(len(PAYLOAD))
    assert store.load_async(store.get(b"text"), into=into).result(SECONDS).payload.obj is into
    assert into == PAYLOAD
    with pytest.raises(ValueError, match="into is 5 bytes"):
        store.load_async(store.get(b"text"), into=bytearray(5)).result(SECONDS)
    assert store.get(b"text").header.hits == 1  # that was none


def test_many_at_once(store: Store) -> None:
    futures = [store.load_async(store.get(b"text")) for _ in range(8)]
    assert not wait(futures, SECONDS).not_done
    assert {bytes(future.result().payload) == PAYLOAD for future in futures} == {True}


def test_what_is_damaged_is_set_aside(store: Store) -> None:
    entry = store.get(b"text")
    damage_quietly(Path(entry.path), entry.file_size - 5)
    with pytest.raises(ds4kv.CorruptError):
        store.load_async(entry).result(SECONDS)
    assert b"text" not in store
    with pytest.raises(FileNotFoundError):
        store.load_async(entry).result(SECONDS)


def test_cancelled_under_way(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, gate = threading.Event(), threading.Event()
    real = Store.load

    def slow(self: Store, entry: ds4kv.Entry) -> ds4kv.LoadingCheckpoint:
        begun.set()
        assert gate.wait(SECONDS)
        return real(self, entry)

    monkeypatch.setattr(Store, "load", slow)
    future = store.load_async(store.get(b"text"))
    assert begun.wait(SECONDS)
    assert future.cancel()
    gate.set()
    with pytest.raises(ds4kv.CancelledError):
        future.result(SECONDS)
    assert store.get(b"text").header.hits == 0


@pytest.mark.slow
def test_cancelled_while_it_decodes(tmp_path: Path) -> None:
    """Whatever moment that is, it ends soon, and says what it did."""
    with Store(tmp_path, workers=1) as store:
        store.save_buffer(b"big", text_like(64 * MIB), **SAVE)
        ends = set()
        for i in range(20):
            future = store.load_async(store.get(b"big"))
            threading.Event().wait(i * 0.003)
            was_ended = future.cancel()
            assert not wait([future], SECONDS).not_done
            ends.add(type(future.exception()))
            assert not was_ended or isinstance(future.exception(), ds4kv.CancelledError)
        assert ends <= {ds4kv.CancelledError, type(None)}
        assert ds4kv.CancelledError in ends


AT_EXIT = """
import atexit, sys, ds4kv
store = ds4kv.Store(sys.argv[1])
def load():
    print(len(store.load_async(store.get(b"text")).result(20).payload), flush=True)
atexit.register(load)
"""


def test_where_no_thread_can_be_had(store: Store) -> None:
    with started([sys.executable, "-c", AT_EXIT, store.directory]) as child:
        assert child.line().strip() == b"%d" % len(PAYLOAD)
        child.finish()
