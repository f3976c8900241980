"""Scenarios with a fault of their own, for the test of who looks for faults: each has to be noticed.

Run with the shim in LD_PRELOAD and an empty folder: prints each one's problems as a line of JSON.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from faults.points import Points
from faults.scenario import A, B, Scenario, name_of
from faults.shim import Fault
from faults.store_scenarios import Saving


class Good(Scenario):
    def run(self, directory: Path) -> None:
        pass


class Leaks(Good):
    def run(self, directory: Path) -> None:
        os.open(directory, os.O_RDONLY)


class LeavesAThread(Good):
    def run(self, directory: Path) -> None:
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()


class Hangs(Good):
    def run(self, directory: Path) -> None:
        time.sleep(60)


class Crashes(Good):
    def run(self, directory: Path) -> None:
        os.abort()


class RaisesWhatItLikes(Good):
    def run(self, directory: Path) -> None:
        raise KeyError("nobody has documented this")


class Loses(Good):
    def run(self, directory: Path) -> None:
        (directory / name_of(A)).unlink()


class Condemns(Good):
    def run(self, directory: Path) -> None:
        (directory / "quarantine").mkdir()
        (directory / name_of(A)).rename(directory / "quarantine" / name_of(A))


class Damages(Good):
    def run(self, directory: Path) -> None:
        path = directory / name_of(B)
        data = bytearray(path.read_bytes())
        data[-100] ^= 1
        path.write_bytes(data)


class LeavesATemporary(Good):
    def run(self, directory: Path) -> None:
        (directory / "a.kv.tmp.1.00000000").touch()


class Renames(Good):
    def run(self, directory: Path) -> None:
        (directory / "x").touch()
        os.rename(directory / "x", directory / "y")


def main() -> None:
    points = Points(Path(sys.argv[1]), deadline=2.0)
    trials: list[tuple[Scenario, Fault | None]] = [
        (kind(), None)
        for kind in (
            Good,
            Leaks,
            LeavesAThread,
            Hangs,
            Crashes,
            RaisesWhatItLikes,
            Loses,
            Condemns,
            Damages,
            LeavesATemporary,
        )
    ]
    trials.append((Renames(), Fault("rename", 1, "kill")))
    trials.append((Renames(), Fault("rename", 2, "kill")))
    trials.append((Saving(), Fault("write", 1, "fail", "ENOSPC")))
    for scenario, fault in trials:
        result = points.run(scenario, fault)
        print(json.dumps([type(scenario).__name__, result.fired, result.problems]), flush=True)


if __name__ == "__main__":
    main()
