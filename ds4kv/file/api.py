"""One checkpoint file: header, text, payload region, trailer.

:func:`load` and :func:`dump` move a whole payload between a file and memory; :func:`open` and :func:`create` give it as
a stream. Reading refuses what is proven wrong before anything is allocated for it. Writing goes to a temporary file
beside the target, which takes its name only when it is whole.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from ds4kv.core import memory as _memory
from ds4kv.core.forks import fork_waits
from ds4kv.file.ledger import Ledger
from ds4kv.file.opening import outline_of
from ds4kv.file.reader import CheckpointReader
from ds4kv.file.writer import CheckpointWriter, codec_for, encoding_for
from ds4kv.format.header import Codec, Header, Layout, Reason, default_chunk_size

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

    from ds4kv.core.memory import Readable, Writeable
    from ds4kv.file.salvage import Damage

__all__ = [
    "Checkpoint",
    "CheckpointReader",
    "CheckpointWriter",
    "create",
    "dump",
    "load",
    "open",
    "read_header",
    "read_whole",
]

StrPath: TypeAlias = str | os.PathLike[str]

_HUGE_PAGE = 1 << 21


class Checkpoint(NamedTuple):
    """A whole checkpoint in memory. ``payload`` is a view of its bytes: of ``into`` if that was given to load.

    Where ``into`` was several buffers, ``parts`` are views of them, and ``payload`` is empty.

    ``damage`` says what a salvage could not save: ``payload`` then ends at the first byte that is lost.
    """

    header: Header
    text: bytes
    payload: memoryview
    trailer: bytes
    damage: tuple[Damage, ...] = ()
    parts: tuple[memoryview, ...] = ()


def read_header(path: StrPath) -> Header:
    """The header of a checkpoint, held against the file's size. Text and payload are not looked at, but in layout
    ``packed`` header and text are held against the seal in the frame.

    Raises CorruptError, TruncatedError or UnsupportedError, with path, offset and field, and OSError.
    """
    return outline_of(os.fsdecode(path)).header


def open(path: StrPath, *, workers: int | None = None, verify: bool = True) -> CheckpointReader:
    """Opens a checkpoint for reading, as a context manager.

    Header, text and frame are read and checked at once, and a file named by a SHA-1 must have it over its text; the
    payload comes by its stream. In a directory where a store has noted the file's sums, all that is read is held
    against them, unless ``verify`` is false. A file in layout ``packed`` has no need of that: all of it is proven by
    itself, wherever it is.

    ``workers`` threads decode, 0 to 64; with 0 the calling thread does it all. By default they are 8, or what the
    environment says in ``DS4_KV_CACHE_COMPRESSION_THREADS``. They are never more than the CPUs of this process.

    Raises CorruptError, TruncatedError or UnsupportedError, with path, offset and field, and OSError.
    """
    return CheckpointReader(path, workers=workers, verify=verify)


def load(
    path: StrPath,
    *,
    workers: int | None = None,
    into: Writeable | Sequence[Writeable] | None = None,
    verify: bool = True,
    salvage: bool = False,
) -> Checkpoint:
    """Reads a whole checkpoint.

    The payload is decoded straight into ``into``, or into fresh memory. ``into`` is memory of exactly its size, of any
    kind that :func:`dump` takes, and writable; or a list or tuple of such, which are filled one after the other. After
    an error its contents are undefined. ``verify`` as in :func:`open`.

    With ``salvage`` a damaged file is no error: the payload is what is good from its first byte on, and ``damage`` of
    the result says what is lost. ``into`` is then one buffer, and may be larger; what is good behind the first damage
    is in its place there, and the rest is undefined. Without a header to go by it raises as without ``salvage``.

    Raises ValueError if ``into`` has another size, else as :func:`open`.
    """
    if salvage:
        return _salvage(path, workers, into, verify)
    with open(path, workers=workers, verify=verify) as checkpoint:
        return read_whole(checkpoint, into)


def read_whole(checkpoint: CheckpointReader, into: Writeable | Sequence[Writeable] | None) -> Checkpoint:
    """All of an open checkpoint, see :func:`load`."""
    raw_total = checkpoint.payload.raw_total
    if (parts := _memory.parts_of(into)) is not None:
        return _read_parts(checkpoint, parts)
    memory: Any = _fresh_memory(raw_total) if into is None else into
    if (size := _memory.size_of(memory)) != raw_total:
        raise ValueError(f"into is {size} bytes, the payload of {checkpoint.file.path} is {raw_total}")
    checkpoint.payload.readinto(memory)
    return Checkpoint(checkpoint.header, checkpoint.text, _as_bytes(memory), checkpoint.trailer)


def _read_parts(checkpoint: CheckpointReader, parts: list[Any]) -> Checkpoint:
    size, raw_total = sum(map(_memory.size_of, parts)), checkpoint.payload.raw_total
    if size != raw_total:
        raise ValueError(
            f"into is {size} bytes in {len(parts)} buffers, the payload of {checkpoint.file.path} is {raw_total}"
        )
    checkpoint.payload.readinto_parts(parts)
    views = tuple(map(_as_bytes, parts))
    return Checkpoint(checkpoint.header, checkpoint.text, memoryview(b""), checkpoint.trailer, parts=views)


def _salvage(path: StrPath, workers: int | None, into: Any, verify: bool) -> Checkpoint:
    if _memory.parts_of(into) is not None:
        raise ValueError("into is several buffers, and a salvage fills one")
    with fork_waits:
        from ds4kv.file.salvage import Wreck  # here, because hardly any program needs it

    with Wreck(path, workers=workers, verify=verify) as wreck:
        memory: Any = _fresh_memory(wreck.claimed_bytes) if into is None else into
        if (size := _memory.size_of(memory)) < wreck.claimed_bytes:
            raise ValueError(f"into is {size} bytes, the records of {os.fsdecode(path)} claim {wreck.claimed_bytes}")
        view = _as_bytes(memory)
        good_bytes, damage = wreck.examine(into=view)
        return Checkpoint(wreck.header, wreck.text, view[:good_bytes], wreck.trailer, damage)


def create(
    path: StrPath,
    *,
    tokens: int,
    ctx_size: int,
    text: ReadableBuffer = b"",
    quant_bits: int = 2,
    reason: str | int = "cold",
    layout: str = "v2",
    codec: str | Codec | None = None,
    level: int | None = None,
    chunk_size: int | None = None,
    workers: int | None = None,
    nice: int = 0,
    trailer: ReadableBuffer = b"",
    ext_flags: int = 0,
    hits: int = 0,
    created_at: int | None = None,
    last_used: int | None = None,
    model_id: int = 0,
    payload_abi: int = 0,
    raw_total: int | None = None,
    fsync: bool = False,
    mode: int | None = None,
    ledger: Ledger | None = None,
) -> CheckpointWriter:
    """Opens a checkpoint for writing, as a context manager; its ``payload`` is the stream to write to.

    The file is written beside ``path``, and takes that name when the block ends. If the block ends by an exception the
    file is removed, and what had the name before keeps it. A link at ``path`` stays: what it leads to is replaced. A
    device or a directory there is an OSError.

    - ``layout``: ``v2``, ``v1``, or ``v2-checked``, which has a checksum of each chunk, and is smaller and faster where
      the payload is of 32-bit numbers. A payload of which it saves less than 1/64 is stored as it is, in ``v1``. Or
      ``packed``, for engines that have no ds4 beside them, as no ds4 reads it: smaller still, of 16-bit numbers too,
      and proof of itself, header, text and trailer included. Chunks that don't get smaller are in it as they are.
      Header and text are sealed before the payload begins: of the header only hits, last use and the flag of a tool map
      may be changed after.
    - ``codec``: ``lz4``, ``lz4hc`` or ``none``. By default ``none`` in layout ``v1``, and in ``v2`` if the environment
      asks for 0 threads; else ``lz4``.
    - ``level``: 1 to 12 is LZ4HC, denser and slower; 0 is plain LZ4; -1, in ``v2-checked`` and ``packed`` alone, looks
      for runs of one byte and nothing else, and takes no longer than to write the payload as it is. By default 0 for
      codec ``lz4``, 1 for it in ``v2-checked``, and 9 for ``lz4hc``, which has no 0.
    - ``chunk_size``: 1 byte to 64 MiB of payload that are compressed as one block; in ``v2-checked`` and ``packed`` a
      power of two, in ``packed`` 2 or more. By default 16 MiB, as ds4 has it, and in these two 1 MiB, which many
      threads load faster, in less memory.
    - ``workers`` compress, as many as :func:`open` has them; ``nice``, 0 to 19, lets other threads go before them.
    - ``raw_total``: the payload's size in bytes, if it is known beforehand; another size is then a ValueError.
    - ``created_at``, ``last_used``: Unix seconds, by default now.
    - ``model_id``, ``payload_abi``: numbers of newer engines, for which all layouts but ``v2`` have room.
    - ``fsync``: the file is on the disk, under its name, when the block has ended.
    - ``mode``: of the file, 0 to 0o777, whatever the umask. By default that of the file which it replaces, else 0600.
    - ``ledger``: where the file's sums are noted, see :mod:`ds4kv.file.note`; in ``packed`` they aren't.

    Raises ValueError for what no file may hold, such as a text whose SHA-1 isn't the one that ``path`` is named by, and
    OSError.
    """
    kept_layout = Layout(layout)
    kept_codec = codec_for(kept_layout, codec)
    now = int(time.time()) if created_at is None else created_at
    header = Header(
        layout=kept_layout,
        codec=kept_codec,
        tokens=tokens,
        ctx_size=ctx_size,
        quant_bits=quant_bits,
        reason_code=Reason.from_word(reason) if isinstance(reason, str) else reason,
        ext_flags=ext_flags,
        hits=hits,
        chunk_size=_chunk_size(kept_layout, kept_codec, chunk_size),
        created_at=now,
        last_used=now if last_used is None else last_used,
        model_id=model_id,
        payload_abi=payload_abi,
    )
    return CheckpointWriter(
        path,
        header,
        bytes(memoryview(text)),
        bytes(memoryview(trailer)),
        encoding_for(header, level=level, workers=workers, nice=nice),
        raw_total=raw_total,
        fsync=fsync,
        ledger=ledger,
        mode=mode,
    )


def _chunk_size(layout: Layout, codec: Codec, chunk_size: int | None) -> int:
    if codec is Codec.NONE:
        return 0
    return default_chunk_size(layout) if chunk_size is None else chunk_size


def dump(
    path: StrPath,
    payload: Readable | Sequence[Readable],
    *,
    tokens: int,
    ctx_size: int,
    text: ReadableBuffer = b"",
    quant_bits: int = 2,
    reason: str | int = "cold",
    layout: str = "v2",
    codec: str | Codec | None = None,
    level: int | None = None,
    chunk_size: int | None = None,
    workers: int | None = None,
    nice: int = 0,
    trailer: ReadableBuffer = b"",
    ext_flags: int = 0,
    hits: int = 0,
    created_at: int | None = None,
    last_used: int | None = None,
    model_id: int = 0,
    payload_abi: int = 0,
    fsync: bool = False,
    mode: int | None = None,
) -> Header:
    """Writes a whole checkpoint and returns its header.

    ``payload`` is any C-contiguous buffer; a PyTorch tensor of any dtype in the CPU's memory, pinned or not; an array
    of any library that has an ``__array_interface__`` or lends itself by DLPack; or a list or tuple of such, which
    follow each other. It is compressed where it lies, without a copy: so what is strided is a TypeError, as is what
    lies elsewhere. Everything else as :func:`create`.
    """
    options = dict(locals())  # by their names, which are create's
    del options["payload"]
    parts = _memory.buffers_of(payload)
    with create(**options, raw_total=sum(map(_memory.size_of, parts))) as checkpoint:
        checkpoint.payload.writev(parts)
    return checkpoint.header


def _fresh_memory(size: int) -> WriteableBuffer:
    """Memory that nobody has touched yet: its pages come when a worker writes them, huge ones where granted."""
    if size < _HUGE_PAGE:
        return bytearray(size)
    try:
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        if error.errno != errno.ENOMEM:
            raise
        raise MemoryError(f"no memory for a payload of {size} bytes") from error
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a wish, which kernels without huge pages refuse
            memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def _as_bytes(memory: Any) -> memoryview:
    try:
        return memoryview(memory).cast("B")
    except (TypeError, ValueError):  # formats that Python has no name for, and shapes of no bytes
        target = _memory.target(memory)
        return _memory.view(target, 0, len(target))
