"""A store in plain Python, for the tests to hold ds4kv's against: a dict from names to the bytes of whole files.

It is written from the rules of ds4's directories and shares no line with the package; files are taken apart by
`reference`. Every method does what one call of the store does, and says what that call has to say. Where the rules
leave a choice, it is the store's: a file is let in by its real size; a text that is there already is not looked at
for its size; of two names of one key the one with more tokens is found, then the one in lower case; unknown codes are
kept. `order` is the directory's order, which only the file system knows.
"""

from __future__ import annotations

import functools
import hashlib
import math
import re
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import reference

HALF_LIFE = 6 * 3600
TOOL_BLOCK = re.compile(rb"(?:\n\n)?<((?:\xef\xbd\x9c)?DSML\xef\xbd\x9ctool_calls|tool_calls)>.*?</\1>", re.DOTALL)
HITS_AT, LAST_USED_AT, EXT_AT = 12, 32, 6


@dataclass(frozen=True)
class Listed:
    """A file that the index takes: of the right name, its head in order, and as long as it says."""

    name: str
    sha: str
    size: int
    text_bytes: int
    end: int  # of the region
    tokens: int
    hits: int
    ctx_size: int
    quant_bits: int
    ext_flags: int
    created_at: int
    last_used: int


@functools.lru_cache(maxsize=1000)
def listed(name: str, data: bytes) -> Listed | None:
    if not re.fullmatch(r"[0-9a-fA-F]{40}\.kv", name) or len(data) < reference.TEXT_AT:
        return None
    magic, version, quant, _, ext, codec, tokens, hits, ctx, chunk, created, used, region = reference.HEADER.unpack(
        data[: reference.HEADER_BYTES]
    )
    if magic != b"KVC" or version not in (1, 2) or quant not in (2, 4) or tokens == 0:
        return None
    if version == 1 and data[21] in (1, 2):
        return None
    if version == 2:
        try:
            is_v2 = reference.layout_of(data) == "v2"
        except reference.Bad:
            return None
        if is_v2 and (codec > 2 or (codec and not 1 <= chunk <= reference.MAX_CHUNK)):
            return None
    text_bytes = struct.unpack_from("<I", data, reference.HEADER_BYTES)[0]
    end = reference.TEXT_AT + text_bytes + region
    if end > len(data):
        return None
    sha = name[:40].lower()
    return Listed(name, sha, len(data), text_bytes, end, tokens, hits, ctx, quant, ext, created, used)


@functools.lru_cache(maxsize=1000)
def parsed(name: str, data: bytes) -> reference.Parsed | None:
    """Everything in a file that is listed, or None if it is proven corrupt."""
    try:
        return reference.parse(data, name)
    except reference.Bad as bad:
        assert bad.verdict != reference.UNSUPPORTED, bad
        return None


def score(file: Listed, now: int) -> float:
    used = file.last_used if file.last_used else file.created_at
    hits = float(file.hits) if used else 0.0
    if used and now > used:
        hits *= math.exp2(-(now - used) / HALF_LIFE)
        hits = 0.0 if hits < 0.01 else hits
    return (hits + 1.0) * file.tokens / file.size


def tool_map_trailer(text: bytes, remembered: dict[bytes, bytes]) -> bytes:
    blocks = dict.fromkeys(match[0] for match in TOOL_BLOCK.finditer(text))
    pairs = [(id_, block) for block in blocks for id_, own in reversed(remembered.items()) if own == block]
    if not pairs:
        return b""
    return struct.pack("<3sBI", b"KTM", 1, len(pairs)) + b"".join(
        struct.pack("<II", len(id_), len(block)) + id_ + block for id_, block in pairs
    )


def tool_map(trailer: bytes) -> dict[bytes, bytes]:
    found: dict[bytes, bytes] = {}
    if trailer[:4] != b"KTM\1" or len(trailer) < 8:
        return found
    at = 8
    for _ in range(struct.unpack_from("<I", trailer, 4)[0]):
        if len(trailer) < at + 8:
            break
        id_bytes, block_bytes = struct.unpack_from("<II", trailer, at)
        end = at + 8 + id_bytes + block_bytes
        if not 1 <= id_bytes <= 256 or not block_bytes or end > len(trailer):
            break
        found[trailer[at + 8 : at + 8 + id_bytes]] = trailer[at + 8 + id_bytes : end]
        at = end
    return found


def is_of_rewrites(noted: bytes, head: bytes) -> bool:
    """Whether ds4 may have made this head, header and text length, of the noted one by hits and trailers."""
    is_raw = noted[3] == 1 or (noted[7] == 0 and noted[21] not in (1, 2))
    is_forgotten = is_raw and head[3] in (1, 2) and not head[7] and not any(head[20:24])
    for at, (old, new) in enumerate(zip(noted, head, strict=True)):
        changes_with_use = 12 <= at < 16 or 32 <= at < 40 or (at == 6 and old ^ new == 1)
        is_unknown_reason = at == 5 and old > 6 and new == 0
        is_unknown_to_ds4 = is_forgotten and (at in (3, 7) or 20 <= at < 24)
        if old != new and not (changes_with_use or is_unknown_reason or is_unknown_to_ds4):
            return False
    return True


def structure(head: bytes) -> tuple[bytes, ...]:
    """What of a head says how to read the file."""
    is_raw = head[3] == 1 or (head[7] == 0 and head[21] not in (1, 2))
    return (head[40:52],) if is_raw else (head[40:52], head[3:4], head[7:8], head[20:24])


@dataclass(frozen=True)
class Note:
    """What the store knows of a file: all its bytes, where the region ends, and by which stamp to know it again."""

    stamp: object
    boot: int
    data: bytes
    end: int

    @property
    def head(self) -> bytes:
        return self.data[: reference.TEXT_AT]

    def is_region_of(self, data: bytes) -> bool:
        """Whether half of the region is there at least, by four places of it; the same byte all along tells nothing."""
        start = reference.TEXT_AT + struct.unpack_from("<I", self.data, reference.HEADER_BYTES)[0]
        size = self.end - start
        if size == 0:
            return self.data[reference.TEXT_AT : start] == data[reference.TEXT_AT : start]
        piece = min(2048, math.ceil(size / 4))
        places = [start + (size - piece) // 3 * number for number in range(4)]
        pairs = [(self.data[at : at + piece], data[at : at + piece]) for at in places]
        telling = [pair for pair in pairs if len(set(pair[0])) > 1] or pairs
        return 2 * sum(noted == found for noted, found in telling) >= len(telling)


class Model:
    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.stamps: dict[str, object] = {}  # changes with every write that the file's mtime tells of
        self.before: dict[str, bytes] = {}  # what was there before the store wrote to it in place
        self.shut: set[str] = set()  # files of another user, which can't be opened
        self.noted: dict[str, Note] = {}
        self.boot = 0
        self.quarantine: dict[str, bytes] = {}
        self.budget = self.min_tokens = self.consume_above = 0
        self.reject_different_quant = False

    def listed(self, order: Iterable[str] | None = None) -> list[Listed]:
        names = self.files if order is None else [name for name in order if name in self.files]
        return [file for name in names if name not in self.shut and (file := listed(name, self.files[name]))]

    def total(self) -> int:
        return sum(file.size for file in self.listed())

    def write(self, name: str, data: bytes) -> None:
        """Somebody writes to a file in place, or makes it there."""
        self.files[name] = data
        self.stamps[name] = object()
        self.before.pop(name, None)

    def patch(self, name: str, offset: int, data: bytes) -> None:
        old = self.files[name]
        self.write(name, old[:offset] + data + old[offset + len(data) :])

    def remove(self, name: str) -> None:
        """What the store does: it forgets the file, too."""
        self.replace(name, None)
        self.noted.pop(name, None)

    def replace(self, name: str, data: bytes | None) -> None:
        """Another file has the name, or none."""
        for facts in (self.files, self.stamps, self.before):
            facts.pop(name, None)
        self.shut.discard(name)
        if data is not None:
            self.write(name, data)

    def move(self, name: str, target: str) -> None:
        """Another program renames a file."""
        stamp, data, is_shut = self.stamps[name], self.files[name], name in self.shut
        self.replace(name, None)
        self.replace(target, data)
        self.stamps[target] = stamp
        if is_shut:
            self.shut.add(target)

    def is_damaged(self, name: str) -> bool:
        """Whether this is the file that was noted, and not what was saved."""
        is_damaged, note = self.judged(name)
        return is_damaged or (
            note is not None
            and note.data[reference.TEXT_AT : note.end] != self.files[name][reference.TEXT_AT : note.end]
        )

    def judged(self, name: str) -> tuple[bool, Note | None]:
        """Whether the head alone proves damage; and the note, if it is about this file."""
        note, data = self.noted.get(name), self.files[name]
        if note is None:
            return False, None
        head = data[: reference.TEXT_AT]
        if self.stamps[name] is note.stamp and self.boot == note.boot:  # nobody wrote to it
            return (False, note) if head == note.head else (True, None)
        if is_of_rewrites(note.head, head):
            return False, note if note.is_region_of(data) else None
        misread = structure(head) != structure(note.head) and len(data) == len(note.data) and note.is_region_of(data)
        return misread, None

    def renew(self, name: str, trailer: bytes | None = None) -> None:
        """The store has written a hit to the file, or a trailer: it is noted again, if that is all that was written."""
        note, data = self.noted.get(name), self.files[name]
        if note is None or not is_of_rewrites(note.head, data[: reference.TEXT_AT]) or not note.is_region_of(data):
            return
        trailer = note.data[note.end :] if trailer is None else trailer
        if data[note.end :] == trailer:
            saved = data[: reference.TEXT_AT] + note.data[reference.TEXT_AT : note.end] + trailer
            self.noted[name] = Note(self.stamps[name], self.boot, saved, note.end)

    # Reading

    def find(self, prompt: bytes, *, ctx_size: int, quant_bits: int) -> str | None:
        if quant_bits not in (2, 4):
            return None
        best = None
        for file in self.listed():
            if file.text_bytes > len(prompt) or file.tokens < self.min_tokens or file.ctx_size > ctx_size:
                continue
            if self.reject_different_quant and file.quant_bits != quant_bits:
                continue
            if hashlib.sha1(prompt[: file.text_bytes]).hexdigest() != file.sha:
                continue
            rank = file.text_bytes, file.tokens, file.name
            if best is None or rank > best:
                best = rank
        return best and best[2]

    def load(self, name: str, *, now: int, engine_fails: bool) -> reference.Parsed | None:
        """What is loaded; None if the file is proven corrupt, which sets it aside."""
        file = None if self.is_damaged(name) else parsed(name, self.files[name])
        if file is None:
            data = self.files[name]
            self.remove(name)
            places = [name, *(f"{name}.{number}" for number in range(1, len(self.quarantine) + 1))]
            self.quarantine[next(place for place in places if place not in self.quarantine)] = data
        elif engine_fails:
            pass
        elif self.consume_above and file.tokens > self.consume_above:
            self.remove(name)
        else:
            before = self.files[name]
            self.patch(name, HITS_AT, struct.pack("<I", min(file.hits + 1, 2**32 - 1)))
            self.patch(name, LAST_USED_AT, struct.pack("<Q", now))
            self.before[name] = before
            self.renew(name)
        return file

    def tool_maps(self, ids: set[bytes], order: Sequence[str]) -> dict[bytes, bytes]:
        found: dict[bytes, bytes] = {}
        for file in self.listed(order):
            if file.ext_flags & 1 and not self.judged(file.name)[0]:
                own = tool_map(self.files[file.name][file.end :])
                found = {id_: block for id_, block in own.items() if id_ in ids} | found
        return found

    # Writing

    def save(
        self,
        text: bytes,
        region: bytes,
        *,
        tokens: int,
        ctx_size: int,
        quant_bits: int,
        ext_flags: int,
        remembered: dict[bytes, bytes],
        now: int,
        order: Sequence[str],
        is_empty: bool = False,
        engine_fails: bool = False,
        **header: int,
    ) -> tuple[str | None, bool]:
        """The name of the text's file, None if there is none, and whether it is new."""
        if tokens < max(self.min_tokens, 1) or quant_bits not in (2, 4):
            return None, False
        trailer = tool_map_trailer(text, remembered)
        sha = hashlib.sha1(text).hexdigest()
        same_key = [file for file in self.listed(order) if file.sha == sha]
        for file in same_key:
            if self.reject_different_quant and file.quant_bits != quant_bits:
                continue
            stored = self.files[file.name][reference.TEXT_AT : reference.TEXT_AT + file.text_bytes]
            if file.ctx_size <= ctx_size and stored == text:
                if trailer and not engine_fails:
                    self.write(file.name, self.files[file.name][: file.end] + trailer)
                    self.patch(file.name, EXT_AT, bytes([file.ext_flags | 1]))
                    self.patch(file.name, LAST_USED_AT, struct.pack("<Q", now))
                    self.renew(file.name, trailer)
                return file.name, False
        data = reference.build(
            region,
            text=text,
            trailer=trailer,
            tokens=tokens,
            ctx_size=ctx_size,
            quant_bits=quant_bits,
            ext_flags=(ext_flags & ~1) | bool(trailer),
            created_at=now,
            last_used=now,
            **header,
        )
        if len(data) + math.ceil(len(data) / 100) > self.budget or is_empty or engine_fails:
            return None, False
        for file in same_key:
            self.remove(file.name)
        name = f"{sha}.kv"
        self.replace(name, data)
        self.noted[name] = Note(self.stamps[name], self.boot, data, len(data) - len(trailer))
        self.evict(now=now, order=[*dict.fromkeys([*order, f"{sha}.kv"])], protected=sha)
        return f"{sha}.kv", True

    def victims(self, budget: int, *, now: int, order: Sequence[str], protected: str | None = None) -> list[str]:
        left = self.listed(order)
        if any(file.sha == protected and file.size > budget for file in left):
            protected = None
        gone = []
        while left and sum(file.size for file in left) > budget:
            worst = min(
                left, key=lambda file: (math.inf if file.sha == protected else score(file, now), file.last_used)
            )
            left.remove(worst)
            gone.append(worst.name)
        return gone

    def evict(self, *, now: int, order: Sequence[str], protected: str | None = None) -> list[str]:
        gone = self.victims(self.budget, now=now, order=order, protected=protected)
        for name in gone:
            self.remove(name)
        return gone
