"""The tool map behind the region: the id of a tool call, and the exact text that the model wrote for it.

A client sends back the ids alone, and a prompt rendered without the model's own words would miss the checkpoint. A
*tool block* is that text, from its opening tag ``tool_calls`` to the closing one; all calls in it share it. Ids and
tool blocks are bytes here: nobody promises that they are UTF-8.

Reading forgives: a checkpoint is not lost for its tool map.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable, Container, Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

ReadAt: TypeAlias = Callable[[int, int], bytes]
"""read_at(offset, size): those bytes of the trailer, fewer only at its end."""
if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

__all__ = [
    "MAX_BLOCK_BYTES",
    "MAX_IDS",
    "MAX_ID_BYTES",
    "pack_tool_map",
    "read_tool_map",
    "select_tool_map",
    "tool_blocks",
    "unpack_tool_map",
]

MAX_IDS = 100_000
"""How many ids an engine remembers, unless told otherwise."""
MAX_ID_BYTES = 256
MAX_BLOCK_BYTES = 512 << 20

_HEAD = struct.Struct("<4sI")
_ENTRY = struct.Struct("<II")
_MAGIC = b"KTM\x01"  # the last byte is the version
_MAX_ENTRIES_PER_ID = 4  # a map of more is ignored
_MAX_ENTRIES = _MAX_ENTRIES_PER_ID * MAX_IDS


class _Tag(NamedTuple):
    opener: bytes
    closer: bytes


_NEWLINES = b"\n\n"
_TAGS = [
    _Tag(f"<{name}>".encode(), f"</{name}>".encode())
    for name in ("\uff5cDSML\uff5ctool_calls", "DSML\uff5ctool_calls", "tool_calls")
]


def pack_tool_map(mapping: Mapping[bytes, bytes]) -> bytes:
    """The trailer that holds ``mapping``, from ids to tool blocks; b"", which is no trailer, if it is empty.

    Raises ValueError for an id or a tool block of a length, or a number of entries, that readers refuse: an id has 1 to
    256 bytes, a tool block 1 byte to 512 MiB, and there are at most 400,000 entries.
    """
    if not mapping:
        return b""
    if len(mapping) > _MAX_ENTRIES:
        raise ValueError(f"a tool map of {len(mapping)} entries; at most {_MAX_ENTRIES} are read")
    parts = [_HEAD.pack(_MAGIC, len(mapping))]
    for id_, block in mapping.items():
        if not 1 <= len(id_) <= MAX_ID_BYTES:
            raise ValueError(f"a tool call id of {len(id_)} bytes, outside 1..{MAX_ID_BYTES}: {id_[:32]!r}")
        if not 1 <= len(block) <= MAX_BLOCK_BYTES:
            raise ValueError(f"the tool block of id {id_!r} is {len(block)} bytes, outside 1..{MAX_BLOCK_BYTES}")
        parts += (_ENTRY.pack(len(id_), len(block)), id_, block)
    return b"".join(parts)


def unpack_tool_map(
    trailer: ReadableBuffer, *, wanted: Container[bytes] | None = None, max_ids: int = MAX_IDS
) -> dict[bytes, bytes]:
    """The tool map in a trailer, in its order; of all ids, or of the ``wanted`` ones.

    Never raises for what the bytes hold. What is no tool map, and one of more than 4 x ``max_ids`` entries, reads as
    empty; reading ends at the first entry that is cut short or has an impossible length, and keeps those before it.
    """
    view = memoryview(trailer).cast("B")
    return read_tool_map(lambda at, size: bytes(view[at : at + size]), len(view), wanted=wanted, max_ids=max_ids)


def read_tool_map(
    read_at: ReadAt, size: int, *, wanted: Container[bytes] | None = None, max_ids: int = MAX_IDS
) -> dict[bytes, bytes]:
    """:func:`unpack_tool_map` of a trailer of ``size`` bytes that is not in memory, and needn't be.

    Tool blocks that aren't wanted are not read. Raises what ``read_at`` raises.
    """
    found: dict[bytes, bytes] = {}
    head = read_at(0, _HEAD.size)
    if len(head) < _HEAD.size:
        return found
    magic, count = _HEAD.unpack(head)
    if magic != _MAGIC or count > _MAX_ENTRIES_PER_ID * max_ids:
        return found
    at = _HEAD.size
    for _ in range(count):
        lengths = read_at(at, _ENTRY.size)
        if len(lengths) < _ENTRY.size:
            break
        id_size, block_size = _ENTRY.unpack(lengths)
        if not 1 <= id_size <= MAX_ID_BYTES or not 1 <= block_size <= MAX_BLOCK_BYTES:
            break
        at += _ENTRY.size
        if id_size + block_size > size - at:
            break
        id_ = read_at(at, id_size)
        if wanted is None or id_ in wanted:
            block = read_at(at + id_size, block_size)
            if len(block) < block_size:  # the file became shorter meanwhile
                break
            found[id_] = block
        at += id_size + block_size
    return found


def tool_blocks(text: bytes) -> Iterator[bytes]:
    """The tool blocks of a text, from left to right; none overlap, and one that occurs twice comes twice.

    A tool block begins with the first opening tag that has its closing tag somewhere behind it, and with the two
    newlines before it, if those are there and not part of another; it ends with that closing tag.
    """
    tags = _TAGS
    starts = dict.fromkeys(tags, -1)
    end = 0
    while True:
        # A tag is looked for again when it is behind, and never once it or its closing tag isn't found: so the time
        # this takes grows with the text, however it mixes them.
        for tag in tags:
            if starts[tag] < end:
                starts[tag] = text.find(tag.opener, end)
        tags = [tag for tag in tags if starts[tag] >= 0]
        if not tags:
            return
        tag = min(tags, key=starts.__getitem__)
        start = starts[tag]
        closed = text.find(tag.closer, start)
        if closed < 0:
            tags.remove(tag)
            continue
        if text.endswith(_NEWLINES, end, start):
            start -= len(_NEWLINES)
        end = closed + len(tag.closer)
        yield text[start:end]


def select_tool_map(text: bytes, remembered: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    """The tool map to store with ``text``: of what is ``remembered``, from ids to tool blocks, all that occurs in it.

    ``remembered`` begins with the oldest. The tool blocks come in the order of the text, each once with all of its ids,
    of which the newest is first. What no tool map can hold is left out: :func:`pack_tool_map` takes the result.
    """
    ids: dict[bytes, list[bytes]] = {block: [] for block in tool_blocks(text) if len(block) <= MAX_BLOCK_BYTES}
    if not ids:
        return {}
    for id_, block in remembered.items():
        if block in ids and 1 <= len(id_) <= MAX_ID_BYTES:
            ids[block].append(id_)
    pairs = ((id_, block) for block, own in ids.items() for id_ in reversed(own))
    return dict(itertools.islice(pairs, _MAX_ENTRIES))
