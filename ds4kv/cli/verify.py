"""``ds4kv verify``: decodes checkpoints and gives each its verdict.

:mod:`ds4kv.file.verdict` has the words, and what proves each. A trailer that isn't noted has no rules of its own and is
not read. Memory doesn't grow with the payload.

Small files are judged several at a time by one thread each, large ones one at a time by all threads: never more threads
than were asked for, and the order stays that of the names.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import threading
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import ds4kv
from ds4kv.cli.arguments import add_threads
from ds4kv.cli.messages import printable, reason
from ds4kv.cli.pieces import pieces
from ds4kv.cli.progress import Advance, progress
from ds4kv.cli.verdicts import State
from ds4kv.core import workers
from ds4kv.file.verdict import Verdict
from ds4kv.format.header import CHUNK_SIZE

__all__ = ["configure", "run"]

_LARGE = 4 * CHUNK_SIZE  # of this size on, a file keeps several threads busy
_AHEAD = 4  # files under way for each thread, so that a slow one holds up no thread


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "A file is ok if a reader gets a whole payload from it, and this proves it: sealed, the file alone, with"
        " header, text and trailer, as layout packed has it; sidecar, the same by the sums that a store has noted in"
        " .ds4kv/; checksums, its own, of the payload; decodes, none of these, so that a changed byte may be unseen. A"
        " corrupt file is proven wrong. An unsupported one is of a layout that isn't read, and may be good. An"
        " unreadable one could not be judged. The exit code is 1 if any file is not ok. With --json each file is one"
        " line, an object of path, verdict, why (null if ok), proof (null if not ok), file_bytes and resumed."
    )
    parser.add_argument(
        "paths", metavar="FILE|DIR", nargs="+", help="a checkpoint, or a directory: all of its *.kv files"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a line, as soon as a file is judged")
    parser.add_argument(
        "--resume",
        metavar="STATE",
        help="note each verdict in this file, and pass over what is noted there already and has kept its size and time"
        " of change since; files that were unreadable are tried again",
    )
    add_threads(parser, "worker threads for all files together")


def run(args: argparse.Namespace) -> int:
    counts = Counter({"ok": 0})
    with contextlib.ExitStack() as stack:
        state = None if args.resume is None else stack.enter_context(State(args.resume))
        files = [(path, error) for given in args.paths for path, error in _files(given)]
        advance = stack.enter_context(progress(sum(_size(path) for path, error in files if error is None)))
        for row in _judge_all(files, state, workers.resolve(args.threads), advance):
            counts[row["verdict"]] += 1
            print(json.dumps(row) if args.json else _in_words(row), flush=True)
    total = counts.total()
    if not args.json:
        print(f"{total} file{'s' * (total != 1)}: {', '.join(f'{n} {word}' for word, n in counts.items())}")
    return 0 if counts["ok"] == total else 1


def _in_words(row: dict[str, Any]) -> str:
    before = " (judged before)" if row["resumed"] else ""
    return f"{printable(row['path'])}: {row['verdict']}: {row['why'] or row['proof']}{before}"


def _files(path: str) -> Iterator[tuple[str, OSError | None]]:
    """The file, or those of the directory; with the error if it can't be listed."""
    if not os.path.isdir(path):
        yield path, None
        return
    try:
        names = sorted(os.listdir(path))
    except OSError as error:
        yield path, error
        return
    for name in names:
        if name.endswith(".kv"):
            yield os.path.join(path, name), None


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def _judge_all(
    files: list[tuple[str, OSError | None]], state: State | None, threads: int, advance: Advance
) -> Iterator[dict[str, Any]]:
    """The row of each file, in their order; every one is noted before it is given."""
    stopped = threading.Event()
    under_way: deque[Future[dict[str, Any]]] = deque()

    def next_row() -> dict[str, Any]:
        row = under_way.popleft().result()
        if state is not None:
            state.note(row)
        return {name: value for name, value in row.items() if name != "stamp"}

    # With no threads of its own a reader decodes in ours.
    with ThreadPoolExecutor(max(threads, 1), thread_name_prefix="ds4kv-verify") as pool:
        try:
            for path, error in files:
                known = state.find(path) if state is not None and error is None else None
                is_large = known is None and _size(path) >= _LARGE
                while under_way and (is_large or len(under_way) >= max(threads, 1) * _AHEAD):
                    yield next_row()
                if known is not None:
                    advance(path, _size(path))
                    under_way.append(_done(known))
                elif error is not None:
                    under_way.append(_done(_row(path, None, None, error)))
                else:
                    own = threads if is_large else 0
                    under_way.append(pool.submit(_judge, path, own, stopped, advance))
                    if is_large:
                        yield next_row()
            while under_way:
                yield next_row()
        finally:  # also by Ctrl-C
            stopped.set()
            pool.shutdown(cancel_futures=True)


def _done(row: dict[str, Any]) -> Future[dict[str, Any]]:
    future: Future[dict[str, Any]] = Future()
    future.set_result(row)
    return future


def _row(path: str, stamp: tuple[int, int] | None, proof: str | None, error: Exception | None) -> dict[str, Any]:
    return {
        "path": path,
        "verdict": Verdict.OK if error is None else Verdict.of(error),
        "why": None if error is None else reason(error),
        "proof": proof,
        "file_bytes": None if stamp is None else stamp[0],
        "resumed": False,
        "stamp": stamp,
    }


def _judge(path: str, own_threads: int, stopped: threading.Event, advance: Advance) -> dict[str, Any]:
    stamp = None
    told = 0
    try:
        status = os.stat(path)
        stamp = status.st_size, status.st_mtime_ns
        with ds4kv.open(path, workers=own_threads) as checkpoint:
            for _ in pieces(checkpoint.payload):
                if stopped.is_set():
                    break
                done = status.st_size * checkpoint.payload.tell() // max(checkpoint.payload.raw_total, 1)
                advance(path, done - told)
                told = done
            proof = checkpoint.proof()
    except (ds4kv.Ds4kvError, OSError, MemoryError) as error:
        return _row(path, stamp, None, error)
    finally:
        advance(path, (stamp[0] if stamp else 0) - told)
    return _row(path, stamp, proof, None)
