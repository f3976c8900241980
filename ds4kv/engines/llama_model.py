"""What a state of llama.cpp depends on, as a name; and what can be done with the states of a model.

Nothing is in the name that is sized by itself: no context length, batch, threads or devices. So a restart on another
machine finds what was saved.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import os
import re
import threading
from array import array
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from ds4kv.core import workers
from ds4kv.core.native import hash64
from ds4kv.store.entry import stamp

__all__ = ["Model", "digest_of_file", "model_of"]

_PIECE = 1 << 24
_SHARD = re.compile(r"(.*-)00001-of-(\d{5})\.gguf")

_PARAMETERS = (
    "type_k",
    "type_v",
    "flash_attn_type",  # without it V is stored transposed
    "attention_type",
    "rope_scaling_type",
    "rope_freq_base",
    "rope_freq_scale",
    "yarn_ext_factor",
    "yarn_attn_factor",
    "yarn_beta_fast",
    "yarn_beta_slow",
    "yarn_orig_ctx",
)
"""Of a context: all that changes what its keys and values are, or how they are stored."""


class Model(NamedTuple):
    """``identity`` is the name. ``architecture`` is GGUF's word for what kind of model it is.

    A state that ``can_be_cut`` serves for any beginning of its tokens; of a sliding window or a recurrent state all is
    needed. ``is_whole``: states are those of the whole context, not of its one sequence, which would leave out what a
    window has passed. ``is_plain``: a state is keys and values of every token and layer, and nothing else. Their types
    are ggml's numbers.
    """

    identity: str
    architecture: str
    can_be_cut: bool
    is_whole: bool
    is_plain: bool
    key_type: int
    value_type: int
    is_v_transposed: bool


def model_of(llm: Any, *, model_id: str | None = None) -> Model:
    """What is to be known of the model of a ``llama_cpp.Llama``.

    ``model_id`` is the user's own word for the weights, such as a SHA-256: the file is not looked at then. Raises
    ValueError for a model that sees pictures or hears, whose tokens don't tell its state, and for one with
    ``logits_all``, which no state has; OSError.
    """
    import llama_cpp

    if vars(llm).get("_logits_all") and llm.draft_model is None:
        raise ValueError("logits_all keeps the scores of all tokens: those of tokens from a cache are not known")
    handler = llm.chat_handler
    if hasattr(handler, "clip_model_path") or hasattr(handler, "mtmd_ctx"):
        raise ValueError("a picture has no tokens of its own, so that no state of this model can be told by its tokens")
    metadata, context = llm.metadata, llm.context_params
    architecture = metadata.get("general.architecture", "")
    words = [
        f"llama-cpp-python {llama_cpp.__version__}",
        f"llama.cpp {_library_version(llama_cpp)}",
        digest_of_file(llm.model_path) if model_id is None else f"model_id {model_id}",
        repr(sorted(metadata.items())),
        repr(sorted((llm.kv_overrides or {}).items())),
        repr([(name, getattr(context, name, None)) for name in _PARAMETERS]),
        _long_rope(metadata, architecture, llm.n_ctx()),
    ]
    if llm.lora_path:
        words.append(f"lora {digest_of_file(llm.lora_path)} {llm.lora_scale}")
    is_sliding = llama_cpp.llama_model_n_swa(llm.model) > 0
    is_recurrent = llama_cpp.llama_model_is_recurrent(llm.model) or llama_cpp.llama_model_is_hybrid(llm.model)
    is_whole = is_sliding and bool(context.swa_full) and not is_recurrent
    words.append(f"whole {is_whole}")
    digest = hashlib.blake2b("\n".join(words).encode(), digest_size=16).hexdigest()
    name = re.sub(r"[^\w.-]+", "-", metadata.get("general.name", architecture))[:64]
    return Model(
        identity=f"llama.cpp {name} {digest}",
        architecture=architecture,
        can_be_cut=not is_recurrent and (not is_sliding or is_whole),
        is_whole=is_whole,
        is_plain=not is_recurrent and not is_sliding,
        key_type=context.type_k,
        value_type=context.type_v,
        is_v_transposed=context.flash_attn_type == llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED,
    )


def _library_version(llama_cpp: Any) -> str:
    version = getattr(llama_cpp, "llama_version", None)  # since 0.3.3x
    return version().decode() if version else "?"


def _long_rope(metadata: dict[str, str], architecture: str, ctx_size: int) -> str:
    """Some models turn positions by other factors where the context is longer than the one they were first trained on.
    This is the one way in which the length of a context changes keys.
    """
    original = metadata.get(f"{architecture}.rope.scaling.original_context_length", "")
    return "long" if original.isdigit() and ctx_size > int(original) else ""


def digest_of_file(path: str | os.PathLike[str]) -> str:
    """A digest of a GGUF file, or of all parts of one that is split: of every byte.

    It is XXH3-64 of each piece, by as many threads as the store has workers, and SHA-256 of those. A file that this
    process has seen, and that has the same size and times, isn't read again. Raises OSError.
    """
    sha = hashlib.sha256()
    for part in _parts(os.fsdecode(path)):
        status = os.stat(part)
        sha.update(_sums_of(os.path.realpath(part), stamp(status)))
    return sha.hexdigest()


@functools.lru_cache(maxsize=64)
def _sums_of(path: str, _: object) -> bytes:
    """Of each 16 MiB of a file the sum, and its size before them; the second argument changes when the file does."""
    with open(path, "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        mine = threading.local()

        def sum_at(offset: int) -> int:
            if not hasattr(mine, "piece"):
                mine.piece = bytearray(_PIECE)
            piece = memoryview(mine.piece)[: size - offset]
            filled = 0
            while filled < len(piece):
                read = os.preadv(file.fileno(), [piece[filled:]], offset + filled)
                if read == 0:
                    raise OSError(errno.EIO, f"it ends at {offset + filled}, and had {size} bytes", path)
                filled += read
            return hash64(piece)

        with ThreadPoolExecutor(max(workers.resolve(None), 1)) as pool:
            sums = pool.map(sum_at, range(0, size, _PIECE))
            return array("Q", [size, *sums]).tobytes()


def _parts(path: str) -> list[str]:
    match = _SHARD.fullmatch(path)
    if match is None:
        return [path]
    begin, count = match.groups()
    return [f"{begin}{i:05}-of-{count}.gguf" for i in range(1, int(count) + 1)]
