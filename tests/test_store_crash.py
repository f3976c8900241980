"""kill -9 at any moment: the directory opens again, what is published is whole, and nothing is lost but to the budget.

An engine that saves, loads, evicts and rewrites tool maps is killed after a random time, and what it left is held
against its journal; then the next one goes on in the same directory. `DS4KV_KILLS=500 pytest tests/test_store_crash.py`
kills that many; by default it is 20.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import store_worker
from processes import DEADLINE, started

import ds4kv
from ds4kv.format.toolmap import unpack_tool_map
from ds4kv.store.store import Store

KILLS = int(os.environ.get("DS4KV_KILLS", "20"))


def published(directory: Path) -> dict[str, int]:
    """The files that are there, each proven whole, and their hits."""
    found = {}
    for name in filter(store_worker.is_file_name, os.listdir(directory)):
        checkpoint = ds4kv.load(directory / name)  # which holds the text against the name
        assert checkpoint.payload == store_worker.payload_of(checkpoint.text)
        if checkpoint.header.ext_flags & ds4kv.Ext.TOOL_MAP:
            assert unpack_tool_map(checkpoint.trailer) in store_worker.TOOL_MAPS[1:]
        found[name] = checkpoint.header.hits
    return found


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path: Path) -> None:
    directory = tmp_path / "store"
    done: Counter[str] = Counter()
    before: dict[str, int] = {}
    for kill in range(KILLS):
        journal = run_and_kill(directory, kill)
        done.update(line[0] for line in journal)
        left = os.listdir(directory)
        after = published(directory)
        hold_against_journal(before, journal, after)

        temporaries = [name for name in left if ".tmp." in name]
        done["temporary file"] += len(temporaries)
        with Store(directory, budget_bytes=store_worker.BUDGET) as store:
            opened = {os.path.basename(entry.path): entry for entry in store.entries()}
        assert not [name for name in os.listdir(directory) if name not in (".ds4kv", ".ds4kv.lock", *opened)]
        assert sum(entry.file_size for entry in opened.values()) <= store_worker.BUDGET
        before = published(directory)
        assert before.items() <= after.items()
        assert before.keys() == opened.keys()
    print(dict(done))  # for who asked for many
    assert min(done[what] for what in ("saved", "present", "hit", "remove")) > 0, done


def run_and_kill(directory: Path, number: int) -> list[list[str]]:
    """The journal of an engine that was killed."""
    command = [sys.executable, store_worker.__file__, directory, str(number), "60"]
    with started(command) as engine:
        first = engine.line()
        time.sleep(random.Random(number).uniform(0, 0.1))
        engine.process.kill()
        out, errors = engine.finish()
    assert engine.returncode == -signal.SIGKILL, errors.decode()
    # Each line is one write, but the pipe may have taken part of the last one.
    return [line.split() for line in (first + out).decode().split("\n")[:-1]]


def hold_against_journal(before: dict[str, int], journal: list[list[str]], after: dict[str, int]) -> None:
    """What must be there is, with the hits that it must have; what was removed was removed for the budget."""
    expected = dict(before)
    for event, *words in journal:
        if event == "remove":
            name, total = words
            assert int(total) > store_worker.BUDGET, (name, total)
            expected.pop(name, None)
        elif event == "saved":
            expected[words[0]] = 0
        elif event == "hit":
            expected[words[0]] += 1
        elif event == "present":
            assert words[0] in expected
    lost = expected.keys() - after.keys()
    assert not lost, lost
    # One thing may have been done that the journal has no line of: a hit, or a save.
    more = {name: after[name] - hits for name, hits in expected.items() if after[name] != hits}
    assert list(more.values()) in ([], [1]), more
    unknown = after.keys() - expected.keys()
    removed = [words[0] for event, *words in journal if event == "remove"]
    assert len(unknown - {*removed[-1:]}) <= 1, unknown


def test_killed_in_the_middle_of_a_save(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        store.save_buffer(b"text", b"there already", tokens=600, ctx_size=1)
    kept = published_bytes(tmp_path)
    script = """
import os, signal, sys
from ds4kv.store.store import Store

with Store(sys.argv[1], codec="none") as store:
    with store.save(b"text 2", tokens=600, ctx_size=1) as saving:
        saving.payload.write(bytes(1 << 20))
        os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", script, tmp_path], timeout=DEADLINE).returncode == -signal.SIGKILL
    temporaries = [name for name in os.listdir(tmp_path) if ".tmp." in name]
    assert len(temporaries) == 1
    assert (tmp_path / temporaries[0]).stat().st_size > 1 << 20
    Store(tmp_path).close()
    assert not [name for name in os.listdir(tmp_path) if ".tmp." in name]
    assert published_bytes(tmp_path) == kept


def test_the_temporary_file_of_a_live_save_stays(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        with store.save(b"text", tokens=600, ctx_size=1) as saving:
            saving.payload.write(b"one")
            Store(tmp_path).close()
            assert [name for name in os.listdir(tmp_path) if ".tmp." in name]
            saving.payload.write(b"two")
        assert saving.entry is not None
        assert ds4kv.load(saving.entry.path).payload == b"onetwo"


def published_bytes(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.glob("*.kv")}
