"""How a save begins: what is refused, what is there already, and what is written.

Two saves of one text at a time would write it twice, for nothing, so the second one is refused. Among the threads of a
store the first one claims the text; other stores and processes show by their draft, which they hold.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from ds4kv.core.memory import buffers_of, size_of
from ds4kv.file.draft import held_drafts
from ds4kv.format.header import Codec, Ext, Header, Reason
from ds4kv.format.identity import is_of, mark_of
from ds4kv.format.layout import PREFIX_SIZE
from ds4kv.format.toolmap import pack_tool_map, select_tool_map
from ds4kv.store import log, policy
from ds4kv.store.claims import Claims
from ds4kv.store.directory import Directory
from ds4kv.store.lookup import what_suits
from ds4kv.store.room import NO_SPACE, Room, StoreWriter, over_budget
from ds4kv.store.save import NewSave, PresentSave, Save
from ds4kv.store.settings import Settings

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

    from ds4kv.core.memory import Readable

    Buffers = Readable | Sequence[Readable]
    Payload = Buffers | Callable[[], Buffers]

__all__ = ["Saves", "Wanted"]

_NO_QUANT = 2
"""What a header says of an engine without quantization: it has to be 2 or 4."""


class Wanted(NamedTuple):
    """What an engine wants saved: the arguments of :meth:`ds4kv.Store.save`, by their names and in their order."""

    text: ReadableBuffer
    tokens: int
    ctx_size: int
    quant_bits: int | None
    reason: str | int
    ext_flags: int
    tool_map: Mapping[bytes, bytes] | None
    raw_total: int | None
    trimmed: int
    model_id: int | None
    payload_abi: int | None


class Saves:
    """The saves into one directory, for all threads."""

    def __init__(self, directory: Directory, settings: Settings) -> None:
        self._directory = directory
        self._settings = settings
        self._template = settings.template._asdict()
        self._encoding = settings.encoding
        self._claims = Claims()
        self._mark = mark_of(settings.identity)

    def begin(self, wanted: Wanted, *, least_tokens: int) -> Save:
        """As :meth:`ds4kv.Store.save`, of ``least_tokens`` tokens or more."""
        started = time.monotonic()
        reason = Reason.from_word(wanted.reason) if isinstance(wanted.reason, str) else wanted.reason
        text, raw_total = self._mark + bytes(memoryview(wanted.text)), wanted.raw_total
        refusal = self._refusal(text, wanted, max(least_tokens, 1))
        if refusal is not None:
            return self._refuse(wanted, refusal)
        suits = what_suits(
            ctx_size=wanted.ctx_size,
            quant_bits=self._settings.quant_wanted(wanted.quant_bits),
            model_id=wanted.model_id,
            payload_abi=wanted.payload_abi,
        )
        trailer = pack_tool_map(select_tool_map(text, wanted.tool_map or {}))
        name = f"{hashlib.sha1(text, usedforsecurity=False).hexdigest()}.kv"
        claim = self._claims.claim(name)  # before the first look: whoever had it until now may have saved it
        if claim is None:
            return self._refuse(wanted, "the text is being saved by another thread of this process")
        try:
            same_key, temporaries = self._directory.of(name[: -len(".kv")])
            for entry in same_key:
                if suits(entry) and self._directory.text_of(entry) == text:
                    claim.end()
                    return PresentSave(self._directory, entry, trailer, fsync=self._settings.fsync)
            if held_drafts(self._directory.path, name, temporaries):
                claim.end()
                return self._refuse(wanted, "the text is being saved by another store or process")
            header = self._header(wanted, reason, has_tool_map=bool(trailer))
            least = PREFIX_SIZE + len(text) + len(trailer)
            if header.codec is Codec.NONE:
                least += raw_total or 0
            budget_bytes = self._directory.budget_bytes
            if policy.with_slack(least) > budget_bytes:
                claim.end()
                log.skipped_for_estimate(header.tokens, header.reason.word, file_size=least, budget_bytes=budget_bytes)
                return Save(refusal=over_budget(least, budget_bytes))
            writer = self._create(name, header, text, trailer, raw_total, least, started)
        except BaseException:
            claim.end()
            raise
        return NewSave(
            self._directory,
            writer,
            same_key,
            claim=claim,
            raw_total=raw_total,
            started=started,
            trimmed=wanted.trimmed,
        )

    def whole(self, wanted: Wanted, payload: Payload, *, least_tokens: int) -> Save:
        """As :meth:`ds4kv.Store.save_buffer`; how it ended."""
        if wanted.raw_total is None and not callable(payload):
            wanted = wanted._replace(raw_total=sum(map(size_of, buffers_of(payload))))
        with self.begin(wanted, least_tokens=least_tokens) as saving:
            if saving.needed:
                saving.payload.writev(buffers_of(payload() if callable(payload) else payload))
        return saving

    def _refuse(self, wanted: Wanted, why: str) -> Save:
        log.refused(wanted.tokens, why)
        return Save(refusal=why)

    def _refusal(self, text: bytes, wanted: Wanted, least_tokens: int) -> str | None:
        if self._directory.is_read_only:
            return "the store is read only"
        if wanted.tokens < least_tokens:
            return f"{wanted.tokens} tokens; a checkpoint has at least {least_tokens}"
        if wanted.quant_bits not in (None, 2, 4):
            return f"quant_bits is {wanted.quant_bits}, not 2, 4 or None"
        if not is_of(self._mark, text):
            return "the text begins as those of a store with an identity do"
        if len(text) >= 1 << 32:
            log.skipped_for_text(wanted.tokens)
            return f"the text is {len(text)} bytes; its length has 32 bits"
        return None

    def _header(self, wanted: Wanted, reason: int, *, has_tool_map: bool) -> Header:
        now, flags = self._directory.now(), wanted.ext_flags
        of_this = {
            "tokens": wanted.tokens,
            "ctx_size": wanted.ctx_size,
            "quant_bits": _NO_QUANT if wanted.quant_bits is None else wanted.quant_bits,
            "reason_code": reason,
            "ext_flags": flags | Ext.TOOL_MAP if has_tool_map else flags & ~int(Ext.TOOL_MAP),
            "created_at": now,
            "last_used": now,
            "model_id": wanted.model_id or 0,
            "payload_abi": wanted.payload_abi or 0,
        }
        return Header(**self._template | of_this)

    def _create(
        self,
        name: str,
        header: Header,
        text: bytes,
        trailer: bytes,
        raw_total: int | None,
        least: int,
        started: float,
    ) -> StoreWriter:
        directory, settings = self._directory, self._settings
        path = os.path.join(directory.path, name)
        room = Room(directory) if settings.evicts_when_full else None

        def create() -> StoreWriter:
            return StoreWriter(
                path,
                header,
                text,
                trailer,
                self._encoding,
                directory=directory,
                settings=settings,
                room=room,
                raw_total=raw_total,
            )

        try:
            try:
                return create()
            except FileNotFoundError:
                directory.make(settings.mode)  # it was removed since the store was opened
            except OSError as error:
                if error.errno not in NO_SPACE or room is None or not room.make(least, least):
                    raise
            return create()
        except OSError as error:
            log.create_failed(path, error, time.monotonic() - started)
            raise
