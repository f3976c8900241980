"""Power cuts of a real ext4: ``python tests/faults/image.py --cuts 60``, as root, on a machine with loop devices.

An image is mounted in a folder of its own, and an engine works in it without fsync. Again and again it is stopped and
the image copied: what is in the copy is what the disk had. The copy is mounted, so its journal is played, and its store
is opened in a next boot. Nothing that is whole may be condemned. All is unmounted and removed in the end.

The journal is written every second here, and data as the kernel likes it, 30 s later; so there are files whose times,
or names, are on the disk without their bytes. Before most cuts, as long ago as chance will have it, all was synced.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import reference
from faults import shim
from faults.cuts import is_checkpoint, look_at
from faults.run import NOT_HERE
from faults.scenario import MAPS, A, payload_of, save, store_of

IMAGE_BYTES = 48 << 20
TEXTS = [A + b" turn" * number for number in range(8)]
LAYOUTS = ["v1", "v2", "v2-checked", "packed"]


def main() -> int:
    parser = argparse.ArgumentParser(description="Cuts the power of a real file system.")
    parser.add_argument("--cuts", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", metavar="DIR", help=argparse.SUPPRESS)
    parser.add_argument("--look", nargs=3, metavar=("DIR", "DEVICE", "BOOT"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        return work(Path(args.work), args.seed)
    if args.look:
        return look(Path(args.look[0]), int(args.look[1]), Path(args.look[2]))
    if os.geteuid() != 0 or not Path("/dev/loop-control").exists() or shim.compiler() is None:
        print("this takes root, loop devices and a compiler")
        return NOT_HERE
    return cut(args.cuts, args.seed)


def work(directory: Path, seed: int) -> int:
    """An engine that goes on until it is ended."""
    rng = random.Random(seed)
    while True:
        with store_of(directory, layout=rng.choice(LAYOUTS)) as store:
            for _ in range(20):
                text = rng.choice(TEXTS)
                entry = store.find(text, ctx_size=2000, quant_bits=2)
                if entry is None or rng.random() < 0.3:
                    save(store, text, tool_map=rng.choice(MAPS))
                elif rng.random() < 0.15:
                    store.remove(entry)
                else:
                    with store.load(entry) as checkpoint:
                        assert checkpoint.payload.read() == payload_of(checkpoint.text)
                time.sleep(rng.random() * 0.02)


def look(directory: Path, device: int, boot_id: Path) -> int:
    """What the next boot sees, in a process with the shim."""
    lies = shim.Shim()
    lies.device(os.stat(directory).st_dev, device)
    lies.boot_id(boot_id)
    wholes = {}
    for name in os.listdir(directory):
        if ".tmp." in name:
            # The engine lives, of which a next boot knows nothing; what it left is let be for a minute.
            os.utime(directory / name, (0, 0))
        elif is_checkpoint(name):
            try:
                file = reference.parse((directory / name).read_bytes(), name)
                wholes[name] = file.payload == payload_of(file.text)
            except reference.Bad:
                wholes[name] = False
    told = look_at(directory, wholes, is_durable=False)
    print(json.dumps(told | {"whole": sum(wholes.values()), "not whole": len(wholes) - sum(wholes.values())}))
    return 0


def cut(cuts: int, seed: int) -> int:
    rng = random.Random(seed)
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="ds4kv-image-") as name:
        folder = Path(name)
        library = shim.build(folder)
        (folder / "boot").write_text("another boot\n")
        image, copy = folder / "image", folder / "copy"
        with image.open("wb") as fp:
            fp.truncate(IMAGE_BYTES)
        subprocess.run(["mkfs.ext4", "-q", image], check=True)
        at, later = folder / "at", folder / "later"
        at.mkdir(), later.mkdir()
        subprocess.run(["mount", "-o", "loop,commit=1", image, at], check=True)
        try:
            device = at.stat().st_dev
            command = [sys.executable, __file__, "--work", at / "store", "--seed", str(seed)]
            with subprocess.Popen(command, stderr=subprocess.DEVNULL) as worker:
                try:
                    for number in range(cuts):
                        if rng.random() < 0.7:
                            subprocess.run(["sync", "-f", at], check=True)
                        time.sleep(rng.uniform(0.1, 2.5))
                        assert worker.poll() is None, "the engine has ended"
                        os.kill(worker.pid, signal.SIGSTOP)
                        subprocess.run(["cp", image, copy], check=True)
                        os.kill(worker.pid, signal.SIGCONT)
                        counts["cuts"] += 1
                        told = looked_at(copy, later, device, folder / "boot", library)
                        counts["whole files"] += told["whole"]
                        counts["files that lost bytes"] += told["not whole"]
                        counts["lost, unnoticed, without fsync"] += len(told["lost"])
                        for problem in told["problems"]:
                            counts[f"WRONG: {problem.split(':')[0]}"] += 1
                            print(f"cut {number}: {problem}", flush=True)
                finally:
                    worker.kill()
        finally:
            subprocess.run(["umount", at], check=True)
    for what, count in counts.items():
        print(f"{count:10,} {what}")
    return 1 if any(what.startswith("WRONG") for what in counts) else 0


def looked_at(copy: Path, at: Path, device: int, boot_id: Path, library: Path) -> dict:
    subprocess.run(["mount", "-o", "loop", copy, at], check=True)
    try:
        if not (at / "store").exists():
            return {"problems": [], "lost": [], "whole": 0, "not whole": 0}
        command = [sys.executable, __file__, "--look", at / "store", str(device), boot_id]
        environment = os.environ | {"LD_PRELOAD": str(library), "PYTHONSAFEPATH": "1"}
        try:
            done = subprocess.run(command, env=environment, capture_output=True, timeout=30)
        except subprocess.TimeoutExpired:
            return {"problems": ["hang: of the next boot"], "lost": [], "whole": 0, "not whole": 0}
        if done.returncode:
            return {"problems": [f"crash: {done.stderr[-1000:]!r}"], "lost": [], "whole": 0, "not whole": 0}
        return json.loads(done.stdout)
    finally:
        subprocess.run(["umount", at], check=True)


if __name__ == "__main__":
    sys.exit(main())
