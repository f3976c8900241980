"""The state of a DynamicCache as a payload of arrays, and back.

A layer that keeps all tokens has keys and values ``[1, heads, tokens, size]``. One with a sliding window keeps the last
``window - 1`` tokens, and the number of all that it has seen: once there are as many as the window, what fell out of it
is gone, and the state can't be cut back.

Tensors are held, not copied, until a save has written them. That is enough: these layers never write to a tensor that
they have, but put a new one in its place.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from transformers import DynamicCache
from transformers.cache_utils import DummyLayer, DynamicLayer, DynamicSlidingWindowLayer

from ds4kv.file.api import read_whole
from ds4kv.file.reader import CheckpointReader
from ds4kv.format.arrays import Contents, View, contents, pack, views
from ds4kv.stream.reader import PayloadReader, RawReader

__all__ = ["STATE_VERSION", "Snapshot", "copied_up", "layer_kinds", "new_state", "restored", "stretched_positions"]

STATE_VERSION = 1
"""Of what is written here; it is part of an identity."""

_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_SUPPORTED = "a DynamicCache of full and sliding-window attention layers in float32, float16 or bfloat16 is"

_STRETCHED = ("dynamic", "longrope", "su")

Kind = int | None
"""Of a layer: 0 keeps all tokens, a number is its window, None has nothing to keep."""


class Snapshot(NamedTuple):
    """The state of ``tokens`` tokens, as it was when this was made."""

    tokens: int
    tensors: dict[str, Any]
    is_ready: Any
    """A CUDA event after which the tensors are computed; None on other devices."""

    @classmethod
    def of(cls, past: Any, kinds: Sequence[Kind], dtype: Any) -> Snapshot:
        """Of a cache with layers of these ``kinds``, whose keys and values are of ``dtype``.

        Raises TypeError for another cache, and ValueError for one that is empty, or of more than one prompt.
        """
        if layer_kinds(past) != list(kinds):
            raise TypeError("this cache has other layers than the model: make it by DynamicCache(config=model.config)")
        tensors, lengths = {}, set()
        for index, (layer, window) in enumerate(zip(past.layers, kinds, strict=True)):
            if window is None or not layer.is_initialized:
                continue
            tokens = layer.get_seq_length()
            lengths.add(tokens)
            rows = min(tokens, window - 1) if window else tokens
            for name, tensor in (("keys", layer.keys), ("values", layer.values)):
                if tensor.ndim != 4 or tensor.shape[0] != 1:
                    raise ValueError(f"layer {index} is of {tensor.shape[0]} prompts; a state is of one")
                if tensor.dtype != dtype:
                    raise TypeError(f"layer {index} is {tensor.dtype}, not {dtype}: give kv_dtype=, as for autocast")
                if tensor.shape[-2] < rows:
                    raise ValueError(f"layer {index} has {tensor.shape[-2]} tokens, not {rows}")
                tensors[f"layers.{index}.{name}"] = tensor[..., tensor.shape[-2] - rows :, :].detach()
        if len(lengths) != 1 or 0 in lengths:
            raise ValueError(f"no state: its layers have {sorted(lengths)} tokens")
        return cls(lengths.pop(), tensors, _event_of(tensors))

    @property
    def contents(self) -> Contents:
        """The table of contents of its payload."""
        shapes = {name: (_NAMES[tensor.dtype], tuple(tensor.shape)) for name, tensor in self.tensors.items()}
        return contents(shapes, metadata=_metadata(self.tokens))

    def payload(self) -> Any:
        """Its payload, as the buffers to be saved one after the other. Any thread may make it.

        On the CPU they are the tensors' own memory; only one that is strided is copied. From another device all is
        copied into one new buffer.
        """
        if all(tensor.device.type == "cpu" for tensor in self.tensors.values()):
            arrays = {name: tensor.contiguous() for name, tensor in self.tensors.items()}
            return list(pack(arrays, metadata=_metadata(self.tokens)))
        table = self.contents
        is_cuda = self.is_ready is not None
        buffer = torch.empty(table.nbytes, dtype=torch.uint8, pin_memory=is_cuda)
        buffer[: len(table.header)] = torch.frombuffer(bytearray(table.header), dtype=torch.uint8)
        end = len(table.header)
        with _copying(self.is_ready, next(iter(self.tensors.values())).device):
            for name, place in table.places.items():
                buffer[end : place.offset] = 0
                end = place.offset + place.size
                tensor = self.tensors[name]
                target = buffer[place.offset : end].view(tensor.dtype).view(tensor.shape)
                target.copy_(tensor, non_blocking=is_cuda)
        return [buffer]


def layer_kinds(past: Any) -> list[Kind]:
    """Which kinds of layers a cache has. Raises TypeError for one of which no state is kept."""
    if type(past) is not DynamicCache or past.offloading:
        raise TypeError(f"{type(past).__name__}{' that offloads' * getattr(past, 'offloading', False)}: {_SUPPORTED}")
    kinds: list[Kind] = []
    for layer in past.layers:
        if type(layer) is DynamicSlidingWindowLayer:
            kinds.append(layer.sliding_window)
        elif type(layer) in (DynamicLayer, DummyLayer):
            kinds.append(0 if type(layer) is DynamicLayer else None)
        else:
            raise TypeError(f"a layer is {type(layer).__name__}: {_SUPPORTED}")
    return kinds


def stretched_positions(config: Any) -> str | None:
    """The kind of rotary positions by which a state depends on what comes after it; None if it doesn't.

    Their frequencies are those of the whole prompt: a beginning of it, computed alone, has others.
    """
    found = [getattr(config, name, None) for name in ("rope_parameters", "rope_scaling")]
    while found:
        value = found.pop()
        if isinstance(value, dict):
            found += value.values()
        elif value in _STRETCHED:
            return str(value)
    return None


def new_state(config: Any) -> Any:
    """An empty cache for a model of this config."""
    return DynamicCache(config=config)


def restored(
    checkpoint: CheckpointReader, config: Any, kinds: Sequence[Kind], *, kept: int, dtype: Any, device: Any
) -> Any:
    """The cache that an open checkpoint is of, cut back to ``kept`` tokens, on ``device``.

    It is read into one new buffer, of which the cache has views. Raises ValueError if it isn't such a state, and what
    its stream raises.
    """
    tokens = checkpoint.header.tokens
    if device.type == "cpu":
        payload = read_whole(checkpoint, None).payload  # in huge pages: torch's own memory takes twice as long
        there = here = torch.frombuffer(payload, dtype=torch.uint8) if payload else torch.empty(0, dtype=torch.uint8)
    else:
        here, there = copied_up(checkpoint.payload, device)
    found = views(here)
    table = contents({name: view[:2] for name, view in found.items()}, metadata=found.metadata)
    if found.metadata != _metadata(tokens) or bytes(here[: len(table.header)].numpy()) != table.header:
        raise ValueError(f"no state of {tokens} tokens")
    past = new_state(config)
    for index, (layer, window) in enumerate(zip(past.layers, kinds, strict=True)):
        pair = [(name, found.pop(name)) for part in ("keys", "values") if (name := f"layers.{index}.{part}") in found]
        if not pair:
            continue  # it shares those of another layer, or has none
        rows = min(tokens, window - 1) if window else tokens
        if window is None or len(pair) != 2 or not all(_suits(view, rows, dtype) for _, view in pair):
            raise ValueError(f"layer {index} is of another state: {[view[:2] for _, view in pair]}")
        keys, values = (
            there[place.offset : place.offset + place.size]
            .view(dtype)
            .view(place.shape)[..., : rows - tokens + kept, :]
            for place in (table.places[name] for name, _ in pair)
        )
        layer.lazy_initialization(keys, values)
        layer.keys, layer.values = keys, values
        if window:
            layer.cumulative_length = kept
    if found or past.get_seq_length() != kept:
        raise ValueError(f"no state of this model: it has {sorted(found)} more")
    return past


def copied_up(payload: PayloadReader | RawReader, device: Any) -> tuple[Any, Any]:
    """A whole payload in new memory, which is pinned for a GPU, and on ``device``: two tensors of bytes.

    What is there is copied up while the rest is decoded. The copies may go on when this returns, on the device's
    current stream. Raises as reads of the payload do.
    """
    here = torch.empty(payload.raw_total, dtype=torch.uint8, pin_memory=device.type == "cuda")
    there = torch.empty(payload.raw_total, dtype=torch.uint8, device=device)
    done = 0
    for ready in payload.iter_into(here):
        there[done:ready].copy_(here[done:ready], non_blocking=True)
        done = ready
    return here, there


def _suits(view: View, rows: int, dtype: Any) -> bool:
    return _DTYPES.get(view.dtype) == dtype and len(view.shape) == 4 and view.shape[0] == 1 and view.shape[2] == rows


def _metadata(tokens: int) -> dict[str, str]:
    return {"format": "ds4kv.engines.transformers", "version": str(STATE_VERSION), "tokens": str(tokens)}


def _event_of(tensors: dict[str, Any]) -> Any:
    device = next(iter(tensors.values())).device if tensors else None
    if device is None or device.type != "cuda":
        return None
    return torch.cuda.current_stream(device).record_event()


@contextlib.contextmanager
def _copying(is_ready: Any, device: Any) -> Iterator[None]:
    """A block that copies from a GPU, on a stream of its own, beside what it computes. At its end all is there."""
    if is_ready is None:
        yield
        return
    stream = torch.cuda.Stream(device)
    stream.wait_event(is_ready)
    try:
        with torch.cuda.stream(stream):
            yield
    finally:
        stream.synchronize()
