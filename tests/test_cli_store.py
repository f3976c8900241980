"""The subcommands on a directory of checkpoints: what they say, and that those that only look change nothing."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import reference
from helpers import answer, sha1, state
from processes import DEADLINE, started

import ds4kv
from ds4kv.cli import main
from ds4kv.file.lock import LOCK_NAME
from ds4kv.store.store import Store

HOUR_AGO = int(time.time()) - 3600
USER, ASSISTANT = "<\uff5cUser\uff5c>", "<\uff5cAssistant\uff5c>"


def put(directory: Path, text: bytes, region: bytes = b"payload", **fields: Any) -> Path:
    """A checkpoint that was used an hour ago, raw unless said otherwise."""
    facts = {"codec": 0, "chunk_size": 0, "created_at": HOUR_AGO, "last_used": HOUR_AGO, **fields}
    path = directory / f"{sha1(text)}.kv"
    path.write_bytes(reference.build(region, text=text, **facts))
    return path


@pytest.fixture
def prompt(tmp_path: Path) -> Path:
    """A prompt outside of the directory; tests write to it."""
    return tmp_path / "prompt.txt"


@pytest.fixture
def kv(tmp_path: Path) -> Path:
    directory = tmp_path / "kv"
    directory.mkdir()
    return directory


# --------------------------------------------------------------------------------------- all of them


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["ls"], "DIR"),
        (["ls", "d", "--sort", "colour"], "choose from"),
        (["find", "d"], "--prompt-file"),
        (["find", "d", "--prompt-file", "p", "--quant-bits", "3"], "choose from"),
        (["find", "d", "--prompt-file", "p", "--ctx-size", "0"], "from 1 to"),
        (["find", "d", "--prompt-file", "p", "--min-tokens", "x"], "'x'"),
        (["evict", "d"], "--budget-mb"),
        (["evict", "d", "--budget-mb", "0"], "from 1 to"),
        (["rm", "d"], "SHA"),
        (["rm", "d", "xyz"], "'xyz' is not how a SHA-1 begins"),
        (["rm", "d", ""], "1 to 40"),
        (["rm", "d", "0" * 41], "1 to 40"),
        (["sessions"], "DIR"),
    ],
)
def test_bad_use_is_one_line_and_exit_code_2(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("ds4kv: error: ") and err.count("\n") == 1
    assert message in err


COMMANDS = ["ls", "ls --json", "find --prompt-file {prompt}", "evict --budget-mb 1", "rm 00", "sessions"]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_missing_directory_is_an_error_and_is_not_made(
    command: str, prompt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompt.write_bytes(b"prompt")
    name, *options = command.format(prompt=prompt).split()
    missing = tmp_path / "missing"
    assert main([name, str(missing), *options]) == 1
    assert f"{missing}: No such file or directory" in capsys.readouterr().err
    assert not missing.exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        "ls",
        "ls --json",
        "find --prompt-file {prompt}",
        "find --prompt-file {prompt} --min-tokens 9999",
        "evict --budget-mb 1 --dry-run",
        "evict --budget-mb 4096",
        "sessions",
    ],
)
def test_looking_changes_nothing(command: str, kv: Path, prompt: Path) -> None:
    prompt.write_bytes(b"a prompt")
    put(kv, b"a pro", bytes(2 << 20))
    put(kv, b"broken", payload_bytes=10**9)
    (kv / f"{'0' * 40}.kv.tmp.999999999").write_bytes(b"left by a dead process")
    (kv / "quarantine").mkdir()
    before = state(kv)
    name, *options = command.format(prompt=prompt).split()
    code = f"""
import sys
from ds4kv.cli import main
main({[name, str(kv), *options]})
assert not {{"numpy", "rich"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=DEADLINE)
    assert state(kv) == before
    assert main(["rm", str(kv), sha1(b"a pro")]) == 0  # the control: a change is seen
    assert state(kv) != before


# ------------------------------------------------------------------------------------------------ ls


def test_ls_in_words(kv: Path, capsys: pytest.CaptureFixture[str]) -> None:
    payload = b"abcd" * 4096
    region = reference.encode_region(payload, 4096)
    text = b"line one\nline two \x1b[2J"
    put(kv, text, region, codec=1, chunk_size=4096)
    put(kv, b"older", bytes(3 << 20), tokens=12345, hits=7, version=1, reason_code=2, last_used=HOUR_AGO - 10 * 86400)
    assert main(["ls", str(kv)]) == 0
    out, err = capsys.readouterr()
    ratio = len(payload) / len(region)
    assert [line.split(maxsplit=9) for line in out.splitlines()] == [
        ["sha", "tokens", "layout", "codec", "MiB", "ratio", "hits", "age", "reason", "text begins"],
        [sha1(text)[:8], "600", "v2", "lz4", "0.0", f"{ratio:.2f}x", "0", "1h", "cold", repr(text.decode())],
        [sha1(b"older")[:8], "12,345", "v1", "none", "3.0", "-", "7", "10d", "continued", "'older'"],
        ["2", "checkpoints,", "3.0", "MiB"],
    ]
    assert err == ""


def test_ls_of_an_empty_directory(kv: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ls", str(kv)]) == 0
    assert capsys.readouterr() == ("0 checkpoints, 0.0 MiB\n", "")


def test_ls_as_json(kv: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = put(kv, b"text", hits=3, reason_code=77, quant_bits=4)
    assert main(["ls", "--json", str(kv)]) == 0
    assert answer(capsys) == {
        "checkpoints": [
            {
                "sha": sha1(b"text"),
                "path": str(path),
                "tokens": 600,
                "ctx_size": 32768,
                "quant_bits": 4,
                "layout": "v2",
                "codec": "none",
                "file_bytes": 63,
                "ratio": None,
                "hits": 3,
                "created_at": HOUR_AGO,
                "last_used": HOUR_AGO,
                "reason": "unknown",
                "identity": None,
                "text_bytes": 4,
                "text_start": "text",
            }
        ],
        "others": [],
        "quarantine": {"files": 0, "file_bytes": 0},
    }


def test_ls_believes_no_ratio_of_a_frame_that_contradicts_itself(kv: Path, capsys: pytest.CaptureFixture[str]) -> None:
    region = reference.encode_region(b"abcd" * 4096, 4096)
    put(kv, b"control", region, codec=1, chunk_size=4096)
    put(kv, b"more chunks", region[:8] + b"\x09" + region[9:], codec=1, chunk_size=4096)
    put(kv, b"no frame", b"short", codec=1, chunk_size=4096)
    assert main(["ls", "--json", str(kv)]) == 0
    ratios = {row["text_start"]: row["ratio"] for row in answer(capsys)["checkpoints"]}
    assert ratios == {"control": len(b"abcd" * 4096) / len(region), "more chunks": None, "no frame": None}


@pytest.mark.parametrize(
    ("key", "order"),
    [
        ("age", "cba"),
        ("codec", "bca"),
        ("hits", "abc"),
        ("layout", "acb"),
        ("ratio", "bca"),
        ("reason", "bac"),
        ("sha", "cab"),
        ("size", "cab"),
        ("text", "abc"),
        ("tokens", "bac"),
    ],
)
def test_ls_sorts(key: str, order: str, kv: Path, capsys: pytest.CaptureFixture[str]) -> None:
    long, short = (reference.encode_region(bytes(size), 4096) for size in (1000, 20))
    put(kv, b"a", bytes(2000), tokens=800, hits=9, last_used=HOUR_AGO - 9, reason_code=2, version=1)
    put(kv, b"b", long, tokens=900, hits=5, last_used=HOUR_AGO - 5, reason_code=1, codec=1, chunk_size=4096)
    put(
        kv,
        b"c",
        short,
        tokens=700,
        hits=1,
        last_used=HOUR_AGO - 1,
        reason_code=3,
        codec=2,
        chunk_size=4096,
        trailer=bytes(9000),
    )
    assert main(["ls", "--json", str(kv), "--sort", key]) == 0
    assert "".join(row["text_start"] for row in answer(capsys)["checkpoints"]) == order


def test_ls_tells_what_is_no_checkpoint(kv: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = put(kv, b"good")
    foreign = kv / "sysprompt.kv"
    foreign.write_bytes(good.read_bytes())
    (kv / LOCK_NAME).touch()
    (kv / "quarantine").mkdir()
    (kv / "loop").symlink_to("loop")
    assert main(["ls", str(kv)]) == 0  # the control: none of these has a checkpoint's name
    out, err = capsys.readouterr()
    assert out.splitlines()[-1] == "1 checkpoint, 0.0 MiB"
    assert err == f"{foreign}: foreign: a store's files are named 40 hex digits and .kv\n"

    foreign.unlink()
    short = put(kv, b"short", payload_bytes=1000)
    newer = put(kv, b"newer", version=3)
    link = kv / f"{'1' * 40}.kv"
    link.symlink_to("nowhere")
    folder = kv / f"{'2' * 40}.kv"
    folder.mkdir()
    pipe = kv / f"{'3' * 40}.kv"
    os.mkfifo(pipe)
    assert main(["ls", "--json", str(kv)]) == 1
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert [row["path"] for row in found["checkpoints"]] == [str(good)]
    verdicts = {str(short): "corrupt", str(newer): "unsupported"}
    verdicts |= dict.fromkeys(map(str, (link, folder, pipe)), "unreadable")
    assert {other["path"]: other["verdict"] for other in found["others"]} == verdicts
    assert err.splitlines() == [f"{other['path']}: {other['verdict']}: {other['why']}" for other in found["others"]]


def test_ls_lets_no_name_fake_a_line(kv: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (kv / "x\n0 checkpoints\x1b[2J").touch()
    assert main(["ls", str(kv)]) == 0
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "\x1b" not in err


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0s"), (59, "59s"), (60, "1m"), (3599, "59m"), (7200, "2h"), (86400, "1d"), (-300, "-5m"), (None, "-")],
)
def test_ages(
    seconds: int | None, shown: str, kv: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 1_800_000_000
    monkeypatch.setattr(time, "time", lambda: now + 0.7)
    # Either of the two times will do, as it does for eviction.
    for field in ("last_used", "created_at"):
        times = {"last_used": 0, "created_at": 0}
        put(kv, b"text", **times | ({} if seconds is None else {field: now - seconds}))
        assert main(["ls", str(kv)]) == 0
        assert capsys.readouterr().out.splitlines()[1].split()[7] == shown


# ---------------------------------------------------------------------------------------------- find


def find(kv: Path, prompt: Path, text: bytes, *options: str) -> int:
    prompt.write_bytes(text)
    return main(["find", str(kv), "--prompt-file", str(prompt), *options])


def test_find_gives_the_longest(kv: Path, prompt: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(kv, b"the ")
    path = put(kv, b"the prompt", tokens=1234)
    put(kv, b"the prompt is longer")
    assert find(kv, prompt, b"the prompt is") == 0
    assert capsys.readouterr() == (f"{path}: 1,234 tokens, the first 10 of the prompt's 13 bytes\n", "")
    assert find(kv, prompt, b"the prompt is", "--json") == 0
    found = answer(capsys)
    assert (found["prompt_bytes"], found["nearest"]) == (13, None)
    assert (found["found"]["path"], found["found"]["text_bytes"]) == (str(path), 10)


@pytest.mark.parametrize(
    ("option", "fits", "fails", "why"),
    [
        ("--min-tokens", "600", "601", "it has 600 tokens, fewer than 601 (--min-tokens)"),
        ("--ctx-size", "32768", "32767", "its context is 32,768 tokens, more than 32,767 (--ctx-size)"),
        ("--quant-bits", "2", "4", "its quantization is 2 bits, not 4 (--quant-bits)"),
    ],
)
def test_find_says_what_refused_it(
    option: str, fits: str, fails: str, why: str, kv: Path, prompt: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = put(kv, b"the prompt")
    assert find(kv, prompt, b"the prompt!", option, fits) == 0
    capsys.readouterr()
    assert find(kv, prompt, b"the prompt!", option, fails) == 1
    assert capsys.readouterr().out.splitlines() == [
        "nothing found among 1 checkpoint",
        f"nearest: {path}, 600 tokens, 10 bytes of text",
        "  the prompt begins with its text",
        f"  refused: {why}",
    ]
    assert find(kv, prompt, b"the prompt!", option, fails, "--json") == 1
    nearest = answer(capsys)["nearest"]
    assert (nearest["refused"], nearest["differs"], nearest["common_bytes"]) == ([why], None, 10)


def test_find_refuses_short_ones_as_a_store_does(kv: Path, prompt: Path) -> None:
    put(kv, b"text", tokens=512)
    assert find(kv, prompt, b"text") == 0
    put(kv, b"text", tokens=511)
    assert find(kv, prompt, b"text") == 1


@pytest.mark.parametrize("common", [0, 1, 31, 100, 65535, 65536, 65537, 200_000])
def test_find_shows_where_the_nearest_differs(
    common: int, kv: Path, prompt: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shared = bytes(b"abcdefghij"[i % 10] for i in range(common))
    path = put(kv, shared + b"Monday" + bytes(100), tokens=1234)
    if common:
        put(kv, shared[: common // 2] + b"?" * 200)
    assert find(kv, prompt, shared + b"Tuesday", "--json") == 1
    nearest = answer(capsys)["nearest"]
    assert nearest["path"] == str(path)
    assert nearest["common_bytes"] == common
    assert nearest["differs"] == {
        "at": common,
        "after": shared[-32:].decode(),
        "stored": "Monday" + "\0" * 26,
        "prompt": "Tuesday",
    }
    assert find(kv, prompt, shared + b"Tuesday") == 1
    assert capsys.readouterr().out.splitlines() == [
        f"nothing found among {'2 checkpoints' if common else '1 checkpoint'}",
        f"nearest: {path}, 1,234 tokens, {common + 106:,} bytes of text",
        f"  differs at byte {common:,}, after {shared[-32:].decode()!r}",
        f"  stored: {'Monday' + chr(0) * 26!r}",
        "  prompt: 'Tuesday'",
    ]


@pytest.mark.parametrize("least", [b"the prompt 1", b"the prompt 2", b"the prompt 3"])
def test_find_takes_the_one_with_fewest_tokens_of_those_that_are_as_near(
    least: bytes, kv: Path, prompt: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for text in (b"the prompt 1", b"the prompt 2", b"the prompt 3"):
        put(kv, text, tokens=800 if text == least else 900)
    assert find(kv, prompt, b"the prompt!", "--json") == 1
    assert answer(capsys)["nearest"]["sha"] == sha1(least)
    put(kv, b"the prompt", tokens=511)  # all of it, so nothing but its few tokens is in the way
    assert find(kv, prompt, b"the prompt!", "--json") == 1
    assert answer(capsys)["nearest"]["sha"] == sha1(b"the prompt")


def test_find_of_a_prompt_that_is_shorter_than_what_is_stored(
    kv: Path, prompt: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(kv, b"the prompt and more \xff\x1b")
    assert find(kv, prompt, b"the prompt") == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "  its text begins with the whole prompt of 10 bytes and goes on: ' and more \ufffd\\x1b'"


@pytest.mark.parametrize(
    ("stored", "asked", "differs"),
    [
        (
            "caf\u00e9 au lait",
            "caf\u00e8 noir",
            {"at": 4, "after": "caf", "stored": "\u00e9 au lait", "prompt": "\u00e8 noir"},
        ),
        ("a\U0001f600b", "a\U0001f601b", {"at": 4, "after": "a", "stored": "\U0001f600b", "prompt": "\U0001f601b"}),
        (
            "\u4f60" * 40 + "x" + "\u597d" * 40,
            "\u4f60" * 40 + "y" + "\u597d" * 40,
            {"at": 120, "after": "\u4f60" * 10, "stored": "x" + "\u597d" * 10, "prompt": "y" + "\u597d" * 10},
        ),
        ("\u4f60\u597d", "\u4f60", {"at": 3, "after": "\u4f60", "stored": "\u597d", "prompt": ""}),
        (b"\x80" * 50 + b"a", b"\x80" * 50 + b"\x81", {"at": 50, "after": "", "stored": "a", "prompt": "\ufffd"}),
    ],
)
def test_find_cuts_no_character(
    stored: str | bytes,
    asked: str | bytes,
    differs: dict[str, Any],
    kv: Path,
    prompt: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    text, question = (it if isinstance(it, bytes) else it.encode() for it in (stored, asked))
    put(kv, text)
    assert find(kv, prompt, question, "--json") == 1
    assert answer(capsys)["nearest"]["differs"] == differs


def test_find_in_an_empty_directory(kv: Path, prompt: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert find(kv, prompt, b"prompt") == 1
    assert capsys.readouterr() == ("nothing found among 0 checkpoints\n", "")
    assert find(kv, prompt, b"prompt", "--json") == 1
    assert answer(capsys) == {"prompt_bytes": 6, "found": None, "nearest": None}


def test_find_passes_over_a_text_that_is_not_its_name(
    kv: Path, prompt: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shorter = put(kv, b"the ")
    wrong = put(kv, b"the prompt")
    assert find(kv, prompt, b"the prompt") == 0
    assert str(wrong) in capsys.readouterr().out
    wrong.write_bytes(wrong.read_bytes().replace(b"the prompt", b"the promqt"))
    assert find(kv, prompt, b"the prompt") == 0
    out, err = capsys.readouterr()
    assert str(shorter) in out
    assert err == f"{wrong}: corrupt: its name is not the SHA-1 of its text\n"


def test_find_tells_damaged_files(kv: Path, prompt: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = put(kv, b"prompt", payload_bytes=1000)
    (kv / "notes.txt").touch()
    assert find(kv, prompt, b"prompt") == 1
    err = capsys.readouterr().err
    assert err.startswith(f"{path}: corrupt: ")
    assert err.count("\n") == 1


# --------------------------------------------------------------------------------------------- evict


def fill(kv: Path) -> list[Path]:
    """Three checkpoints of 1 MiB and a little, the least worth first."""
    return [put(kv, text, bytes(1 << 20), tokens=tokens) for text, tokens in ((b"a", 600), (b"b", 700), (b"c", 800))]


def test_evict_says_what_goes_and_why(kv: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b, c = fill(kv)
    before = state(kv)
    assert main(["evict", str(kv), "--budget-mb", "2", "--dry-run"]) == 0
    dry = capsys.readouterr().out.splitlines()
    assert [line.split(maxsplit=5) for line in dry] == [
        ["sha", "tokens", "MiB", "hits", "score", "why"],
        [sha1(b"a")[:8], "600", "1.0", "0", "0.000572", "lowest score"],
        [sha1(b"b")[:8], "700", "1.0", "0", "0.000668", "lowest score"],
        ["2", "checkpoints", "would", "be", "evicted,", "2.0 MiB"],
    ]
    assert state(kv) == before
    assert main(["evict", str(kv), "--budget-mb", "2"]) == 0
    real = capsys.readouterr().out.splitlines()
    assert real[:-1] == dry[:-1]
    assert real[-1] == "2 checkpoints evicted, 2.0 MiB"
    assert (a.exists(), b.exists(), c.exists()) == (False, False, True)
    assert main(["evict", str(kv), "--budget-mb", "2"]) == 0
    assert capsys.readouterr().out == "0 checkpoints evicted, 0.0 MiB\n"


def test_evict_as_json_is_what_a_store_plans(kv: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(kv)
    now = time.time()
    plan = Store(kv).plan_eviction(1, now)
    assert main(["evict", str(kv), "--budget-mb", "1", "--dry-run", "--json"]) == 0
    told = answer(capsys)
    assert [(row["path"], row["why"]) for row in told["evicted"]] == [(v.entry.path, v.reason) for v in plan]
    assert [row["score"] for row in told["evicted"]] == pytest.approx([v.score for v in plan])
    size = sum(victim.entry.file_size for victim in plan)
    assert (told["dry_run"], told["budget_bytes"], told["evicted_bytes"]) == (True, 1 << 20, size)


def test_evict_leaves_alone_what_is_no_checkpoint(kv: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(kv)
    others = [kv / "sysprompt.kv", kv / f"{'0' * 40}.kv.tmp.1", put(kv, b"damaged", payload_bytes=1 << 30)]
    for other in others[:2]:
        other.write_bytes(bytes(5 << 20))
    assert main(["evict", str(kv), "--budget-mb", "4"]) == 0
    assert capsys.readouterr().out.startswith("0 checkpoints")
    assert main(["evict", str(kv), "--budget-mb", "1"]) == 0
    assert sorted(kv.iterdir()) == sorted([*others, kv / LOCK_NAME])


def test_evict_tells_what_it_could_not_remove(
    kv: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b, c = fill(kv)
    unlink = os.unlink

    def refuse(path: str) -> None:
        if path == str(a):
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), path)
        unlink(path)

    monkeypatch.setattr(os, "unlink", refuse)
    assert main(["evict", str(kv), "--budget-mb", "2"]) == 1
    out, err = capsys.readouterr()
    assert out.splitlines()[-1] == "2 checkpoints evicted, 2.0 MiB"  # another one in its place
    assert err == f"ds4kv: kv cache eviction failed {a}: Operation not permitted\n"
    assert (a.exists(), b.exists(), c.exists()) == (True, False, False)


# ------------------------------------------------------------------------------------------------ rm


def named(kv: Path, *shas: str) -> list[Path]:
    """Checkpoints by name alone."""
    paths = [kv / f"{sha:0<40}.kv" for sha in shas]
    for path in paths:
        path.write_bytes(reference.build(b"payload", codec=0, chunk_size=0))
    return paths


def test_rm_by_prefix(kv: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ab, ac, damaged = named(kv, "ab", "ac", "d0")
    damaged.write_bytes(b"not a checkpoint")
    assert main(["rm", str(kv), "AB", "d", "ab0"]) == 0
    assert capsys.readouterr() == (f"removed {ab}, 0.0 MiB\nremoved {damaged}, 0.0 MiB\n", "")
    assert sorted(kv.iterdir()) == sorted([kv / LOCK_NAME, ac])


def test_rm_removes_a_link_and_not_what_it_leads_to(kv: Path, tmp_path: Path) -> None:
    target = tmp_path / "elsewhere"
    target.touch()
    for to, name in ((target, "1"), (tmp_path / "nowhere", "2")):
        (kv / f"{name * 40}.kv").symlink_to(to)
    assert main(["rm", str(kv), "1", "2"]) == 0
    assert list(kv.iterdir()) == [kv / LOCK_NAME]
    assert target.exists()


def test_rm_takes_all_spellings_of_one_key(kv: Path, capsys: pytest.CaptureFixture[str]) -> None:
    named(kv, "ab" * 20, "AB" * 20)
    assert main(["rm", str(kv), "ab"]) == 0
    assert capsys.readouterr().out.count("removed ") == 2


@pytest.mark.parametrize(
    ("sha", "message"),
    [
        ("a", f"a could be any of 2 checkpoints: {'ab':0<40}, {'ac':0<40}"),
        ("f", "no checkpoint f in "),
        ("1234567", "no checkpoint 1234567 in "),
    ],
)
def test_rm_removes_nothing_unless_all_are_clear(
    sha: str, message: str, kv: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named(kv, "ab", "ac", "d")
    (kv / "1234567.kv").touch()  # not a checkpoint's name
    before = state(kv)
    assert main(["rm", str(kv), "d", sha]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"ds4kv: error: {message}") and err.count("\n") == 1
    assert state(kv) == before
    assert main(["rm", str(kv), "d"]) == 0  # the control


# ------------------------------------------------------------------------------------------ sessions


def test_sessions(kv: Path, capsys: pytest.CaptureFixture[str]) -> None:
    older = f"system{USER}how do\nI list \x1b files?{ASSISTANT}ls".encode()
    put(kv, older, bytes(3 << 20), tokens=1500, last_used=HOUR_AGO - 86400, reason_code=6)
    put(kv, b"no turn", tokens=700, reason_code=6)
    (kv / "sysprompt.kv").write_bytes(b"")
    assert main(["sessions", str(kv)]) == 0
    assert [line.split(maxsplit=4) for line in capsys.readouterr().out.splitlines()] == [
        ["sha", "age", "tokens", "MiB", "title"],
        [sha1(b"no turn")[:8], "1h", "700", "0.0", "no user turn, text begins 'no turn'"],
        [sha1(older)[:8], "1d", "1,500", "3.0", "'how do I list \\x1b files?'"],
        ["2", "sessions"],
    ]
    assert main(["sessions", str(kv / "sysprompt.kv")]) == 1


def test_sessions_says_what_a_server_saved(kv: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(kv, b"You are helpful.", reason_code=1)
    put(kv, b"", reason_code=2, last_used=HOUR_AGO - 60)
    put(kv, f"{USER}hello".encode(), reason_code=6, last_used=HOUR_AGO - 120)
    assert main(["sessions", str(kv)]) == 0
    *rows, total = capsys.readouterr().out.splitlines()[1:]
    assert [row.split(maxsplit=4)[4] for row in rows] == [
        "no user turn, text begins 'You are helpful.'",
        "no text",
        "'hello'",
    ]
    assert total == f"1 session, and 2 other checkpoints: ds4kv ls {kv} says more of them"


def test_a_text_of_any_size_has_its_title(kv: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The mark of the user's turn lies across two pieces, and behind it is more text than there is memory."""
    text_bytes = (1 << 32) - 1
    at = (1 << 20) - 4
    path = kv / f"{'0' * 40}.kv"
    with path.open("wb") as fp:
        fp.write(reference.build(b"", codec=0, chunk_size=0, payload_bytes=0)[:48])
        fp.write(text_bytes.to_bytes(4, "little"))
        fp.seek(52 + at)
        fp.write(USER.encode() + b" hello " + b" " * 100 + b"there" * 20)
        fp.truncate(52 + text_bytes)
    put(kv, f"{USER}short".encode(), reason_code=6, last_used=1)
    code = f"""
import resource, sys
from ds4kv.cli import main
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
sys.exit(main(["sessions", {str(kv)!r}]))
"""
    with started([sys.executable, "-c", code]) as child:
        out, err = child.finish()
    assert (child.returncode, err) == (0, b"")
    titles = [line.split(maxsplit=4)[4] for line in out.decode().splitlines()[1:-1]]
    assert titles == [repr(("hello " + "there" * 20)[:70]), "'short'"]


def test_a_link_that_leads_to_itself_ends_nothing(kv: Path, prompt: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = put(kv, f"{USER}good".encode(), reason_code=6)
    prompt.write_bytes(f"{USER}good and more".encode())
    for name in ("loop", "loop.kv", f"{'1' * 40}.kv", f"{'2' * 40}.kv.tmp.1", "quarantine"):
        (kv / name).symlink_to(name)
    for command in [*COMMANDS, "verify", "upgrade --dry-run", "upgrade", "evict --budget-mb 1 --dry-run"]:
        if command == "rm 00":
            continue
        name, *options = command.format(prompt=prompt).split()
        main([name, str(kv), *options])
        out, err = capsys.readouterr()
        assert "ds4kv: error" not in err, command
        if name in ("ls", "find", "verify", "upgrade"):
            assert str(good) in out or sha1(f"{USER}good".encode())[:8] in out or "1 kept" in out, command


def test_the_subcommands_see_what_a_store_saved(kv: Path, prompt: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Store(kv, workers=1) as store:
        entry = store.save_buffer(b"a text", bytes(1 << 16), tokens=1024, ctx_size=4096)
    assert entry is not None
    assert main(["ls", "--json", str(kv)]) == 0
    [row] = answer(capsys)["checkpoints"]
    assert (row["path"], row["codec"]) == (entry.path, "lz4")
    assert row["ratio"] == pytest.approx((1 << 16) / ds4kv.read_header(entry.path).payload_bytes)
    assert find(kv, prompt, b"a text that goes on", "--ctx-size", "4096", "--quant-bits", "2") == 0
    assert entry.path in capsys.readouterr().out
