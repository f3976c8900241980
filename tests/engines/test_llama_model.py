"""Whose states are found: an identity has all that a state depends on, and nothing that sizes itself."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llama_cpp
import pytest
from engines import gguf_models
from engines.test_llama_cpp import A, S, answer, engine, model, models, say  # noqa: F401
from llama_cpp.llama_chat_format import Llava15ChatHandler
from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

from ds4kv.engines.llama_cpp import Cache, attach
from ds4kv.engines.llama_model import digest_of_file, model_of


@pytest.mark.parametrize("options", [{"n_ctx": 700}, {"n_ctx": 2000, "n_batch": 64}, {"n_threads": 2}])
def test_what_sizes_itself_is_not_in_the_identity(model: Path, tmp_path: Path, options: dict[str, Any]) -> None:  # noqa: F811
    wanted, _ = answer(model, S + A, tmp_path)
    assert answer(model, S + A, tmp_path, **options) == (wanted, len(S + A))


def test_other_weights_of_the_same_shape_are_a_miss(models: Path, model: Path, tmp_path: Path) -> None:  # noqa: F811
    other = gguf_models.dense(models / "other.gguf", seed=1)
    assert other.stat().st_size == model.stat().st_size
    answer(model, S + A, tmp_path)
    assert answer(other, S + A, tmp_path) == (answer(other, S + A)[0], 0)
    copied = Path(shutil.copy(model, tmp_path / "of another name.gguf"))
    assert answer(copied, S + A, tmp_path)[1] == len(S + A)  # the control


@pytest.mark.parametrize("key", ["llama.rope.freq_base", "general.of_no_meaning"])
def test_other_metadata_are_a_miss(models: Path, model: Path, tmp_path: Path, key: str) -> None:  # noqa: F811
    other = gguf_models.dense(models / f"{key}.gguf", floats={key: 5000.0})
    answer(model, S + A, tmp_path)
    assert answer(other, S + A, tmp_path) == (answer(other, S + A)[0], 0)
    assert answer(other, S + A, tmp_path)[1] == len(S + A)  # the control


@pytest.mark.parametrize(
    "options",
    [
        {"flash_attn": True},
        {"type_k": llama_cpp.GGML_TYPE_F32},
        {"type_v": llama_cpp.GGML_TYPE_F32},
        {"rope_freq_base": 5000.0},
        {"kv_overrides": {"llama.rope.freq_base": 5000.0}},
    ],
)
def test_another_kind_of_state_is_a_miss(model: Path, tmp_path: Path, options: dict[str, Any]) -> None:  # noqa: F811
    answer(model, S + A, tmp_path)
    assert answer(model, S + A, tmp_path, **options) == (answer(model, S + A, **options)[0], 0)
    assert answer(model, S + A, tmp_path, **options)[1] == len(S + A)  # the control


def test_an_adapter_makes_other_states(models: Path, model: Path, tmp_path: Path) -> None:  # noqa: F811
    one, two = (gguf_models.lora(models / f"lora{seed}.gguf", seed=seed) for seed in (0, 1))
    texts = {answer(model, S + A, tmp_path)[0]}
    for options in ({"lora_path": str(one)}, {"lora_path": str(two)}, {"lora_path": str(two), "lora_scale": 0.5}):
        found, count = answer(model, S + A, tmp_path, **options)
        assert (found, count) == (answer(model, S + A, **options)[0], 0)
        assert answer(model, S + A, tmp_path, **options) == (found, len(S + A))  # the control
        texts.add(found)
    assert len(texts) == 4


def test_a_users_own_word_for_the_weights(model: Path, tmp_path: Path) -> None:  # noqa: F811
    answer(model, S + A, tmp_path, model_id="mine")
    assert answer(model, S + A, tmp_path, model_id="yours")[1] == 0
    assert answer(model, S + A, tmp_path, model_id="mine")[1] == len(S + A)


def test_positions_that_depend_on_the_length_of_the_context(models: Path) -> None:  # noqa: F811
    path = gguf_models.dense(models / "long.gguf", integers={"llama.rope.scaling.original_context_length": 1024})
    identities = []
    for ctx_size in (512, 1024, 2048, 4096):
        with engine(path, n_ctx=ctx_size) as llm:
            identities.append(model_of(llm).identity)
    assert identities[0] == identities[1] != identities[2] == identities[3]


def test_who_needs_scores_of_all_tokens_is_refused(model: Path, tmp_path: Path) -> None:  # noqa: F811
    with engine(model, logits_all=True) as llm:
        for make in (lambda: attach(llm, tmp_path), lambda: Cache(tmp_path, llm)):
            with pytest.raises(ValueError, match="logits_all"):
                make()


def test_who_sees_pictures_is_refused(model: Path, tmp_path: Path) -> None:  # noqa: F811
    handler = Llava15ChatHandler.__new__(Llava15ChatHandler)  # whose library needs not be there for this
    handler.clip_model_path = str(model)
    with engine(model, chat_handler=handler) as llm, pytest.raises(ValueError, match="picture"):
        attach(llm, tmp_path)


def test_speculative_decoding(model: Path, tmp_path: Path) -> None:  # noqa: F811
    wanted, _ = answer(model, S + A)
    for count in (0, len(S + A)):
        with engine(model, draft_model=LlamaPromptLookupDecoding()) as llm, attach(llm, tmp_path) as cache:
            assert (say(llm, S + A), cache.restored) == (wanted, count)


MIB = 1 << 20
CHANGES: dict[str, tuple[Callable[[bytearray], None], bool]] = {
    "nothing": (lambda data: None, False),
    "the first byte": (lambda data: data.__setitem__(0, 1), True),
    "the last byte": (lambda data: data.__setitem__(-1, 1), True),
    "a bit somewhere": (lambda data: data.__setitem__(17 * MIB + 77, 1), True),
    "a byte more": (lambda data: data.append(0), True),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_digest_is_of_every_byte(tmp_path: Path, change: str) -> None:
    path, data = tmp_path / "x.gguf", bytearray(33 * MIB)
    path.write_bytes(data)
    before = digest_of_file(path)
    alter, is_seen = CHANGES[change]
    alter(data)
    path.write_bytes(data)
    assert (digest_of_file(path) != before) == is_seen


def test_a_digest_of_a_model_in_parts(tmp_path: Path) -> None:
    parts = [tmp_path / f"x-0000{n}-of-00002.gguf" for n in (1, 2)]
    for part in parts:
        part.write_bytes(b"weights")
    before = digest_of_file(parts[0])
    parts[1].write_bytes(b"weighed")
    assert digest_of_file(parts[0]) != before
