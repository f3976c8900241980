"""Tiny GGUF models with random weights, which llama.cpp loads and runs like any other. Each is written in under 1 s.

What they say is nonsense, and by greedy sampling the same nonsense each time: whatever is lost or changed in a state
shows in the tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np

_SPECIAL = ["<unk>", "<s>", "</s>"]


class Shape(NamedTuple):
    """Of a model whose layers all attend to everything. Sizes are counts of numbers; keys and values are f16."""

    vocab: int = 2000
    layers: int = 4
    width: int = 128
    heads: int = 4
    kv_heads: int = 4
    feed_forward: int = 256

    @property
    def head_size(self) -> int:
        return self.width // self.heads

    @property
    def bytes_per_token(self) -> int:
        """Of keys and values, without what is kept of a position."""
        return self.layers * self.kv_heads * self.head_size * 2 * 2


SMALL = Shape()
WIDE_VOCAB = Shape(vocab=128_000, width=64, heads=2, kv_heads=2)
"""As many tokens as large models have: 262 MB for 512 rows of scores."""
KV_HEAVY = Shape(layers=16, width=512, heads=8, kv_heads=8, feed_forward=512)
"""32 KiB a token."""


def dense(
    path: Path,
    shape: Shape = SMALL,
    *,
    seed: int = 0,
    floats: Mapping[str, float] | None = None,
    integers: Mapping[str, int] | None = None,
) -> Path:
    """``floats`` and ``integers`` go into the metadata; they may be of no meaning."""
    make = _Maker(path, "llama", shape, seed)
    make.writer.add_rope_dimension_count(shape.head_size)
    for key, value in (floats or {}).items():
        make.writer.add_float32(key, value)
    for key, count in (integers or {}).items():
        make.writer.add_uint32(key, count)
    for layer in range(shape.layers):
        make.attention(layer)
        make.feed_forward(layer)
    return make.write()


def sliding(path: Path, shape: Shape = SMALL, *, window: int = 64, seed: int = 0) -> Path:
    """Every other layer attends to the last ``window`` tokens only."""
    make = _Maker(path, "gemma2", shape, seed)
    make.writer.add_sliding_window(window)
    make.writer.add_key_length(shape.head_size)
    make.writer.add_value_length(shape.head_size)
    for layer in range(shape.layers):
        make.attention(layer)
        make.ones(f"blk.{layer}.post_attention_norm")
        make.feed_forward(layer)
        make.ones(f"blk.{layer}.post_ffw_norm")
    return make.write()


def recurrent(path: Path, shape: Shape = SMALL, *, seed: int = 0) -> Path:
    """A state that is the same size after any number of tokens, and can't be cut."""
    kernel, state, rank, inner = 4, 16, 8, 2 * shape.width
    make = _Maker(path, "mamba", shape, seed)
    make.writer.add_ssm_conv_kernel(kernel)
    make.writer.add_ssm_inner_size(inner)
    make.writer.add_ssm_state_size(state)
    make.writer.add_ssm_time_step_rank(rank)
    for layer in range(shape.layers):
        begin = f"blk.{layer}"
        make.ones(f"{begin}.attn_norm")
        make.matrix(f"{begin}.ssm_in", 2 * inner, shape.width)
        make.matrix(f"{begin}.ssm_conv1d", inner, kernel, kind=np.float32)
        make.tensor(f"{begin}.ssm_conv1d.bias", np.zeros(inner, np.float32))
        make.matrix(f"{begin}.ssm_x", rank + 2 * state, inner)
        make.matrix(f"{begin}.ssm_dt", inner, rank, kind=np.float32)
        make.tensor(f"{begin}.ssm_dt.bias", np.zeros(inner, np.float32))
        make.tensor(f"{begin}.ssm_a", -np.tile(np.arange(1, state + 1, dtype=np.float32), (inner, 1)))
        make.tensor(f"{begin}.ssm_d", np.ones(inner, np.float32))
        make.matrix(f"{begin}.ssm_out", shape.width, inner)
    return make.write()


def lora(path: Path, shape: Shape = SMALL, *, seed: int = 0) -> Path:
    """An adapter that changes the keys of the first layer."""
    random, rank = np.random.default_rng(seed), 4
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(rank))
    kv = shape.kv_heads * shape.head_size
    writer.add_tensor("blk.0.attn_k.weight.lora_a", random.standard_normal((rank, shape.width), np.float32))
    writer.add_tensor("blk.0.attn_k.weight.lora_b", random.standard_normal((kv, rank), np.float32))
    return _written(writer, path)


def _written(writer: gguf.GGUFWriter, path: Path) -> Path:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


class _Maker:
    """A GGUF file that is being made. Weights are f16, norms f32."""

    def __init__(self, path: Path, architecture: str, shape: Shape, seed: int) -> None:
        self.path, self.shape = path, shape
        self.random = np.random.default_rng(seed)
        writer = self.writer = gguf.GGUFWriter(path, architecture)
        writer.add_name("random")
        writer.add_context_length(32768)
        writer.add_embedding_length(shape.width)
        writer.add_block_count(shape.layers)
        writer.add_feed_forward_length(shape.feed_forward)
        writer.add_head_count(shape.heads)
        writer.add_head_count_kv(shape.kv_heads)
        writer.add_layer_norm_rms_eps(1e-5)
        self._vocabulary()
        # Small, so that what comes out depends on all that was attended to, and not on the last token alone.
        self.matrix("token_embd", shape.vocab, shape.width, scale=0.02)
        self.ones("output_norm")

    def _vocabulary(self) -> None:
        pieces = [*_SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
        pieces += [f"\N{LOWER ONE EIGHTH BLOCK}w{i}" for i in range(self.shape.vocab - len(pieces))]
        types = [gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL]
        types += [gguf.TokenType.BYTE] * 256 + [gguf.TokenType.NORMAL] * (len(pieces) - 259)
        self.writer.add_tokenizer_model("llama")
        self.writer.add_token_list(pieces)
        self.writer.add_token_scores([0.0] * len(pieces))
        self.writer.add_token_types(types)
        self.writer.add_bos_token_id(1)
        self.writer.add_eos_token_id(2)

    def tensor(self, name: str, values: np.ndarray[Any, Any]) -> None:
        self.writer.add_tensor(name, values)

    def ones(self, name: str) -> None:
        self.tensor(f"{name}.weight", np.ones(self.shape.width, np.float32))

    def matrix(
        self, name: str, rows: int, columns: int, *, scale: float | None = None, kind: Callable[..., Any] = np.float16
    ) -> None:
        values = self.random.standard_normal((rows, columns), np.float32)
        self.tensor(f"{name}.weight", (values * (columns**-0.5 if scale is None else scale)).astype(kind))

    def attention(self, layer: int) -> None:
        shape, begin = self.shape, f"blk.{layer}"
        kv = shape.kv_heads * shape.head_size
        self.ones(f"{begin}.attn_norm")
        self.matrix(f"{begin}.attn_q", shape.width, shape.width, scale=2 * shape.width**-0.5)  # attends to few tokens
        self.matrix(f"{begin}.attn_k", kv, shape.width)
        self.matrix(f"{begin}.attn_v", kv, shape.width)
        self.matrix(f"{begin}.attn_output", shape.width, shape.width)

    def feed_forward(self, layer: int) -> None:
        shape, begin = self.shape, f"blk.{layer}"
        self.ones(f"{begin}.ffn_norm")
        self.matrix(f"{begin}.ffn_gate", shape.feed_forward, shape.width)
        self.matrix(f"{begin}.ffn_up", shape.feed_forward, shape.width)
        self.matrix(f"{begin}.ffn_down", shape.width, shape.feed_forward)

    def write(self) -> Path:
        return _written(self.writer, self.path)
