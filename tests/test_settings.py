"""What a store is opened with: one record of it, by which it is shown and copied to other processes."""

from __future__ import annotations

import copy
import inspect
import logging
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from processes import started

import ds4kv
from ds4kv.store.admission import Wanted
from ds4kv.store.directory import Directory
from ds4kv.store.settings import Settings
from ds4kv.store.upgrade import Upgrade

PAYLOAD = bytes(range(256)) * 64
BLOCK = b"<tool_calls>ls</tool_calls>"
SAVE: dict[str, Any] = {"tokens": 600, "ctx_size": 32768}
PROMPT: dict[str, Any] = {"ctx_size": 32768, "quant_bits": 2}


def keywords(function: Callable[..., object]) -> list[str]:
    parameters = inspect.signature(function).parameters.values()
    return [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]


def by_size(entry: ds4kv.Entry, now: float) -> float:
    return -entry.file_size


# ---------------------------------------------------------------------------------- signatures


def test_the_record_has_every_keyword_of_a_store() -> None:
    assert ["budget_mb", *Settings._fields] == keywords(ds4kv.Store)
    decided = {"budget_bytes", "workers", "layout", "codec"}
    told = {name: given.annotation for name, given in inspect.signature(ds4kv.Store).parameters.items()}
    for name in set(Settings._fields) - decided:
        assert Settings.__annotations__[name].__forward_arg__ == told[name]


def test_the_record_of_a_save_has_every_argument_in_its_order() -> None:
    """The order matters: it is built by position."""
    told = {name: given.annotation for name, given in inspect.signature(ds4kv.Store.save).parameters.items()}
    del told["self"]
    assert {name: kind.__forward_arg__ for name, kind in Wanted.__annotations__.items()} == told
    assert list(Wanted._fields) == list(told)


@pytest.mark.parametrize("function", [ds4kv.Store.save_buffer, ds4kv.Store.save_async])
def test_whole_saves_show_the_keywords_of_a_save(function: Callable[..., object]) -> None:
    of_save, of_this = (inspect.signature(f).parameters for f in (ds4kv.Store.save, function))
    extra = ["wait"] if function is ds4kv.Store.save_async else []
    assert list(of_this) == ["self", "text", "payload", *keywords(ds4kv.Store.save), *extra]
    for name, parameter in of_save.items():
        assert of_this[name] == parameter


@pytest.mark.parametrize("layout", ["v2-checked", "packed"])
def test_each_argument_of_a_whole_save_gets_where_it_belongs(layout: str, tmp_path: Path) -> None:
    facts = {"tokens": 600, "ctx_size": 700, "quant_bits": 4, "ext_flags": 2, "model_id": 5, "payload_abi": 6}
    options: dict[str, Any] = facts | {"reason": "shutdown", "tool_map": {b"id": BLOCK}, "raw_total": len(PAYLOAD)}
    with ds4kv.Store(tmp_path, layout=layout, workers=0) as store:
        with store.save(b"a" + BLOCK, **options) as saving:
            saving.payload.write(PAYLOAD)
        entries = [
            saving.entry,
            store.save_buffer(b"b" + BLOCK, PAYLOAD, **options),
            store.save_async(b"c" + BLOCK, PAYLOAD, **options).result(20),
        ]
    for entry in entries:
        assert entry is not None
        found = ds4kv.read_header(entry.path)
        assert {name: getattr(found, name) for name in facts} == facts | {"ext_flags": 3}
        assert found.reason is ds4kv.Reason.SHUTDOWN


@pytest.mark.parametrize("name", ["save", "save_buffer", "save_async"])
@pytest.mark.parametrize("options", [SAVE | {"token": 5}, {"tokens": 5}, SAVE | {"payload": b"again"}])
def test_a_wrong_keyword_is_an_error_of_the_call(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    store = ds4kv.Store(tmp_path, workers=0)
    payload = [] if name == "save" else [PAYLOAD]
    with pytest.raises(TypeError, match=r"argument"):
        getattr(store, name)(b"text", *payload, **options)
    assert store.entries() == []


@pytest.mark.parametrize("options", [{"budget": 5}, {"self": 5}, {"budget_mb": 5, "template": None}])
def test_a_store_has_no_other_keyword(options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"argument"):
        ds4kv.Store(tmp_path, **options)


# ---------------------------------------------------------------------------------- copies

DUPLICATES = [copy.copy, copy.deepcopy, lambda store: pickle.loads(pickle.dumps(store))]


@pytest.mark.parametrize("duplicate", DUPLICATES, ids=["copy", "deepcopy", "pickle"])
def test_a_copy_is_a_store_of_the_same_directory(duplicate: Callable[[Any], Any], tmp_path: Path) -> None:
    options: dict[str, Any] = {"budget_mb": 3, "min_tokens": 7, "layout": "v2-checked", "mode": 0o640, "score": by_size}
    with ds4kv.Store(tmp_path, **options) as store, duplicate(store) as again:
        assert type(again) is ds4kv.Store
        assert (again.directory, again.budget_bytes, again.min_tokens) == (str(tmp_path), 3 << 20, 7)
        entry = again.save_async(b"text", PAYLOAD, **SAVE).result(20)
        assert store.entries() == [entry]
        assert (entry.layout, Path(entry.path).stat().st_mode & 0o777) == (ds4kv.Layout.V2_CHECKED, 0o640)
    with duplicate(store) as again:  # of one that is closed, too
        assert again.find(b"text and more", **PROMPT) == entry


def test_a_copy_keeps_every_setting(tmp_path: Path) -> None:
    values = {"budget_bytes": 77, "reject_different_quant": True, "workers": 1, "codec": "lz4hc", "level": 3}
    values |= {"consume": True, "on_full": "evict", "nice": 2, "fsync": True, "mode": 0o600, "read_only": True}
    values |= {"identity": b"a model", "chunk_size": 1000}
    values |= {name: 3 for name in Settings._fields if name.endswith("_tokens")}
    store = ds4kv.Store(tmp_path, score=by_size, **values)
    again = pickle.loads(pickle.dumps(store))
    assert again._settings == store._settings._replace(evict_on_open=False)
    defaults = ds4kv.Store(tmp_path)._settings
    kept = {"layout", "clock", "evict_on_open"}
    assert [name for name in Settings._fields if getattr(store._settings, name) == getattr(defaults, name)] == [
        name for name in Settings._fields if name in kept
    ]


def test_a_copy_evicts_nothing_as_it_opens(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with ds4kv.Store(tmp_path, codec="none") as store:
        store.save_buffer(b"text", PAYLOAD, **SAVE)
    small = ds4kv.Store(tmp_path, codec="none", budget_bytes=100, evict_on_open=False)
    caplog.set_level(logging.INFO, "ds4kv")
    with pickle.loads(pickle.dumps(small)) as again:
        assert len(again.entries()) == 1
        assert "evicted" not in caplog.text
        assert len(again.evict()) == 1


def test_what_does_not_pickle_is_an_error_of_pickle(tmp_path: Path) -> None:
    for options in ({"clock": lambda: 5.0}, {"score": lambda entry, now: 5.0}):
        with pytest.raises((pickle.PicklingError, AttributeError), match=r"lambda"):
            pickle.dumps(ds4kv.Store(tmp_path, **options))


def test_what_is_under_way_does_not_pickle(tmp_path: Path) -> None:
    with ds4kv.Store(tmp_path) as store:
        with store.save(b"text", **SAVE) as saving:
            saving.payload.write(PAYLOAD)
            with pytest.raises(TypeError, match="Save can't be copied or pickled"):
                pickle.dumps(saving)
        with store.load(saving.entry) as checkpoint, pytest.raises(TypeError, match="can't be copied or pickled"):
            pickle.dumps(checkpoint)
        with pytest.raises(TypeError, match="pickle"):
            pickle.dumps(store.save_async(b"other", PAYLOAD, **SAVE))


SPAWNED = """
import multiprocessing, sys
import ds4kv

def save(store, text):
    with store:
        entry = store.save_buffer(text, text * 100, tokens=600, ctx_size=100)
        return entry, len(store.entries()), store.directory, store.budget_bytes

if __name__ == "__main__":
    with ds4kv.Store(sys.argv[1], budget_mb=5, workers=1) as store:
        store.save_buffer(b"here", b"payload", tokens=600, ctx_size=100)
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            entry, count, directory, budget_bytes = pool.apply_async(save, (store, b"there")).get(30)
        assert (count, directory, budget_bytes) == (2, store.directory, 5 << 20)
        assert entry == store.find(b"there", ctx_size=100, quant_bits=2)
    print("well")
"""


def test_a_store_is_handed_to_another_process(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SPAWNED)
    with started([sys.executable, script, tmp_path / "kv"]) as child:
        assert child.finish() == (b"well\n", b"")


# ---------------------------------------------------------------------------------- how things are shown


def test_things_show_their_path(tmp_path: Path) -> None:
    kv = str(tmp_path / "kv")

    class Mine(ds4kv.Store):
        pass

    with ds4kv.Store(kv) as store:
        future = store.save_async(b"text", PAYLOAD, **SAVE)
        assert repr(store) == f"Store({kv!r})"
    assert repr(Mine(kv)) == f"Mine({kv!r})"
    assert repr(ds4kv.Sessions(kv)) == f"Sessions({kv!r})"
    assert repr(Directory(kv)) == f"Directory({kv!r})"
    assert repr(Upgrade(kv, layout="v1")) == f"Upgrade({kv!r}, layout='v1')"
    assert repr(future).startswith("<SaveFuture at 0x")
    assert repr(future).endswith(f" state=finished returned Entry in {kv!r}>")
