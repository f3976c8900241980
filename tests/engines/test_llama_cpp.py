"""llama-cpp-python itself, with models of random weights: a cache changes how long an answer takes, and no word of it.

Each answer comes from an engine of its own, so that what isn't computed came from the disk.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import pytest
from engines import gguf_models
from helpers import damage_quietly
from processes import DEADLINE, Child, started

import ds4kv
from ds4kv.engines import llama_cpp as adapter
from ds4kv.engines.llama_cpp import Cache, attach
from ds4kv.file.draft import OutputFile

WORDS = 12


def ids(count: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).integers(300, 2000, count).tolist()


S, A, B = ids(400, 1), ids(30, 2), ids(40, 3)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="session")
def model(models: Path) -> Path:
    return gguf_models.dense(models / "small.gguf")


@contextlib.contextmanager
def engine(path: Path, **options: Any) -> Iterator[Any]:
    given = {"n_ctx": 1024, "n_threads": 1, "n_threads_batch": 1, "verbose": False, **options}
    with contextlib.closing(llama_cpp.Llama(str(path), **given)) as llm:
        yield llm


def say(llm: Any, prompt: list[int], count: int = WORDS) -> str:
    answer = llm.create_completion(prompt, max_tokens=count, temperature=0, repeat_penalty=1.0)
    return answer["choices"][0]["text"]


def answer(path: Path, prompt: list[int], directory: Path | None = None, **options: Any) -> tuple[str, int]:
    """What a fresh engine says, and how many tokens of the prompt came from the disk."""
    of_cache = {key: options.pop(key) for key in ("min_tokens", "budget_mb", "model_id", "layout") if key in options}
    with engine(path, **options) as llm:
        if directory is None:
            return say(llm, prompt), 0
        with attach(llm, directory, **of_cache) as cache:
            return say(llm, prompt), cache.restored


def files(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.kv"))


SHAPES = [
    ("small", gguf_models.SMALL, {}),
    pytest.param("wide", gguf_models.WIDE_VOCAB, {}, marks=pytest.mark.slow),
    pytest.param("heavy", gguf_models.KV_HEAVY, {}, marks=pytest.mark.slow),
    ("small", gguf_models.SMALL, {"flash_attn": True}),
    ("small", gguf_models.SMALL, {"flash_attn": True, "type_k": llama_cpp.GGML_TYPE_Q8_0, "type_v": 8}),
]


@pytest.mark.parametrize(("name", "shape", "options"), SHAPES)
def test_branches_of_one_beginning(
    models: Path, tmp_path: Path, name: str, shape: Any, options: dict[str, Any]
) -> None:
    path = models / f"{name}.gguf"
    if not path.exists():
        gguf_models.dense(path, shape)
    counts = []
    in_memory = llama_cpp.LlamaRAMCache() if options == {"flash_attn": True} else None
    for prompt in (S + A, S + B, S + A, S + B, S + A):
        # With flash attention and f16, what an engine computes at once differs in the last bits from what it computes
        # in two steps. There the measure is a cache in memory.
        with engine(path, **options) as llm:
            llm.set_cache(in_memory)
            wanted = say(llm, prompt)
        found, count = answer(path, prompt, tmp_path, **options)
        assert found == wanted
        counts.append(count)
    assert counts == [0, len(S), len(S + A), len(S + B), len(S + A)]
    assert len(files(tmp_path)) == 2


def test_a_conversation_grows(model: Path, tmp_path: Path) -> None:
    prompt, counts = S, []
    for turn in range(3):
        wanted, _ = answer(model, prompt)
        found, count = answer(model, prompt, tmp_path)
        assert found == wanted
        counts.append(count)
        prompt = prompt + ids(70, 10 + turn)
    assert counts == [0, len(S), len(S) + 70]


def test_states_of_before_are_found(model: Path, tmp_path: Path) -> None:
    answer(model, S + A, tmp_path, layout="v2-checked")
    assert answer(model, S + B, tmp_path)[1] == len(S)
    assert sorted(ds4kv.read_header(path).layout for path in files(tmp_path)) == ["packed", "v1"]  # floats of 16 bits


def test_an_engine_that_goes_on_needs_no_load(model: Path, tmp_path: Path) -> None:
    with engine(model) as llm, attach(llm, tmp_path) as cache:
        for prompt in (S, S + A, S + A + ids(100, 9)):
            assert say(llm, prompt) == answer(model, prompt)[0]
            assert cache.restored == 0
    assert len(files(tmp_path)) == 3


def test_a_context_that_is_too_small_finds_nothing(model: Path, tmp_path: Path) -> None:
    answer(model, S + A, tmp_path)
    assert answer(model, S[:200], tmp_path, n_ctx=256) == (answer(model, S[:200])[0], 0)
    assert answer(model, S[:200], tmp_path)[1] == 200  # the control


@pytest.mark.parametrize("place", [0, 10, 60, 2000, 0.3, 0.7, -1])
def test_a_flipped_bit_is_a_miss(model: Path, tmp_path: Path, place: float) -> None:
    wanted, _ = answer(model, S + A, tmp_path)
    (path,) = files(tmp_path)
    size = path.stat().st_size
    damage_quietly(path, int(place * size) if isinstance(place, float) else place % size)
    found, count = answer(model, S + A, tmp_path)
    assert found == wanted
    assert count in ((0, len(S + A)) if place == 10 else (0,))  # the count of hits may be any
    assert answer(model, S + A, tmp_path) == (wanted, len(S + A))  # the control: it was computed and saved again


@pytest.mark.parametrize("how", ["cut", "empty", "a directory", "gone"])
def test_a_file_that_cannot_be_read_is_a_miss(model: Path, tmp_path: Path, how: str) -> None:
    wanted, _ = answer(model, S + A, tmp_path)
    (path,) = files(tmp_path)
    with engine(model) as llm, attach(llm, tmp_path) as cache:
        if how in ("cut", "empty"):
            os.truncate(path, path.stat().st_size // 2 if how == "cut" else 0)
        else:
            path.unlink()
            if how == "a directory":
                path.mkdir()
        assert (say(llm, S + A), cache.restored) == (wanted, 0)


def test_a_directory_that_goes_away(model: Path, tmp_path: Path) -> None:
    with engine(model) as llm, attach(llm, tmp_path / "kv"):
        shutil.rmtree(tmp_path / "kv")
        assert say(llm, S + A) == answer(model, S + A)[0]


def test_a_full_disk(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def write(file: Any, data: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    wanted, _ = answer(model, S + A)
    with monkeypatch.context() as full:
        full.setattr(OutputFile, "write", write)
        assert answer(model, S + A, tmp_path) == (wanted, 0)
    assert "No space left" in caplog.text
    assert files(tmp_path) == []
    answer(model, S + A, tmp_path)
    assert answer(model, S + A, tmp_path) == (wanted, len(S + A))  # the control


def test_nothing_that_fails_comes_through(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("of the cache")

    monkeypatch.setattr(adapter.Attached, "look", fail)
    monkeypatch.setattr(adapter.Attached, "keep", fail)
    assert answer(model, S + A, tmp_path) == (answer(model, S + A)[0], 0)
    assert caplog.text.count("RuntimeError: of the cache") == 2


def test_what_llama_cpp_refuses_leaves_a_clean_context(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted, _ = answer(model, S + A, tmp_path)
    real = adapter.Attached.read

    def cut(self: Any, *args: Any) -> Any:
        return real(self, *args)[:-5000]

    with monkeypatch.context() as broken:
        broken.setattr(adapter.Attached, "read", cut)
        assert answer(model, S + A, tmp_path) == (wanted, 0)
    assert answer(model, S + A, tmp_path) == (wanted, len(S + A))  # the control


# ------------------------------------------------------------------------------ windows and recurrent states


def test_a_sliding_window_that_is_kept_whole_can_be_cut(models: Path, tmp_path: Path) -> None:
    path = gguf_models.sliding(models / "sliding.gguf")
    for prompt, count in ((S + A, 0), (S + B, len(S)), (S + A, len(S + A)), (S + A + B, len(S + A) + WORDS - 1)):
        if count == len(S + A) + WORDS - 1:
            prompt = [*prompt[: len(S + A)], *B]
            count = len(S + A)
        assert answer(path, prompt, tmp_path) == (answer(path, prompt)[0], count)


@pytest.mark.parametrize("kind", ["sliding", "recurrent"])
def test_what_cannot_be_cut_serves_whole(models: Path, tmp_path: Path, kind: str) -> None:
    path = getattr(gguf_models, kind)(models / f"{kind}.gguf")
    options = {"swa_full": False}
    with engine(path, **options) as llm, attach(llm, tmp_path):
        say(llm, S + A)
        whole = llm.input_ids[: llm.n_tokens].tolist()
    assert len(whole) == len(S + A) + WORDS - 1
    for prompt, count in ((S + B, 0), (S + A, 0), (whole + B, len(whole)), (whole, 0)):
        assert answer(path, prompt, tmp_path, **options) == (answer(path, prompt, **options)[0], count)


@pytest.mark.parametrize("swa_full", [True, False])
@pytest.mark.parametrize("way", ["attached", "set"])
def test_a_context_that_is_cut_behind_its_window(models: Path, tmp_path: Path, way: str, swa_full: bool) -> None:
    """The engine itself cuts what it has in memory, and doesn't look at what a window has passed."""
    path, options = gguf_models.sliding(models / "sliding.gguf"), {"swa_full": swa_full}
    answer(path, S + A, tmp_path, **options)
    prompts = (S + A + B, S[:150] + B, S + A + B, S[:90], S[:90] + A)
    wanted = [answer(path, prompt, **options)[0] for prompt in prompts]
    with engine(path, **options) as llm:
        cache = attach(llm, tmp_path) if way == "attached" else Cache(tmp_path, llm)
        if way == "set":
            llm.set_cache(cache)
        with cache:
            assert [say(llm, prompt) for prompt in prompts] == wanted
    for prompt, text in zip(prompts, wanted, strict=True):
        assert answer(path, prompt, tmp_path, **options)[0] == text


# ------------------------------------------------------------------------------ the engine's own ways


def test_users_save_and_load_states_themselves(model: Path, tmp_path: Path) -> None:
    with engine(model) as llm, attach(llm, tmp_path) as cache:
        first = say(llm, S + A)
        state = llm.save_state()
        assert (state.n_tokens, state.scores.shape) == (llm.n_tokens, (llm.n_tokens, llm.n_vocab()))
        second = say(llm, B * 5)
        llm.load_state(state)
        assert llm.n_tokens == state.n_tokens
        assert say(llm, S + A) == first
        assert say(llm, B * 5) == second == answer(model, B * 5)[0]
        assert say(llm, S + A) == first
        assert cache.restored == len(S + A)
        llm.set_cache(llama_cpp.LlamaRAMCache())
        assert say(llm, B * 5) == second
        assert say(llm, S + A) == first
        assert say(llm, B * 5) == second
        assert cache.restored == 0  # the engine's own cache was as good


def test_what_the_cache_did_not_see_computed_is_not_saved(model: Path, tmp_path: Path) -> None:
    """It may be a picture, whose tokens say nothing."""
    with engine(model) as llm, attach(llm, tmp_path):
        llm.eval(S)
        say(llm, S + A)
    assert files(tmp_path) == []
    with engine(model) as llm, attach(llm, tmp_path):
        llm.eval(S)
        llm.reset()
        say(llm, S + A)
    assert len(files(tmp_path)) == 1  # the control


def test_a_stream_that_is_left(model: Path, tmp_path: Path) -> None:
    with engine(model) as llm, attach(llm, tmp_path):
        stream = llm.create_completion(S + A, max_tokens=50, temperature=0, stream=True)
        next(stream)
        say(llm, B * 3)
        del stream  # it ends in a context that isn't its own any more
        gc.collect()
        assert say(llm, B * 3 + A) == answer(model, B * 3 + A)[0]
    assert len(files(tmp_path)) == 2


@pytest.mark.slow
def test_a_program_that_ends_within_a_stream(model: Path, tmp_path: Path) -> None:
    code = f"""
import llama_cpp
from ds4kv.engines.llama_cpp import attach
llm = llama_cpp.Llama({str(model)!r}, verbose=False, n_threads=1)
cache = attach(llm, {str(tmp_path)!r})
llm.create_completion({S}, max_tokens=1)
stream = llm.generate({A * 4})
next(stream)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=DEADLINE, check=True)
    assert ran.stderr == b""
    assert len(files(tmp_path)) == 1  # what was done before is saved, though nobody closed the cache


def test_tokens_are_generated_one_by_one(model: Path, tmp_path: Path) -> None:
    def some(llm: Any, **options: Any) -> list[int]:
        return list(itertools.islice(llm.generate(S + A, temp=0.0, repeat_penalty=1.0, **options), WORDS))

    with engine(model) as llm:
        wanted = some(llm)
    for count in (0, len(S + A)):
        with engine(model) as llm, attach(llm, tmp_path) as cache:
            assert some(llm) == wanted
            assert cache.restored == count


def test_it_does_not_keep_the_model_alive(model: Path, tmp_path: Path) -> None:
    llm = llama_cpp.Llama(str(model), verbose=False)
    cache, ref = attach(llm, tmp_path), weakref.ref(llm)
    say(llm, S[:100])
    gc.disable()
    try:
        del llm
        assert ref() is None
    finally:
        gc.enable()
    cache.detach()
    assert len(files(tmp_path)) == 1


def test_a_llama_is_given_back(model: Path, tmp_path: Path) -> None:
    with engine(model) as llm:
        before = set(vars(llm))
        with attach(llm, tmp_path):
            with pytest.raises(ValueError, match="attached"):
                attach(llm, tmp_path)
        assert set(vars(llm)) == before
        say(llm, S)
    assert files(tmp_path) == []


def test_what_waits_is_bounded(model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    go = threading.Event()
    with engine(model) as llm, attach(llm, tmp_path, pending_mb=0) as cache:
        held = cache.store.save_async(b"first", lambda: b"x" * go.wait(30), tokens=100, ctx_size=100)
        for seed in range(3):
            say(llm, ids(100, seed), 1)
        assert not held.done()
        go.set()
    assert "not saved, as 1 wait" in caplog.text
    assert len(files(tmp_path)) == 2


# ------------------------------------------------------------------------------ set_cache


def cached(path: Path, prompt: list[int], directory: Path, **options: Any) -> str:
    with engine(path, **options) as llm, Cache(directory, llm) as cache:
        llm.set_cache(cache)
        return say(llm, prompt)


def test_set_cache(model: Path, tmp_path: Path) -> None:
    for prompt in (S + A, S + B, S + A, S + B, S + A):
        assert cached(model, prompt, tmp_path) == answer(model, prompt)[0]
    assert len(files(tmp_path)) == 2
    assert answer(model, S + A, tmp_path)[1] == len(S + A)  # attached, it uses the same files
    answer(model, B * 9, tmp_path)
    with engine(model, n_ctx=600) as llm, Cache(tmp_path, llm) as cache:
        assert isinstance(cache, llama_cpp.BaseLlamaCache)
        assert cache[B * 9].n_tokens == len(B * 9)
        assert cache[S + A + B].n_tokens == len(S + A)
        assert cache[S + A + B].n_tokens == len(S + A)  # reading takes nothing away
        assert B * 9 in cache
        assert [1, 2, 3] not in cache
        assert cache._find_longest_prefix_key((*S, 7)) == tuple(S)
        assert cache.cache_size == sum(path.stat().st_size for path in files(tmp_path))
        assert bool(cache)
        with pytest.raises(KeyError):
            cache[[1, 2, 3]]


def test_set_cache_with_damage(model: Path, tmp_path: Path) -> None:
    wanted = cached(model, S + A, tmp_path)
    (path,) = files(tmp_path)
    damage_quietly(path, path.stat().st_size // 2)
    with engine(model) as llm, Cache(tmp_path, llm) as cache:
        with pytest.raises(KeyError):
            cache[S + A]
    assert cached(model, S + A, tmp_path) == wanted
    with engine(model) as llm, Cache(tmp_path, llm) as cache:
        assert cache[S + A].n_tokens == len(S + A)  # the control
        cache[S] = "no state at all"  # which no engine hears of
        cache.store.close()
        say(llm, B * 3)


def test_a_cache_gives_nothing_that_the_engine_has_itself(model: Path, tmp_path: Path) -> None:
    with engine(model) as llm, Cache(tmp_path, llm) as cache:
        llm.set_cache(cache)
        say(llm, S + A)
        cache.wait()
        with pytest.raises(KeyError):
            cache[S + A]
        llm.reset()
        assert cache[S + A].n_tokens == len(S + A)  # the control


@pytest.mark.parametrize("kind", ["sliding", "recurrent"])
@pytest.mark.parametrize("swa_full", [True, False])
def test_set_cache_with_other_states(models: Path, tmp_path: Path, kind: str, swa_full: bool) -> None:
    path = getattr(gguf_models, kind)(models / f"{kind}.gguf")
    options = {"swa_full": swa_full}
    with engine(path, **options) as llm:
        say(llm, S + A)
        whole = llm.input_ids[: llm.n_tokens].tolist()
    for prompt in (S + A, S + B, S + A, whole + B, whole + B + A):
        assert cached(path, prompt, tmp_path, **options) == answer(path, prompt, **options)[0]
        assert answer(path, prompt, tmp_path, **options)[0] == answer(path, prompt, **options)[0]


# ------------------------------------------------------------------------------ several processes


def ask(child: Child, prompt: list[int]) -> tuple[str, int]:
    assert child.process.stdin is not None
    child.process.stdin.write(json.dumps(prompt).encode() + b"\n")
    child.process.stdin.flush()
    text, count = json.loads(child.line())
    return text, count


@pytest.mark.slow
def test_three_processes_of_which_some_are_killed(models: Path, tmp_path: Path) -> None:
    shape = gguf_models.KV_HEAVY._replace(layers=4, width=256, heads=4, kv_heads=4)
    path = gguf_models.dense(models / "middle.gguf", shape)
    prompts = [S + ids(30, 20 + n) for n in range(4)]
    with engine(path) as llm:
        wanted = [say(llm, prompt, 4) for prompt in prompts]
    command = [sys.executable, Path(__file__).with_name("llama_worker.py"), path, tmp_path / "kv", "4"]
    counts = []
    for turn in range(4):
        with contextlib.ExitStack() as stack:
            children = [stack.enter_context(started(command, stdin=subprocess.PIPE)) for _ in range(3)]
            for child in children:
                assert child.line() == b"ready\n"
            for n, child in enumerate(children):
                which = (turn + n) % len(prompts)
                text, count = ask(child, prompts[which])
                assert text == wanted[which]
                counts.append(count)
            children[turn % 3].process.send_signal(signal.SIGKILL)  # it may be saving
            for child in children:
                child.process.stdin.close()  # type: ignore[union-attr]
                child.finish()
    assert counts[0] == 0
    assert counts[-1] >= len(S)
    with ds4kv.Store(tmp_path / "kv") as store:
        assert {store.verify(entry) for entry in store.entries()} == {ds4kv.Verdict.OK}
        assert len(store.entries()) >= 3
    assert not list((tmp_path / "kv").glob("*.tmp.*"))


# ------------------------------------------------------------------------------ docs and examples


@pytest.mark.slow
def test_the_page_does_what_it_says(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(model, "model.gguf")
    page = Path(__file__).parents[2] / "docs" / "how-to" / "llama_cpp.md"
    variables: dict[str, Any] = {}
    for block in re.findall(r"^```{code-block} python\n(.*?)^```$", page.read_text(), re.M | re.S):
        exec(compile(block, page, "exec"), variables)
    assert capsys.readouterr().out == "0\nTrue\n"


@pytest.mark.slow
def test_a_chat_remembers(model: Path, tmp_path: Path) -> None:
    example = Path(__file__).parents[2] / "examples" / "chat_llama_cpp.py"
    for n, lines in enumerate((b"One, two, three.\nAnd then?\n", b"And then?\n")):
        command = [sys.executable, example, tmp_path / "chat", model]
        ran = subprocess.run(command, input=lines, capture_output=True, timeout=DEADLINE, check=True)
        counts = [int(count) for count in re.findall(rb"\[(\d+) tokens came from the disk", ran.stdout)]
        assert (counts[0] > 16) == (n == 1)
    assert len(json.loads((tmp_path / "chat" / "chat.json").read_text())) == 7
