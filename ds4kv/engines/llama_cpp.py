"""A disk cache for llama-cpp-python: states are found again after a restart, by any process, for any common beginning.

:func:`attach` is the lean way, :class:`Cache` the one for ``Llama.set_cache``. Both use the same files. Nothing that
goes wrong with the cache comes through to the engine: then it computes, as it would without.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import os
import sys
import weakref
from collections.abc import Generator
from typing import TYPE_CHECKING, Any

import llama_cpp
import numpy as np

from ds4kv.engines.llama_states import SEQUENCE_HEAD, Ids, States, as_ids, common, pointer, whole_head
from ds4kv.store.entry import Entry
from ds4kv.store.load import LoadingCheckpoint

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Attached", "Cache", "attach"]

_SEQUENCE = 0

_log = logging.getLogger(__name__)


def attach(
    llm: Any,
    directory: str | os.PathLike[str],
    *,
    min_tokens: int = 64,
    pending_mb: int = 1024,
    model_id: str | None = None,
    **options: Any,
) -> Attached:
    """Gives a ``llama_cpp.Llama`` a disk cache. From now on each ``generate``, and with it each completion and chat,
    begins with the longest beginning of its prompt that is stored, and ends with its state saved in the background.

    No scores are copied: with 128,000 tokens in the vocabulary they are 262 MB for each request. The engine's own
    ``save_state``, ``load_state`` and ``set_cache`` stay as they are.

    ``min_tokens`` is the least that is worth a save, and that a load must spare. States that wait to be saved take at
    most ``pending_mb`` MiB of memory, or one of them more; what comes then isn't saved, and the log says so.
    ``model_id`` is the user's own word for the weights, such as a SHA-256; by default they are told by every byte of
    the GGUF file. All else is for :class:`ds4kv.Store`: ``budget_mb``, ``on_full`` and so on. By default the layout is
    ``packed`` at level 0, and saves give way to the engine, by a ``nice`` of 10.

    Raises ValueError for a model that sees pictures, one that has a cache attached, and options out of their range;
    OSError where the directory can't be made.
    """
    return Attached(directory, llm, min_tokens=min_tokens, pending_mb=pending_mb, model_id=model_id, **options)


def _held(llm: Any, ids: NDArray[np.intc], *, window: int) -> int:
    """With how many of these tokens the context begins. The engine cuts it back to them, whether it can or not: where a
    sliding window has passed what they need, the cut would go wrong unseen. So there the context is emptied.
    """
    count = common(llm.input_ids[: llm.n_tokens], ids)
    if count == 0 or window == 0 or count == llm.n_tokens < len(ids):
        return count
    memory = llama_cpp.llama_get_memory(llm.ctx)
    if llama_cpp.llama_memory_seq_pos_min(memory, _SEQUENCE) <= max(count - window, 0):
        return count
    llm.reset()
    llama_cpp.llama_memory_clear(memory, True)
    return 0


def _is_from_the_first(memory: Any) -> bool:
    """Whether no window has passed the first token: only then can a state be cut anywhere. To cut another one seems to
    work, and gives wrong texts.
    """
    return bool(llama_cpp.llama_memory_seq_pos_min(memory, _SEQUENCE) == 0)


class Attached(States):
    """The cache of one ``Llama``, made by :func:`attach`; it doesn't keep the Llama alive. ``restored`` says how many
    tokens of the last prompt came from the disk.
    """

    restored = 0

    def __init__(self, directory: str | os.PathLike[str], llm: Any, **options: Any) -> None:
        if "generate" in vars(llm):
            raise ValueError("this Llama has a cache attached, or another generate of its own")
        super().__init__(directory, llm, **options)
        self._llm = weakref.ref(llm)
        self._signature = inspect.signature(type(llm).generate)
        self._known = as_ids([])  # what the context holds, as far as this cache has seen it computed or put it there
        self._turn = 0
        attached = self

        def generate(tokens: Ids, *args: Any, **kwargs: Any) -> Generator[int, Any, None]:
            return attached._generate(tokens, args, kwargs)

        llm.generate = generate

    def detach(self) -> None:
        """Gives the Llama back as it was, and closes the cache."""
        llm = self._llm()
        if llm is not None:
            vars(llm).pop("generate", None)
        self.close()

    def __exit__(self, *exc: object) -> None:
        self.detach()

    def _generate(self, tokens: Ids, args: Any, kwargs: Any) -> Generator[int, Any, None]:
        llm = self._llm()
        if llm is None:
            raise ReferenceError("the Llama is gone")
        given = self._signature.bind(llm, tokens, *args, **kwargs).arguments
        self._turn = turn = self._turn + 1
        is_ours = self._prepare(llm, as_ids(tokens), is_reset=given.get("reset", True))
        self._known = as_ids([])
        try:
            yield from type(llm).generate(llm, tokens, *args, **kwargs)
        except GeneratorExit:  # the caller has enough: the usual end
            self._finish(llm, is_ours and turn == self._turn)
            raise
        self._finish(llm, is_ours and turn == self._turn)

    def _prepare(self, llm: Any, ids: NDArray[np.intc], *, is_reset: bool) -> bool:
        """Loads what is stored. Whether the tokens tell all that the context will hold after this prompt: what a user
        has computed or loaded himself may be a picture.
        """
        self.restored = 0
        held = llm.input_ids[: llm.n_tokens]
        if not is_reset:
            return common(held, self._known) == len(held)
        try:
            used = _held(llm, ids, window=self.model.window)
            self.restored = self._restore(llm, ids, at_least=used + self.min_tokens)
        except Exception:  # noqa: BLE001, the engine computes, as without a cache
            used = common(held, ids)
            _log.warning("%s: nothing could be loaded", self.store.directory, exc_info=True)
        if self.restored:
            self._known = ids[: self.restored].copy()
            return True
        return common(self._known, ids) >= used

    def _restore(self, llm: Any, ids: NDArray[np.intc], *, at_least: int) -> int:
        def use(checkpoint: LoadingCheckpoint, entry: Entry, count: int) -> None:
            self._set(llm, self.read(checkpoint, SEQUENCE_HEAD), ids[:count], is_cut=count < entry.tokens)

        if at_least >= len(ids):
            return 0
        served = self.serve(ids, use, ctx_size=len(llm.input_ids), least=at_least)
        return 0 if served is None else served[0]

    def _set(self, llm: Any, state: NDArray[np.uint8], ids: NDArray[np.intc], *, is_cut: bool) -> None:
        """Makes the context one that has just computed these tokens, but for what comes after them.

        The state of a whole context is set as one of a sequence, too. As a whole one, llama.cpp would go on with its
        first cell, and take those that a window has passed for free.
        """
        llm.reset()
        memory = llama_cpp.llama_get_memory(llm.ctx)
        done = llama_cpp.llama_state_seq_set_data(llm.ctx, pointer(state), len(state), _SEQUENCE)
        is_set = done == len(state)
        if is_set and is_cut:
            is_set = _is_from_the_first(memory) and llama_cpp.llama_memory_seq_rm(memory, _SEQUENCE, len(ids), -1)
        if not is_set or llama_cpp.llama_memory_seq_pos_max(memory, _SEQUENCE) != len(ids) - 1:
            llama_cpp.llama_memory_clear(memory, True)
            raise ValueError("llama.cpp doesn't take this state")
        llm.input_ids[: len(ids)] = ids
        llm.n_tokens = len(ids)

    def _finish(self, llm: Any, is_ours: bool) -> None:
        """Saves what the context holds. A forgotten generator may end in the middle of another, whose turn it is, or
        with the interpreter.
        """
        try:
            if is_ours and not sys.is_finalizing():
                self._known = llm.input_ids[: llm.n_tokens].copy()
                self._save(llm, self._known)
        except Exception:  # noqa: BLE001, the engine has its answer
            _log.warning("%s: a state could not be saved", self.store.directory, exc_info=True)

    def _save(self, llm: Any, ids: NDArray[np.intc]) -> None:
        if llm.ctx is None or self.is_kept(ids):
            return
        memory = llama_cpp.llama_get_memory(llm.ctx)
        last = llama_cpp.llama_memory_seq_pos_max(memory, _SEQUENCE)
        if last != len(ids) - 1 or (self.model.can_be_cut and not _is_from_the_first(memory)):
            _log.warning("%d tokens end at position %d: their state is not saved", len(ids), last)
            return
        if self.model.is_whole:
            size = llama_cpp.llama_state_get_size(llm.ctx)
        else:
            size = llama_cpp.llama_state_seq_get_size(llm.ctx, _SEQUENCE)
        if not self.has_room(size):
            return
        state = np.empty(size, np.uint8)
        if self.model.is_whole:
            done = llama_cpp.llama_state_get_data(llm.ctx, pointer(state), size)
        else:
            done = llama_cpp.llama_state_seq_get_data(llm.ctx, pointer(state), size, _SEQUENCE)
        if done != size:
            raise ValueError(f"llama.cpp gave {done} of {size} bytes of its state")
        head = whole_head(self.model.architecture) if self.model.is_whole else SEQUENCE_HEAD
        self.keep(ids, state[len(head) :])


class Cache(States):
    """For ``llm.set_cache(Cache(directory, llm))``, in place of ``LlamaRAMCache`` and ``LlamaDiskCache``.

    It is asked for the longest common beginning, and reading takes nothing away. Scores are neither stored nor given
    back: they are of no use but for ``logits_all``. The engine copies them all the same when it makes a state, which
    :func:`attach` spares. Arguments are those of :func:`attach`.
    """

    def __init__(self, directory: str | os.PathLike[str], llm: Any, **options: Any) -> None:
        super().__init__(directory, llm, **options)
        self.capacity_bytes = self.store.budget_bytes
        self._llm = weakref.ref(llm)
        self._head = whole_head(self.model.architecture)

    @property
    def cache_size(self) -> int:
        """Bytes of all files in the directory. Raises OSError."""
        return sum(entry.file_size for entry in self.store.entries())

    def __contains__(self, key: Ids) -> bool:
        return self._find_longest_prefix_key(key) is not None

    def _find_longest_prefix_key(self, key: Ids) -> tuple[int, ...] | None:
        llm, ids = self._llm(), as_ids(key)
        with contextlib.suppress(OSError):
            if llm is not None and (found := self.look(ids, ctx_size=len(llm.input_ids))) is not None:
                return tuple(ids[: found[1]].tolist())
        return None

    def __getitem__(self, key: Ids) -> Any:
        """The state of the longest beginning of ``key`` that is stored, as a ``LlamaState``.

        Raises KeyError on a miss, and where the engine itself holds nearly as much: then a load would spare nothing.
        """
        llm, ids = self._llm(), as_ids(key)
        served = None
        if llm is not None:
            least = self.min_tokens + _held(llm, ids, window=self.model.window)
            with contextlib.suppress(OSError):
                served = self.serve(
                    ids,
                    lambda checkpoint, entry, count: self.read(checkpoint, self._head),
                    ctx_size=len(llm.input_ids),
                    least=least,
                )
        if served is not None:
            count, state = served
            return self._as_engine_has_it(llm, ids[:count], state)
        raise KeyError(f"nothing is stored that would spare {self.min_tokens} of {len(ids)} tokens")

    def _as_engine_has_it(self, llm: Any, ids: NDArray[np.intc], state: NDArray[np.uint8]) -> Any:
        input_ids = np.full(len(llm.input_ids), -1, np.intc)  # no token is -1, so none is taken for one that is stored
        input_ids[: len(ids)] = ids
        return llama_cpp.llama.LlamaState(
            input_ids=input_ids,
            scores=np.float32(0),
            n_tokens=len(ids),
            llama_state=state.data,
            llama_state_size=len(state),
            seed=vars(llm).get("_seed", llama_cpp.LLAMA_DEFAULT_SEED),
        )

    def _is_as_it_should_be(self, ids: NDArray[np.intc]) -> bool:
        """Whether a state of these tokens can be cut, if it has to be. With a window only the context itself tells."""
        if self.model.window == 0 or not self.model.can_be_cut:
            return True
        llm = self._llm()
        if llm is None or not np.array_equal(llm.input_ids[: llm.n_tokens], ids):
            return False
        return _is_from_the_first(llama_cpp.llama_get_memory(llm.ctx))

    def __setitem__(self, key: Ids, value: Any) -> None:
        """Saves a state in the background, by the tokens that it was computed from: ``key`` may have one more."""
        try:
            ids = as_ids(value.input_ids[: value.n_tokens])
            state = memoryview(value.llama_state)[: value.llama_state_size]
            head, body = state[: len(self._head)], state[len(self._head) :]
            if head != self._head:
                raise ValueError(f"a state begins with {bytes(head)!r}, not {self._head!r}")
            if self._is_as_it_should_be(ids) and not self.is_kept(ids) and self.has_room(body.nbytes):
                self.keep(ids, body)
        except Exception:  # noqa: BLE001, the engine has its answer
            _log.warning("%s: a state could not be saved", self.store.directory, exc_info=True)


llama_cpp.BaseLlamaCache.register(Cache)
