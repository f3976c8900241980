"""Tiny random models of transformers: made in milliseconds, a second of work each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    PreTrainedTokenizerFast,
)
from transformers import MistralForCausalLM as Mistral

VOCAB = 512
WINDOW = 48

_SMALL = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "head_dim": 16,
    "max_position_embeddings": 2048,
    "initializer_range": 0.2,  # so that each prompt goes on in its own way
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}

KINDS = {
    "mha": (LlamaForCausalLM, LlamaConfig, {"num_key_value_heads": 4}),
    "gqa": (LlamaForCausalLM, LlamaConfig, {"num_key_value_heads": 2}),
    "mqa": (LlamaForCausalLM, LlamaConfig, {"num_key_value_heads": 1}),
    "all sliding": (Mistral, MistralConfig, {"num_key_value_heads": 2, "sliding_window": WINDOW}),
    "some sliding": (
        Gemma3ForCausalLM,
        Gemma3TextConfig,
        {
            "num_key_value_heads": 2,
            "sliding_window": WINDOW,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
}
DENSE = ["mha", "gqa", "mqa"]
SLIDING = ["all sliding", "some sliding"]


def make(kind: str = "gqa", *, dtype: Any = torch.float32, seed: int = 0, **changed: Any) -> Any:
    """A model of this kind, with weights of this seed, for greedy decoding."""
    torch.manual_seed(seed)
    model_class, config_class, own = KINDS[kind]
    model = model_class(config_class(**_SMALL | own | changed)).to(dtype).eval()
    model.generation_config.do_sample = False
    return model


def ids(count: int, seed: int = 1) -> Any:
    """A prompt, ``[1, count]``."""
    return torch.randint(2, VOCAB, (1, count), generator=torch.Generator().manual_seed(seed))


def save(folder: Path, kind: str = "gqa") -> None:
    """A model of this kind as from_pretrained takes it, with a tokenizer for which each byte is a token."""
    make(kind).save_pretrained(folder)
    letters = {letter: 2 + index for index, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    bytewise = Tokenizer(BPE({"<pad>": 0, "<s>": 1, **letters}, []))
    bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytewise.decoder = decoders.ByteLevel()
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant: "
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bytewise, pad_token="<pad>", chat_template=template)
    tokenizer.save_pretrained(folder)
