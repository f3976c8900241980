"""llama.cpp's session files, into a directory of states and out of it.

A session file is what ``llama_state_seq_save_file`` writes, llama-server's ``/slots/ID?action=save`` too: ::

    offset  size
    0       4      magic   b"qsgg", GGSQ as a number
    4       4      version 3
    8       4      n, how many tokens
    12      4 n    tokens
    12+4n   ...    the state: what llama.cpp writes of its memory

All numbers are little-endian. A file has no checksum and doesn't say what model it is of. So what is imported is taken
for a state of the cache's own model after a look at all that its structure tells: position after position, layer after
layer, to the last byte.
"""

from __future__ import annotations

import os
import shutil
import struct
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from ds4kv.engines import tokens as _tokens
from ds4kv.engines.llama_model import Model
from ds4kv.engines.llama_states import Ids, States, as_ids
from ds4kv.file.draft import Draft

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ds4kv.store.entry import Entry

__all__ = ["export_session", "import_session"]

MAGIC, VERSION = 0x67677371, 3
_HEAD = struct.Struct("<III")
_CELL = struct.Struct("<iIi")
_MAX_LAYERS = 4096


def import_session(path: str | os.PathLike[str], cache: States) -> Entry | None:
    """Saves the state of a session file in the directory of ``cache``, a :class:`ds4kv.engines.llama_cpp.Cache` or what
    ``attach`` gives; its entry, or None where the store refuses it: the log says why.

    Raises ValueError for what is no session file, or not of such a model, with the place; for models with a sliding
    window or a recurrent state, whose states are of another structure; and OSError.
    """
    _refuse_unless(cache.model.is_plain, "only of models whose layers attend to all tokens")
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        ids = _read_tokens(file, size, vocabulary=cache.vocabulary)
        body = np.empty(size - _HEAD.size - 4 * len(ids), np.uint8)
        _refuse_unless(file.readinto(body.data) == len(body), "it was cut while it was read")
    _Walk(body.data, start=size - len(body)).check(len(ids), cache.model)
    key = _tokens.key_of(ids.tolist())
    return cache.store.save_buffer(key, body.data, tokens=len(ids), ctx_size=len(ids), quant_bits=None)


def export_session(cache: States, ids: Ids, path: str | os.PathLike[str]) -> None:
    """Writes the state that is stored of exactly these tokens as a session file, which ``llama_state_seq_load_file``
    reads; a file of this name is replaced.

    Raises KeyError if there is none, ValueError for a model with a sliding window that keeps states of whole contexts
    (``swa_full``), what a load raises, and OSError.
    """
    _refuse_unless(not cache.model.is_whole, "not of a context with swa_full, whose states are kept whole")
    wanted = as_ids(ids)
    entry = cache.store.get(_tokens.key_of(wanted.tolist()))
    if entry is None:
        raise KeyError(f"no state of these {len(wanted)} tokens is stored")
    draft = Draft(path)
    try:
        with cache.store.load(entry) as checkpoint:
            draft.file.write(_HEAD.pack(MAGIC, VERSION, len(wanted)))
            draft.file.write(wanted.astype("<i4").tobytes())
            shutil.copyfileobj(checkpoint.payload, _Whole(draft.file), 4 << 20)
        draft.publish()
    finally:
        draft.discard()


class _Whole:
    """A raw file, which may take less than it is given, as one that takes all."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def write(self, data: bytes) -> int:
        left = memoryview(data)
        while left:
            left = left[self._file.write(left) :]
        return len(data)


def _refuse_unless(is_so: bool, why: str) -> None:
    if not is_so:
        raise ValueError(f"session file: {why}")


def _read_tokens(file: BinaryIO, size: int, *, vocabulary: int) -> NDArray[np.intc]:
    head = file.read(_HEAD.size)
    _refuse_unless(len(head) == _HEAD.size, f"{len(head)} bytes are too few for a head")
    magic, version, count = _HEAD.unpack(head)
    _refuse_unless(magic == MAGIC, f"the magic is {magic:#010x}, not {MAGIC:#010x}")
    _refuse_unless(version == VERSION, f"the version is {version}, not {VERSION}")
    room = (size - _HEAD.size) // 4
    _refuse_unless(0 < count <= room, f"{count} tokens in a file that has room for {room}")
    data = file.read(4 * count)
    _refuse_unless(len(data) == 4 * count, "it was cut while it was read")
    ids = np.frombuffer(data, "<i4").astype(np.intc)
    wrong = (ids < 0) | (ids >= vocabulary)
    if wrong.any():
        at = int(wrong.argmax())
        raise ValueError(f"session file: byte {_HEAD.size + 4 * at}: token {ids[at]}, outside 0..{vocabulary - 1}")
    return ids


class _Walk:
    """Through a state, from its first byte to its last. ``start`` is where it lies in the file."""

    def __init__(self, body: memoryview, *, start: int) -> None:
        self._body, self._start, self._at = body, start, 0

    def check(self, count: int, model: Model) -> None:
        """Raises ValueError unless it has the keys and values of positions 0 to ``count`` - 1, and nothing else. How
        many layers there are, and how long a row is, llama.cpp checks when it loads a state.
        """
        is_v_transposed = model.is_v_transposed
        self._expect("streams", self._number("<I"), 1)
        self._expect("tokens", self._number("<I"), count)
        self._positions(count)
        self._expect("V transposed", self._number("<I"), int(is_v_transposed))
        layers = self._number("<I")
        if not 0 < layers <= _MAX_LAYERS:
            self._refuse(f"{layers} layers")
        for _ in range(layers):
            self._expect("type of K", self._number("<i"), model.key_type)
            self._skip(count, self._number("<Q"))
        for _ in range(layers):
            self._expect("type of V", self._number("<i"), model.value_type)
            if is_v_transposed:
                element, rows = self._number("<I"), self._number("<I")
                self._skip(count, element * rows)
            else:
                self._skip(count, self._number("<Q"))
        if self._at != len(self._body):
            self._refuse(f"{len(self._body) - self._at} bytes too many")

    def _refuse(self, why: str) -> None:
        raise ValueError(f"session file: byte {self._start + self._at}: {why}")

    def _expect(self, what: str, number: int, wanted: int) -> None:
        if number != wanted:
            self._refuse(f"{what}: {number}, not {wanted}")

    def _number(self, kind: str) -> int:
        size = struct.calcsize(kind)
        if len(self._body) - self._at < size:
            self._refuse("it ends here")
        (number,) = struct.unpack_from(kind, self._body, self._at)
        self._at += size
        return int(number)

    def _positions(self, count: int) -> None:
        """A position, how many sequences have it, and which."""
        if (len(self._body) - self._at) // _CELL.size < count:
            self._refuse("it ends within the positions")
        cells = np.frombuffer(self._body, "<i4", 3 * count, self._at).reshape(count, 3)
        if not (cells[:, 0] == np.arange(count)).all():
            self._refuse(f"positions other than 0 to {count - 1}")
        if not (cells[:, 1] == 1).all():
            self._refuse("positions of other than one sequence")
        self._at += _CELL.size * count

    def _skip(self, rows: int, row_bytes: int) -> None:
        if row_bytes == 0 or rows * row_bytes > len(self._body) - self._at:
            self._refuse(f"{rows} rows of {row_bytes} bytes, where {len(self._body) - self._at} bytes are left")
        self._at += rows * row_bytes
