"""Four processes save, load and evict in one directory: no wrong byte, and no exception but the documented miss.

`DS4KV_PROCESS_SECONDS=60 pytest tests/test_store_processes.py` gives them a minute; by default it is two seconds.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
from collections import Counter
from pathlib import Path

import pytest
import store_worker
from processes import DEADLINE, started
from store_worker import BLOCKS

import ds4kv
from ds4kv.store.store import Store

SECONDS = float(os.environ.get("DS4KV_PROCESS_SECONDS", "2"))
PROCESSES = 4


@pytest.mark.timeout(SECONDS + 60)
def test_four_processes_share_a_directory(tmp_path: Path) -> None:
    directory = tmp_path / "store"
    command = [sys.executable, store_worker.__file__, directory]
    journals = [tmp_path / f"journal {number}" for number in range(PROCESSES)]
    with contextlib.ExitStack() as stack:
        workers = []
        for number, journal in enumerate(journals):
            out = stack.enter_context(journal.open("wb"))
            argv = [*command, str(number), str(SECONDS)]
            workers.append(stack.enter_context(started(argv, stdout=out, deadline=SECONDS + DEADLINE)))
        errors = [worker.finish()[1].decode() for worker in workers]
    assert [worker.returncode for worker in workers] == [0] * PROCESSES, "\n".join(errors)

    done: Counter[str] = Counter()
    for journal in journals:
        lines = [line.split() for line in journal.read_text().splitlines()]
        assert lines[-1] == ["done"]
        done.update(line[0] for line in lines)
    assert min(done[what] for what in ("saved", "present", "hit", "remove")) > 0, done

    names = os.listdir(directory)
    assert not [name for name in names if name not in (".ds4kv", ".ds4kv.lock") and not store_worker.is_file_name(name)]
    for name in filter(store_worker.is_file_name, names):
        checkpoint = ds4kv.load(directory / name)  # which holds the text against the name
        assert checkpoint.payload == store_worker.payload_of(checkpoint.text)
    with Store(directory, budget_bytes=store_worker.BUDGET) as store:
        assert sum(entry.file_size for entry in store.entries()) <= store_worker.BUDGET


@pytest.mark.parametrize(("old", "new"), [*itertools.permutations(store_worker.TOOL_MAPS[1:], 2)])
def test_a_tool_map_that_is_rewritten_during_a_load_is_read_whole(
    tmp_path: Path, old: dict[bytes, bytes], new: dict[bytes, bytes]
) -> None:
    text = b"".join(BLOCKS)
    with Store(tmp_path) as ours, Store(tmp_path) as other:
        ours.save_buffer(text, b"payload", tokens=600, ctx_size=1, tool_map=old)
        entry = ours.find(text, ctx_size=1, quant_bits=2)
        assert entry is not None
        with ours.load(entry) as checkpoint:
            other.save_buffer(text, b"payload", tokens=600, ctx_size=1, tool_map=new)
            assert checkpoint.tool_map in (old, new)
