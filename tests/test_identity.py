"""Whose state a checkpoint is: states of two engines in one directory, and neither finds the other's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import reference
from helpers import answer, sha1
from hypothesis import example, given
from hypothesis import strategies as st

from ds4kv.cli import main
from ds4kv.format.identity import MARK, MAX_IDENTITY_BYTES, identity_of, mark_of
from ds4kv.store.store import Store

SAVE: dict[str, Any] = {"tokens": 600, "ctx_size": 100}
PROMPT: dict[str, Any] = {"ctx_size": 1000}

NAMES = st.binary(min_size=1, max_size=6) | st.sampled_from([b"a", b"ab", MARK, MARK + b"\1\0\0\0a"])


@given(names=st.tuples(NAMES, NAMES), texts=st.tuples(st.binary(max_size=20), st.binary(max_size=20)))
@example(names=(b"a", b"ab"), texts=(b"b", b""))
def test_no_two_names_and_texts_are_the_same_bytes(names: tuple[bytes, bytes], texts: tuple[bytes, bytes]) -> None:
    wholes = [mark_of(name) + text for name, text in zip(names, texts, strict=True)]
    assert (wholes[0] == wholes[1]) == (names[0] == names[1] and texts[0] == texts[1])
    if names[0] != names[1]:
        assert not wholes[0].startswith(mark_of(names[1]))
    assert [identity_of(whole) for whole in wholes] == list(names)


def test_no_identity_is_no_mark() -> None:
    assert mark_of(None) == b""
    assert mark_of("naïve") == mark_of("naïve".encode())
    assert identity_of(b"text") is None
    for size in range(len(mark_of(b"name"))):
        assert identity_of(mark_of(b"name")[:size]) is None
    assert identity_of(mark_of(b"name")) == b"name"


@pytest.mark.parametrize("size", [0, MAX_IDENTITY_BYTES + 1])
def test_a_name_of_no_bytes_or_too_many(size: int, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"identity is {size} bytes, outside 1..4096"):
        Store(tmp_path / "kv", identity=b"x" * size)
    assert not (tmp_path / "kv").exists()
    Store(tmp_path / "kv", identity=b"x" * max(size - 1, 1)).close()  # the control


def test_nobody_finds_what_another_saved(tmp_path: Path) -> None:
    stores = {name: Store(tmp_path, identity=name, codec="none") for name in (None, b"a", b"b")}
    for name, store in stores.items():
        assert store.save_buffer(b"text", b"%r" % name, **SAVE).matched is None
    assert len(stores[None].entries()) == 3
    for name, store in stores.items():
        for entry in (
            store.find(b"text and more", **PROMPT),
            store.nearest(b"text and", **PROMPT)[0],
            store.get(b"text"),
        ):
            with store.load(entry) as checkpoint:
                assert (checkpoint.text, checkpoint.payload.read()) == (b"text", b"%r" % name)
        assert store.find(b"text and more", **PROMPT).matched == b"text"
        assert store.nearest(b"text and", **PROMPT)[1] == store.nearest(b"tex", **PROMPT)[1] + 1 == 4
    for name in (b"a", b"b"):
        forged = mark_of(name) + b"text"
        for store in stores.values():
            assert store.find(forged, **PROMPT) is None
            assert store.nearest(forged, **PROMPT) is None
            assert store.get(forged) is None and forged not in store
        assert stores[None].save_buffer(forged, b"forged", **SAVE) is None
        with stores[None].save(forged, **SAVE) as saving:
            assert saving.refusal == "the text begins as those of a store with an identity do"
    for store in stores.values():
        store.close()


def test_a_text_of_another_program_is_nobodys(tmp_path: Path) -> None:
    """Even one that is a beginning of the mark."""
    for text in (b"", MARK[:3], b"text"):
        path = tmp_path / f"{sha1(text)}.kv"
        path.write_bytes(reference.build(b"payload", text=text, tokens=900, codec=0, chunk_size=0))
    with Store(tmp_path, identity="model") as store:
        for prompt in (b"text", b"", MARK, MARK[:3]):
            assert store.find(prompt, ctx_size=1 << 31) is None
            assert store.nearest(prompt, ctx_size=1 << 31) is None
    with Store(tmp_path) as store:
        assert store.find(b"text", ctx_size=1 << 31).matched == b"text"  # the control


def test_one_budget(tmp_path: Path) -> None:
    with (
        Store(tmp_path, identity="a", codec="none", budget_bytes=5000) as a,
        Store(tmp_path, identity="b", codec="none", budget_bytes=5000) as b,
    ):
        a.save_buffer(b"text", bytes(3000), **SAVE)
        b.save_buffer(b"text", bytes(3000), **SAVE)
        assert (a.get(b"text") is None, b.get(b"text") is None) == (True, False)


def test_ls_shows_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in (None, "llama 3, q8_0"):
        with Store(tmp_path, identity=name, codec="none") as store:
            store.save_buffer(b"the prompt", b"payload", **SAVE)
    assert main(["ls", "--json", str(tmp_path)]) == 0
    rows = answer(capsys)["checkpoints"]
    assert sorted((row["identity"] or "", row["text_start"]) for row in rows) == [
        ("", "the prompt"),
        ("llama 3, q8_0", "the prompt"),
    ]
    assert main(["ls", str(tmp_path)]) == 0
    table = capsys.readouterr().out
    assert "identity" in table and "llama 3, q8_0" in table and "ds4kv" not in table


def test_ls_has_no_such_column_where_nobody_has_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Store(tmp_path, codec="none") as store:
        store.save_buffer(b"the prompt", b"payload", **SAVE)
    assert main(["ls", str(tmp_path)]) == 0
    assert "identity" not in capsys.readouterr().out


def test_find_asks_as_an_engine_of_that_identity(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "prompt").write_bytes(b"the prompt and more")
    for name, text in ((None, b"the"), ("a", b"the prompt")):
        with Store(tmp_path / "kv", identity=name, codec="none") as store:
            store.save_buffer(text, b"payload", **SAVE)
    find = ["find", "--prompt-file", str(tmp_path / "prompt"), str(tmp_path / "kv")]
    assert main([*find, "--identity", "a"]) == 0
    assert capsys.readouterr().out.endswith("600 tokens, the first 10 of the prompt's 19 bytes\n")
    assert main(find) == 0
    assert capsys.readouterr().out.endswith("600 tokens, the first 3 of the prompt's 19 bytes\n")
    assert main([*find, "--identity", "b"]) == 1
    assert capsys.readouterr().out == "nothing found among 2 checkpoints\n"
    (tmp_path / "prompt").write_bytes(b"the promise")
    assert main([*find, "--identity", "a", "--json"]) == 1
    nearest = answer(capsys)["nearest"]
    assert (nearest["identity"], nearest["common_bytes"]) == ("a", 8)
    assert nearest["differs"] == {"at": 8, "after": "the prom", "stored": "pt", "prompt": "ise"}
    (tmp_path / "prompt").write_bytes(b"A prompt")
    assert main([*find, "--json"]) == 1
    assert answer(capsys)["nearest"]["differs"] == {"at": 0, "after": "", "stored": "the", "prompt": "A prompt"}
    assert main([*find, "--identity", ""]) == 2


def test_info_shows_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Store(tmp_path, identity=b"\xff\x00", codec="none") as store:
        entry = store.save_buffer(b"the prompt", b"payload", **SAVE)
    assert main(["info", "--json", entry.path]) == 0
    facts = answer(capsys)
    assert (facts["identity"], facts["text_start"]) == ("ff00", "the prompt")
