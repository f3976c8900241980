"""A directory of checkpoints, as an engine uses it: find the longest one that a prompt begins with, load it, save new
ones, and stay within a budget.

The directory is the state. Every call looks at what is there now, so other processes, ds4 among them, may use it at the
same time: files appear whole, by a rename, and what is open stays whole when it is removed.
"""

from __future__ import annotations

import argparse
import functools
import os
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Self

from ds4kv.store import log, policy
from ds4kv.store.admission import Saves, Wanted
from ds4kv.store.background import Background, SaveFuture
from ds4kv.store.directory import Directory
from ds4kv.store.entry import Entry
from ds4kv.store.options import store_options
from ds4kv.store.reading import Reading
from ds4kv.store.save import Save
from ds4kv.store.settings import Score, Settings
from ds4kv.store.upkeep import tidy

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

    from ds4kv.store.admission import Payload

__all__ = ["Store"]


class Store(Reading):
    """The checkpoints of one directory. Any thread may use it; each load and each save is one thread's at a time.

    The budget is ``budget_bytes``, or ``budget_mb`` MiB; 0 is the default. Lengths are in tokens. ``min_tokens`` holds
    for finding and saving. The ``continued_`` and ``boundary_`` ones are kept for the engine, which decides what to
    save with :mod:`ds4kv.policy`. With ``reject_different_quant`` only checkpoints of the same quantization are found.

    ``layout``, ``codec``, ``level``, ``chunk_size``, ``workers``, ``nice`` and ``mode`` are those of new files, as in
    :func:`ds4kv.create`; ``workers`` is for loads as well. By default ``mode`` is 0600, so that nobody else reads what
    was prompted. With ``fsync`` a save is durable when it returns. ``on_full`` is ``raise`` or ``evict``, see
    :meth:`save`. With ``consume`` a file of more than ``cold_max_tokens`` tokens is removed once it was loaded.
    ``score`` says what an entry is worth at a time; the least worth goes first. ``clock`` gives Unix seconds.

    Opening makes the directory, with mode 0700, removes what killed processes left half written, and evicts: a smaller
    budget takes effect at once, unless ``evict_on_open`` is false. In a directory that is not ours to write that is not
    done, and the log says so. A ``read_only`` store makes, changes and removes nothing at all: loads are not counted,
    saves are refused, and a directory that is not there is an empty one.

    ``identity`` is whose states these are: a name, or a digest, of all that they depend on, as model, weights, KV types
    and library. Saves are marked with it, and nothing that was saved with another one, or with none, is ever found,
    whatever the text. Directory and budget may be shared. What is chosen anew at each start, as the size of a context,
    has no place in it.

    ``with`` a store, or after :meth:`close`, all saves in the background are done. A copy of a store, pickled or not,
    opens the same directory by the same arguments, and evicts nothing at that: this one did, or its next save does.

    Raises ValueError for arguments out of their range, and OSError.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        budget_mb: int = policy.BUDGET_MB,
        budget_bytes: int | None = None,
        min_tokens: int = policy.MIN_TOKENS,
        cold_max_tokens: int = policy.COLD_MAX_TOKENS,
        continued_interval_tokens: int = policy.CONTINUED_INTERVAL_TOKENS,
        boundary_trim_tokens: int = policy.BOUNDARY_TRIM_TOKENS,
        boundary_align_tokens: int = policy.BOUNDARY_ALIGN_TOKENS,
        reject_different_quant: bool = False,
        workers: int | None = None,
        layout: str = "v2",
        codec: str | None = None,
        level: int | None = None,
        chunk_size: int | None = None,
        consume: bool = False,
        on_full: str = "raise",
        score: Score | None = None,
        clock: Callable[[], float] = time.time,
        nice: int = 0,
        fsync: bool = False,
        mode: int | None = None,
        read_only: bool = False,
        evict_on_open: bool = True,
        identity: bytes | str | None = None,
    ) -> None:
        options = dict(locals())  # all keywords by their names, which are the record's
        del options["self"], options["directory"], options["__class__"]
        settings = self._settings = Settings.checked(**options)
        self.min_tokens = settings.min_tokens
        self.cold_max_tokens = settings.cold_max_tokens
        self.continued_interval_tokens = settings.continued_interval_tokens
        self.boundary_trim_tokens = settings.boundary_trim_tokens
        self.boundary_align_tokens = settings.boundary_align_tokens
        self._directory = Directory(
            os.path.abspath(os.fsdecode(directory)),
            budget_bytes=settings.budget_bytes,
            score=score,
            clock=clock,
            is_read_only=read_only,
        )
        super().__init__(self._directory, settings)
        self._saves = Saves(self._directory, settings)
        self._background = Background(self.directory)
        if not read_only:
            self._directory.make(mode)
            tidy(self._directory, evict=evict_on_open)
        log.opened(self.directory, settings)

    def __reduce__(self) -> tuple[Callable[..., Self], tuple[str]]:
        options = self._settings._replace(evict_on_open=False)._asdict()
        return functools.partial(type(self), **options), (self.directory,)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.directory!r})"

    @classmethod
    def from_args(cls, namespace: argparse.Namespace) -> Self | None:
        """The store that a command line asks for, see :func:`ds4kv.add_cli_arguments`; None if it asks for none."""
        options = store_options(namespace)
        return None if options["directory"] is None else cls(**options)

    def save(
        self,
        text: ReadableBuffer,
        *,
        tokens: int,
        ctx_size: int,
        quant_bits: int | None = 2,
        reason: str | int = "cold",
        ext_flags: int = 0,
        tool_map: Mapping[bytes, bytes] | None = None,
        raw_total: int | None = None,
        trimmed: int = 0,
        model_id: int | None = None,
        payload_abi: int | None = None,
    ) -> Save:
        """Begins to save a checkpoint, as a context manager; its ``payload`` is the stream to write to.

        ``text`` is the key. ``tool_map`` is all that the engine remembers, oldest first; the part that occurs in
        ``text`` is stored, and sets or clears bit 0 of ``ext_flags``. ``raw_total`` is the payload's size in bytes,
        where it is known beforehand; ``trimmed``, the tokens of the prompt that are left out, is for the log alone.
        ``model_id`` and ``payload_abi`` go into the header, which in layout ``v2`` has no room for them. An engine
        without quantization gives None as ``quant_bits``; the header then has 2.

        A text that has a checkpoint which this engine can load isn't saved again; its tool map is, and replaces the one
        there. One that is being saved at this moment isn't either, whoever does it. A file that doesn't fit the budget
        by its real size, with 1 % of slack, isn't let in. That, too few tokens, nothing written and a ``quant_bits``
        other than 2, 4 and None are refusals, no errors: see :class:`ds4kv.Save`.

        At the block's end the file gets its name, and then the directory is brought within the budget, by removing the
        checkpoints of the lowest score, and this one last. A block left by an exception leaves nothing behind. If
        someone holds the directory's lock for 30 s, the file gets its name all the same and nothing is removed.

        A full disk is an OSError, from the payload's write() or the end of the block, and nothing is removed for it.
        With ``on_full="evict"`` room is made by score, as much as the write lacks, and the write is tried once more. No
        checkpoint goes unless all that is to be written can then fit: so give ``raw_total``. Without it nobody knows,
        and one save costs no more than half of what the checkpoints take together.

        Raises ValueError for what no file may hold, and OSError.
        """
        wanted = Wanted(
            text, tokens, ctx_size, quant_bits, reason, ext_flags, tool_map, raw_total, trimmed, model_id, payload_abi
        )
        return self._saves.begin(wanted, least_tokens=self.min_tokens)

    def save_buffer(
        self,
        text: ReadableBuffer,
        payload: Payload,
        *,
        tokens: int,
        ctx_size: int,
        quant_bits: int | None = 2,
        reason: str | int = "cold",
        ext_flags: int = 0,
        tool_map: Mapping[bytes, bytes] | None = None,
        raw_total: int | None = None,
        trimmed: int = 0,
        model_id: int | None = None,
        payload_abi: int | None = None,
    ) -> Entry | None:
        """Saves a whole payload, and returns the checkpoint of ``text``, or None if it was refused.

        ``payload`` is one buffer or several, as :func:`ds4kv.dump` has it, compressed where it lies; or a function
        without arguments that makes it, and isn't called if it isn't needed. The other arguments and what is raised are
        those of :meth:`save`.
        """
        wanted = Wanted(
            text, tokens, ctx_size, quant_bits, reason, ext_flags, tool_map, raw_total, trimmed, model_id, payload_abi
        )
        return self._saves.whole(wanted, payload, least_tokens=self.min_tokens).entry

    def save_async(
        self,
        text: ReadableBuffer,
        payload: Payload,
        *,
        tokens: int,
        ctx_size: int,
        quant_bits: int | None = 2,
        reason: str | int = "cold",
        ext_flags: int = 0,
        tool_map: Mapping[bytes, bytes] | None = None,
        raw_total: int | None = None,
        trimmed: int = 0,
        model_id: int | None = None,
        payload_abi: int | None = None,
        wait: bool = True,
    ) -> SaveFuture:
        """:meth:`save_buffer` on a background thread, which does one save after the other, in order.

        A buffer must not change before the future is done; a function is called there, when it is its turn. While 4
        saves are waiting already this waits too, or with ``wait`` false refuses the save. The future's ``refusal`` says
        why there is no checkpoint; what goes wrong is logged, and raised by its result().

        Where no thread can be had, as in an atexit handler, and within a payload function, the save is done at once.

        Raises RuntimeError after :meth:`close`.
        """
        text = bytes(memoryview(text))
        wanted = Wanted(
            text, tokens, ctx_size, quant_bits, reason, ext_flags, tool_map, raw_total, trimmed, model_id, payload_abi
        )
        task = functools.partial(self._saves.whole, wanted, payload, least_tokens=self.min_tokens)
        return self._background.submit(task, wait=wait)

    def evict(self) -> list[Entry]:
        """Brings the directory within its budget, as every save does; what was removed.

        A file that can't be removed is passed over. Raises TimeoutError if the directory's lock can't be had,
        PermissionError of a read-only store, and OSError.
        """
        self._directory.refuse_if_read_only()
        return [victim.entry for victim in self._directory.evict().removed]

    def plan_eviction(self, budget_mb: int, now: float | None = None) -> list[policy.Victim]:
        """What would go, in this order and why, for a budget of ``budget_mb`` MiB at ``now``. Touches nothing."""
        return self._directory.plan(budget_mb << 20, now)

    def remove(self, entry: Entry) -> bool:
        """Removes a checkpoint; False if it is gone already, or was replaced. Raises as :meth:`evict`."""
        self._directory.refuse_if_read_only()
        return self._directory.remove(entry.path, entry.file)

    def close(self) -> None:
        """Waits for the saves in the background; no more are taken."""
        self._background.close()
        self._directory.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
