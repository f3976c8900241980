"""The options of ds4-server: their names, ranges and defaults, and how what can't be meant ends."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable

import pytest

from ds4kv.core.workers import THREADS_VARIABLE
from ds4kv.store.options import add_cli_arguments, store_options

LARGEST = 2**31 - 1
DEFAULTS = {
    "directory": None,
    "budget_mb": 4096,
    "min_tokens": 512,
    "cold_max_tokens": 30000,
    "continued_interval_tokens": 10000,
    "boundary_trim_tokens": 32,
    "boundary_align_tokens": 2048,
    "reject_different_quant": False,
    "workers": 3,
    "codec": "lz4",
}
# Each option with a number, the argument that it becomes, and its least value.
NUMBERS = [
    ("--kv-disk-space-mb", "budget_mb", 1),
    ("--kv-cache-min-tokens", "min_tokens", 1),
    ("--kv-cache-cold-max-tokens", "cold_max_tokens", 0),
    ("--kv-cache-continued-interval-tokens", "continued_interval_tokens", 0),
    ("--kv-cache-boundary-trim-tokens", "boundary_trim_tokens", 0),
    ("--kv-cache-boundary-align-tokens", "boundary_align_tokens", 0),
    ("--kv-cache-compression-threads", "workers", 0),
]
ALL_NUMBERS = [(flag, least) for flag, _, least in NUMBERS] + [("--tool-memory-max-ids", 1)]


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(THREADS_VARIABLE, "3")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(100)))  # no default is cut down to fewer CPUs


def parse(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="engine")
    add_cli_arguments(parser)
    return parser.parse_args(argv)


def refusal(capsys: pytest.CaptureFixture[str], run: Callable[[], object]) -> str:
    """The last line on stderr, of a program that ended with status 2."""
    with pytest.raises(SystemExit) as stop:
        run()
    assert stop.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_defaults() -> None:
    namespace = parse()
    assert store_options(namespace) == DEFAULTS
    assert (namespace.disable_exact_dsml_tool_replay, namespace.tool_memory_max_ids) == (False, 100_000)


def test_exactly_these_options() -> None:
    parser = argparse.ArgumentParser(prog="engine", add_help=False)
    add_cli_arguments(parser)
    assert parser.format_usage().split()[2:] == [
        *("[--kv-disk-dir", "DIR]"),
        *("[--kv-disk-space-mb", "N]"),
        *("[--kv-cache-min-tokens", "N]"),
        *("[--kv-cache-cold-max-tokens", "N]"),
        *("[--kv-cache-continued-interval-tokens", "N]"),
        *("[--kv-cache-boundary-trim-tokens", "N]"),
        *("[--kv-cache-boundary-align-tokens", "N]"),
        "[--kv-cache-reject-different-quant]",
        *("[--kv-cache-compression-threads", "N]"),
        "[--disable-exact-dsml-tool-replay]",
        *("[--tool-memory-max-ids", "N]"),
    ]


def test_directory_and_switches() -> None:
    namespace = parse("--kv-disk-dir", "/kv", "--kv-cache-reject-different-quant", "--disable-exact-dsml-tool-replay")
    assert store_options(namespace) == DEFAULTS | {"directory": "/kv", "reject_different_quant": True}
    assert namespace.disable_exact_dsml_tool_replay


@pytest.mark.parametrize(("flag", "name", "least"), NUMBERS)
def test_numbers_become_arguments(flag: str, name: str, least: int) -> None:
    # 777 is no prompt that is shorter than the shortest to be stored, and 64 threads are the most.
    value = 61 if name == "workers" else 777
    assert store_options(parse(flag, str(value))) == DEFAULTS | {name: value}
    assert store_options(parse("--kv-cache-min-tokens=1", flag, str(least)))[name] == least


def test_tool_memory() -> None:
    assert parse("--tool-memory-max-ids", "1").tool_memory_max_ids == 1


@pytest.mark.parametrize(("flag", "least"), ALL_NUMBERS)
def test_range(capsys: pytest.CaptureFixture[str], flag: str, least: int) -> None:
    parse("--kv-cache-cold-max-tokens=0", flag, str(LARGEST))
    for value in (least - 1, -LARGEST, LARGEST + 1, 2**64 + least + 1):
        message = refusal(capsys, lambda value=value: parse(flag, str(value)))
        assert message == (f"engine: error: argument {flag}: '{value}' is not a whole number from {least} to {LARGEST}")


@pytest.mark.parametrize("text", ["5", "+5", "005", " 5", "\t\n\v\f\r +5", "0" * 5000 + "5"])
def test_numbers_are_read_as_strtol_does(text: str) -> None:
    assert parse("--kv-cache-boundary-trim-tokens", text).kv_cache_boundary_trim_tokens == 5


@pytest.mark.parametrize("text", ["-0", "+0", "0", "  -00"])
def test_zeros(text: str) -> None:
    assert parse(f"--kv-cache-boundary-trim-tokens={text}").kv_cache_boundary_trim_tokens == 0


@pytest.mark.parametrize(
    "text", ["", " ", "x", "5x", "5 ", "0x10", "1_000", "1,000", "1e3", "5.0", "+-5", "--5", "+ 5", "\u0665", "\xa05"]
)
def test_what_strtol_would_not_read_whole(capsys: pytest.CaptureFixture[str], text: str) -> None:
    message = refusal(capsys, lambda: parse(f"--kv-cache-boundary-trim-tokens={text}"))
    assert f"argument --kv-cache-boundary-trim-tokens: {text!r} is not a whole number" in message


# Threads


@pytest.mark.parametrize(
    ("value", "workers", "codec"), [("0", 0, "none"), ("1", 1, "lz4"), ("64", 64, "lz4"), ("65", 64, "lz4")]
)
def test_threads(value: str, workers: int, codec: str) -> None:
    options = store_options(parse("--kv-cache-compression-threads", value))
    assert (options["workers"], options["codec"]) == (workers, codec)


@pytest.mark.parametrize(("value", "workers", "codec"), [("0", 0, "none"), ("64", 64, "lz4"), ("1", 1, "lz4")])
def test_threads_of_the_environment(monkeypatch: pytest.MonkeyPatch, value: str, workers: int, codec: str) -> None:
    monkeypatch.setenv(THREADS_VARIABLE, value)
    options = store_options(parse())
    assert (options["workers"], options["codec"]) == (workers, codec)
    options = store_options(parse("--kv-cache-compression-threads=2"))
    assert (options["workers"], options["codec"]) == (2, "lz4")


@pytest.mark.parametrize("value", [None, "65", "-1", "x", ""])
def test_threads_without_a_good_environment(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    monkeypatch.delenv(THREADS_VARIABLE)
    if value is not None:
        monkeypatch.setenv(THREADS_VARIABLE, value)
    options = store_options(parse())
    assert (options["workers"], options["codec"]) == (min(8, len(os.sched_getaffinity(0))), "lz4")


# What two options say together


CONTRADICTION = (
    "engine: error: argument --kv-cache-cold-max-tokens: 511 is neither 0"
    " nor at least --kv-cache-min-tokens, which is 512"
)


@pytest.mark.parametrize(
    "argv",
    [
        ["--kv-cache-cold-max-tokens=511"],
        ["--kv-cache-cold-max-tokens=511", "--kv-cache-min-tokens=512"],
        ["--kv-cache-min-tokens=512", "--kv-cache-cold-max-tokens=511"],
    ],
)
def test_a_cold_maximum_below_the_minimum(capsys: pytest.CaptureFixture[str], argv: list[str]) -> None:
    assert refusal(capsys, lambda: parse(*argv)) == CONTRADICTION


@pytest.mark.parametrize(
    "argv",
    [
        ["--kv-cache-cold-max-tokens=512"],
        ["--kv-cache-cold-max-tokens=0"],
        ["--kv-cache-cold-max-tokens=511", "--kv-cache-min-tokens=511"],
        ["--kv-cache-min-tokens=40000", "--kv-cache-cold-max-tokens=40000"],
        ["--kv-cache-cold-max-tokens=100", "--kv-cache-cold-max-tokens=1000"],
    ],
)
def test_control_of_the_cold_maximum(argv: list[str]) -> None:
    parse(*argv)


def test_the_minimum_may_be_what_is_too_high(capsys: pytest.CaptureFixture[str]) -> None:
    message = refusal(capsys, lambda: parse("--kv-cache-min-tokens", "30001"))
    assert "30000 is neither 0 nor at least --kv-cache-min-tokens, which is 30001" in message


def test_every_way_to_parse(capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser(prog="engine")
    add_cli_arguments(parser)
    bad, good = ["--kv-cache-cold-max-tokens=511"], ["--kv-cache-cold-max-tokens=512"]
    for run in (parser.parse_args, parser.parse_known_args):
        assert refusal(capsys, lambda run=run: run(bad)) == CONTRADICTION
        run(good)
    given = argparse.Namespace(mine=1)
    assert parser.parse_args(good, given) is given
    assert (given.mine, given.kv_cache_cold_max_tokens) == (1, 512)
    assert parser.parse_known_args([*good, "--other"])[1] == ["--other"]


def test_a_subcommand(capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser(prog="engine")
    serve = parser.add_subparsers(dest="command").add_parser("serve", prog="engine")
    add_cli_arguments(serve)
    assert refusal(capsys, lambda: parser.parse_args(["serve", "--kv-cache-cold-max-tokens=511"])) == CONTRADICTION
    namespace = parser.parse_args(["serve", "--kv-cache-cold-max-tokens=512"])
    assert store_options(namespace)["cold_max_tokens"] == 512
    assert parser.parse_args([]).command is None


def test_the_engine_keeps_its_own_options_and_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser(prog="engine")
    parser.add_argument("-c", "--ctx", type=int, default=32768)
    add_cli_arguments(parser)
    parser.set_defaults(kv_cache_min_tokens=512, kv_cache_cold_max_tokens=0)
    namespace = parser.parse_args(["-c", "4096"])
    assert (namespace.ctx, store_options(namespace)["cold_max_tokens"]) == (4096, 0)
    parser.set_defaults(kv_cache_cold_max_tokens=511)
    assert refusal(capsys, lambda: parser.parse_args([])) == CONTRADICTION


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse("--help")
    assert stop.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "budget in MiB (4096)" in shown
    assert f"0: don't compress (3; {THREADS_VARIABLE} sets the default)" in shown
