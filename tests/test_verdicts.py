"""The words for what is known of a file: one list for the API and for the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
import reference

import ds4kv
from ds4kv.cli import main
from ds4kv.file.verdict import Proof, Verdict

TEXT = b"text"
PAYLOAD = bytes(range(256)) * 40


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        (ds4kv.CorruptError("no good"), Verdict.CORRUPT),
        (ds4kv.TruncatedError("cut"), Verdict.CORRUPT),
        (ds4kv.UnsupportedError("newer"), Verdict.UNSUPPORTED),
        (OSError(5, "Input/output error"), Verdict.UNREADABLE),
        (MemoryError(), Verdict.UNREADABLE),
    ],
)
def test_what_an_error_says_of_a_file(error: Exception, verdict: Verdict) -> None:
    assert Verdict.of(error) is verdict


def test_the_name_of_before_is_the_same_verdict() -> None:
    assert Verdict.DAMAGED is Verdict.CORRUPT is Verdict("damaged") is ds4kv.Verdict.DAMAGED
    with pytest.raises(ValueError, match="spoiled"):
        Verdict("spoiled")


@pytest.mark.parametrize(
    ("data", "proof"),
    [
        (reference.build(PAYLOAD, codec=0, chunk_size=0, text=TEXT), Proof.DECODES),
        (reference.build_checked(PAYLOAD, text=TEXT), Proof.CHECKSUMS),
    ],
)
def test_both_faces_say_the_same(data: bytes, proof: Proof, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.kv"
    path.write_bytes(data)
    with ds4kv.open(path) as checkpoint:
        assert checkpoint.verify() is Verdict.UNKNOWN
        assert checkpoint.proof() is proof
    assert main(["verify", str(path)]) == 0
    assert f"ok: {proof}" in capsys.readouterr().out

    path.write_bytes(data[:-1])
    with pytest.raises(ds4kv.CorruptError), ds4kv.open(path) as checkpoint:
        checkpoint.verify()
    assert main(["verify", str(path)]) == 1
    assert f"{Verdict.CORRUPT}: " in capsys.readouterr().out


def test_what_a_store_saved_is_ok_by_its_sidecar(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with ds4kv.Store(tmp_path) as store:
        entry = store.save_buffer(TEXT, PAYLOAD, tokens=600, ctx_size=1000)
        assert store.verify(entry) is Verdict.OK
    assert main(["verify", entry.path]) == 0
    assert f"ok: {Proof.SIDECAR}" in capsys.readouterr().out


def test_a_packed_file_is_ok_by_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.kv"
    for trailer, ext_flags in ((b"", 0), (b"tail", 0), (b"tail", 1)):
        options = {"text": TEXT, "trailer": trailer, "ext_flags": ext_flags}
        ds4kv.dump(path, PAYLOAD, tokens=600, ctx_size=1000, layout="packed", **options)
        with ds4kv.open(path) as checkpoint:
            assert checkpoint.verify() is Verdict.OK
            assert checkpoint.proof() is Proof.SEALED
        assert main(["verify", str(path)]) == 0
        assert f"ok: {Proof.SEALED}" in capsys.readouterr().out
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(content)
    with ds4kv.open(path) as checkpoint, pytest.raises(ds4kv.CorruptError, match="trailer"):
        checkpoint.verify()
    content[6] = 0  # as a rewrite leaves it that was killed: there is no trailer
    path.write_bytes(content)
    with ds4kv.open(path) as checkpoint:
        assert checkpoint.verify() is Verdict.UNKNOWN
        assert (checkpoint.proof(), checkpoint.trailer, checkpoint.trailer_bytes) == (Proof.CHECKSUMS, b"", 0)


@pytest.mark.parametrize("proof", Proof)
def test_a_proof_has_its_verdict(proof: Proof) -> None:
    assert proof.verdict is (Verdict.OK if proof in ("sealed", "sidecar") else Verdict.UNKNOWN)


def test_the_help_explains_each_proof(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["verify", "--help"])
    text = capsys.readouterr().out
    for proof in Proof:
        assert f"{proof}," in text
