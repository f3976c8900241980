"""A forked child has a store that works, whatever the parent's other threads were at."""

from __future__ import annotations

import contextlib
import os
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import status_of_fork

from ds4kv.core.forks import fork_waits, renew_lock
from ds4kv.store.store import Store

CHILDREN = 24
SECONDS = 30.0
SAVE = {"tokens": 600, "ctx_size": 100}
PROMPT = {"ctx_size": 100, "quant_bits": 2}
PAYLOAD = b"payload" * 500

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork"),
    pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning"),
]


@contextlib.contextmanager
def busy(store: Store, threads: int = 4) -> Iterator[None]:
    """Threads that save, find, load and evict for a block."""
    over = threading.Event()

    def work(seed: int) -> None:
        rng = random.Random(seed)
        while not over.is_set():
            text = b"text %d " % rng.randrange(8)
            store.save_buffer(text, rng.randbytes(3000), **SAVE)
            load(store, text)
            store.evict()
            if rng.random() < 0.3:
                store.save_async(text, lambda: PAYLOAD, wait=False, **SAVE)

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(threads)]
    for worker in workers:
        worker.start()
    try:
        yield
    finally:
        over.set()
        for worker in workers:
            worker.join()


def load(store: Store, text: bytes) -> bytes | None:
    entry = store.find(text + b"and more", **PROMPT)
    if entry is None:
        return None
    with contextlib.suppress(FileNotFoundError), store.load(entry) as checkpoint:  # evicted since
        return checkpoint.payload.read()
    return None


@pytest.mark.slow
def test_children_of_a_busy_parent_all_work(tmp_path: Path) -> None:
    store = Store(tmp_path, workers=1, budget_bytes=1 << 20)

    def work(n: int) -> None:
        text = b"child %d" % n
        assert store.save_async(text, PAYLOAD, **SAVE).result(SECONDS) is not None
        assert load(store, text) in (PAYLOAD, None)
        store.save_buffer(text + b" again", lambda: PAYLOAD, **SAVE)
        store.evict()
        store.rebuild_integrity()
        store.close()

    with store, busy(store):
        statuses = [status_of_fork(lambda n=n: work(n)) for n in range(CHILDREN)]
    assert statuses == [0] * CHILDREN


@pytest.mark.parametrize("attribute", ["_directory", "_background", "_saves"])
def test_a_lock_that_was_held_at_the_fork(tmp_path: Path, attribute: str) -> None:
    """The kind, one by one: another thread holds a mutex at the very moment."""
    store = Store(tmp_path, workers=1)
    store.save_async(b"first", PAYLOAD, **SAVE).result()
    owner = getattr(store, attribute)
    mutex = {"_directory": "_mutex", "_background": "_changed", "_saves": "_claims"}[attribute]
    mutex = getattr(owner, mutex) if attribute != "_saves" else owner._claims._mutex

    def work() -> None:
        assert load(store, b"first") == PAYLOAD
        assert store.save_async(b"second", PAYLOAD, **SAVE).result(SECONDS) is not None
        store.close()

    with mutex:
        assert status_of_fork(work) == 0
    store.close()


def test_the_control_a_lock_that_nobody_renews_hangs_the_child() -> None:
    class Owner:
        pass

    renewed, forgotten = Owner(), threading.Lock()
    renew_lock(renewed, "mutex")
    with renewed.mutex, forgotten:  # type: ignore[attr-defined]
        assert status_of_fork(lambda: _take(renewed.mutex)) == 0  # type: ignore[attr-defined]
        assert status_of_fork(lambda: _take(forgotten)) == 1


def _take(mutex: threading.Lock) -> None:
    assert mutex.acquire(timeout=0.2)


def test_a_fork_waits_for_who_is_in_a_library_with_locks_of_its_own() -> None:
    inside, over = threading.Event(), threading.Event()

    def work() -> None:
        with fork_waits:
            inside.set()
            time.sleep(0.2)
            over.set()

    thread = threading.Thread(target=work)
    thread.start()
    assert inside.wait(SECONDS)
    assert status_of_fork(lambda: _take_turn(over)) == 0
    thread.join()


def _take_turn(over: threading.Event) -> None:
    assert over.is_set()
    with fork_waits:  # it is free, for every thread of the child
        pass
    thread = threading.Thread(target=lambda: fork_waits.acquire(timeout=1) or os._exit(3))
    thread.start()
    thread.join()


def test_what_waits_in_the_background_is_the_parents(tmp_path: Path) -> None:
    gate = threading.Event()
    with Store(tmp_path, workers=1) as store:
        first = store.save_async(b"first", lambda: gate.wait(SECONDS) and PAYLOAD, **SAVE)
        second = store.save_async(b"second", PAYLOAD, **SAVE)

        def work() -> None:
            store.close()
            assert {entry.sha for entry in store.entries()} == set()

        assert status_of_fork(work) == 0
        gate.set()
        assert first.result(SECONDS) is not None and second.result(SECONDS) is not None


def test_hits_that_wait_are_counted_once(tmp_path: Path) -> None:
    from ds4kv.file.lock import locked

    with Store(tmp_path, workers=1) as store:
        store.save_buffer(b"text", PAYLOAD, **SAVE)
        with locked(store.directory):
            assert load(store, b"text") == PAYLOAD
        assert status_of_fork(store.close) == 0
        assert status_of_fork(lambda: load(store, b"text") and store.close()) == 0  # with one of its own
    (entry,) = Store(tmp_path).entries()
    assert entry.header.hits == 2
