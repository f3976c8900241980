"""Saves beside the engine: without threads, at the end of the interpreter, from within each other, and full."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import started

from ds4kv.store import background
from ds4kv.store.store import Store

SAVE = {"tokens": 600, "ctx_size": 100}
PAYLOAD = b"payload" * 500
SECONDS = 20.0


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path, workers=1) as store:
        yield store


def test_a_payload_function_may_save_too(store: Store) -> None:
    def outer() -> bytes:
        inner = store.save_async(b"inner", PAYLOAD, **SAVE)
        assert inner.result(SECONDS) is not None  # done by now, or it would wait for itself
        return PAYLOAD

    assert store.save_async(b"outer", outer, **SAVE).result(SECONDS) is not None
    assert len(store.entries()) == 2


def test_a_payload_function_may_save_where_the_queue_is_full(store: Store) -> None:
    gate = threading.Event()

    def first() -> bytes:
        assert gate.wait(SECONDS)
        return b"x" if store.save_async(b"inner", PAYLOAD, **SAVE).result(SECONDS) else b""

    futures = [store.save_async(b"first", first, **SAVE)]
    futures += [store.save_async(b"%d" % n, PAYLOAD, **SAVE) for n in range(4)]
    gate.set()
    assert all(future.result(SECONDS) is not None for future in futures)


def test_a_store_may_be_closed_by_a_payload_function(store: Store) -> None:
    def close() -> bytes:
        store.close()
        return PAYLOAD

    assert store.save_async(b"text", close, **SAVE).result(SECONDS) is not None
    with pytest.raises(RuntimeError, match="closed"):
        store.save_async(b"late", PAYLOAD, **SAVE)


def test_a_full_queue_is_a_refusal_for_who_does_not_wait(store: Store) -> None:
    gate, begun = threading.Event(), threading.Event()

    def slow() -> bytes:
        begun.set()
        gate.wait(SECONDS)
        return PAYLOAD

    first = store.save_async(b"first", slow, **SAVE)
    assert begun.wait(SECONDS)
    waiting = [store.save_async(b"%d" % n, PAYLOAD, wait=False, **SAVE) for n in range(4)]
    refused = store.save_async(b"more", PAYLOAD, wait=False, **SAVE)
    assert refused.done() and refused.result() is None and refused.refusal == "4 saves are waiting already"
    gate.set()
    for future in (first, *waiting):
        assert future.result(SECONDS) is not None
        assert future.refusal is None


def test_every_refusal_is_in_words(store: Store, tmp_path: Path) -> None:
    few, empty = store.save_async(b"few", PAYLOAD, tokens=5, ctx_size=9), store.save_async(b"empty", b"", **SAVE)
    read_only = Store(tmp_path, read_only=True).save_async(b"text", PAYLOAD, **SAVE)
    for future, words in ((few, "5 tokens"), (empty, "nothing was written"), (read_only, "read only")):
        assert future.result(SECONDS) is None
        assert words in (future.refusal or "")


def test_where_no_thread_can_be_had_the_caller_saves(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(background.threading.Thread, "start", start)
        future = store.save_async(b"text", PAYLOAD, **SAVE)
        assert future.done() and future.result() is not None
        failed = store.save_async(b"other", lambda: 1 // 0, **SAVE)
        assert isinstance(failed.exception(), ZeroDivisionError)
    assert store.save_async(b"later", PAYLOAD, **SAVE).result(SECONDS) is not None  # and by a thread again


def test_an_interrupt_of_a_save_that_the_caller_does_is_the_callers(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted() -> bytes:
        raise KeyboardInterrupt

    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(background.threading.Thread, "start", start)
    with pytest.raises(KeyboardInterrupt):
        store.save_async(b"text", interrupted, **SAVE)


ATEXIT = """
import atexit, sys
import ds4kv
store = ds4kv.Store(sys.argv[1])
before = store.save_async(b"before", b"payload" * 100, tokens=600, ctx_size=100)

def at_exit():
    future = store.save_async(b"at exit", b"payload" * 100, tokens=600, ctx_size=100)
    print(future.result(20) is not None, before.result(20) is not None, flush=True)
    store.close()

atexit.register(at_exit)
"""


def test_the_save_at_the_end_of_the_program(tmp_path: Path) -> None:
    with started([sys.executable, "-c", ATEXIT, tmp_path]) as child:
        out, err = child.finish()
    assert (out, err, child.returncode) == (b"True True\n", b"", 0)
    assert len(Store(tmp_path).entries()) == 2


def test_a_program_that_ends_waits_for_its_saves(tmp_path: Path) -> None:
    code = (
        "import sys, time, ds4kv\nstore = ds4kv.Store(sys.argv[1])\n"
        "store.save_async(b'text', lambda: time.sleep(0.3) or b'payload', tokens=600, ctx_size=100)\n"
    )
    with started([sys.executable, "-c", code, tmp_path]) as child:
        assert child.finish() == (b"", b"")
    assert len(Store(tmp_path).entries()) == 1


def test_one_that_was_cancelled_before_its_turn_is_not_saved(store: Store) -> None:
    gate = threading.Event()
    store.save_async(b"first", lambda: gate.wait(SECONDS) and PAYLOAD, **SAVE)
    second = store.save_async(b"second", PAYLOAD, **SAVE)
    assert second.cancel()
    gate.set()
    store.close()
    assert len(store.entries()) == 1
