"""Runs the faults: ``python tests/faults/run.py --long`` all of them, without ``--long`` a sample.

Prints what is wrong, a line each, and a table of what was tried; the exit code is 1 if anything is wrong. ``--only
WORDS`` keeps to scenarios with these words in their names, ``--at "write 3"`` to one call.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from faults import shim

NOT_HERE = 77
"""Exit code where nothing can be tried."""


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Fails every call that ds4kv makes, one at a time; and cuts the power."
    )
    parser.add_argument("--long", action="store_true", help="all calls and all cuts, and not a sample of them")
    parser.add_argument("--sample", type=int, default=120, help="points of a sample, 120 by default")
    parser.add_argument("--cuts", type=int, default=60, help="power cuts of a sample, 60 by default")
    parser.add_argument("--seed", type=int, default=0, help="another sample")
    parser.add_argument("--only", default="", help="scenarios that have this in their names")
    parser.add_argument("--at", default="", help='faults that begin with this, such as "write 3"')
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes, by default one a CPU")
    parser.add_argument("--part", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser


def main() -> int:
    args = arguments().parse_args()
    if args.folder is not None:
        return work(args)
    if shim.compiler() is None:
        print("no compiler, or no Linux: nothing can be tried")
        return NOT_HERE
    with tempfile.TemporaryDirectory(prefix="ds4kv-faults-", dir=memory()) as name:
        folder = Path(name)
        try:
            library = shim.build(folder)
        except subprocess.CalledProcessError as error:
            print(f"the shim can't be built here: {error.stderr}")
            return NOT_HERE
        # The shim has to be there before Python is.
        environment = os.environ | {"LD_PRELOAD": str(library), "PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1"}
        started = time.monotonic()
        with contextlib.ExitStack() as stack:
            workers = []
            for part in range(args.jobs):
                (folder / str(part)).mkdir()
                command = [sys.executable, __file__, *sys.argv[1:], "--jobs", str(args.jobs), "--part", str(part)]
                command += ["--folder", str(folder / str(part))]
                worker = stack.enter_context(subprocess.Popen(command, env=environment))
                stack.callback(worker.kill)
                workers.append(worker)
            codes = [worker.wait() for worker in workers]
        tables = [json.loads((folder / str(part) / "table").read_text()) for part in range(args.jobs)]
        tried = sum((Counter(table["tried"]) for table in tables), Counter())
        wrong = sum((Counter(table["wrong"]) for table in tables), Counter())
        seconds, which = max(table["slowest"] for table in tables)
        print(f"\n{time.monotonic() - started:.0f} s, seed {args.seed}; the slowest took {seconds:.1f} s: {which}")
        for what, count in [*tried.items(), *((f"WRONG: {what}", count) for what, count in wrong.items())]:
            print(f"{count:10,} {what}")
        assert all(code in (0, 1) for code in codes), codes
        return 1 if wrong else 0


def memory() -> str | None:
    """A file system in memory, where there is one: every point makes a database and sends it to the disk."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def work(args: argparse.Namespace) -> int:
    from faults import file_scenarios, store_scenarios
    from faults.cuts import SESSIONS, Cuts
    from faults.points import Points, faults_of

    file_scenarios.EngineInC.build(args.folder)
    kinds = [*store_scenarios.SCENARIOS, *file_scenarios.SCENARIOS]
    points = Points(args.folder)
    tried: Counter[str] = Counter()
    wrong: Counter[str] = Counter()
    slowest = (0.0, "")

    def report(where: str, problems: list[str]) -> None:
        for problem in problems:
            wrong[problem.removeprefix("AssertionError: ").split(":")[0]] += 1
            print(f"{where} | {problem}\n", end="", flush=True)

    chosen = []
    for scenario in (kind(layout) for kind in kinds for layout in kind.also):
        if args.only in str(scenario):
            counted = points.run(scenario, None)
            if args.part == 0:
                report(f"{scenario} | no fault", counted.problems)
            chosen += [(scenario, fault) for fault in faults_of(counted.counts) if str(fault).startswith(args.at)]
    rng = random.Random(args.seed)  # the same in every part
    if not args.long and not args.at:
        chosen = rng.sample(chosen, min(args.sample, len(chosen)))
    for scenario, fault in chosen[args.part :: args.jobs]:
        began = time.monotonic()
        result = points.run(scenario, fault)
        slowest = max(slowest, (time.monotonic() - began, f"{scenario} | {fault}"))
        tried["points"] += 1
        tried[f"points of {fault.kind}"] += 1
        tried["kills" if fault.kills and result.fired else "faults met" if result.fired else "not met"] += 1
        report(f"{scenario} | {fault}", result.problems)
    cuts = Cuts(points, args.folder)
    for session in SESSIONS if args.only in "power cuts" and not args.at else ():
        record = cuts.record(session)
        states = list(record.cuts(rng))
        if not args.long:
            states = rng.sample(states, args.cuts // len(SESSIONS))
        for cut, kept in states[args.part :: args.jobs]:
            told = cuts.cut(record, cut, kept, session)
            tried["power cuts"] += 1
            tried["power cuts: lost, unnoticed, without fsync"] += len(told.get("lost", []))
            report(f"power cuts {session} | after {cut}, {kept.name}", told["problems"])
    (args.folder / "table").write_text(json.dumps({"tried": tried, "wrong": wrong, "slowest": slowest}))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
