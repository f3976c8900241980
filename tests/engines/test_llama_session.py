"""Session files of llama.cpp: what it wrote is found by the cache, and what the cache has is read by llama.cpp."""

from __future__ import annotations

import ctypes
import struct
from pathlib import Path
from typing import Any

import llama_cpp
import pytest
from engines import gguf_models
from engines.test_llama_cpp import A, B, S, answer, engine, models, say  # noqa: F401

from ds4kv.engines.llama_cpp import attach
from ds4kv.engines.llama_session import export_session, import_session


@pytest.fixture(params=[{}, {"flash_attn": True}], ids=["v transposed", "flash"])
def options(request: pytest.FixtureRequest) -> dict[str, Any]:
    return request.param


@pytest.fixture(scope="session")
def model(models: Path) -> Path:  # noqa: F811
    return gguf_models.dense(models / "of sessions.gguf")


def save_session(llm: Any, path: Path) -> list[int]:
    held = llm.input_ids[: llm.n_tokens]
    array = (llama_cpp.llama_token * len(held))(*held)
    assert llama_cpp.llama_state_seq_save_file(llm.ctx, str(path).encode(), 0, array, len(held)) > 0
    return held.tolist()


def load_session(llm: Any, path: Path) -> list[int]:
    """As llama.cpp does it; the engine then goes on from these tokens."""
    array, count = (llama_cpp.llama_token * 1024)(), ctypes.c_size_t()
    size = llama_cpp.llama_state_seq_load_file(llm.ctx, str(path).encode(), 0, array, 1024, ctypes.byref(count))
    assert size == path.stat().st_size
    llm.reset()
    llm.input_ids[: count.value] = array[: count.value]
    llm.n_tokens = count.value
    return list(array[: count.value])


@pytest.fixture
def session(model: Path, tmp_path: Path, options: dict[str, Any]) -> Path:
    path = tmp_path / "session.bin"
    with engine(model, **options) as llm:
        say(llm, S + A)
        save_session(llm, path)
    return path


def test_there_and_back(model: Path, tmp_path: Path, session: Path, options: dict[str, Any]) -> None:
    with engine(model, **options) as llm, attach(llm, tmp_path / "kv") as cache:
        entry = import_session(session, cache)
        assert entry is not None
        held = load_session(llm, session)
        assert entry.tokens == len(held)
        export_session(cache, held, tmp_path / "again.bin")
    assert (tmp_path / "again.bin").read_bytes() == session.read_bytes()
    with engine(model, **options) as llm:
        load_session(llm, session)
        wanted = say(llm, S + B)
    assert answer(model, S + B, tmp_path / "kv", **options) == (wanted, len(S))


def test_what_the_cache_saved_is_read_by_llama_cpp(model: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    with engine(model, **options) as llm, attach(llm, tmp_path / "kv") as cache:
        say(llm, S + A)
        held = save_session(llm, tmp_path / "theirs.bin")
    with engine(model, **options) as llm, attach(llm, tmp_path / "kv") as cache:
        export_session(cache, held, tmp_path / "ours.bin")
    assert (tmp_path / "ours.bin").read_bytes() == (tmp_path / "theirs.bin").read_bytes()
    with engine(model, **options) as llm:
        assert load_session(llm, tmp_path / "ours.bin") == held
        found = say(llm, held + B)
        load_session(llm, tmp_path / "theirs.bin")
        assert say(llm, held + B) == found


def test_a_file_that_is_there_is_replaced_and_one_that_fails_is_not(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    path.write_bytes(b"of before")
    with engine(model) as llm, attach(llm, tmp_path / "kv") as cache:
        with pytest.raises(KeyError, match="470 tokens"):
            export_session(cache, S + A + B, path)
        assert path.read_bytes() == b"of before"
        assert len(list(tmp_path.iterdir())) == 2


N = len(S + A) + 11
BODY = 12 + 4 * N
LAYERS = BODY + 8 + 12 * N


def changed(content: bytes, offset: int, kind: str, value: int) -> bytes:
    changed = bytearray(content)
    struct.pack_into(kind, changed, offset, value)
    return bytes(changed)


WRONG = {
    "magic": (0, "<I", 0x6767736E, "byte|magic"),
    "version": (4, "<I", 2, "version is 2"),
    "no tokens": (8, "<I", 0, "0 tokens"),
    "too many tokens": (8, "<I", 0xFFFFFFFF, "4294967295 tokens in a file"),
    "fewer tokens than positions": (8, "<I", N - 1, "byte"),
    "a token outside of the vocabulary": (12 + 4 * 7, "<i", 2000, "byte 40: token 2000, outside 0..1999"),
    "a negative token": (12, "<i", -1, "token -1"),
    "streams": (BODY, "<I", 2, f"byte {BODY + 4}: streams: 2, not 1"),
    "cells": (BODY + 4, "<I", N + 1, f"tokens: {N + 1}, not {N}"),
    "a position twice": (BODY + 8 + 12, "<i", 0, "positions other than 0"),
    "a negative position": (BODY + 8, "<i", -1, "positions other than 0"),
    "a position of two sequences": (BODY + 8 + 4, "<I", 2, "one sequence"),
    "V as it isn't": (LAYERS, "<I", 2, "V transposed: 2"),
    "no layer": (LAYERS + 4, "<I", 0, "0 layers"),
    "a layer too many": (LAYERS + 4, "<I", 5, "byte"),
    "a layer too few": (LAYERS + 4, "<I", 3, "byte"),
    "K of another type": (LAYERS + 8, "<i", 0, "type of K: 0, not 1"),
    "rows of nothing": (LAYERS + 12, "<Q", 0, "rows of 0 bytes"),
    "rows beyond the end": (LAYERS + 12, "<Q", 2**63, "bytes are left"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_no_session_is_refused(model: Path, tmp_path: Path, session: Path, wrong: str, options: Any) -> None:
    offset, kind, value, why = WRONG[wrong]
    content = session.read_bytes()
    session.write_bytes(changed(content, offset, kind, value))
    with engine(model, **options) as llm, attach(llm, tmp_path / "kv") as cache:
        with pytest.raises(ValueError, match=why):
            import_session(session, cache)
        assert cache.store.entries() == []
        session.write_bytes(content)
        assert import_session(session, cache) is not None  # the control


def test_what_only_llama_cpp_can_tell_is_a_miss(model: Path, tmp_path: Path, session: Path, options: Any) -> None:
    """All is as it should be, but that keys are longer in one layer and shorter in another."""
    content = bytearray(session.read_bytes())
    row, step = 256, 12 + 256 * N
    first, second = LAYERS + 12, LAYERS + 12 + step
    assert struct.unpack_from("<Q", content, second) == (row,)
    moved = bytes(content[second - 4 : second + 8])
    struct.pack_into("<Q", content, first, row + 128)
    del content[second - 4 : second + 8]
    at = second - 4 + 128 * N
    content[at:at] = moved[:4] + struct.pack("<Q", row - 128)
    session.write_bytes(content)
    with engine(model, **options) as llm, attach(llm, tmp_path / "kv") as cache:
        entry = import_session(session, cache)
        assert entry is not None
        assert (say(llm, S + A), cache.restored) == (answer(model, S + A, **options)[0], 0)


def test_cut_or_longer_files_are_refused(model: Path, tmp_path: Path, session: Path, options: dict[str, Any]) -> None:
    content = session.read_bytes()
    cuts = [0, 11, 12, 12 + 4 * N, BODY + 3, BODY + 8, LAYERS - 1, LAYERS + 6, LAYERS + 9, len(content) - 1]
    with engine(model, **options) as llm, attach(llm, tmp_path / "kv") as cache:
        for wrong in [*(content[:cut] for cut in cuts), content + b"\0"]:
            session.write_bytes(wrong)
            with pytest.raises(ValueError, match="session file"):
                import_session(session, cache)
        session.write_bytes(content)
        assert import_session(session, cache) is not None  # the control


def test_of_another_kind_of_context(model: Path, tmp_path: Path, session: Path, options: dict[str, Any]) -> None:
    other = {"flash_attn": not options.get("flash_attn", False)}
    with engine(model, **other) as llm, attach(llm, tmp_path / "kv") as cache:
        with pytest.raises(ValueError, match="V transposed"):
            import_session(session, cache)


def test_models_of_another_structure(models: Path, tmp_path: Path) -> None:  # noqa: F811
    sliding = gguf_models.sliding(models / "sliding.gguf")
    with engine(sliding) as llm, attach(llm, tmp_path / "kv") as cache:
        say(llm, S)
        held = save_session(llm, tmp_path / "x.bin")
        with pytest.raises(ValueError, match="attend to all"):
            import_session(tmp_path / "x.bin", cache)
        with pytest.raises(ValueError, match="swa_full"):
            export_session(cache, held, tmp_path / "y.bin")
    with engine(sliding, swa_full=False) as llm, attach(llm, tmp_path / "kv") as cache:
        say(llm, S)
        held = save_session(llm, tmp_path / "x.bin")
    with engine(sliding, swa_full=False) as llm, attach(llm, tmp_path / "kv") as cache:
        export_session(cache, held, tmp_path / "y.bin")
    assert (tmp_path / "x.bin").read_bytes() == (tmp_path / "y.bin").read_bytes()
