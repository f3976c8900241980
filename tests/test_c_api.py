"""C programs against what is installed: they write the files that Python writes, read those that it reads, and refuse
what it refuses."""

from __future__ import annotations

import hashlib
import os
import random
import re
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest
import reference
import test_layouts
import test_strict
from helpers import GOLDEN, MANIFEST
from processes import DEADLINE

import ds4kv

ROOT = Path(__file__).resolve().parent.parent
STATUS = {
    ds4kv.CorruptError: -1,
    ds4kv.TruncatedError: -2,
    ds4kv.UnsupportedError: -9,
}
DS4KV_PARAM = -3
TEXT = b"What is the time?"
NOW = 1780000000
pytestmark = pytest.mark.slow
QUICK = ("CFLAGS=-O1",)  # -O3 takes twice as long to compile


def run(*command: object, **env: str) -> subprocess.CompletedProcess[bytes]:
    done = subprocess.run([str(word) for word in command], capture_output=True, env=os.environ | env, timeout=DEADLINE)
    assert done.returncode >= 0, done.stderr
    return done


def built(*command: object, **env: str) -> None:
    done = run(*command, **env)
    assert done.returncode == 0, done.stderr.decode()


@pytest.fixture(scope="module", params=["gcc", "clang", "musl-gcc"])
def toolchain(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, str]:
    """A compiler, a folder of headers, a library: that of the package is glibc's, musl's is made from the sources."""
    compiler: str = request.param
    if shutil.which(compiler) is None:
        pytest.skip(f"no {compiler}")
    if compiler != "musl-gcc":
        return compiler, ds4kv.get_include(), ds4kv.get_library()
    prefix = tmp_path_factory.mktemp("musl")
    built(
        "make",
        "-j2",
        "-C",
        ROOT / "csrc",
        "install",
        f"CC={compiler}",
        f"PREFIX={prefix}",
        f"BUILD={prefix / 'build'}",
        *QUICK,
    )
    return compiler, str(prefix / "include"), str(prefix / "lib" / "libds4kv.a")


@pytest.fixture(scope="module")
def engine(toolchain: tuple[str, str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example, built by its own Makefile."""
    compiler, include, library = toolchain
    folder = Path(shutil.copytree(ROOT / "examples" / "c_engine", tmp_path_factory.mktemp("example") / "c_engine"))
    built("make", "-C", folder, "-B", f"CC={compiler}", f"CFLAGS=-Werror -I {include}", f"LDLIBS={library} -pthread")
    return folder / "engine"


@pytest.fixture(scope="module")
def program(toolchain: tuple[str, str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler, include, library = toolchain
    path = tmp_path_factory.mktemp("program") / "c_checkpoint"
    source = Path(__file__).parent / "c_checkpoint.c"
    flags = ("-std=c11", "-Wall", "-Wextra", "-Werror", "-I", include)
    built(compiler, *flags, "-o", path, source, library, "-pthread")
    return path


def payload_of(tokens: int) -> bytes:
    """What the example's session of so many tokens saves."""
    rows = (i * i % 997 / 8 for i in range(tokens * 64))
    return b"FAKE" + struct.pack(f"<I{tokens * 64}f", tokens, *rows)


def dump(path: Path, payload: bytes, text: bytes = TEXT, created_at: int = NOW) -> None:
    ds4kv.dump(path, payload, tokens=2000, ctx_size=32768, text=text, created_at=created_at)


def test_engine_and_python_write_the_same_file_and_read_each_others(engine: Path, tmp_path: Path) -> None:
    ours, its = tmp_path / "python.kv", tmp_path / "engine.kv"
    payload = payload_of(2000)
    saved = run(engine, "save", its, 2000)
    assert saved.returncode == 0, saved.stderr
    dump(ours, payload, created_at=ds4kv.read_header(its).created_at)
    assert its.read_bytes() == ours.read_bytes()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["engine.kv", "python.kv"]

    loaded = ds4kv.load(its)
    assert (bytes(loaded.payload), loaded.text) == (payload, TEXT)
    read = run(engine, "load", ours)
    assert (read.returncode, read.stdout) == (0, b'2000 tokens after "What is the time?"\n')


def test_engine_is_short() -> None:
    assert len((ROOT / "examples" / "c_engine" / "engine.c").read_text().splitlines()) <= 100


def test_engine_refuses_what_is_not_its_own_or_wrong(engine: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.kv"
    dump(path, b"another engine's")
    assert run(engine, "load", path).returncode == 65
    dump(path, payload_of(2000))
    data = path.read_bytes()
    assert run(engine, "load", path).returncode == 0
    path.write_bytes(data[:-1])
    cut = run(engine, "load", path)
    assert cut.returncode == 2
    assert str(path).encode() in cut.stderr and b"payload_bytes" in cut.stderr
    assert run(engine, "load", tmp_path / "absent.kv").returncode == 8
    assert run(engine, "save", tmp_path / "absent" / "a.kv", 1).returncode == 8


def test_engine_that_has_no_room_leaves_what_was_there(engine: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.kv"
    dump(path, b"what was there")
    before = path.read_bytes()
    command = f"trap '' XFSZ; ulimit -f 100; exec '{engine}' save '{path}' 100000"
    refused = run("bash", "-c", command)
    assert refused.returncode == 8
    assert b"File too large" in refused.stderr
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.kv"]


@pytest.mark.parametrize("case", MANIFEST["good"], ids=[case["file"] for case in MANIFEST["good"]])
def test_golden_file_in_c(case: dict[str, Any], program: Path, tmp_path: Path) -> None:
    read = run(program, "payload", GOLDEN / case["file"])
    assert (read.returncode, read.stdout) == (0, (GOLDEN / case["payload"]).read_bytes())
    again = tmp_path / case["kv_name"]
    copied = run(program, "copy", GOLDEN / case["file"], again)
    assert (copied.returncode, copied.stderr) == (0, b"")
    assert again.read_bytes() == (GOLDEN / case["file"]).read_bytes()


@pytest.mark.parametrize("payload", [b"", b"one", bytes(20000), payload_of(300), random.Random(1).randbytes(9000)])
def test_checked_files_in_c(payload: bytes, program: Path, tmp_path: Path) -> None:
    raw, ours, its = tmp_path / "raw.kv", tmp_path / "python.kv", tmp_path / "c.kv"
    how: dict[str, Any] = {"tokens": 7, "ctx_size": 9, "text": TEXT, "trailer": b"KTM", "created_at": NOW}
    how |= {"model_id": 1, "payload_abi": 2}
    ds4kv.dump(raw, payload, layout="v1", **how)
    header = ds4kv.dump(ours, payload, layout="v2-checked", chunk_size=4096, **how)
    assert header.layout == ("v2-checked" if len(payload) in (20000, 76808) else "v1")
    made = run(program, "checked", raw, its)
    assert (made.returncode, made.stderr) == (0, b"")
    assert its.read_bytes() == ours.read_bytes()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["c.kv", "python.kv", "raw.kv"]
    read = run(program, "payload", ours)
    assert (read.returncode, read.stdout) == (0, payload)


@pytest.mark.parametrize("grouped", [False, True])
def test_mid_files_in_c(grouped: bool, program: Path, tmp_path: Path) -> None:
    path = tmp_path / "mid.kv"
    payload = b"DSV4" + payload_of(100)
    path.write_bytes(reference.build_mid(payload, grouped=grouped, log2=12, block=reference.high, text=TEXT))
    read = run(program, "payload", path)
    assert (read.returncode, read.stdout) == (0, payload)
    assert run(program, "copy", path, tmp_path / "again.kv").returncode == 2  # it is not written
    path.write_bytes(reference.build_mid(payload[4:], grouped=grouped, log2=12, text=TEXT))
    status, offset, why = examined(program, [path])[0]
    assert (status, offset) == python_verdict(path) == (-9, 21)
    assert "ambiguous" in why
    path.write_bytes(path.read_bytes()[:-9999] + bytes(9999))  # later chunks are damaged: the first fault is told
    assert examined(program, [path])[0][:2] == python_verdict(path) == (-9, 21)


def examined(program: Path, paths: list[Path]) -> list[tuple[int, int, str]]:
    lines = run(program, "examine", *paths).stdout.decode().splitlines()
    assert len(lines) == len(paths)
    return [(int(status), int(offset), why) for status, offset, why in (line.split(" ", 2) for line in lines)]


def python_verdict(path: Path) -> tuple[int, int | None]:
    try:
        ds4kv.load(path)
    except ds4kv.Ds4kvError as error:
        return STATUS[type(error)], error.offset
    return 0, 0


def test_bad_golden_files_in_c(program: Path) -> None:
    cases = [*MANIFEST["bad"]["cases"], MANIFEST["bad"]["control"]]
    found = examined(program, [GOLDEN / case["file"] for case in cases])
    verdicts = {"corrupt": -1, "truncated": -2, "unsupported": -9, "good": 0}
    assert [status for status, *_ in found] == [verdicts[case.get("verdict", "good")] for case in cases]


def test_the_rules_for_files_in_c(program: Path, tmp_path: Path) -> None:
    bad, good = [], []
    for number, rule in enumerate(test_strict.FILES):
        for folder, data in ((bad, rule.bad), (good, rule.good)):
            path = tmp_path / f"{len(bad)}.{number}.kv"
            path.write_bytes(data)
            folder.append(path)
    found = examined(program, bad)
    for path, rule, (status, offset, why) in zip(bad, test_strict.FILES, found, strict=True):
        assert (status, offset) == python_verdict(path), rule.id
        assert why, rule.id
        if rule.id == "v2-crc":
            assert rule.id in why
    for path, rule, (status, *_) in zip(good, test_strict.FILES, examined(program, good), strict=True):
        assert status == python_verdict(path)[0], rule.id


def test_the_rules_for_regions_in_c(program: Path, tmp_path: Path) -> None:
    bad, good = [], []
    for number, rule in enumerate(test_strict.REGIONS):
        for folder, region in ((bad, rule.bad), (good, rule.good)):
            path = tmp_path / f"{len(bad)}.{number}.kv"
            path.write_bytes(test_strict.as_file(rule, region))
            folder.append(path)
    for path, rule, (status, offset, _) in zip(bad, test_strict.REGIONS, examined(program, bad), strict=True):
        assert (status, offset) == python_verdict(path), rule.id
        assert status == -1
    for rule, (status, *_) in zip(test_strict.REGIONS, examined(program, good), strict=True):
        assert status == 0, rule.id


def test_c_and_python_judge_damaged_headers_alike(program: Path, tmp_path: Path) -> None:
    """Every byte of header and text length, and each length of the front, of one file of each kind."""
    paths = []
    for kind, data in enumerate(test_strict.GOOD):
        damaged = [data[:n] for n in range(60)]
        for at in range(52):
            for value in {0, 1, 2, 3, 12, 24, 26, 27, 255, data[at] ^ 1, data[at] ^ 0x80} - {data[at]}:
                damaged.append(data[:at] + bytes([value]) + data[at + 1 :])
        for number, content in enumerate(damaged):
            paths.append(tmp_path / f"{kind}.{number}.kv")
            paths[-1].write_bytes(content)
    for path, (status, offset, why) in zip(paths, examined(program, paths), strict=True):
        assert (status, offset) == python_verdict(path), (path.name, why)


def test_files_that_look_like_another_layout_in_c(program: Path, tmp_path: Path) -> None:
    paths = []
    examples = test_layouts.FOOLERS + test_layouts.LOST_CODECS
    for number, example in enumerate(examples):
        paths.append(tmp_path / f"{number}.kv")
        paths[-1].write_bytes(example.values[1])
    for path, example, (status, offset, why) in zip(paths, examples, examined(program, paths), strict=True):
        assert (status, offset) == python_verdict(path), (example.id, why)
        assert status == 0 or example in test_layouts.LOST_CODECS


def test_names_are_sha1_of_texts_of_any_length(program: Path, tmp_path: Path) -> None:
    for length in (0, 1, 54, 55, 56, 57, 63, 64, 65, 119, 120, 121, 1000):
        text = (bytes(range(256)) * 4)[:length]
        path = tmp_path / f"{hashlib.sha1(text).hexdigest()}.kv"
        dump(path, b"payload", text)
        wrong = path.rename(tmp_path / f"{'0' * 40}.kv")
        assert examined(program, [wrong])[0][:2] == (-1, 52)
        right = wrong.rename(path)
        assert examined(program, [right])[0][:2] == (0, 0)


@pytest.mark.skipif(shutil.which("pkg-config") is None, reason="needs pkg-config")
def test_make_install_and_pkg_config(tmp_path: Path) -> None:
    prefix, root = tmp_path / "prefix", tmp_path / "root"
    make = ("make", "-C", ROOT / "csrc", "install", f"BUILD={tmp_path / 'build'}", *QUICK)
    built(*make, f"PREFIX={prefix}")
    folder = shutil.copytree(ROOT / "examples" / "c_engine", tmp_path / "c_engine")
    built("make", "-C", folder, "-B", PKG_CONFIG_PATH=str(prefix / "lib" / "pkgconfig"))
    assert run(folder / "engine", "save", tmp_path / "a.kv", 10).returncode == 0
    assert bytes(ds4kv.load(tmp_path / "a.kv").payload) == payload_of(10)
    version = run("pkg-config", "--modversion", "ds4kv", PKG_CONFIG_PATH=str(prefix / "lib" / "pkgconfig"))
    assert version.stdout.decode().strip() == ds4kv.__version__

    built(*make, "PREFIX=/usr", f"DESTDIR={root}")
    assert {path.name for path in (root / "usr/include").iterdir()} == {
        path.name for path in (prefix / "include").iterdir()
    }
    assert "prefix=/usr\n" in (root / "usr/lib/pkgconfig/ds4kv.pc").read_text()


def test_the_package_carries_the_headers_of_this_release() -> None:
    shipped = {path.name: path.read_bytes() for path in Path(ds4kv.get_include()).iterdir()}
    assert shipped == {path.name: path.read_bytes() for path in (ROOT / "csrc").glob("ds4kv*.h")}


COPIES_UP = """
#include <fcntl.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include "ds4kv_file.h"

static char *gpu;

static void copy_up(uint64_t at, const char *bytes, size_t n)
{
    memcpy(gpu + at, bytes, n);
}

%s

int main(int argc, char **argv)
{
    uint64_t size = strtoull(argv[2], NULL, 10);
    char *pinned = malloc(size);
    struct stat file;
    ds4kv_fault fault = {0};
    int fd = open(argv[1], O_RDONLY);
    gpu = calloc(1, size);
    if (argc != 3 || !pinned || !gpu || fstat(fd, &file) != 0)
        return 99;
    int status = load_up(fd, (uint64_t)file.st_size, pinned, size, 2, &fault);
    fprintf(stderr, "%%s", fault.why);
    if (status == DS4KV_OK)
        fwrite(gpu, 1, size, stdout);
    return -status;
}
"""


def test_the_page_shows_how_to_copy_up_what_is_there(toolchain: tuple[str, str, str], tmp_path: Path) -> None:
    compiler, include, library = toolchain
    page = (ROOT / "docs" / "c-api.md").read_text()
    [loop] = re.findall(r"^```c\n(/\* Reads the payload .*?^}\n)```$", page, re.M | re.S)
    source, program, path = (tmp_path / name for name in ("up.c", "up", "a.kv"))
    source.write_text(COPIES_UP % loop)
    built(
        compiler, "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-I", include, "-o", program, source, library, "-pthread"
    )
    payload = payload_of(20_000)
    for how in ({"layout": "v1"}, {"chunk_size": 100_000}, {"layout": "v2-checked", "level": -1}):
        ds4kv.dump(path, payload, tokens=1, ctx_size=1, text=TEXT, **how)
        up = run(program, path, len(payload))
        assert (up.returncode, up.stdout == payload, up.stderr) == (0, True, b"")
        assert run(program, path, len(payload) - 1).returncode == -DS4KV_PARAM
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    up = run(program, path, len(payload))
    assert up.returncode == -STATUS[ds4kv.CorruptError]
    assert up.stdout == b"" and b"chunk" in up.stderr
