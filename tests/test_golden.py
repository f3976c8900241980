"""Files of the C reference: each good one loads and is written again to the byte, each bad one gets
its verdict, and none of them changes while the tests run. The expectations are in golden/manifest.json."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import pytest
import reference
from helpers import GOLDEN, MANIFEST, golden

import ds4kv

GOOD = MANIFEST["good"]
BAD = MANIFEST["bad"]["cases"]
CONTROL = MANIFEST["bad"]["control"]

good = pytest.mark.parametrize("case", GOOD, ids=[case["file"] for case in GOOD])
bad = pytest.mark.parametrize("case", BAD, ids=[case["file"] for case in BAD])


def renamed(tmp_path: Path, file: str, name: str) -> Path:
    return Path(shutil.copyfile(GOLDEN / file, tmp_path / name))


@pytest.fixture(scope="module", autouse=True)
def untouched():
    yield
    test_nothing_in_the_folder_has_changed()


def test_nothing_in_the_folder_has_changed() -> None:
    found = {
        path.relative_to(GOLDEN).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in GOLDEN.rglob("*")
        if path.is_file() and path.name not in ("manifest.json", ".gitattributes")
    }
    assert found == MANIFEST["sha256"]


@good
@pytest.mark.parametrize("workers", [None, 0, 1, 2, 8])
def test_good_file_loads(case: dict[str, Any], workers: int | None) -> None:
    loaded = ds4kv.load(GOLDEN / case["file"], workers=workers)
    assert bytes(loaded.payload) == golden(case["payload"])
    assert loaded.text == golden(case["text"])
    assert loaded.trailer == golden(case["trailer"])
    header = loaded.header
    assert {field: getattr(header, field) for field in case["header"]} == case["header"]
    assert header.pack() == golden(case["file"])[:48]
    assert ds4kv.Header.unpack(header.pack()) == header
    assert ds4kv.read_header(GOLDEN / case["file"]) == header


@good
def test_good_file_loads_into_memory_of_the_caller(case: dict[str, Any]) -> None:
    expected = golden(case["payload"])
    into = bytearray(len(expected))
    ds4kv.load(GOLDEN / case["file"], into=into)
    assert into == expected
    for size in (len(expected) - 1, len(expected) + 1):
        with pytest.raises(ValueError) as caught:
            ds4kv.load(GOLDEN / case["file"], into=bytearray(size))
        assert not isinstance(caught.value, ds4kv.CorruptError)


@good
def test_reference_agrees(case: dict[str, Any]) -> None:
    data = golden(case["file"])
    assert len(data) == case["size"]
    parsed = reference.parse(data, case["kv_name"])
    assert parsed.payload == golden(case["payload"])
    assert parsed.text == golden(case["text"])
    assert parsed.trailer == golden(case["trailer"])
    expected = dict(case["header"])
    assert f"v{parsed.version}" == expected.pop("layout")
    assert {field: getattr(parsed, field) for field in expected} == expected
    assert reference.lint(data) == []


@good
@pytest.mark.parametrize("workers", [1, 2, 8, 0])
def test_good_file_is_written_again_to_the_byte(case: dict[str, Any], workers: int, tmp_path: Path) -> None:
    path = tmp_path / "again.kv"
    header = ds4kv.dump(
        path,
        golden(case["payload"]),
        text=golden(case["text"]),
        trailer=golden(case["trailer"]),
        workers=workers,
        **case["dump"],
    )
    assert path.read_bytes() == golden(case["file"])
    assert header == ds4kv.read_header(GOLDEN / case["file"])
    assert [entry.name for entry in tmp_path.iterdir()] == ["again.kv"]


@good
def test_name_is_held_against_the_text(case: dict[str, Any], tmp_path: Path) -> None:
    name = case["kv_name"]
    other = next(entry["kv_name"] for entry in GOOD if entry["kv_name"] != name)
    for right in (name, name[:40].upper() + ".kv", "sysprompt.kv", name[:39] + ".kv", "f" + other):
        ds4kv.load(renamed(tmp_path, case["file"], right))
        reference.parse(golden(case["file"]), right)
    for wrong in (other, other[:40].upper() + ".kv", name[1:40] + name[0] + ".kv"):
        with pytest.raises(ds4kv.CorruptError) as caught:
            ds4kv.load(renamed(tmp_path, case["file"], wrong))
        assert not isinstance(caught.value, ds4kv.TruncatedError)
        assert wrong in str(caught.value)
        with pytest.raises(reference.Bad, match="named after"):
            reference.parse(golden(case["file"]), wrong)


@bad
@pytest.mark.parametrize("workers", [None, 0, 1, 2, 8])
def test_bad_file_gets_its_verdict(case: dict[str, Any], workers: int | None) -> None:
    data = golden(case["file"])
    assert len(data) == case["size"]
    with pytest.raises(reference.Bad) as refused:
        reference.parse(data)
    assert refused.value.verdict == case["verdict"]
    kind = {
        "corrupt": ds4kv.CorruptError,
        "truncated": ds4kv.TruncatedError,
        "unsupported": ds4kv.UnsupportedError,
    }[case["verdict"]]
    with pytest.raises(kind) as caught:
        ds4kv.load(GOLDEN / case["file"], workers=workers)
    assert type(caught.value) is kind
    assert Path(case["file"]).name in str(caught.value)


@pytest.mark.parametrize("workers", [None, 0, 1, 2, 8])
def test_control_of_the_bad_files_loads(workers: int | None, tmp_path: Path) -> None:
    loaded = ds4kv.load(renamed(tmp_path, CONTROL["file"], CONTROL["kv_name"]), workers=workers)
    parsed = reference.parse(golden(CONTROL["file"]), CONTROL["kv_name"])
    assert bytes(loaded.payload) == parsed.payload == golden(CONTROL["payload"])
    assert loaded.text == parsed.text == golden(CONTROL["text"])
    assert loaded.trailer == parsed.trailer == b""
