"""Real models of transformers, tiny ones: a hit gives the tokens of a miss, and what doesn't suit is a miss."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from ds4kv.arrays import views
from engines import models
from engines.models import DENSE, KINDS, SLIDING, WINDOW
from helpers import damage_quietly
from processes import Child, started
from transformers import DynamicCache, StaticCache

import ds4kv
from ds4kv import Verdict
from ds4kv.engines.tokens import key_of
from ds4kv.engines.transformers import PrefixCache, generate
from ds4kv.engines.transformers_state import Snapshot, copied_up, layer_kinds

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
LENGTH = 150
NEW = 16


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tests run side by side."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def opened(directory: Path, model: Any, **options: Any) -> PrefixCache:
    return PrefixCache(directory / "cache", model, **{"min_tokens": 16, "step_tokens": 8} | options)


def plain(model: Any, prompt: Any, **options: Any) -> Any:
    """What the model says without a cache of ours."""
    mask = torch.ones_like(prompt)
    return model.generate(prompt, attention_mask=mask, **{"max_new_tokens": NEW} | options)


def asked(directory: Path, model: Any, prompt: Any, **options: Any) -> tuple[Any, int]:
    """What a new cache says, all of it saved, and how many tokens it had restored."""
    with opened(directory, model, **options) as cache:
        return generate(model, prompt, cache=cache, max_new_tokens=NEW), cache.restored


def state_of(past: Any) -> list[Any]:
    return [tensor.clone() for layer in past.layers for tensor in (layer.keys, layer.values)]


def prefilled(model: Any, prompt: Any) -> Any:
    past = DynamicCache(config=model.config)
    with torch.no_grad():
        model(input_ids=prompt, past_key_values=past, use_cache=True)
    return past


# A state is saved and restored without a copy that can be spared


def address_of(buffer: Any) -> int:
    return int(torch.frombuffer(memoryview(buffer), dtype=torch.uint8).data_ptr())


@pytest.mark.filterwarnings("ignore:The given buffer is not writable")
@pytest.mark.parametrize("kind", KINDS)
def test_a_save_is_lent_the_memory_of_the_state(kind: str) -> None:
    model = models.make(kind)
    past = prefilled(model, models.ids(LENGTH))
    snapshot = Snapshot.of(past, layer_kinds(past), model.dtype)
    parts = snapshot.payload()
    assert sum(len(memoryview(part).cast("B")) for part in parts) == snapshot.contents.nbytes
    lent = {address_of(part) for part in parts if len(part)}
    assert {tensor.data_ptr() for tensor in snapshot.tensors.values() if tensor.is_contiguous()} <= lent
    strided = {name: tensor.mT.contiguous().mT for name, tensor in snapshot.tensors.items()}
    again = snapshot._replace(tensors=strided).payload()
    assert b"".join(map(bytes, again)) == b"".join(map(bytes, parts))
    assert not lent & {tensor.data_ptr() for tensor in strided.values()}


@pytest.mark.parametrize("layout", ["v1", "v2", "v2-checked", "packed"])
def test_a_payload_goes_to_its_device_as_it_is_decoded(layout: str, tmp_path: Path) -> None:
    payload = random.Random(1).randbytes(1 << 20) * 40
    path = tmp_path / "a.kv"
    ds4kv.dump(path, payload, tokens=1, ctx_size=1, layout=layout)
    with ds4kv.open(path) as checkpoint:
        here, there = copied_up(checkpoint.payload, torch.device("cpu"))
    assert here.data_ptr() != there.data_ptr()
    assert here.numpy().tobytes() == there.numpy().tobytes() == payload


def test_what_is_damaged_goes_to_no_device(tmp_path: Path) -> None:
    path = tmp_path / "a.kv"
    ds4kv.dump(path, bytes(range(256)) * 1000, tokens=1, ctx_size=1, layout="v2-checked", level=0)
    with ds4kv.open(path) as checkpoint:  # the control
        copied_up(checkpoint.payload, torch.device("cpu"))
    damage_quietly(path, -1)
    with ds4kv.open(path) as checkpoint, pytest.raises(ds4kv.CorruptError):
        copied_up(checkpoint.payload, torch.device("cpu"))


# A hit is as good as a miss


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_tokens_are_those_of_a_miss(tmp_path: Path, kind: str, dtype: Any) -> None:
    model, prompt = models.make(kind, dtype=dtype), models.ids(LENGTH)
    cold, missed = asked(tmp_path, model, prompt)
    hit, restored = asked(tmp_path, model, prompt)
    assert (missed, restored) == (0, LENGTH - 1)
    assert torch.equal(hit, cold)
    if dtype == torch.float32:  # of fewer bits, sums that are added up in another order may pick another token
        assert torch.equal(hit, plain(model, prompt))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", ["packed", "v2-checked", "v2", "v1"])
def test_a_state_has_the_bits_that_were_saved(tmp_path: Path, kind: str, dtype: Any, layout: str) -> None:
    model, prompt = models.make(kind, dtype=dtype), models.ids(LENGTH)
    past = prefilled(model, prompt[:, :-1])
    with opened(tmp_path, model, layout=layout) as cache:
        entry = cache.save(prompt, past).result()
        assert (entry.tokens, entry.ctx_size) == (LENGTH - 1, LENGTH - 1)
        found, restored = cache.load(prompt)
    assert restored == LENGTH - 1 == found.get_seq_length()
    assert all(map(torch.equal, state_of(found), state_of(past)))
    assert [type(layer) for layer in found.layers] == [type(layer) for layer in past.layers]


@pytest.mark.parametrize("kind", KINDS)
def test_the_next_turn_goes_on_from_what_was_generated(tmp_path: Path, kind: str) -> None:
    model = models.make(kind)
    first, _ = asked(tmp_path, model, models.ids(LENGTH))
    second = torch.cat([first, models.ids(20, seed=2)], dim=1)
    answer, restored = asked(tmp_path, model, second)
    assert restored == LENGTH + NEW - 1  # the last token that was generated has not been computed
    assert torch.equal(answer, plain(model, second))


@pytest.mark.parametrize("kind", DENSE)
def test_a_common_beginning_is_cut_out(tmp_path: Path, kind: str) -> None:
    model, shared = models.make(kind), models.ids(100)
    first, second = (torch.cat([shared, models.ids(50, seed=seed)], dim=1) for seed in (2, 3))
    asked(tmp_path, model, first)
    answer, restored = asked(tmp_path, model, second)
    assert restored == 100
    assert torch.equal(answer, plain(model, second))


@pytest.mark.parametrize("kind", SLIDING)
def test_a_window_that_is_not_full_can_be_cut(tmp_path: Path, kind: str) -> None:
    model, shared = models.make(kind), models.ids(24)
    first, second = (torch.cat([shared, models.ids(8, seed=seed)], dim=1) for seed in (2, 3))
    asked(tmp_path, model, first, step_tokens=1000, anchors=[31])
    answer, restored = asked(tmp_path, model, second)
    assert restored == 24
    assert torch.equal(answer, plain(model, second))


@pytest.mark.parametrize("kind", SLIDING)
def test_with_full_windows_only_whole_states_serve(tmp_path: Path, kind: str) -> None:
    model, shared = models.make(kind), models.ids(100)
    first, second = (torch.cat([shared, models.ids(50, seed=seed)], dim=1) for seed in (2, 3))
    asked(tmp_path, model, first)
    assert asked(tmp_path, model, second)[1] == 0
    shutil.rmtree(tmp_path / "cache")
    asked(tmp_path, model, first, anchors=[100])
    answer, restored = asked(tmp_path, model, second, anchors=lambda ids: [len(ids) - 50])
    assert restored == 100
    assert torch.equal(answer, plain(model, second))


@pytest.mark.parametrize("kind", SLIDING)
@pytest.mark.parametrize("length", [WINDOW - 2, WINDOW - 1, WINDOW, WINDOW + 1])
def test_states_about_as_long_as_the_window(tmp_path: Path, kind: str, length: int) -> None:
    model, prompt = models.make(kind), models.ids(length + 1)
    asked(tmp_path, model, prompt)
    answer, restored = asked(tmp_path, model, prompt)
    assert restored == length
    assert torch.equal(answer, plain(model, prompt))


def test_windows_have_an_anchor_at_a_round_number(tmp_path: Path) -> None:
    model = models.make("some sliding")
    options = {"boundary_trim_tokens": 4, "boundary_align_tokens": 64}
    with opened(tmp_path, model, **options) as cache:
        generate(model, models.ids(LENGTH), cache=cache, max_new_tokens=1)
    with opened(tmp_path, model) as cache:
        assert sorted(entry.tokens for entry in cache.store.entries()) == [128, LENGTH - 1]


def test_going_on_does_not_change_what_is_being_saved(tmp_path: Path) -> None:
    for kind in KINDS:
        model, prompt = models.make(kind), models.ids(LENGTH)
        past = prefilled(model, prompt[:, :-1])
        before, may_go = state_of(past), threading.Event()
        with opened(tmp_path, model) as cache:
            cache.store.save_async(b"first", lambda: may_go.wait(30) and b"\0", tokens=99, ctx_size=99)  # noqa: B023
            future = cache.save(prompt, past)
            with torch.no_grad():
                for _ in range(3):
                    model(input_ids=prompt[:, -9:], past_key_values=past, use_cache=True)
            assert not future.done()
            may_go.set()
            future.result()
            found, _ = cache.load(prompt)
        assert all(map(torch.equal, state_of(found), before))


def test_a_prompt_waits_for_the_save_that_it_goes_on_from(tmp_path: Path) -> None:
    model, prompt = models.make("some sliding"), models.ids(LENGTH)
    with opened(tmp_path, model) as cache:
        slow = threading.Event()
        cache.store.save_async(b"first", lambda: slow.wait(0.3) or b"\0", tokens=99, ctx_size=99)
        first = generate(model, prompt, cache=cache, max_new_tokens=NEW)
        assert cache.load(models.ids(LENGTH, seed=2))[1] == 0
        assert cache.load(torch.cat([first, prompt], dim=1))[1] == LENGTH + NEW - 1
        slow.set()


def test_a_payload_is_a_safetensors_file(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    model, prompt = models.make("some sliding", dtype=torch.bfloat16), models.ids(LENGTH)
    past = prefilled(model, prompt)
    with opened(tmp_path, model) as cache:
        with cache.store.load(cache.save(prompt, past).result()) as checkpoint:
            payload = checkpoint.payload.read()
    assert views(payload).metadata["tokens"] == str(LENGTH)
    found = safetensors.load(payload)
    for index, layer in enumerate(past.layers):
        assert torch.equal(found[f"layers.{index}.keys"], layer.keys)
        assert torch.equal(found[f"layers.{index}.values"], layer.values)


# What is saved


def test_little_that_is_new_is_not_saved(tmp_path: Path) -> None:
    model = models.make()
    lengths = []
    for prompt, options in (
        (models.ids(10), {}),  # fewer than min_tokens
        (models.ids(LENGTH), {}),
        (models.ids(LENGTH), {"step_tokens": NEW + 1}),  # there already
        (torch.cat([models.ids(LENGTH), models.ids(4, seed=2)], dim=1), {"step_tokens": 30}),
    ):
        asked(tmp_path, model, prompt, **options)
        with opened(tmp_path, model) as cache:
            lengths.append(sorted(entry.tokens for entry in cache.store.entries()))
    assert lengths == [[25], [25, 149, 165], [25, 149, 165], [25, 149, 165]]


def test_a_long_state_is_not_read_for_little(tmp_path: Path) -> None:
    model, shared = models.make(), models.ids(20)
    asked(tmp_path, model, torch.cat([shared, models.ids(180, seed=2)], dim=1))
    assert asked(tmp_path, model, torch.cat([shared, models.ids(9, seed=3)], dim=1))[1] == 0
    asked(tmp_path, model, torch.cat([shared, models.ids(99, seed=4)], dim=1))
    assert asked(tmp_path, model, torch.cat([shared, models.ids(9, seed=5)], dim=1))[1] == 20


@pytest.mark.slow
def test_the_budget_is_kept(tmp_path: Path) -> None:
    model, budget = models.make(), 600_000
    for seed in range(8):
        asked(tmp_path, model, models.ids(LENGTH, seed=seed), budget_bytes=budget)
        assert sum(path.stat().st_size for path in (tmp_path / "cache").glob("*.kv")) <= budget
    answer, restored = asked(tmp_path, model, models.ids(LENGTH, seed=7), budget_bytes=budget)
    assert restored == LENGTH - 1
    assert torch.equal(answer, plain(model, models.ids(LENGTH, seed=7)))


def test_ids_are_given_in_any_shape(tmp_path: Path) -> None:
    model, prompt = models.make(), models.ids(LENGTH)
    with opened(tmp_path, model) as cache:
        cold = cache.generate(prompt, max_new_tokens=NEW)
        for shape in (prompt[0], prompt.tolist(), prompt[0].tolist(), prompt.numpy()):
            assert torch.equal(cache.generate(shape, max_new_tokens=NEW), cold)


@pytest.mark.parametrize("kind", ["gqa", "some sliding"])
@pytest.mark.parametrize(
    "options",
    [
        {"do_sample": True, "temperature": 0.8},
        {"prefill_chunk_size": 40},
        {"repetition_penalty": 1.3},
        {"attention_mask": torch.ones(1, LENGTH, dtype=torch.long)},
        {"return_dict_in_generate": True, "output_scores": True},
    ],
    ids=lambda options: next(iter(options)),
)
def test_arguments_of_generate_mean_what_they_do_without_a_cache(
    tmp_path: Path, kind: str, options: dict[str, Any]
) -> None:
    model, prompt = models.make(kind), models.ids(LENGTH)
    said = []
    with opened(tmp_path, model) as cache:
        for way in (model.generate, cache.generate, cache.generate):
            torch.manual_seed(5)
            mask = {"attention_mask": torch.ones_like(prompt)} if way == model.generate else {}
            output = way(prompt, max_new_tokens=NEW, **mask | options)
            said.append(getattr(output, "sequences", output))
            cache.wait()
    assert torch.equal(said[0], said[1]) and torch.equal(said[1], said[2])


# What doesn't suit is a miss


def edited(model: Any) -> Any:
    with torch.no_grad():
        model.model.embed_tokens.weight[500, 3] += 1e-3
    return model


OTHERS: dict[str, Callable[[], Any]] = {
    "another seed": lambda: models.make(seed=1),
    "one weight": lambda: edited(models.make()),
    "bfloat16": lambda: models.make(dtype=torch.bfloat16),
    "float16": lambda: models.make(dtype=torch.float16),
    "another kind": lambda: models.make("mha"),
    "another base of positions": lambda: models.make(rope_parameters={"rope_type": "default", "rope_theta": 500.0}),
    "another epsilon": lambda: models.make(rms_norm_eps=1e-3),
}


@pytest.mark.parametrize("other", OTHERS)
def test_the_state_of_another_model_is_a_miss(tmp_path: Path, other: str) -> None:
    prompt, model = models.ids(LENGTH), OTHERS[other]()
    asked(tmp_path, models.make(), prompt)
    answer, restored = asked(tmp_path, model, prompt)
    assert restored == 0
    assert torch.equal(answer[:, :LENGTH], prompt)
    assert asked(tmp_path, OTHERS[other](), prompt)[1] == LENGTH - 1
    assert asked(tmp_path, models.make(), prompt)[1] == LENGTH - 1


def test_a_model_that_differs_in_what_does_not_matter_hits(tmp_path: Path) -> None:
    prompt = models.ids(LENGTH)
    asked(tmp_path, models.make(), prompt)
    other = models.make(attn_implementation="eager", eos_token_id=7, _name_or_path="elsewhere")
    assert asked(tmp_path, other, prompt)[1] == LENGTH - 1


@pytest.mark.parametrize(
    "change",
    [
        edited,
        lambda model: model.load_state_dict(models.make(seed=1).state_dict()),
        lambda model: model.load_state_dict(models.make(seed=1).state_dict(), assign=True),
    ],
    ids=["in place", "copied", "assigned"],
)
def test_weights_that_are_changed_meanwhile_are_another_model(tmp_path: Path, change: Callable[[Any], Any]) -> None:
    model, prompt = models.make(), models.ids(LENGTH)
    with opened(tmp_path, model) as cache:
        generate(model, prompt, cache=cache, max_new_tokens=NEW)
        cache.wait()
        assert cache.load(prompt)[1] == LENGTH - 1
        change(model)
        assert cache.load(prompt)[1] == 0
        assert torch.equal(generate(model, prompt, cache=cache, max_new_tokens=NEW), plain(model, prompt))


def test_adapters_that_are_on_count(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    prompt = models.ids(LENGTH)
    lora = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    model = peft.get_peft_model(models.make(), lora).eval()
    with opened(tmp_path, model) as cache:
        adapted = generate(model, prompt, cache=cache, max_new_tokens=NEW)
        assert cache.restored == 0
        with model.disable_adapter():
            bare = generate(model, prompt, cache=cache, max_new_tokens=NEW)
            assert cache.restored == 0
        assert torch.equal(bare, plain(models.make(), prompt))
        assert torch.equal(generate(model, prompt, cache=cache, max_new_tokens=NEW), adapted)
        assert cache.restored == LENGTH - 1


def test_a_name_of_ones_own_is_as_good(tmp_path: Path) -> None:
    prompt = models.ids(LENGTH)
    asked(tmp_path, models.make(), prompt, identity="mine 1")
    assert asked(tmp_path, models.make(), prompt, identity="mine 2")[1] == 0
    assert asked(tmp_path, models.make(), prompt, identity=b"mine 1")[1] == LENGTH - 1


def test_states_of_before_are_found(tmp_path: Path) -> None:
    model, prompt = models.make(), models.ids(LENGTH)
    asked(tmp_path, model, prompt, layout="v2-checked")
    assert asked(tmp_path, model, prompt)[1] == LENGTH - 1
    asked(tmp_path, model, models.ids(LENGTH + 5, seed=9))
    layouts = {ds4kv.read_header(path).layout for path in (tmp_path / "cache").glob("*.kv")}
    assert layouts == {"v2-checked", "packed"}


@pytest.mark.parametrize("kind", ["gqa", "some sliding"])
@pytest.mark.parametrize("layout", ["packed", "v2-checked", "v1"])
@pytest.mark.slow
def test_a_flipped_bit_is_a_miss(tmp_path: Path, kind: str, layout: str) -> None:
    model, prompt = models.make(kind, dtype=torch.bfloat16), models.ids(LENGTH)
    cold, _ = asked(tmp_path, model, prompt, step_tokens=100, layout=layout)
    [path] = (tmp_path / "cache").glob("*.kv")
    for offset in random.Random(1).sample(range(path.stat().st_size), 6):
        shutil.rmtree(tmp_path / "cache")
        asked(tmp_path, model, prompt, step_tokens=100, layout=layout)
        damage_quietly(path, offset)
        answer, restored = asked(tmp_path, model, prompt, step_tokens=100, layout=layout)
        assert restored == 0, offset
        assert torch.equal(answer, cold)
    assert asked(tmp_path, model, prompt, step_tokens=100, layout=layout)[1] == LENGTH - 1


@pytest.mark.parametrize(
    "damage",
    [
        lambda payload: b"",
        lambda payload: payload[:-64],
        lambda payload: payload + bytes(64),
        lambda payload: payload.replace(b'"tokens":"149"', b'"tokens":"148"'),
        lambda payload: payload.replace(b'"layers.0.keys"', b'"layers.9.keys"'),
        lambda payload: payload.replace(b'"layers.3.values"', b'"layers.3.valuez"'),
        lambda payload: payload.replace(b'"F32","shape":[1,2,149,16]', b'"I32","shape":[1,2,149,16]', 1),
        lambda payload: payload.replace(b"[1,2,149,16]", b"[2,1,149,16]", 1),
    ],
)
def test_another_payload_is_a_miss(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    """What a program with the same identity may have saved."""
    model, prompt = models.make(), models.ids(LENGTH)
    with opened(tmp_path, model, identity="x") as cache:
        entry = cache.save(prompt[:, :-1], prefilled(model, prompt[:, :-1])).result()
        with cache.store.load(entry) as checkpoint:
            text, payload = checkpoint.text, checkpoint.payload.read()
        for content, expected in ((damage(payload) or b"\0", 0), (payload, LENGTH - 1)):
            assert content != payload or expected
            cache.store.remove(cache.store.entries()[0])
            cache.store.save_buffer(text, content, tokens=LENGTH - 1, ctx_size=LENGTH - 1)
            assert cache.load(prompt)[1] == expected


# The disk can't fail a generation


def test_the_directory_may_go(tmp_path: Path) -> None:
    model, prompt = models.make(), models.ids(LENGTH)
    expected = plain(model, prompt)
    with opened(tmp_path, model) as cache:
        for _ in range(2):
            assert torch.equal(generate(model, prompt, cache=cache, max_new_tokens=NEW), expected)
            cache.wait()
            shutil.rmtree(tmp_path / "cache")
        (tmp_path / "cache").write_bytes(b"a file in its place")
        assert torch.equal(generate(model, prompt, cache=cache, max_new_tokens=NEW), expected)


def test_an_entry_may_go_while_it_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompt = models.make(), models.ids(LENGTH)
    cold, _ = asked(tmp_path, model, prompt)
    with opened(tmp_path, model) as cache:
        real = cache.store.load

        def removed(entry: Any) -> Any:
            os.unlink(entry.path)
            return real(entry)

        monkeypatch.setattr(cache.store, "load", removed)
        assert cache.load(prompt) == (None, 0)
        assert torch.equal(generate(model, prompt, cache=cache, max_new_tokens=NEW), cold)


# What is refused


@pytest.mark.parametrize(
    ("prompt", "options"),
    [
        (models.ids(40).reshape(2, 20), {}),
        ([], {}),
        (models.ids(20), {"num_beams": 2}),
        (models.ids(20), {"num_return_sequences": 2, "do_sample": True}),
        (models.ids(20), {"use_cache": False}),
        (models.ids(20), {"prompt_lookup_num_tokens": 3}),
        (models.ids(20), {"assistant_model": models.make()}),
        (models.ids(20), {"cache_implementation": "static"}),
        (models.ids(20), {"past_key_values": DynamicCache()}),
        (models.ids(20), {"attention_mask": torch.tensor([[0] + [1] * 19])}),
        (models.ids(20), {"inputs_embeds": torch.zeros(1, 20, 64)}),
        (models.ids(20), {"pixel_values": torch.zeros(1, 3, 4, 4)}),
    ],
)
def test_what_ids_alone_do_not_tell_is_refused(tmp_path: Path, prompt: Any, options: dict[str, Any]) -> None:
    model = models.make()
    with opened(tmp_path, model) as cache:
        with pytest.raises(ValueError):
            generate(model, prompt, cache=cache, max_new_tokens=2, **options)
        assert generate(model, models.ids(20), cache=cache, max_new_tokens=2).shape == (1, 22)


def test_a_batch_is_refused(tmp_path: Path) -> None:
    model, two = models.make(), models.ids(80).reshape(2, 40)
    with opened(tmp_path, model) as cache:
        with pytest.raises(ValueError, match="2 prompts"):
            cache.load(two)
        with pytest.raises(ValueError, match="2 prompts"):
            cache.save(two, prefilled(model, two))
        with pytest.raises(ValueError, match="of 2 prompts"):
            cache.save(two[:1], prefilled(model, two))
        assert cache.save(two[:1], prefilled(model, two[:1])).result().tokens == 40


def test_a_cache_is_for_its_model(tmp_path: Path) -> None:
    with opened(tmp_path, models.make()) as cache, pytest.raises(ValueError, match="another model"):
        generate(models.make(), models.ids(20), cache=cache)


def test_an_empty_or_longer_state_is_refused(tmp_path: Path) -> None:
    model, prompt = models.make(), models.ids(40)
    with opened(tmp_path, model) as cache:
        with pytest.raises(ValueError, match="no state"):
            cache.save(prompt, DynamicCache(config=model.config))
        with pytest.raises(ValueError, match="40 tokens, and 39 ids"):
            cache.save(prompt[:, :-1], prefilled(model, prompt))
        assert cache.save(prompt, prefilled(model, prompt[:, :-1])).result().tokens == 39


def test_other_caches_are_refused(tmp_path: Path) -> None:
    model, sliding, prompt = models.make(), models.make("some sliding"), models.ids(40)
    filled = DynamicCache()
    with torch.no_grad():
        sliding(input_ids=prompt, past_key_values=filled, use_cache=True)
    with opened(tmp_path, model) as cache:
        for other in (StaticCache(config=model.config, max_cache_len=64), None, ()):
            with pytest.raises(TypeError, match=r"DynamicCache of full and sliding"):
                cache.save(prompt, other)
    with opened(tmp_path, sliding) as cache:
        with pytest.raises(TypeError, match=r"DynamicCache\(config=model.config\)"):
            cache.save(prompt, filled)
        assert cache.save(prompt, prefilled(sliding, prompt)).result().tokens == 40


def test_other_models_are_refused(tmp_path: Path) -> None:
    from transformers import Lfm2Config, Lfm2ForCausalLM, T5Config, T5ForConditionalGeneration

    small = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "vocab_size": 64}
    convolving = Lfm2ForCausalLM(
        Lfm2Config(**small, num_hidden_layers=2, num_key_value_heads=1, layer_types=["conv", "full_attention"])
    )
    translating = T5ForConditionalGeneration(
        T5Config(d_model=32, d_ff=64, d_kv=8, num_layers=1, num_heads=2, vocab_size=64)
    )
    for model, complaint in ((convolving, "LinearAttentionLayer"), (translating, "an encoder")):
        with pytest.raises(TypeError, match=complaint):
            opened(tmp_path, model)
    stretched = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    with pytest.raises(TypeError, match="dynamic positions"):
        opened(tmp_path, models.make(rope_parameters=stretched))
    opened(tmp_path, models.make(rope_parameters=stretched | {"rope_type": "linear"})).close()
    with pytest.raises(TypeError, match="float64"):
        opened(tmp_path, models.make(dtype=torch.float64))
    with torch.device("meta"):
        nowhere = models.make()
    with pytest.raises(TypeError, match="identity="):
        opened(tmp_path, nowhere)


def test_autocast_computes_other_states(tmp_path: Path) -> None:
    model, prompt = models.make(), models.ids(LENGTH)
    asked(tmp_path, model, prompt)
    with torch.autocast("cpu", torch.bfloat16):
        cold, missed = asked(tmp_path, model, prompt)
        hit, restored = asked(tmp_path, model, prompt)
    assert (missed, restored) == (0, LENGTH - 1)
    assert torch.equal(hit, cold)
    with opened(tmp_path, model) as cache:
        assert cache.load(prompt)[1] == LENGTH - 1
        with torch.autocast("cpu", torch.bfloat16):
            assert cache.load(prompt[:, :-20])[1] == LENGTH - 21
        with torch.autocast("cpu", torch.float16):
            assert cache.load(prompt)[1] == 0


def test_keys_and_values_of_another_dtype_are_told(tmp_path: Path) -> None:
    model, prompt = models.make(), models.ids(LENGTH)
    past = prefilled(model, prompt)
    with opened(tmp_path, model, kv_dtype=torch.bfloat16) as cache:
        with pytest.raises(TypeError, match=r"float32, not torch.bfloat16: give kv_dtype="):
            cache.save(prompt, past)
        for layer in past.layers:
            layer.keys, layer.values = layer.keys.bfloat16(), layer.values.bfloat16()
        cache.save(prompt, past).result()
        assert cache.load(prompt[:, :-1])[0].layers[0].keys.dtype == torch.bfloat16


# Threads and processes


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gqa", "some sliding"])
def test_threads_share_a_cache(tmp_path: Path, kind: str) -> None:
    model = models.make(kind)
    prompts = [models.ids(LENGTH, seed=seed) for seed in (1, 2, 3)] * 4
    expected = {seed: plain(model, models.ids(LENGTH, seed=seed)) for seed in (1, 2, 3)}
    with opened(tmp_path, model) as cache, ThreadPoolExecutor(4) as pool:
        said = list(pool.map(lambda prompt: generate(model, prompt, cache=cache, max_new_tokens=NEW), prompts))
    for number, answer in enumerate(said):
        assert torch.equal(answer, expected[number % 3 + 1])
    with opened(tmp_path, model) as cache:
        assert all(cache.store.verify(entry) is Verdict.OK for entry in cache.store.entries())


def cache_key(prompt: Any) -> bytes:
    """The text of the state that a generation from this prompt saves first."""
    return key_of(prompt[0, :-1].tolist())


def worker(directory: Path) -> Any:
    program = str(Path(__file__).parent / "transformers_worker.py")
    command = [sys.executable, program, directory / "cache", "some sliding", "bfloat16"]
    return started(command, stdin=-1, env=os.environ | {"PYTHONPATH": str(Path(__file__).parent)}, deadline=120)


def tell(child: Child, prompt: Any) -> None:
    child.process.stdin.write(json.dumps(prompt[0].tolist()).encode() + b"\n")
    child.process.stdin.flush()


@pytest.mark.slow
def test_three_processes_and_kills(tmp_path: Path) -> None:
    model, chance = models.make("some sliding", dtype=torch.bfloat16), random.Random(2)
    shared = models.ids(100)
    prompts = [torch.cat([shared, models.ids(50, seed=seed)], dim=1) for seed in range(2, 8)]
    expected = [asked(tmp_path / "control", model, prompt)[0][0, LENGTH:].tolist() for prompt in prompts]
    with worker(tmp_path) as first, worker(tmp_path) as second, worker(tmp_path) as third:
        children = [first, second, third]
        for child, prompt in zip(children, prompts, strict=False):
            tell(child, prompt)
        for number, child in enumerate(children):
            assert json.loads(child.line())[0] == expected[number]
        for child, prompt in zip(children, prompts[3:], strict=True):
            tell(child, prompt)
        for child in children:
            threading.Event().wait(chance.random() * 0.1)
            child.process.kill()  # it computes, or saves
    with opened(tmp_path, model) as cache:
        entries = cache.store.entries()
        assert all(cache.store.verify(entry) is Verdict.OK for entry in entries)
        kept = [cache.store.get(cache_key(prompt)) is not None for prompt in prompts]
    assert any(kept)
    with worker(tmp_path) as child:  # a restart
        for number, prompt in enumerate(prompts):
            tell(child, prompt)
            answer, restored = json.loads(child.line())
            assert answer == expected[number]
            assert restored == (LENGTH - 1 if kept[number] else 0)
        child.process.stdin.close()
        child.finish()
    assert not (tmp_path / "cache" / "quarantine").exists()


# The page and the example


@pytest.mark.slow
def test_the_page_does_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    models.save(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    page = Path(__file__).parents[2] / "docs" / "how-to" / "transformers.md"
    known: dict[str, Any] = {"name": "model", "document": "A page of a book. " * 10, "rules": "Be brief. " * 10}
    for block in re.findall(r"^```{code-block} python\n(.*?)^```$", page.read_text(), re.M | re.S):
        exec(compile(block, page, "exec"), known)
    known["cache"].close()
    assert capsys.readouterr().out == "0\n182\n"  # the document, and "Wh"


@pytest.mark.slow
def test_a_chat_remembers(tmp_path: Path) -> None:
    models.save(tmp_path / "model")
    example = Path(__file__).parents[2] / "examples" / "chat_transformers.py"
    for number, lines in enumerate((b"One, two, three.\nAnd then?\n", b"And then?\n")):
        command = [sys.executable, example, tmp_path / "chat", tmp_path / "model"]
        ran = subprocess.run(command, input=lines, capture_output=True, timeout=120, check=True)
        counts = [int(count) for count in re.findall(rb"\[(\d+) of \d+ tokens came from the disk", ran.stdout)]
        assert (counts[0] > 16) == (number == 1)
    assert len(json.loads((tmp_path / "chat" / "chat.json").read_text())) == 7


# CUDA


@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("kind", KINDS)
def test_a_gpu_restores_what_it_saved_and_what_a_cpu_did(tmp_path: Path, kind: str) -> None:
    prompt = models.ids(LENGTH)
    on_cpu = models.make(kind)
    past = prefilled(on_cpu, prompt[:, :-1])
    with opened(tmp_path, on_cpu) as cache:
        cache.save(prompt, past).result()
    model = models.make(kind).to("cuda")
    with opened(tmp_path, model) as cache:
        found, restored = cache.load(prompt)
        assert restored == LENGTH - 1
        assert all(torch.equal(a.cpu(), b) for a, b in zip(state_of(found), state_of(past), strict=True))
    shutil.rmtree(tmp_path / "cache")
    cold, missed = asked(tmp_path, model, prompt)
    hit, restored = asked(tmp_path, model, prompt)
    assert (missed, restored) == (0, LENGTH - 1)
    assert torch.equal(hit, cold)
