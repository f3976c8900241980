"""A disk cache for models of Hugging Face transformers: what was computed for a prompt is there for the next one that
begins alike, also after a restart, and for other processes.

    cache = PrefixCache("cache", model)
    output = generate(model, input_ids, cache=cache, max_new_tokens=100)

What is restored has the bits that were saved. The disk can't fail a generation: what can't be read is computed.
"""

from __future__ import annotations

import concurrent.futures
import inspect
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Self

import torch

from ds4kv.engines import tokens
from ds4kv.engines.transformers_identity import identity_of, stamp_of
from ds4kv.engines.transformers_state import Snapshot, layer_kinds, new_state, restored, stretched_positions
from ds4kv.errors import Ds4kvError
from ds4kv.store import policy
from ds4kv.store.background import SaveFuture
from ds4kv.store.entry import Entry
from ds4kv.store.store import Store

__all__ = ["PrefixCache", "generate"]

MIN_TOKENS = 64
STEP_TOKENS = 64

_ANY_CTX = (1 << 32) - 1  # a DynamicCache has no size of its own
_PATIENCE = 2.0
"""Seconds that a prompt waits for the save of what it goes on from: most saves take less, and most prefills more."""
_TRIES = 4
_WORTH = 8
"""A state is read whole. It isn't if less than one token of so many is common with the prompt: computing is faster."""

_MISSES = (Ds4kvError, OSError, ValueError, MemoryError, torch.OutOfMemoryError)

_log = logging.getLogger("ds4kv")


class PrefixCache:
    """The states of one model's prompts in a directory, which it may share with other models, processes and engines.

    ``model`` is a causal language model on one device: its layers have full attention (of any number of key and value
    heads) or a sliding window. Its keys and values are of ``kv_dtype``: float32, float16 or bfloat16, and by default
    the model's own dtype.

    ``identity`` is a name for the model and its weights. By default it is a digest of the config and of all weights,
    which takes seconds for a large model, and is made anew when a weight was changed: states of other weights are never
    found. With a name of your own you answer for that.

    ``restored`` is how many tokens of the last prompt that was generated from, or loaded, came from the disk.

    States of fewer than ``min_tokens`` are neither saved nor restored. :meth:`generate` saves one each time it has
    ``step_tokens`` more than the last. A model with sliding windows can go on from whole saved states alone, as what
    fell out of a window is gone. So it saves some on its way through a prompt: at ``anchors``, which are numbers of
    tokens, or a function that gives them for a prompt's ids. By default there's one, at the last multiple of
    ``boundary_align_tokens`` that is ``boundary_trim_tokens`` before the prompt's end. Where a prompt begins with a
    text that others have too, its number of tokens is a good anchor. Models without windows need none.

    All else is as in :class:`ds4kv.Store`: ``budget_mb``, ``layout``, ``level``, and any other of its options. By
    default the layout is ``packed`` at level 0.

    Raises TypeError for a model that isn't supported, ValueError as the store, and OSError.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        model: Any,
        *,
        budget_mb: int = policy.BUDGET_MB,
        min_tokens: int = MIN_TOKENS,
        step_tokens: int = STEP_TOKENS,
        identity: bytes | str | None = None,
        kv_dtype: Any = None,
        layout: str = "packed",
        level: int | None = 0,
        anchors: Iterable[int] | Callable[[Sequence[int]], Iterable[int]] | None = None,
        **store_options: Any,
    ) -> None:
        self.model = model
        self._config = model.config.get_text_config(decoder=True)
        if model.config.is_encoder_decoder:
            raise TypeError(f"{type(model).__name__} has an encoder: models that only decode are supported")
        if (positions := stretched_positions(self._config)) is not None:
            raise TypeError(f"{positions} positions: a state depends on how long its prompt is, and can't be shared")
        if len({parameter.device for parameter in model.parameters()}) > 1:
            raise TypeError("the model is on several devices: one is supported")
        self._kinds = layer_kinds(new_state(self._config))
        self._kv_dtype = model.dtype if kv_dtype is None else kv_dtype
        if self._kv_dtype not in (torch.float32, torch.float16, torch.bfloat16):
            raise TypeError(f"keys and values of {self._kv_dtype}: float32, float16 and bfloat16 are supported")
        self._windows = [window for window in self._kinds if window]
        self._anchors = anchors if anchors is None or callable(anchors) else tuple(anchors)
        self._step_tokens = step_tokens
        self._directory = directory
        self._options = {
            "budget_mb": budget_mb,
            "min_tokens": min_tokens,
            "layout": layout,
            "level": None if layout in ("v1", "legacy") else level,
            **store_options,
        }
        self.restored = 0
        self._newest: tuple[bytes, SaveFuture] | None = None
        self._stamp = None if identity is not None else stamp_of(model)
        name = identity_of(model, kv_dtype=self._kv_dtype) if identity is None else identity
        self._store = Store(directory, identity=name, **self._options)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({os.fspath(self._directory)!r}, {type(self.model).__name__})"

    @property
    def store(self) -> Store:
        """The store, which has the identity of the model as it is now."""
        if self._stamp is not None and (now := stamp_of(self.model)) != self._stamp:
            _log.info("ds4kv: the model's weights were changed; states of the old ones are left")
            self._store.close()
            name = identity_of(self.model, kv_dtype=self._kv_dtype)
            self._store = Store(self._directory, identity=name, **self._options | {"evict_on_open": False})
            self._stamp = now
        return self._store

    def load(self, input_ids: Any) -> tuple[Any, int]:
        """The state of a beginning of this prompt, and of how many tokens it is: (None, 0) if there is none.

        ``input_ids`` are a tensor ``[1, tokens]`` or ``[tokens]``, or a list. The state is a DynamicCache for
        ``past_key_values``. The prompt's last token is never part of it, as a model needs one to go on from. What can't
        be read is a miss. Raises ValueError for more than one prompt.
        """
        ids = _ids_of(input_ids)[:-1]
        store, tried = self.store, list[Entry]()
        if self._newest is not None and tokens.key_of(ids).startswith(self._newest[0]):
            self.wait(_PATIENCE)  # the prompt goes on from what is being saved
        while len(tried) < _TRIES and (found := self._best(store, ids, tried)) is not None:
            entry, kept = found
            tried.append(entry)
            try:
                with store.load(entry) as checkpoint:
                    past = restored(
                        checkpoint,
                        self._config,
                        self._kinds,
                        kept=kept,
                        dtype=self._kv_dtype,
                        device=self.model.device,
                    )
            except _MISSES as error:
                _log.warning("ds4kv: a state can't be restored: %s", error)
                continue
            self.restored = kept
            return past, kept
        self.restored = 0
        return None, 0

    def save(self, input_ids: Any, past: Any, *, wait: bool = True) -> SaveFuture:
        """Saves the state of a prompt in the background; the future's result is its checkpoint, or None.

        ``past`` is the DynamicCache after the prompt, or after a beginning of it. It may be used on at once: what is
        saved is its state now. Where four saves are waiting already this waits too, or with ``wait`` false refuses.

        Raises TypeError for a cache, layers or a dtype that are not supported, ValueError for more than one prompt, for
        an empty state and for one of more tokens than ``input_ids``, and RuntimeError after :meth:`close`.
        """
        ids = _ids_of(input_ids)
        snapshot = Snapshot.of(past, self._kinds, self._kv_dtype)
        if snapshot.tokens > len(ids):
            raise ValueError(f"a state of {snapshot.tokens} tokens, and {len(ids)} ids")
        text = tokens.key_of(ids[: snapshot.tokens])
        future = self.store.save_async(
            text,
            snapshot.payload,
            tokens=snapshot.tokens,
            ctx_size=snapshot.tokens,
            raw_total=snapshot.contents.nbytes,
            wait=wait,
        )
        self._newest = text, future
        return future

    def generate(self, input_ids: Any, **generate_kwargs: Any) -> Any:
        """``model.generate(input_ids, **generate_kwargs)``, and what it returns, with the cache.

        The state of the prompt but its last token is restored, or computed and saved; the rest is the model's own
        ``generate``. At its end the state is saved with what was generated, for the next turn. Saves go on in the
        background, and what goes wrong with them is logged.

        Raises ValueError for what a state of the ids alone can't serve: more than one prompt, sequence or beam, a mask
        that hides tokens, other tensors such as images or embeddings, and a cache of another kind.
        """
        ids = _ids_of(input_ids)
        given = self._checked(ids, generate_kwargs)
        past, done = self.load(ids)
        if past is None:
            past = new_state(self._config)
        prompt = torch.tensor([ids], device=self.model.device)
        saved = done
        for stop in self._stops(ids, done):
            self._prefill(prompt[:, done:stop], past, given)
            self._save_if_it_can(ids, past)
            saved = done = stop
        mask = torch.ones_like(prompt)
        output = self.model.generate(input_ids=prompt, attention_mask=mask, past_key_values=past, **given)
        sequence = getattr(output, "sequences", output)[0].tolist()
        if saved + self._step_tokens <= past.get_seq_length() <= len(sequence):
            self._save_if_it_can(sequence, past)
        return output

    def wait(self, timeout: float | None = None) -> None:
        """Waits until what was given to be saved is saved, or refused, or for so many seconds; errors were logged."""
        if self._newest is not None:
            concurrent.futures.wait([self._newest[1]], timeout)  # they are done in order

    def close(self) -> None:
        """Waits for the saves in the background; no more are taken."""
        self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _best(self, store: Store, ids: Sequence[int], tried: Sequence[Entry]) -> tuple[Entry, int] | None:
        """The state that saves most, and how many of its tokens to keep."""
        try:
            return self._nearest(store, ids, tried)
        except OSError as error:
            _log.warning("ds4kv: the directory can't be read: %s", error)
            return None

    def _nearest(self, store: Store, ids: Sequence[int], tried: Sequence[Entry]) -> tuple[Entry, int] | None:
        near = tokens.nearest(store, ids, ctx_size=_ANY_CTX, exclude=tried)
        if near is not None:
            entry, common = near
            can_be_cut = all(entry.tokens < window for window in self._windows)
            if (
                common < store.min_tokens
                or common * _WORTH < entry.tokens
                or not (can_be_cut or common == entry.tokens)
            ):
                near = None
        if near is None and self._windows:
            whole = tokens.longest(store, ids, ctx_size=_ANY_CTX, exclude=tried)
            near = None if whole is None else (whole, whole.tokens)
        return near

    def _stops(self, ids: Sequence[int], done: int) -> list[int]:
        """After how many tokens of a prompt its state is to be saved, beyond those that are ``done``."""
        store, end = self.store, len(ids) - 1
        if callable(self._anchors):
            stops = set(self._anchors(ids))
        elif self._anchors is not None:
            stops = set(self._anchors)
        elif self._windows:
            trim, align = store.boundary_trim_tokens, store.boundary_align_tokens
            stops = {policy.store_len(end, min_tokens=store.min_tokens, trim=trim, align=align)}
        else:
            stops = set()
        stops = {stop for stop in stops if max(done + 1, store.min_tokens) <= stop <= end}
        if end - max(stops, default=done) >= max(self._step_tokens, 1):
            stops.add(end)
        return sorted(stops)

    def _prefill(self, ids: Any, past: Any, given: dict[str, Any]) -> None:
        config = given.get("generation_config") or self.model.generation_config
        size = given.get("prefill_chunk_size") or getattr(config, "prefill_chunk_size", None) or ids.shape[1]
        few = {"logits_to_keep": 1} if _takes_logits_to_keep(self.model) else {}
        with torch.no_grad():
            for part in ids.split(size, dim=1):
                self.model(input_ids=part, past_key_values=past, use_cache=True, **few)

    def _save_if_it_can(self, ids: Sequence[int], past: Any) -> None:
        try:
            self.save(ids, past, wait=False)
        except (TypeError, ValueError, OSError) as error:
            _log.warning("ds4kv: a state is not saved: %s", error)

    def _checked(self, ids: Sequence[int], given: dict[str, Any]) -> dict[str, Any]:
        """The arguments for the model. Raises ValueError for what a state of the ids doesn't tell."""
        config = given.get("generation_config") or self.model.generation_config
        chosen = {name: given.get(name, getattr(config, name, None)) for name in _ONE | _NONE}
        if not ids:
            raise ValueError("a prompt has a token at least")
        if any((chosen[name] or 1) != 1 for name in _ONE):
            raise ValueError(f"one sequence and one beam are supported: {chosen}")
        if given.get("use_cache") is False or "past_key_values" in given:
            raise ValueError("generate makes its own DynamicCache: leave use_cache and past_key_values to it")
        if any(chosen[name] for name in _NONE):
            raise ValueError(f"only greedy decoding and sampling with a DynamicCache are supported: {chosen}")
        kept = dict(given)
        mask = kept.pop("attention_mask", None)
        if mask is not None and not (mask.numel() == len(ids) and bool(mask.bool().all())):
            raise ValueError("attention_mask hides tokens: give a prompt without padding")
        tensors = sorted(name for name, value in kept.items() if isinstance(value, torch.Tensor))
        if tensors:
            raise ValueError(f"{', '.join(tensors)}: states depend on them, and are found by the ids alone")
        return kept


_ONE = {"num_beams", "num_return_sequences"}
_NONE = {
    "assistant_early_exit",
    "assistant_model",  # what transformers drafts, it drafts for a cache that is empty at first
    "cache_implementation",
    "custom_generate",
    "dola_layers",
    "penalty_alpha",
    "prompt_lookup_num_tokens",
    "use_mtp",
}


def generate(model: Any, input_ids: Any, *, cache: PrefixCache, **generate_kwargs: Any) -> Any:
    """As :meth:`PrefixCache.generate`. Raises ValueError if the cache is another model's."""
    if cache.model is not model:
        raise ValueError(f"the cache is of another model: {cache!r}")
    return cache.generate(input_ids, **generate_kwargs)


def _ids_of(input_ids: Any) -> list[int]:
    """The ids of one prompt. Raises ValueError for more than one."""
    ids = input_ids.tolist() if hasattr(input_ids, "tolist") else list(input_ids)
    if ids and isinstance(ids[0], list | tuple):
        if len(ids) != 1:
            raise ValueError(f"{len(ids)} prompts: one at a time is supported")
        ids = list(ids[0])
    return ids


def _takes_logits_to_keep(model: Any) -> bool:
    return "logits_to_keep" in inspect.signature(model.forward).parameters
