"""The command `ds4kv` as users meet it: output, exit codes, and what it leaves behind when it is stopped."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import reference
from helpers import GOLDEN, MANIFEST, MIB, golden
from processes import DEADLINE, started

import ds4kv
from ds4kv.cli import main
from ds4kv.file.ledger import Ledger
from ds4kv.store.store import Store

GOOD = MANIFEST["good"]
BAD = {case["file"]: case["verdict"] for case in MANIFEST["bad"]["cases"]}
CONTROL = GOLDEN / MANIFEST["bad"]["control"]["file"]
FLIPPED = GOLDEN / "bad/flip_token.kv"
WITH_TRAILER = GOLDEN / "s04_trailer.v2.lz4.kv"

every_good = pytest.mark.parametrize("case", GOOD, ids=[case["file"] for case in GOOD])


def ds4kv_command(*args: object, **kwargs: Any) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "ds4kv", *map(str, args)]
    return subprocess.run(command, capture_output=True, timeout=DEADLINE, **kwargs)


def error_line(stderr: str) -> str:
    """The message, which must be one line and all there is on stderr."""
    assert stderr.startswith("ds4kv: error: ")
    assert stderr.count("\n") == 1
    return stderr.removeprefix("ds4kv: error: ").rstrip("\n")


# ------------------------------------------------------------------------------------- all commands


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "COMMAND (try: ds4kv --help)"),
        (["frobnicate"], "choose from"),
        (["--frobnicate"], "COMMAND"),
        (["info"], "FILE (try: ds4kv info --help)"),
        (["info", "a", "b"], "unrecognized arguments: b (try: ds4kv info --help)"),
        (["info", "--js", "a"], "unrecognized arguments: --js"),
        (["verify"], "FILE|DIR"),
        (["verify", str(CONTROL), "--threads", "65"], "from 0 to 64"),
        (["verify", str(CONTROL), "--resume", str(CONTROL)], "holds something else than verdicts"),
        (["convert", "a"], "DST"),
        (["convert", "a", "b", "--layout", "v3"], "v1"),
        (["convert", "a", "b", "--codec", "zstd"], "lz4hc"),
        (["convert", "a", "b", "--chunk-size", "0"], "from 1 to 67108864"),
        (["convert", "a", "b", "--threads", "65"], "from 0 to 64"),
        (["ab", "--tokens", "0"], "from 1 to 99999 (try: ds4kv ab --help)"),
        (["ab", "--threads", "-1"], "from 0 to 64"),
        (["ab", "--rounds", "many"], "'many'"),
        (["ab", "--json", "--csv"], "not allowed with"),
        (["ab", str(CONTROL), "--tokens", "100"], "not both"),
        (["ab", os.devnull], "nothing to measure"),
        (["convert", str(CONTROL), str(GOLDEN)], "is a directory"),
        (["convert", str(CONTROL), "x.kv", "--codec", "none", "--level", "3"], "--level"),
        (["convert", str(CONTROL), "x.kv", "--layout", "v1", "--chunk-size", "3"], "--chunk-size"),
        (["convert", str(CONTROL), "x.kv", "--layout", "v1", "--codec", "lz4"], "v1 has no codec"),
        (["convert", str(CONTROL), "x.kv", "--level", "13"], "level is 13"),
        (["convert", str(CONTROL), "x.kv", "--codec", "lz4hc", "--level", "0"], "level is 0"),
        (["convert", str(CONTROL), f"{'0' * 40}.kv"], "SHA-1"),
    ],
)
def test_bad_use_is_one_line_and_exit_code_2(
    argv: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert message in error_line(err)
    assert out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("argv", [["info"], ["cat"], ["cat", "--text"], ["ab"], ["verify"], ["convert"]])
def test_missing_file_is_one_line_and_exit_code_1(
    argv: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "missing.kv"
    assert main([*argv, str(path)] + ([str(tmp_path / "new.kv")] if argv == ["convert"] else [])) == 1
    out, err = capsys.readouterr()
    line = out.splitlines()[0] if argv == ["verify"] else error_line(err)
    assert line.startswith(f"{path}: ")
    assert line.endswith("No such file or directory")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("argv", [["cat"], ["ab", "--json"], ["convert"]])
def test_damaged_file_is_one_line_and_exit_code_1(
    argv: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    target = [str(tmp_path / "new.kv")] if argv == ["convert"] else []
    assert main([*argv, str(FLIPPED), *target]) == 1
    assert error_line(capfd.readouterr().err).startswith(f"{FLIPPED}: corrupt: ")
    assert list(tmp_path.iterdir()) == []
    assert main([*argv, str(CONTROL), *target]) == 0
    assert capfd.readouterr().err == ""


def test_version_and_help() -> None:
    assert ds4kv_command("--version").stdout == f"ds4kv {ds4kv.__version__}\n".encode()
    overview = ds4kv_command("--help").stdout
    for name in (
        *(b"ab", b"info", b"verify", b"convert", b"salvage", b"cat"),
        *(b"ls", b"find", b"upgrade", b"evict", b"rm", b"sessions"),
    ):
        assert name in overview
        ran = ds4kv_command(name.decode(), "--help")
        assert ran.returncode == 0
        assert ran.stdout.startswith(b"usage: ds4kv " + name)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["info", "verify", "convert", "salvage", "cat", "upgrade", "ab --csv"])
def test_only_what_needs_the_extra_imports_it(command: str, tmp_path: Path) -> None:
    source = tmp_path if command == "upgrade" else CONTROL
    writes = command in ("convert", "salvage")
    argv = [*command.split(), str(source)] + ([str(tmp_path / "new.kv")] if writes else [])
    code = f"""
import sys
from ds4kv.cli import main
assert main({argv}) == 0
assert not {{"numpy", "rich"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL, timeout=DEADLINE)


@pytest.mark.parametrize(("name", "argv"), [("numpy", ["ab", "--json"]), ("rich", ["ab", str(CONTROL)])])
def test_missing_extra_says_what_to_install(name: str, argv: list[str]) -> None:
    code = f"import sys; sys.modules[{name!r}] = None; from ds4kv.cli import main; sys.exit(main({argv}))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=DEADLINE)
    assert ran.returncode == 1
    assert error_line(ran.stderr).endswith(f"needs {name}, which is not installed: pip install 'ds4kv[cli]'")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
@pytest.mark.parametrize("command", ["info", "cat", "verify"])
def test_output_that_cannot_be_written_is_an_error(command: str) -> None:
    with open("/dev/full", "wb") as full:
        argv = [sys.executable, "-m", "ds4kv", command, CONTROL]
        ran = subprocess.run(argv, stdout=full, stderr=subprocess.PIPE, text=True, timeout=DEADLINE)
    assert ran.returncode == 1
    size = len(ds4kv.load(CONTROL).payload)
    much = f": {size:,} bytes were to be written" if command == "cat" else ""
    assert error_line(ran.stderr) == f"stdout: No space left on device{much}"


# ---------------------------------------------------------------------------------------------- info


@every_good
def test_info_as_json(case: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    path = GOLDEN / case["file"]
    assert main(["info", "--json", str(path)]) == 0
    facts = json.loads(capsys.readouterr().out)
    header = case["header"]
    codec = ds4kv.Codec(header["codec"])
    payload, text = golden(case["payload"]), golden(case["text"])
    assert {name: facts[name] for name in header if name not in ("codec", "chunk_size")} == {
        name: value for name, value in header.items() if name not in ("codec", "chunk_size")
    }
    assert facts["codec"] == codec.name.lower()
    assert facts["chunk_size"] == (None if codec is ds4kv.Codec.NONE else header["chunk_size"])
    assert facts["file_bytes"] == case["size"]
    assert facts["raw_total"] == len(payload)
    assert facts["text_bytes"] == len(text)
    assert text.decode(errors="replace").startswith(facts["text_start"])
    assert facts["trailer_bytes"] == len(golden(case["trailer"]))
    if codec is not ds4kv.Codec.NONE:
        assert facts["chunk_count"] == -(-len(payload) // header["chunk_size"])
        assert facts["ratio"] == pytest.approx(len(payload) / header["payload_bytes"])
    assert facts["error"] is None


def test_info_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(WITH_TRAILER)]) == 0
    rows = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    assert {label: value.strip() for label, value in rows.items()} == {
        "file": str(WITH_TRAILER),
        "file size": "3,049 bytes",
        "layout": "v2",
        "codec": "lz4",
        "checksums": "no",
        "chunk size": "16,777,216 bytes",
        "chunks": "1",
        "payload": "4,096 bytes",
        "payload as stored": "2,899 bytes",
        "ratio": "1.41x",
        "tokens": "800",
        "context size": "32,768 tokens",
        "quantization": "2 bits",
        "reason": "cold",
        "reason code": "1",
        "extensions": "tool-map",
        "hits": "0",
        "created": "2026-05-28 20:28:24 UTC",
        "last used": "2026-05-28 20:28:24 UTC",
        "text size": "36 bytes",
        "text begins": "'ask <tool_calls>grep ü</tool_calls>'",
        "trailer size": "62 bytes",
    }


def test_info_says_odd_things_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "odd.kv"
    odd = reference.build(
        b"payload",
        text=b"\x1b[2Jcleared\n" + "ü".encode() * 60,
        version=1,
        codec=7,
        chunk_size=9,
        reason_code=77,
        ext_flags=0x14,
        created_at=2**64 - 1,
    )
    path.write_bytes(odd)
    assert main(["info", str(path)]) == 0
    out = capsys.readouterr().out
    for words in ("unknown\n", "77\n", "thinking-visible, unknown 0x10", "18446744073709551615 seconds", "'\\x1b[2J"):
        assert words in out
    assert "\x1b" not in out
    assert main(["info", "--json", str(path)]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["model_id"], facts["payload_abi"]) == (7, 9)
    assert facts["text_start"] == "\x1b[2Jcleared\n" + "ü" * 48


@pytest.mark.parametrize(
    ("file", "known"),
    [
        ("bad/payload_trunc_mid_chunk.kv", {"tokens": 600, "text_start": "shared corrupt set", "raw_total": None}),
        ("bad/chunk_count_plus_1.kv", {"tokens": 600, "text_start": "shared corrupt set", "raw_total": None}),
        ("bad/codec_7.kv", {"file_bytes": 4542, "tokens": None}),
    ],
)
def test_info_of_a_damaged_file_shows_what_is_known(
    file: str, known: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    path = GOLDEN / file
    verdict = BAD[file].replace("truncated", "corrupt")
    assert main(["info", "--json", str(path)]) == 1
    out, err = capsys.readouterr()
    facts = json.loads(out)
    assert {name: facts[name] for name in known} == known
    assert facts["error"]["verdict"] == verdict
    assert error_line(err) == f"{path}: {verdict}: {facts['error']['why']}"
    assert main(["info", str(path)]) == 1
    out, err = capsys.readouterr()
    assert out.splitlines()[0].split() == ["file", str(path)]
    assert ("600" in out) == (known["tokens"] is not None)
    assert error_line(err).startswith(f"{path}: {verdict}: ")


# -------------------------------------------------------------------------------------------- verify


def test_verify_gives_every_file_its_verdict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for file in [*BAD, *(case["file"] for case in GOOD)]:
        shutil.copy(GOLDEN / file, tmp_path)
    (tmp_path / "no-checkpoint.txt").write_text("left out")
    (tmp_path / "half.kv.tmp.1").write_text("left out")
    missing = tmp_path / "missing.kv"
    assert main(["verify", str(tmp_path), str(missing), str(CONTROL)]) == 1
    out, err = capsys.readouterr()
    *lines, summary = out.splitlines()
    expected = {str(tmp_path / case["file"]): "ok" for case in GOOD}
    expected |= {str(tmp_path / Path(file).name): verdict for file, verdict in BAD.items()}
    expected = dict(sorted(expected.items())) | {str(missing): "unreadable", str(CONTROL): "ok"}
    verdicts = {path: verdict.replace("truncated", "corrupt") for path, verdict in expected.items()}
    assert [tuple(line.split(": ")[:2]) for line in lines] == list(verdicts.items())
    assert summary == f"{len(GOOD) + 8} files: {len(GOOD) + 1} ok, 5 corrupt, 1 unsupported, 1 unreadable"
    assert err == ""


def test_verify_sums_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(CONTROL)]) == 0
    assert capsys.readouterr().out == f"{CONTROL}: ok: decodes\n1 file: 1 ok\n"
    assert main(["verify", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "0 files: 0 ok\n"
    (tmp_path / "directory.kv").mkdir()
    assert main(["verify", str(tmp_path)]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "1 file: 0 ok, 1 unreadable"


def test_verify_holds_the_name_against_the_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    right, wrong = tmp_path / MANIFEST["bad"]["control"]["kv_name"], tmp_path / f"{'0' * 40}.kv"
    for path, verdict, code in ((right, "ok", 0), (wrong, "corrupt", 1)):
        shutil.copyfile(CONTROL, path)
        assert main(["verify", str(path)]) == code
        assert capsys.readouterr().out.startswith(f"{path}: {verdict}")


def test_verify_lets_no_name_fake_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copyfile(FLIPPED, tmp_path / "x.kv: ok\n.kv")
    assert main(["verify", str(tmp_path)]) == 1
    line, _summary = capsys.readouterr().out.splitlines()
    assert "ok\\n.kv': corrupt: " in line


def test_verify_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = tmp_path / "missing-\u00fc.kv"
    assert main(["verify", "--json", str(CONTROL), str(FLIPPED), str(missing)]) == 1
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    whys = [row.pop("why") for row in rows]
    assert whys[0] is None
    assert whys[1].startswith("chunk 1: ")
    assert whys[2] == "No such file or directory"
    size = CONTROL.stat().st_size
    assert rows == [
        {"path": str(CONTROL), "verdict": "ok", "proof": "decodes", "file_bytes": size, "resumed": False},
        {"path": str(FLIPPED), "verdict": "corrupt", "proof": None, "file_bytes": size, "resumed": False},
        {"path": str(missing), "verdict": "unreadable", "proof": None, "file_bytes": None, "resumed": False},
    ]


@pytest.mark.parametrize("threads", ["0", "1", "3"])
def test_verify_of_many_keeps_the_order_and_the_number_of_threads(
    threads: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Files of both kinds: judged several at a time, and alone with all threads."""
    monkeypatch.setattr("ds4kv.cli.verify._LARGE", 50_000)
    for i in range(40):
        large = i % 7 == 3
        ds4kv.dump(tmp_path / f"{i:02}.kv", os.urandom(60_000 if large else 500), tokens=1, ctx_size=1, chunk_size=9000)
    (tmp_path / "11.kv").write_bytes(b"KVX")
    lock, most = threading.Lock(), [0]
    busy: Counter[int] = Counter()

    class Counted(ds4kv.CheckpointReader):
        share = 0

        def __init__(self, path: str, workers: int) -> None:
            super().__init__(path, workers=workers)
            self.share = max(workers, 1)
            with lock:
                busy[self.share] += self.share
                most[0] = max(most[0], busy.total())

        def close(self) -> None:
            super().close()
            with lock:
                busy[self.share] -= self.share
                self.share = 0

    monkeypatch.setattr(ds4kv, "open", Counted)
    assert main(["verify", str(tmp_path), "--threads", threads]) == 1
    *lines, summary = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[0] for line in lines] == [str(tmp_path / f"{i:02}.kv") for i in range(40)]
    assert summary == "40 files: 39 ok, 1 corrupt"
    assert most[0] <= max(int(threads), 1)


def stamped(path: Path) -> dict[str, Any]:
    """Each file that a state of verify is about, and its verdict."""
    lines = path.read_text().splitlines()
    assert lines[0] == '{"ds4kv verify": 1}'
    rows = [json.loads(line) for line in lines[1:]]
    return {row["path"]: row["verdict"] for row in rows}


def test_verify_passes_over_what_it_has_judged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state, kv = tmp_path / "state", tmp_path / "kv \u00fc\n"
    kv.mkdir()
    good, bad, missing = kv / "good.kv", kv / "bad.kv", kv / "missing.kv"
    shutil.copyfile(CONTROL, good)
    shutil.copyfile(FLIPPED, bad)
    argv = ["verify", "--json", "--resume", str(state), str(good), str(bad), str(missing)]

    def judged() -> list[tuple[str, bool]]:
        assert main(argv) == 1
        rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [row["path"] for row in rows] == argv[4:]
        return [(row["verdict"], row["resumed"]) for row in rows]

    assert judged() == [("ok", False), ("corrupt", False), ("unreadable", False)]
    assert stamped(state) == {str(good): "ok", str(bad): "corrupt"}
    assert judged() == [("ok", True), ("corrupt", True), ("unreadable", False)]
    # The same bytes, and another time: it has to be looked at.
    os.utime(good, ns=(0, 1))
    assert judged() == [("ok", False), ("corrupt", True), ("unreadable", False)]
    status = bad.stat()
    shutil.copyfile(CONTROL, bad)
    bad.write_bytes(bad.read_bytes() + b"trailer")
    os.utime(bad, ns=(status.st_atime_ns, status.st_mtime_ns))
    shutil.copyfile(CONTROL, missing)
    assert main(argv) == 0
    assert '"resumed": true' in capsys.readouterr().out.splitlines()[0]
    assert stamped(state) == dict.fromkeys(argv[4:], "ok")
    assert main(["verify", "--resume", str(state), str(kv)]) == 0
    *lines, summary = capsys.readouterr().out.splitlines()
    assert all(line.endswith(": ok: decodes (judged before)") for line in lines)
    assert summary == "3 files: 3 ok"


@pytest.mark.slow
def test_verify_takes_up_a_state_that_was_cut_short(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = tmp_path / "state"
    argv = ["verify", "--json", "--resume", str(state), str(CONTROL), str(WITH_TRAILER)]
    assert main(argv) == 0
    whole = state.read_bytes()
    lines = whole.splitlines(keepends=True)
    for size in range(len(whole) + 1):
        state.write_bytes(whole[:size])
        capsys.readouterr()
        assert main(argv) == 0
        resumed = [json.loads(line)["resumed"] for line in capsys.readouterr().out.splitlines()]
        left = [size >= len(b"".join(lines[:2])), size >= len(whole)]
        assert resumed == left
        assert stamped(state) == {str(CONTROL): "ok", str(WITH_TRAILER): "ok"}


@pytest.mark.parametrize("content", [b"KVC", b'{"ds4kv verify": 2}\n', b'{"ds4kv verify": 1}\n[]\n', b"\n"])
def test_verify_overwrites_no_file_that_is_not_its_own(
    content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = tmp_path / "state"
    state.write_bytes(content)
    assert main(["verify", "--resume", str(state), str(CONTROL)]) == 2
    error_line(capsys.readouterr().err)
    assert state.read_bytes() == content
    assert main(["verify", "--resume", str(tmp_path / "missing" / "state"), str(CONTROL)]) == 1


def test_verify_shows_progress_on_a_terminal_and_results_elsewhere(tmp_path: Path) -> None:
    """stderr is a terminal, stdout isn't: it has every line, and nothing else."""
    pty = pytest.importorskip("pty")
    for without_rich in ("", "sys.modules['rich'] = None; "):
        ours, theirs = pty.openpty()
        code = f"import sys; {without_rich}from ds4kv.cli import main; sys.exit(main())"
        argv = [sys.executable, "-c", code, "verify", CONTROL]
        ran = subprocess.run(argv, stdout=subprocess.PIPE, stderr=theirs, timeout=DEADLINE)
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # that is how a terminal ends
            while piece := os.read(ours, 1000):
                shown += piece
        os.close(ours)
        assert ran.returncode == 0
        assert ran.stdout == f"{CONTROL}: ok: decodes\n1 file: 1 ok\n".encode()
        assert (b"\x1b" in shown) == (not without_rich)
        assert b"Traceback" not in shown


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("codec", ["none", "lz4"])
def test_memory_of_verify_is_less_than_the_payload(codec: str, tmp_path: Path) -> None:
    path = tmp_path / "zeros.kv"
    ds4kv.dump(path, bytes(192 * MIB), tokens=1, ctx_size=1, codec=codec)
    # Two worker threads hold up to five chunks of 16 MiB between them.
    limit = 8 * MIB if codec == "none" else (5 * 16 + 8) * MIB
    assert peak_growth(["verify", str(path)], DS4_KV_CACHE_COMPRESSION_THREADS="2") < limit


def peak_growth(argv: list[str], **env: str) -> int:
    """How much the command's peak of memory lies above what Python and its imports take."""
    code = f"""
import sys
import ds4kv.cli.{argv[0]}
def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1024
before = peak()
assert ds4kv.cli.main({argv}) == 0
print(peak() - before, file=sys.stderr)
"""
    argv = [sys.executable, "-c", code]
    ran = subprocess.run(argv, check=True, capture_output=True, env=os.environ | env, timeout=DEADLINE)
    return int(ran.stderr)


# ----------------------------------------------------------------------------------------------- cat


@every_good
def test_cat(case: dict[str, Any], capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert main(["cat", str(GOLDEN / case["file"])]) == 0
    assert capfdbinary.readouterr().out == golden(case["payload"])
    assert main(["cat", "--text", str(GOLDEN / case["file"])]) == 0
    assert capfdbinary.readouterr().out == golden(case["text"])


def test_cat_is_quiet_about_a_reader_that_left(tmp_path: Path) -> None:
    path = tmp_path / "large.kv"
    ds4kv.dump(path, bytes(8 * MIB), tokens=1, ctx_size=1)
    ours, theirs = os.pipe()
    with started([sys.executable, "-m", "ds4kv", "cat", path], stdout=theirs) as child:
        os.close(theirs)
        assert os.read(ours, 5) == bytes(5)
        os.close(ours)
        assert child.finish()[1] == b""
    assert child.returncode == 128 + signal.SIGPIPE


# ------------------------------------------------------------------------------------------- convert


def siblings(suffix: str, other: str) -> list[Any]:
    """Golden files of one checkpoint in two forms."""
    names = [case["file"] for case in GOOD if case["file"].endswith(suffix)]
    pairs = [(name, name.replace(suffix, other)) for name in names]
    return [pytest.param(*pair, id=pair[0]) for pair in pairs if (GOLDEN / pair[1]).exists()]


@pytest.mark.parametrize(
    ("options", "source", "expected"),
    [
        pytest.param(options, *pair.values, id=f"{pair.id} {' '.join(options) or 'by default'}")
        for options, suffix, other in [
            ([], ".v1.kv", ".v2.lz4.kv"),
            ([], ".v2.none.kv", ".v2.lz4.kv"),
            (["--layout", "v1"], ".v2.lz4.kv", ".v1.kv"),
            (["--codec", "none", "--threads", "0"], ".v2.lz4.kv", ".v2.none.kv"),
        ]
        for pair in siblings(suffix, other)
    ],
)
def test_convert_makes_the_file_that_the_reference_makes(
    options: list[str], source: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "new.kv"
    assert main(["convert", str(GOLDEN / source), str(target), *options]) == 0
    assert target.read_bytes() == golden(expected)
    assert capsys.readouterr().out.startswith(f"{target}: ")
    assert list(tmp_path.iterdir()) == [target]


def test_convert_keeps_what_it_does_not_convert(tmp_path: Path) -> None:
    parts = {
        "text": b"some text",
        "trailer": b"a trailer",
        "quant_bits": 4,
        "reason_code": 77,
        "ext_flags": 0xF5,
        "tokens": 5,
        "hits": 6,
        "ctx_size": 7,
        "created_at": 8,
        "last_used": 9,
    }
    source, target = tmp_path / "source.kv", tmp_path / "target.kv"
    payload = bytes(range(256)) * 100
    source.write_bytes(reference.build(payload, version=1, codec=0, chunk_size=0, **parts))
    options = ["--codec", "lz4hc", "--level", "12", "--chunk-size", "1000", "--threads", "3"]
    assert main(["convert", str(source), str(target), *options]) == 0
    parsed = reference.parse(target.read_bytes())
    assert {name: getattr(parsed, name) for name in parts} == parts
    assert parsed.payload == payload
    assert (parsed.version, parsed.codec, parsed.chunk_size) == (2, reference.LZ4HC, 1000)
    assert main(["convert", str(target), str(target), "--layout", "v1"]) == 0
    assert target.read_bytes() == source.read_bytes()


def test_convert_never_loses_a_model_id(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = tmp_path / "source.kv", tmp_path / "target.kv"
    source.write_bytes(reference.build(b"payload", version=1, codec=3, chunk_size=4))
    assert main(["convert", str(source), str(target)]) == 2
    assert error_line(capsys.readouterr().err).startswith(f"{source} can't be written like that: ")
    assert list(tmp_path.iterdir()) == [source]
    assert main(["convert", str(source), str(target), "--layout", "v1"]) == 0
    assert target.read_bytes() == source.read_bytes()


def test_convert_in_place_replaces_nothing_by_halves(tmp_path: Path) -> None:
    path = Path(shutil.copy(FLIPPED, tmp_path))
    assert main(["convert", str(path), str(path), "--codec", "none"]) == 1
    assert path.read_bytes() == FLIPPED.read_bytes()
    shutil.copyfile(CONTROL, path)
    assert main(["convert", str(path), str(path), "--codec", "none"]) == 0
    assert reference.parse(path.read_bytes()).codec == reference.NONE
    assert list(tmp_path.iterdir()) == [path]


CHUNK = 4096
NUMBERS = b"DSV4" + b"".join(bytes([i % 251, i // 251, 0, 63]) for i in range(3 * CHUNK // 4))  # four chunks
FACTS = {"tokens": 600, "ctx_size": 9, "text": b"text", "trailer": b"KTM", "ext_flags": 0xF1, "hits": 3}
FACTS |= {"quant_bits": 4, "created_at": 5, "last_used": 6, "chunk_size": CHUNK}


def make(path: Path, layout: str, payload: bytes = NUMBERS, **options: Any) -> Path:
    """A checkpoint in any layout that is read; v2-mid in its two forms as v2-mid and v2-mid transposed."""
    options = {**FACTS, **options}
    if layout == "v1":
        del options["chunk_size"]
    if "mid" not in layout:
        ds4kv.dump(path, payload, layout=layout, **options)
        return path
    # Of v2-checked without the checksums, or of v2, with another header.
    ds4kv.dump(path, payload, layout="v2-checked" if "transposed" in layout else "v2", **options)
    content = bytearray(path.read_bytes())
    at, skipped = 52 + len(options["text"]) + 12, 0
    for _ in range(-(-len(payload) // CHUNK) if "transposed" in layout else 0):
        del content[at + 8 : at + 12]
        at, skipped = at + 8 + int.from_bytes(content[at + 4 : at + 8], "little"), skipped + 4
    content[40:48] = (int.from_bytes(content[40:48], "little") - skipped).to_bytes(8, "little")
    content[7] = options.get("model_id", 0)
    content[20:24] = bytes([options.get("payload_abi", 0), 1, 12, 0])
    path.write_bytes(content)
    return path


SOURCES = ["v1", "v2", "v2-checked", "packed", "v2-mid", "v2-mid transposed"]


def kept(path: Path) -> Any:
    """All that no conversion changes."""
    found = ds4kv.load(path)
    return found.header._replace(layout="", codec=0, chunk_size=0, payload_bytes=0), *found[1:]


@pytest.mark.parametrize("source_layout", SOURCES)
@pytest.mark.parametrize("layout", ["v1", "v2", "v2-checked", "packed"])
def test_convert_from_every_layout_to_every_layout(
    source_layout: str, layout: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = make(tmp_path / "source.kv", source_layout), tmp_path / "target.kv"
    assert ds4kv.read_header(source).layout == source_layout.split()[0]
    assert main(["convert", str(source), str(target), "--layout", layout]) == 0
    assert ds4kv.read_header(target).layout == layout
    assert kept(target) == kept(source)
    assert ds4kv.load(target).payload == NUMBERS
    codec = "none" if layout == "v1" else "lz4"
    assert capsys.readouterr().out.startswith(f"{target}: {layout} {codec}, {target.stat().st_size:,} bytes; ")


@pytest.mark.parametrize("source_layout", ["v1", "v2-checked", "packed", "v2-mid transposed"])
def test_convert_carries_a_model_id_or_refuses(
    source_layout: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = tmp_path / "source.kv", tmp_path / "target.kv"
    make(source, source_layout.replace("-mid transposed", "-checked"), model_id=1, payload_abi=2)
    if "mid" in source_layout:
        source.unlink()
        content = bytearray(make(source, source_layout).read_bytes())
        content[7], content[20] = 1, 2
        source.write_bytes(content)
    for layout in ("v1", "v2-checked", "packed"):
        assert main(["convert", str(source), str(target), "--layout", layout]) == 0
        header = ds4kv.read_header(target)
        assert (header.layout, header.model_id, header.payload_abi) == (layout, 1, 2)
        target.unlink()
    capsys.readouterr()
    assert main(["convert", str(source), str(target), "--layout", "v2"]) == 2
    assert "layout v2 has no room for model_id and payload_abi" in error_line(capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == [source]


@pytest.mark.parametrize("layout", ["v2-checked", "packed"])
def test_convert_has_8_bits_for_an_abi_there(layout: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = make(tmp_path / "source.kv", "v1", payload_abi=768), tmp_path / "target.kv"
    argv = ["convert", str(source), str(target), "--layout"]
    assert main([*argv, layout]) == 2
    assert "payload_abi is 768" in error_line(capsys.readouterr().err)
    assert main([*argv, "v1"]) == 0
    assert target.read_bytes() == source.read_bytes()


def test_convert_to_v2_checked_by_level(tmp_path: Path) -> None:
    source = make(tmp_path / "source.kv", "v1", bytes(reference_noise(200_000)))
    sizes = {}
    for level in (None, -1, 0, 1, 12):
        options = [] if level is None else ["--level", str(level)]
        target = tmp_path / f"{level}.kv"
        assert main(["convert", str(source), str(target), "--layout", "v2-checked", *options]) == 0
        sizes[level] = target.stat().st_size
        assert level == -1 or ds4kv.read_header(target).chunk_size == 1 << 20
    assert sizes[-1] == source.stat().st_size  # there are no runs
    assert sizes[None] == sizes[1]
    assert sizes[12] < sizes[1] < sizes[0] < source.stat().st_size


def reference_noise(size: int) -> bytearray:
    """Bytes that each level makes something else of."""
    rng = random.Random(5)
    words = [rng.randbytes(rng.randint(4, 60)) for _ in range(300)]
    noise = bytearray()
    while len(noise) < size:
        noise += rng.choice(words) + rng.randbytes(rng.randint(0, 6))
    return noise[:size]


def test_convert_to_packed_by_level(tmp_path: Path) -> None:
    source = make(tmp_path / "source.kv", "v1", NUMBERS * 10)
    sizes = {}
    for level in (None, -1, 0, 1, 12):
        options = [] if level is None else ["--level", str(level)]
        target = tmp_path / f"{level}.kv"
        assert main(["convert", str(source), str(target), "--layout", "packed", *options]) == 0
        sizes[level] = target.stat().st_size
        assert ds4kv.read_header(target).chunk_size == 1 << 20
    assert sizes[None] == sizes[0]
    assert sizes[12] <= sizes[1] <= sizes[0] < sizes[-1] < source.stat().st_size


def test_convert_to_packed_keeps_what_does_not_shrink_in_its_layout(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = make(tmp_path / "source.kv", "v2", os.urandom(50_000)), tmp_path / "target.kv"
    assert main(["convert", str(source), str(target), "--layout", "packed"]) == 0
    size = target.stat().st_size
    assert capsys.readouterr().out.startswith(f"{target}: packed lz4, {size:,} bytes; ")
    assert size == 52 + 4 + 40 + 20 + 50_000 + 3 + 8
    assert kept(target) == kept(source)


def test_convert_says_what_was_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = make(tmp_path / "source.kv", "v2", os.urandom(50_000)), tmp_path / "target.kv"
    assert main(["convert", str(source), str(target), "--layout", "v2-checked"]) == 0
    size = target.stat().st_size
    out = capsys.readouterr().out
    assert out.startswith(f"{target}: v1 none, {size:,} bytes, as v2-checked would save too little; {source} had ")
    assert kept(target) == kept(source)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--codec", "none"], "codec lz4, not none"),
        (["--codec", "lz4hc"], "codec lz4, not lz4hc"),
        (["--chunk-size", "5000"], "power of two"),
        (["--level", "13"], "level is 13"),
        (["--level", "-2"], "level is -2"),
        (["--layout", "v2", "--level", "-1"], "level is -1"),
        (["--layout", "packed", "--codec", "none"], "codec lz4, not none"),
        (["--layout", "packed", "--chunk-size", "5000"], "power of two"),
        (["--layout", "packed", "--chunk-size", "1"], "power of two, 2 or more"),
        (["--layout", "packed", "--level", "13"], "level is 13"),
    ],
)
def test_convert_to_what_v2_checked_is_not(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "target.kv"
    argv = ["convert", str(CONTROL), str(target), "--layout", "v2-checked"]
    assert main([*argv, *options]) == 2
    assert message in error_line(capsys.readouterr().err)
    assert not target.exists()
    assert main([*argv, "--codec", "lz4", "--chunk-size", "4096", "--level", "12"]) == 0


@pytest.mark.parametrize("layout", SOURCES)
def test_info_and_verify_of_every_layout(layout: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = make(tmp_path / "a.kv", layout)
    has_checksums = layout in ("v2-checked", "packed")
    assert main(["info", "--json", str(path)]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["layout"], facts["checksums"]) == (layout.split()[0], has_checksums)
    assert (facts["raw_total"], facts["text_start"], facts["trailer_bytes"]) == (len(NUMBERS), "text", 3)
    assert (facts["chunk_size"], facts["chunk_count"]) == ((None, None) if layout == "v1" else (CHUNK, 4))
    assert (facts["model_id"], facts["payload_abi"]) == ((None, None) if layout == "v2" else (0, 0))
    assert main(["info", str(path)]) == 0
    assert f"checksums          {'yes' if has_checksums else 'no'}\n" in capsys.readouterr().out
    assert main(["verify", str(path)]) == 0
    proof = {"v2-checked": "checksums", "packed": "sealed"}.get(layout, "decodes")
    assert capsys.readouterr().out.splitlines()[0] == f"{path}: ok: {proof}"


def test_verify_finds_what_only_a_checksum_shows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    payload = NUMBERS + bytes(range(100))  # which end as literals
    for layout, code, said in (
        ("v2", 0, "ok: decodes"),
        ("v2-checked", 1, "corrupt: chunk 3 has another XXH32"),
        ("packed", 1, "corrupt: chunk 3 is not the one that was written to this file and place"),
    ):
        path = make(tmp_path / "a.kv", layout, payload, trailer=b"")
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
        assert main(["verify", str(path)]) == code
        assert capsys.readouterr().out.startswith(f"{path}: {said}")


@pytest.mark.parametrize("layout", ["v1", "v2", "v2-checked"])
def test_verify_takes_what_a_store_has_noted_for_proof(
    layout: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call = b"<tool_calls>one</tool_calls>"
    with Store(tmp_path, layout=layout, codec="none" if layout == "v1" else "lz4") as store:
        entry = store.save_buffer(b"text" + call, NUMBERS, tokens=600, ctx_size=9, tool_map={b"call_1": call})
    assert entry is not None
    path = Path(entry.path)
    content, status = path.read_bytes(), path.stat()
    assert main(["verify", str(path)]) == 0
    assert capsys.readouterr().out.splitlines()[0] == f"{path}: ok: sidecar"
    assert main(["info", "--json", str(path)]) == 0
    assert (json.loads(capsys.readouterr().out)["chunk_count"] is None) == (layout == "v1")
    for offset in (len(content) - 3, len(content) // 2):  # in the trailer, in the region
        with path.open("r+b") as fp:
            fp.seek(offset)
            fp.write(bytes([content[offset] ^ 1]))
        if offset > len(content) // 2:  # written since, it may be another engine's tool map
            assert main(["verify", str(path)]) == 0
            assert capsys.readouterr().out.splitlines()[0] != f"{path}: ok: sidecar"
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert main(["verify", str(path)]) == 1
        assert capsys.readouterr().out.startswith(f"{path}: corrupt: ")


def test_convert_keeps_notes_true(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Store(tmp_path, codec="lz4") as store:
        entry = store.save_buffer(b"text", NUMBERS, tokens=600, ctx_size=9)
    assert entry is not None
    path, copy, other = Path(entry.path), tmp_path / "copy", tmp_path / "other"
    copy.mkdir()
    other.mkdir()
    assert main(["convert", str(path), str(copy / path.name), "--level", "9"]) == 0
    assert list(copy.iterdir()) == [copy / path.name]
    for layout, proof in (("v1", "sidecar"), ("v2", "sidecar"), ("v2-checked", "sidecar"), ("packed", "sealed")):
        assert main(["convert", str(path), str(path), "--layout", layout]) == 0
        capsys.readouterr()
        assert main(["verify", str(path)]) == 0
        assert capsys.readouterr().out.startswith(f"{path}: ok: {proof}")
    with contextlib.closing(Ledger(str(tmp_path))) as ledger:
        assert ledger.names() == set()
    # What comes from elsewhere, and happens to have the very header of what was noted.
    make(other / path.name, "v2", tokens=600, payload=NUMBERS, **{"text": b"text", "trailer": b""})
    assert main(["convert", str(other / path.name), str(path), "--layout", "v2"]) == 0
    capsys.readouterr()
    assert main(["verify", str(path)]) == 0
    assert capsys.readouterr().out.startswith(f"{path}: ok: decodes")


@pytest.mark.parametrize("layout", ["v2-mid", "v2-mid transposed"])
def test_salvage_of_v2_mid_writes_what_is_written(layout: str, tmp_path: Path) -> None:
    path, out = make(tmp_path / "a.kv", layout), tmp_path / "out.kv"
    os.truncate(path, path.stat().st_size - 10)
    for model_id, written in ((0, "v2"), (7, "v2-checked")):
        with path.open("r+b") as fp:
            fp.seek(7)
            fp.write(bytes([model_id]))
        assert main(["salvage", str(path), str(out)]) == 0
        saved = ds4kv.load(out)
        assert (saved.header.layout, saved.header.model_id) == (written, model_id)
        assert saved.payload == NUMBERS[: 3 * CHUNK]
        assert saved.text == b"text"


# ------------------------------------------------------------------------------------------------ ab


COMPRESSED = [("v2-checked", -1), ("packed", -1), ("packed", 0), ("v2-checked", 0), ("v2", 0)]


def test_ab_as_json_on_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = tmp_path / "plain.bin"
    plain.write_bytes(b"compressible " * 10_000)
    argv = ["ab", str(CONTROL), str(plain), "--json", "--rounds", "2", "--threads", "3", "--dir", str(tmp_path)]
    assert main(argv) == 0
    out, err = capsys.readouterr()
    report = json.loads(out)
    workers = min(3, len(os.sched_getaffinity(0)))
    assert (report["workers"], report["rounds"], report["directory"]) == (workers, 2, str(tmp_path))
    rows = report["results"]
    ways = [("v2", "none", None), *((layout, "lz4", level) for layout, level in COMPRESSED)]
    assert [(row["payload"], row["raw_bytes"]) for row in rows] == [(str(CONTROL), 9000)] * 6 + [
        (str(plain), 130_000)
    ] * 6
    assert [(row["layout"], row["codec"], row["level"]) for row in rows] == ways * 2
    # The payload of the checkpoint is measured, not the file with its header and text.
    assert [row["file_bytes"] for row in rows[::6]] == [9052, 130_052]
    for row in rows:
        assert row["verified"] is True
        assert row["ratio"] == pytest.approx(row["raw_bytes"] / row["file_bytes"], abs=1e-4)
        for verb in ("save", "load"):
            rate = row["raw_bytes"] / row[f"{verb}_ms"] / 1e3
            assert row[f"{verb}_mb_per_s"] == pytest.approx(rate, rel=0.05, abs=0.1)
            assert 0 < row[f"{verb}_ms_min"] <= row[f"{verb}_ms"] <= row[f"{verb}_ms_max"]
    assert rows[-1]["ratio"] > 20
    assert err == ""
    assert list(tmp_path.iterdir()) == [plain]


def test_ab_takes_the_option_of_old(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["ab", str(CONTROL), "--checked", "--rounds", "1", "--dir", str(tmp_path)]
    assert main(argv) == 0
    said = " ".join(capsys.readouterr().out.split())
    names = ("raw", "runs", "planes", "packed", "checked", "lz4")
    assert [f"With {name}, " in said for name in names] == [name != "raw" for name in names]


@pytest.mark.slow
def test_ab_as_csv_on_a_synthetic_payload(tmp_path: Path) -> None:
    ran = ds4kv_command("ab", "--csv", "--tokens", 100, "--rounds", 1, "--dir", tmp_path, text=True, check=True)
    raw, runs, planes, packed, checked, lz4 = rows = list(csv.DictReader(io.StringIO(ran.stdout)))
    assert (raw["payload"], raw["codec"], raw["verified"]) == ("100 tokens", "none", "True")
    assert (lz4["payload"], lz4["codec"], lz4["verified"]) == ("100 tokens", "lz4", "True")
    assert float(raw["ratio"]) == pytest.approx(1, abs=0.001)
    assert [row["level"] for row in rows] == ["", "-1", "-1", "0", "0", "0"]
    assert 1.2 < float(lz4["ratio"]) < float(checked["ratio"]) < float(packed["ratio"])
    assert 1.2 < float(runs["ratio"]) < float(planes["ratio"])
    assert all(float(row["load_ms_min"]) <= float(row["load_ms_max"]) for row in rows)
    assert ran.stderr == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("columns", [80, 120])
def test_ab_as_a_table(columns: int, tmp_path: Path) -> None:
    env = os.environ | {"COLUMNS": str(columns)}
    ran = ds4kv_command("ab", "--tokens", 100, 200, "--rounds", 1, "--dir", tmp_path, text=True, check=True, env=env)
    lines = ran.stdout.splitlines()
    assert max(map(len, lines)) <= columns
    named = [lines.index(line) for line in lines if line.startswith(("100 tokens, ", "200 tokens, "))]
    assert len(named) == 2
    for at in named:
        rows = [line.split() for line in lines[at + 1 : at + 7]]
        assert [row[0] for row in rows] == ["raw", "runs", "planes", "packed", "checked", "lz4"]
        assert [(len(row), row[-1]) for row in rows] == [(10, "yes")] * 6
    said = " ".join(ran.stdout.split())
    assert f"Files in {tmp_path}" in said
    assert "as many checkpoints fit on the same disk" in said
    assert ran.stderr == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_ab_is_loud_when_what_was_loaded_is_not_what_was_saved(
    form: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    load = ds4kv.load

    def load_wrong(path: str, *, into: bytearray, workers: int) -> None:
        checkpoint = load(path, into=into, workers=workers)
        if (checkpoint.header.layout, checkpoint.header.codec) == (ds4kv.Layout.V2, ds4kv.Codec.LZ4):
            into[-1] ^= 1

    monkeypatch.setattr(ds4kv, "load", load_wrong)
    assert main(["ab", str(CONTROL), *form, "--dir", str(tmp_path)]) == 1
    out, err = capsys.readouterr()
    assert error_line(err) == f"{CONTROL}: what was loaded from lz4 (layout v2, codec lz4) is NOT what was saved"
    if form:
        assert [row["verified"] for row in json.loads(out)["results"]] == [True] * 5 + [False]
    else:
        assert "NO\n" in "\n".join(line.rstrip() for line in out.splitlines())
        assert "mean nothing" in out


def test_ab_notices_a_load_that_does_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    zeros = tmp_path / "zeros"
    zeros.write_bytes(bytes(100_000))
    monkeypatch.setattr(ds4kv, "load", lambda path, **kwargs: None)
    assert main(["ab", str(zeros), "--json"]) == 1
    assert [row["verified"] for row in json.loads(capsys.readouterr().out)["results"]] == [False] * 6


def test_ab_wants_room_before_it_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=600_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert main(["ab", "--dir", str(tmp_path)]) == 1
    line = error_line(capsys.readouterr().err)
    assert line == f"{tmp_path}: 600.0 MB are free, 673.6 MB are needed: give another place with --dir"
    assert main(["ab", "--dir", str(tmp_path / "missing")]) == 1


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_of_ab_is_the_payload_twice(tmp_path: Path) -> None:
    for name in ("first", "second"):
        with open(tmp_path / name, "wb") as fp:
            fp.truncate(96 * MIB)
    argv = ["ab", str(tmp_path / "first"), str(tmp_path / "second"), "--json", "--rounds", "1", "--threads", "1"]
    assert peak_growth(argv) < (2 * 96 + 3 * 16 + 16) * MIB


# --------------------------------------------------------------------------------- stopped half-way


def stop_when(argv: list[str], under_way: Callable[[], bool], number: signal.Signals) -> tuple[int, bytes]:
    """The exit code and stderr of a command that gets a signal as soon as it is under way."""
    with started([sys.executable, "-m", "ds4kv", *argv]) as child:
        while not under_way():
            assert child.is_running()
            time.sleep(0.005)
        child.process.send_signal(number)
        errors = child.finish()[1]
    return child.returncode, errors


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_ab_leaves_nothing(number: signal.Signals, tmp_path: Path) -> None:
    argv = ["ab", "--tokens", "100", "--rounds", "1000", "--dir", str(tmp_path)]
    assert stop_when(argv, lambda: any(tmp_path.glob("*/*")), number) == (128 + number, b"")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_stopped_verify_can_be_taken_up_again(
    number: signal.Signals, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kv, state = tmp_path / "kv", tmp_path / "state"
    kv.mkdir()
    ds4kv.dump(kv / "00.kv", bytes(200_000), tokens=1, ctx_size=1)
    for i in range(1, 100):
        os.link(kv / "00.kv", kv / f"{i:02}.kv")
    large = kv / "50.kv"
    large.unlink()
    with large.open("wb") as fp:  # 64 GiB of nothing: it takes longer than the test
        fp.write(reference.build(b"", version=1, codec=0, chunk_size=0, payload_bytes=64 << 30)[:52])
        fp.truncate((64 << 30) + 52)
    argv = ["verify", "--resume", str(state), str(kv), "--json"]
    code, err = stop_when(argv, lambda: state.exists() and state.read_bytes().count(b"\n") >= 30, number)
    assert (code, err) == (-number if number == signal.SIGKILL else 128 + number, b"")
    judged = stamped(state)
    assert 29 <= len(judged) <= 50
    large.unlink()
    assert main(argv) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["resumed"] for row in rows] == [row["path"] in judged for row in rows]
    assert len(rows) == len(stamped(state)) == 99


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_convert_leaves_the_target_as_it_was(number: signal.Signals, tmp_path: Path) -> None:
    source, target = tmp_path / "source.kv", tmp_path / "target.kv"
    ds4kv.dump(source, os.urandom(MIB) * 64, tokens=1, ctx_size=1, codec="none")
    target.write_bytes(b"what was there")
    argv = ["convert", str(source), str(target), "--level", "12", "--chunk-size", "65536", "--threads", "1"]

    def under_way() -> bool:
        return any(temporary.stat().st_size > 1 << 16 for temporary in tmp_path.glob("target.kv.tmp.*"))

    assert stop_when(argv, under_way, number) == (128 + number, b"")
    assert sorted(tmp_path.iterdir()) == [source, target]
    assert target.read_bytes() == b"what was there"
