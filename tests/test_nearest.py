"""The text that has most in common with a prompt, and the ways to one checkpoint that read no directory."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import reference
from helpers import sha1
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import status_of_fork

import ds4kv
from ds4kv.store.sorted_texts import SortedTexts
from ds4kv.store.store import Store

SAVE: dict[str, Any] = {"tokens": 600, "ctx_size": 100}
PROMPT: dict[str, Any] = {"ctx_size": 1000}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "kv", workers=0, codec="none") as store:
        yield store


def put(directory: str | Path, text: bytes, **fields: object) -> Path:
    """A checkpoint by another program."""
    path = Path(directory) / f"{sha1(text)}.kv"
    given = {"tokens": 600, "ctx_size": 100, **fields}
    path.write_bytes(reference.build(b"payload", text=text, codec=0, chunk_size=0, **given))
    return path


def common(one: bytes, other: bytes) -> int:
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


TEXTS = st.text("ab", max_size=7).map(str.encode)


@given(
    steps=st.lists(st.tuples(st.booleans(), TEXTS), max_size=25),
    prompts=st.lists(st.text("abc", max_size=9).map(str.encode), min_size=1, max_size=4),
    scale=st.sampled_from([1, 5000]),
)
def test_all_texts_come_in_the_order_of_what_they_have_in_common(
    steps: list[tuple[bool, bytes]], prompts: list[bytes], scale: int
) -> None:
    texts: dict[str, bytes] = {}
    tree = SortedTexts(lambda name, start, size: texts[name][start : start + size])
    for i, (adds, text) in enumerate(steps):
        if not adds and texts:
            name = sorted(texts)[len(text) % len(texts)]
            tree.remove(name)
            del texts[name]
        else:
            texts[f"{i}"] = b"".join(bytes([c]) * scale for c in text)  # longer than a piece, too
            tree.add(f"{i}", texts[f"{i}"])
    assert len(tree) == len(texts)
    for prompt in (b"".join(bytes([c]) * scale for c in prompt) for prompt in prompts):
        found = list(tree.nearest(prompt))
        assert sorted(name for _, name in found) == sorted(texts)
        assert [n for n, _ in found] == [common(texts[name], prompt) for _, name in found]
        assert [n for n, _ in found] == sorted((n for n, _ in found), reverse=True)
        for n in {n for n, _ in found}:
            group = [texts[name] for m, name in found if m == n]
            assert group[0] == prompt[:n] or prompt[:n] not in group


def test_a_search_reads_a_few_texts() -> None:
    shared = bytes(range(256)) * 800  # 200 KiB
    texts = {f"{i}": shared[: i * 100] + bytes([255 - shared[i * 100]]) + b"rest" * 100 for i in range(2000)}
    read: list[int] = []

    def reading(name: str, start: int, size: int) -> bytes:
        read.append(size)
        return texts[name][start : start + size]

    tree = SortedTexts(reading)
    for name, text in texts.items():
        tree.add(name, text)
    read.clear()
    n, _ = next(tree.nearest(shared[:150_050] + b"\xff\x00"))
    assert n >= 150_000
    assert len(read) < 2 * math.log2(len(texts)) + 10
    assert sum(read) < 3 * len(shared)


@given(
    seconds=st.sampled_from([0.05, 0.0, -1.0]),
    texts=st.lists(TEXTS, min_size=1, max_size=10, unique=True),
    more=st.lists(TEXTS, max_size=4),
    gone=st.sets(st.integers(0, 9), max_size=4),
    prompt=st.text("abc", max_size=9).map(str.encode),
)
@settings(deadline=None)
def test_nearest(
    tmp_path_factory: pytest.TempPathFactory,
    seconds: float,
    texts: list[bytes],
    more: list[bytes],
    gone: set[int],
    prompt: bytes,
) -> None:
    """Whatever other programs add and remove between two calls, with all, some or no texts in their order."""
    directory = tmp_path_factory.mktemp("kv")
    for text in texts:
        put(directory, text)
    left = set(texts)
    with Store(directory, evict_on_open=False) as store, pytest.MonkeyPatch.context() as patch:
        patch.setattr(store._nearest, "_seconds", seconds)
        for _ in range(2):
            found = store.nearest(prompt, ctx_size=1 << 31)
            most = max((common(text, prompt) for text in left), default=0)
            assert (found is None) == (most == 0)
            if found is not None:
                entry, n = found
                [text] = [text for text in left if sha1(text) == entry.sha]
                assert n == most == common(text, prompt)
                assert text == prompt[:n] or prompt[:n] not in left
            for text in more:
                put(directory, text)
            for i in gone & set(range(len(texts))):
                (directory / f"{sha1(texts[i])}.kv").unlink(missing_ok=True)
            left = {text for text in left | set(more) if (directory / f"{sha1(text)}.kv").exists()}


def test_nearest_is_one_that_suits(store: Store) -> None:
    put(store.directory, b"abcdef", tokens=600, ctx_size=2000)
    put(store.directory, b"abcde", tokens=5)
    put(store.directory, b"abcd", tokens=600, quant_bits=4)
    put(store.directory, b"abx", tokens=600)
    strict = Store(store.directory, reject_different_quant=True)
    for asked, prompt, expected in [
        (store, {"ctx_size": 2000}, (b"abcdef", 6)),
        (store, {"ctx_size": 1999}, (b"abcd", 4)),
        (strict, {"ctx_size": 1999, "quant_bits": 4}, (b"abcd", 4)),
        (strict, {"ctx_size": 1999, "quant_bits": 2}, (b"abx", 2)),
        (store, {"ctx_size": 1999, "exclude": [store.get(b"abcd")]}, (b"abx", 2)),
    ]:
        entry, n = asked.nearest(b"abcdefgh", **prompt)
        assert (entry.sha, n) == (sha1(expected[0]), expected[1])
    assert store.nearest(b"abcdefgh", ctx_size=2000, quant_bits=3) is None
    assert store.nearest(b"zzz", ctx_size=2000) is None
    assert store.nearest(b"", ctx_size=2000) is None


def test_of_those_with_as_much_in_common(store: Store) -> None:
    put(store.directory, b"abc-long", tokens=900)
    put(store.directory, b"abc-short", tokens=700)
    assert store.nearest(b"abcx", ctx_size=1 << 31)[0].tokens == 700  # the least to load
    put(store.directory, b"abc", tokens=1000)
    assert store.nearest(b"abcx", ctx_size=1 << 31) == (store.get(b"abc"), 3)  # nothing of it is to be cut


def test_what_goes_between_the_look_and_the_read_is_passed_over(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    put(store.directory, b"abcd")
    gone = put(store.directory, b"abcdef")
    assert store.nearest(b"abcdefg", ctx_size=1 << 31)[1] == 6
    real = os.open

    def opened(path: Any, *arguments: Any) -> int:
        if path == str(gone):
            raise FileNotFoundError(2, "No such file", path)
        return real(path, *arguments)

    monkeypatch.setattr(os, "open", opened)
    assert store.nearest(b"abcdefg", ctx_size=1 << 31)[1] == 4


def test_the_entry_is_of_the_file_as_it_is_now(store: Store) -> None:
    store.save_buffer(b"text", b"payload", **SAVE)
    assert store.nearest(b"text", **PROMPT)[0].header.hits == 0
    with store.load(store.get(b"text")):
        pass
    assert store.nearest(b"text", **PROMPT) == (store.get(b"text"), 4)
    assert store.nearest(b"text", **PROMPT)[0].header.hits == 1


def test_a_forked_child_finds_what_came_since(store: Store) -> None:
    put(store.directory, b"abcd")
    assert store.nearest(b"abcdef", ctx_size=1 << 31)[1] == 4

    def child() -> None:
        put(store.directory, b"abcde")
        assert store.nearest(b"abcdef", ctx_size=1 << 31)[1] == 5
        assert store.find(b"abcdef", ctx_size=1 << 31).matched == b"abcde"

    assert status_of_fork(child) == 0
    assert store.nearest(b"abcdef", ctx_size=1 << 31)[1] == 5


# --------------------------------------------------------------------------- one checkpoint, and no directory


def test_get(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = store.save_buffer(b"text", b"payload", **SAVE)
    store.save_buffer(b"text and more", b"payload", **SAVE)

    def refuse(*arguments: object) -> None:
        raise AssertionError("the directory was read")

    monkeypatch.setattr(os, "scandir", refuse)
    monkeypatch.setattr(os, "listdir", refuse)
    fresh = Store(store.directory, evict_on_open=False, read_only=True)
    assert fresh.get(b"text") == entry and b"text" in fresh
    assert fresh.get(bytearray(b"text")) == entry
    assert fresh.get(b"tex") is None and b"tex" not in fresh
    os.truncate(entry.path, 20)
    assert fresh.get(b"text") is None and b"text" not in fresh
    assert os.path.exists(entry.path)


# ----------------------------------------------------------------------------------------- no quantization


def test_an_engine_without_quantization(store: Store) -> None:
    entry = store.save_buffer(b"text", b"payload", quant_bits=None, **SAVE)
    assert entry.quant_bits == 2
    assert store.find(b"text", **PROMPT) == store.find(b"text", quant_bits=None, **PROMPT) == entry
    with Store(store.directory, reject_different_quant=True) as strict:
        assert strict.find(b"text", quant_bits=None, **PROMPT) == entry
        assert strict.find(b"text", quant_bits=4, **PROMPT) is None


def test_a_refusal_is_logged_for_who_looks_for_it(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "ds4kv")
    with store.save(b"few", tokens=5, ctx_size=9) as few:
        assert few.refusal == "5 tokens; a checkpoint has at least 512" and not caplog.records
    caplog.set_level("DEBUG", "ds4kv")
    store.save_buffer(b"few", b"payload", tokens=5, ctx_size=9)
    store.save_buffer(b"odd", b"payload", tokens=600, ctx_size=9, quant_bits=3)
    assert [record.getMessage() for record in caplog.records] == [
        "kv cache refused tokens=5: 5 tokens; a checkpoint has at least 512",
        "kv cache refused tokens=600: quant_bits is 3, not 2, 4 or None",
    ]
    assert {record.levelname for record in caplog.records} == {"DEBUG"}


def test_what_nearest_gives_is_loaded_whole(store: Store) -> None:
    store.save_buffer(b"text and more", b"payload", **SAVE)
    entry, n = store.nearest(b"text and less", **PROMPT)
    with store.load(entry) as checkpoint:
        assert (n, checkpoint.text, checkpoint.payload.read()) == (9, b"text and more", b"payload")
    assert isinstance(store.verify(entry), ds4kv.Verdict)
