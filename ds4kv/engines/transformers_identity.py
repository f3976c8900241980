"""What a model's states depend on, as a name.

Two models have the same name if they have the same architecture and the same weights. Every byte of every tensor
counts: a sample would be faster, and would not see one edited row of an embedding.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from operator import attrgetter
from typing import Any

import torch
import transformers

from ds4kv.core import workers
from ds4kv.core.native import hash64
from ds4kv.engines.transformers_state import STATE_VERSION

__all__ = ["identity_of", "stamp_of"]

_NO_MATTER = {
    "_attn_implementation",
    "_name_or_path",
    "architectures",
    "attn_implementation",
    "chunk_size_feed_forward",
    "dtype",
    "gradient_checkpointing",
    "id2label",
    "label2id",
    "output_attentions",
    "output_hidden_states",
    "problem_type",
    "return_dict",
    "tokenizer_class",
    "torch_dtype",
    "transformers_version",
    "use_cache",
}
"""Keys of a config that change no state: where a model is from, what is done with its output. Weights have a dtype."""


def identity_of(model: Any, *, kv_dtype: Any) -> str:
    """The identity of a model's states, whose keys and values are of ``kv_dtype``. It reads all weights, once.

    It is the same in each process and on each device. The digest is over the text part of the config, the names,
    dtypes, shapes and XXH3-64 sums of all tensors that a checkpoint of the model would have, the adapters of PEFT that
    are on, ``kv_dtype``, the dtype of autocast where it is on, the major version of transformers, and the version of
    what is written here.

    Raises TypeError if the weights can't be read, being elsewhere than in the memory of this process.
    """
    config = model.config.get_text_config(decoder=True)
    facts = {
        "state": STATE_VERSION,
        "transformers": transformers.__version__.partition(".")[0],
        "config": _of_matter(config.to_dict()),
        "kv": [str(kv_dtype), _autocast_of(model)],
        "weights": _sums_of(model),
        "adapters": _adapters_of(model),
    }
    text = json.dumps(facts, sort_keys=True, default=str)
    return f"transformers {config.model_type} {hashlib.blake2b(text.encode(), digest_size=16).hexdigest()}"


def stamp_of(model: Any) -> tuple[object, ...]:
    """What differs once a weight was changed in place or replaced, or autocast or an adapter of PEFT was switched.

    It costs microseconds a tensor. What is done to ``tensor.data``, or to a buffer, goes unseen.
    """
    weights = (
        (tensor.data_ptr(), 0 if tensor.is_inference() else _version_of(tensor)) for tensor in model.parameters()
    )
    return _autocast_of(model), _adapters_of(model), *weights


_version_of = attrgetter("_version")  # torch counts there how often a tensor was written to


def _adapters_of(model: Any) -> tuple[str, ...]:
    """Which LoRA and other adapters are on. Their weights are the model's whether they are on or not."""
    if not getattr(model, "peft_config", None):
        return ()
    layers = [module for module in model.modules() if isinstance(getattr(module, "disable_adapters", None), bool)]
    return tuple(
        f"{layer.disable_adapters} {layer.active_adapters} {getattr(layer, 'scaling', None)}" for layer in layers
    )


def _autocast_of(model: Any) -> str | None:
    device = model.device.type
    is_on = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return str(torch.get_autocast_dtype(device)) if is_on else None


def _of_matter(value: Any) -> Any:
    if isinstance(value, dict):
        kept = {str(key): _of_matter(inner) for key, inner in value.items() if key not in _NO_MATTER}
        return {key: inner for key, inner in kept.items() if not key.endswith("_token_id")}
    return [_of_matter(inner) for inner in value] if isinstance(value, list | tuple) else value


def _sums_of(model: Any) -> Sequence[tuple[object, ...]]:
    tensors = sorted(model.state_dict().items())
    known: dict[tuple[object, ...], Any] = {}  # one memory with two names is summed once
    places = [_place_of(value) for _, value in tensors]
    for place, (_, value) in zip(places, tensors, strict=True):
        known.setdefault(place, value)
    with ThreadPoolExecutor(max(workers.resolve(None), 1)) as pool:
        sums = dict(zip(known, pool.map(_sum_of, known.values()), strict=True))
    return [
        (name, str(getattr(value, "dtype", "")), list(getattr(value, "shape", ())), sums[place])
        for place, (name, value) in zip(places, tensors, strict=True)
    ]


def _place_of(value: Any) -> tuple[object, ...]:
    if not isinstance(value, torch.Tensor):
        return ("no tensor", id(value))
    return (str(value.device), value.data_ptr(), value.dtype, value.shape, value.stride())


def _sum_of(value: Any) -> object:
    if not isinstance(value, torch.Tensor):
        return repr(value)
    if value.device.type == "meta":
        raise TypeError("the model's weights are not in memory: give identity=, a name for the model and its weights")
    flat = value.detach().cpu().contiguous().reshape(-1)
    return hash64(flat.view(torch.uint8).numpy()) if flat.numel() else 0
