"""The log lines, letter for letter: operators grep for them."""

from __future__ import annotations

import errno
import inspect
import logging
import os
import subprocess
import sys
from collections.abc import Callable

import pytest
from helpers import MIB
from processes import DEADLINE

import ds4kv
from ds4kv import Codec, Ext, Header
from ds4kv.store import log
from ds4kv.store.settings import Settings

PATH = "/kv/0123456789abcdef0123456789abcdef01234567.kv"
RAW = Header(tokens=10240, ctx_size=32768, reason_code=1, quant_bits=4, hits=3, payload_bytes=5 * MIB)
LZ4 = RAW._replace(codec=Codec.LZ4, chunk_size=16 * MIB, reason_code=2, ext_flags=Ext.RESPONSES_VISIBLE)
NO_SPACE = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/kv/x.tmp.1")
DEFAULTS = {name: given.default for name, given in inspect.signature(ds4kv.Store).parameters.items()}
del DEFAULTS["directory"]
SETTINGS = Settings.checked(**DEFAULTS | {"codec": "lz4"})._replace(workers=8)
COMMON = "budget=4096 MiB, cross-quant=accept, min=512, cold_max=30000, continued=10000, trim=32, align=2048"


def corrupt(field: str, why: str = "because", offset: int = 8) -> ds4kv.CorruptError:
    return ds4kv.CorruptError(why, path=PATH, offset=offset, field=field)


INFO = [
    (
        lambda: log.opened("/kv", SETTINGS),
        f"KV disk cache /kv ({COMMON}, hit_half_life=21600s, codec=lz4 threads=8 chunk=16384K)",
    ),
    (
        lambda: log.opened("/kv", SETTINGS._replace(codec=Codec.NONE, workers=0, reject_different_quant=True)),
        f"KV disk cache /kv ({COMMON.replace('accept', 'reject')}, hit_half_life=21600s,"
        " codec=none threads=0 chunk=16384K)",
    ),
    (
        lambda: log.opened("/kv", SETTINGS._replace(layout=ds4kv.Layout.V2_CHECKED)),
        f"KV disk cache /kv ({COMMON}, hit_half_life=21600s, codec=lz4 threads=8 chunk=1024K)",
    ),
    (
        lambda: log.opened("/kv", SETTINGS._replace(layout=ds4kv.Layout.V1)),
        f"KV disk cache /kv ({COMMON}, hit_half_life=21600s)",
    ),
    (
        lambda: log.stored(RAW, file_size=5 * MIB + 5243, raw_total=5 * MIB, seconds=0.01234, trimmed=771),
        "kv cache stored tokens=10240 trimmed=771 reason=cold key=token-text size=5.01 MiB save=12.3 ms",
    ),
    (
        lambda: log.stored(LZ4, file_size=9 * MIB, raw_total=9 * MIB, seconds=0.5),
        "kv cache stored tokens=10240 trimmed=0 reason=continued key=responses-visible"
        " codec=lz4 size=5.00 MiB comp=1.80x save=500.0 ms",
    ),
    (lambda: log.skipped_for_text(2048), "kv cache skipped tokens=2048 rendered text too large"),
    (
        lambda: log.skipped_for_estimate(2048, "cold", file_size=10 * MIB, budget_bytes=10 * MIB),
        "kv cache skipped tokens=2048 reason=cold estimated size over budget"
        " size=10.00 MiB safe=10.10 MiB budget=10.00 MiB",
    ),
    (
        lambda: log.skipped_for_size(2048, "evict", file_size=10 * MIB, budget_bytes=MIB, seconds=1.00004),
        "kv cache skipped tokens=2048 reason=evict final size over budget"
        " size=10.00 MiB safe=10.10 MiB budget=1.00 MiB save=1000.0 ms",
    ),
    (lambda: log.replaced(PATH), f"kv cache replaced incompatible file {PATH}"),
    (
        lambda: log.evicted(RAW, file_size=3 * MIB // 2, path=PATH),
        f"kv cache evicted reason=disk-cache-full tokens=10240 hits=3 size=1.50 MiB file={PATH}",
    ),
    (
        lambda: log.hit(RAW, text_bytes=41000, seconds=0.0355, path=PATH),
        f"kv cache hit text tokens=10240 text=41000 quant=4 key=token-text load=35.5 ms file={PATH}",
    ),
    (
        lambda: log.hit(LZ4, text_bytes=41000, seconds=2, path=PATH, consumed=True),
        f"kv cache hit text tokens=10240 text=41000 quant=4 key=responses-visible load=2000.0 ms consumed file={PATH}",
    ),
]
WARNINGS = [
    (
        lambda: log.mkdir_failed("/kv", PermissionError(errno.EACCES, "Permission denied", "/kv")),
        "failed to create KV cache directory /kv: Permission denied",
    ),
    (
        lambda: log.create_failed("/kv/x.tmp.1", NO_SPACE, 0.0001),
        "kv cache failed to create /kv/x.tmp.1: No space left on device save=0.1 ms",
    ),
    (
        lambda: log.store_failed("shutdown", NO_SPACE, 3.25),
        "kv cache store failed (shutdown): No space left on device save=3250.0 ms",
    ),
    (
        lambda: log.store_failed("cold", RuntimeError("the device is gone"), 0),
        "kv cache store failed (cold): the device is gone save=0.0 ms",
    ),
    (
        lambda: log.store_failed("cold", ds4kv.Ds4kvError("the payload was abandoned", path=PATH), 0),
        "kv cache store failed (cold): the payload was abandoned save=0.0 ms",
    ),
    (lambda: log.store_failed("cold", MemoryError(), 0), "kv cache store failed (cold): MemoryError save=0.0 ms"),
    (lambda: log.discarded(PATH), f"kv cache discarded corrupt text-prefix payload {PATH}"),
    (
        lambda: log.trouble("hit not noted", "/kv/a\nb.kv", PermissionError(errno.EACCES, "Permission denied")),
        r"kv cache hit not noted '/kv/a\nb.kv': [Errno 13] Permission denied",
    ),
    (
        lambda: log.load_failed(PATH, corrupt("raw_size", "raw_size is 3, not 4"), 0.0002),
        f"kv cache load failed {PATH}: raw_size is 3, not 4 at byte 8 load=0.2 ms",
    ),
    (
        lambda: log.load_failed(PATH, corrupt("text"), 0.0002),
        f"kv cache load failed {PATH}: text hash mismatch load=0.2 ms",
    ),
    (
        lambda: log.load_failed(PATH, FileNotFoundError(errno.ENOENT, "No such file or directory", PATH), 0),
        f"kv cache load failed {PATH}: No such file or directory load=0.0 ms",
    ),
]


def line(caplog: pytest.LogCaptureFixture, event: Callable[[], None]) -> tuple[str, int, str]:
    with caplog.at_level(logging.DEBUG, "ds4kv"):
        event()
    (record,) = caplog.records
    return record.name, record.levelno, record.getMessage()


@pytest.mark.parametrize(("event", "expected"), INFO)
def test_information(caplog: pytest.LogCaptureFixture, event: Callable[[], None], expected: str) -> None:
    assert line(caplog, event) == ("ds4kv", logging.INFO, expected)


@pytest.mark.parametrize(("event", "expected"), WARNINGS)
def test_warnings(caplog: pytest.LogCaptureFixture, event: Callable[[], None], expected: str) -> None:
    assert line(caplog, event) == ("ds4kv", logging.WARNING, expected)


@pytest.mark.parametrize(
    ("flags", "kind"),
    [
        (0, "token-text"),
        (Ext.TOOL_MAP, "token-text"),
        (Ext.RESPONSES_VISIBLE, "responses-visible"),
        (Ext.THINKING_VISIBLE, "thinking-visible"),
        (Ext.RESPONSES_VISIBLE | Ext.THINKING_VISIBLE, "responses-visible"),
        (0xF9, "token-text"),
    ],
)
def test_kinds_of_keys(flags: int, kind: str) -> None:
    assert log.key_kind(flags) == kind


def damaged(tmp_path: os.PathLike[str], change: Callable[[bytearray], object]) -> str:
    path = os.path.join(tmp_path, f"{'a9993e364706816aba3e25717850c26c9cd0d89d'}.kv")  # the SHA-1 of abc
    ds4kv.dump(path, bytes(100), tokens=1, ctx_size=1, text=b"abc", codec="lz4")
    with open(path, "r+b") as fp:
        content = bytearray(fp.read())
        change(content)
        fp.seek(0)
        fp.truncate()
        fp.write(content)
    return path


def set_byte(at: int, value: int) -> Callable[[bytearray], object]:
    return lambda content: content.__setitem__(at, value)


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (set_byte(0, 0), "bad header"),
        (set_byte(3, 9), "bad header"),
        (set_byte(4, 3), "bad header"),
        (set_byte(7, 9), "bad header"),
        (set_byte(8, 0), "bad header"),
        (set_byte(23, 9), "bad header"),
        (set_byte(47, 9), "bad header"),
        (lambda content: content.__delitem__(slice(50, None)), "bad header"),
        (lambda content: content.__delitem__(slice(53, None)), "text truncated"),
        (set_byte(52, 0), "text hash mismatch"),
        (set_byte(40, 5), "LZ4 reader could not be opened"),
        (set_byte(62, 1), "LZ4 reader could not be opened"),
        (set_byte(63, 9), "LZ4 reader could not be opened"),
    ],
)
def test_causes_of_failed_loads_are_in_the_words_of_ds4(
    caplog: pytest.LogCaptureFixture, tmp_path: os.PathLike[str], change: Callable[[bytearray], object], cause: str
) -> None:
    path = damaged(tmp_path, change)
    with pytest.raises(ds4kv.Ds4kvError) as caught:
        ds4kv.load(path)
    message = line(caplog, lambda: log.load_failed(path, caught.value, 0))[2]
    assert message == f"kv cache load failed {path}: {cause} load=0.0 ms"


def test_control_of_the_damages(tmp_path: os.PathLike[str]) -> None:
    assert ds4kv.load(damaged(tmp_path, lambda content: None)).text == b"abc"


def test_an_event_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    fake = "out of memory\nds4-server: kv cache stored tokens=1"
    assert "\n" not in line(caplog, lambda: log.store_failed("cold", RuntimeError(fake), 0))[2]


@pytest.mark.parametrize("directory", ["/kv\nx", os.fsdecode(b"/kv\xff")])
def test_odd_paths_can_be_printed(caplog: pytest.LogCaptureFixture, directory: str) -> None:
    message = line(caplog, lambda: log.replaced(directory))[2]
    assert message.isprintable()
    message.encode()


def test_who_opens_no_store_pays_for_no_logging() -> None:
    code = "import sys, ds4kv; sys.exit('logging' in sys.modules or 'argparse' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=DEADLINE)
