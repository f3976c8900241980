"""The states of one llama.cpp model in a directory: what :mod:`ds4kv.engines.llama_cpp` and sessions share.

A payload is what llama.cpp writes of its memory, without what it puts in front of it. So one payload is a state for
``llama_state_seq_set_data``, for ``llama_state_set_data`` and for a session file.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import wait
from typing import TYPE_CHECKING, Any, Self, TypeAlias, TypeVar

import numpy as np

from ds4kv.engines import tokens
from ds4kv.engines.llama_model import model_of
from ds4kv.errors import Ds4kvError
from ds4kv.store.background import SaveFuture
from ds4kv.store.entry import Entry
from ds4kv.store.load import LoadingCheckpoint
from ds4kv.store.store import Store

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["FAILURES", "SEQUENCE_HEAD", "Ids", "States", "as_ids", "common", "pointer", "whole_head"]

Ids: TypeAlias = "Sequence[int] | NDArray[np.intc]"

SEQUENCE_HEAD = (0xAF143CD8).to_bytes(4, "little") + (0).to_bytes(4, "little")
"""What llama.cpp puts in front of the state of sequence 0."""

FAILURES = (Ds4kvError, OSError, ValueError, MemoryError)
"""What a load may raise: then it is a miss."""

_T = TypeVar("_T")

_log = logging.getLogger(__name__)


def whole_head(architecture: str) -> bytes:
    """What llama.cpp puts in front of the state of a whole context."""
    name = architecture.encode()
    return len(name).to_bytes(4, "little") + name


def as_ids(ids: Ids) -> NDArray[np.intc]:
    return np.asarray(ids, np.intc)


def common(a: NDArray[np.intc], b: NDArray[np.intc]) -> int:
    """How many tokens both begin with."""
    size = min(len(a), len(b))
    differ = a[:size] != b[:size]
    return int(differ.argmax()) if differ.any() else size


def pointer(memory: NDArray[np.uint8]) -> Any:
    """For functions of llama.cpp; it doesn't keep the memory."""
    return memory.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))


class States:
    """A directory of one model's states. ``store`` is what they are in, ``model`` what is known of the model.

    ``min_tokens`` is the least that is worth a save, and that a load must spare. States that wait to be saved take at
    most ``pending_mb`` MiB of memory, or one of them more; what comes then isn't saved. ``model_id`` is as of
    :func:`ds4kv.engines.llama_model.model_of`. All else is for :class:`ds4kv.Store`.

    Raises ValueError and OSError.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        llm: Any,
        *,
        min_tokens: int = 64,
        pending_mb: int = 1024,
        model_id: str | None = None,
        **options: Any,
    ) -> None:
        self.model = model_of(llm, model_id=model_id)
        self.vocabulary = int(llm.n_vocab())
        self.min_tokens = min_tokens
        self._pending_bytes = pending_mb << 20
        self._pending: list[tuple[SaveFuture, int]] = []
        options = {"layout": "packed", "level": 0, "nice": 10, **options}
        self.store = Store(directory, identity=self.model.identity, min_tokens=min_tokens, **options)

    def wait(self) -> None:
        """Until what is to be saved is saved, or has failed, which the log says."""
        wait([future for future, _ in self._pending])

    def close(self) -> None:
        """Waits until what is to be saved is saved. Nothing is saved after it."""
        self.store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def look(self, ids: NDArray[np.intc], *, ctx_size: int, but: Collection[Entry] = ()) -> tuple[Entry, int] | None:
        """The state that serves for most tokens of a prompt, and for how many.

        Where states can't be cut, only a whole one serves, and it leaves a token to be computed: what comes after the
        prompt follows from that. Raises OSError.
        """
        if self.model.can_be_cut:
            return tokens.nearest(self.store, ids.tolist(), ctx_size=ctx_size, exclude=but)
        entry = tokens.longest(self.store, ids[:-1].tolist(), ctx_size=ctx_size, exclude=but)
        return None if entry is None else (entry, entry.tokens)

    def serve(
        self, ids: NDArray[np.intc], use: Callable[[LoadingCheckpoint, Entry, int], _T], *, ctx_size: int, least: int
    ) -> tuple[int, _T] | None:
        """For how many tokens of a prompt a state serves, ``least`` or more, and what ``use`` makes of its checkpoint,
        its entry and that number. The next best is tried where that fails. None on a miss; raises OSError.
        """
        tried: list[Entry] = []
        while found := self.look(ids, ctx_size=ctx_size, but=tried):
            entry, count = found
            if count < least:
                break
            tried.append(entry)
            try:
                with self.store.load(entry) as checkpoint:
                    made = use(checkpoint, entry, count)
            except FAILURES as error:
                _log.info("%s is not used: %s", entry.path, error)
            else:
                return count, made
        return None

    def read(self, checkpoint: LoadingCheckpoint, head: bytes) -> NDArray[np.uint8]:
        """The state, with ``head`` in front of it. Raises as reads of a payload do."""
        total = checkpoint.payload.raw_total
        if total is None:
            raise ValueError(f"{checkpoint.entry.path} doesn't say how large its payload is")
        memory = np.empty(len(head) + total, np.uint8)
        memory[: len(head)] = np.frombuffer(head, np.uint8)
        checkpoint.payload.readinto_exactly(memory[len(head) :].data)
        return memory

    def is_kept(self, ids: NDArray[np.intc]) -> bool:
        """Whether there is no need to save the state of these tokens: they are few, or have one. Raises OSError."""
        if len(ids) < self.min_tokens:
            return True
        key = tokens.key_of(ids.tolist())
        entry = self.store.get(key)
        if entry is None:
            return False
        found = self.store.nearest(key, ctx_size=len(ids))
        if found is not None and found[1] == len(key):
            return True
        with contextlib.suppress(*FAILURES), self.store.load(entry):
            pass  # what has the name has another text: where that is damage, this sets it aside
        return False

    def has_room(self, size: int) -> bool:
        """Whether as many bytes may wait to be saved."""
        self._pending = [(future, size) for future, size in self._pending if not future.done()]
        if not self._pending or sum(size for _, size in self._pending) + size <= self._pending_bytes:
            return True
        _log.warning("%s: a state of %d bytes is not saved, as %d wait", self.store.directory, size, len(self._pending))
        return False

    def keep(self, ids: NDArray[np.intc], body: Any) -> SaveFuture:
        """Saves a state in the background; ``body`` is a buffer that must not change."""
        size = memoryview(body).nbytes
        future = self.store.save_async(
            tokens.key_of(ids.tolist()),
            body,
            tokens=len(ids),
            ctx_size=len(ids),
            quant_bits=None,
            raw_total=size,
            wait=False,
        )
        if future.done() and future.refusal is not None:
            _log.info("%s: a state of %d tokens is not saved: %s", self.store.directory, len(ids), future.refusal)
        self._pending.append((future, size))
        return future
