"""The command ``ds4kv``: one module a subcommand, and only the one that is asked for is imported.

Each has ``configure(parser)``, which declares its arguments, and ``run(args)``, which returns the exit code. Exit codes
are 0 for success, 1 for a failure that can happen to correct use (a missing or damaged file), 2 for bad use, and 130
after Ctrl-C; what went wrong is one line on stderr. Results go to stdout.

The library needs cffi alone, and so do all subcommands but ``ab``.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import io
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from types import FrameType

import ds4kv
from ds4kv.cli.arguments import Parser, UsageError
from ds4kv.cli.messages import describe

__all__ = ["COMMANDS", "main"]

COMMANDS = {
    "ab": "compare raw and lz4 checkpoints: size, save and load time",
    "info": "say what a checkpoint's header holds",
    "verify": "decode checkpoints and say which are damaged",
    "convert": "write a checkpoint again in another layout or codec",
    "salvage": "save the good beginning of a damaged checkpoint, and say what is lost",
    "cat": "write a checkpoint's payload or text to stdout",
    "ls": "list the checkpoints of a directory",
    "upgrade": "write a directory's checkpoints again in a newer layout, in place",
    "find": "say which checkpoint a prompt would load, or why none",
    "evict": "bring a directory within a budget",
    "rm": "remove checkpoints by the beginning of their SHA-1",
    "quarantine": "list what was set aside as damaged, or remove it",
    "sessions": "list the conversations that ds4-agent saved",
}
_EXTRA = ("numpy", "rich")
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one subcommand and returns its exit code; ``argv`` is ``sys.argv[1:]`` unless given."""
    argv = sys.argv[1:] if argv is None else argv
    _replace_closed()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A prompt may hold what the terminal's encoding lacks.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with _ending_cleanly(), _delivering():
            return _run(argv)
    except UsageError as error:
        return _fail(2, str(error))
    except ModuleNotFoundError as error:
        name = (error.name or "").partition(".")[0]
        if name not in _EXTRA:
            raise
        return _fail(1, f"this needs {name}, which is not installed: pip install 'ds4kv[cli]'")
    except BrokenPipeError:
        return 128 + signal.SIGPIPE  # whoever reads stdout has seen enough
    except (ds4kv.Ds4kvError, OSError, MemoryError) as error:
        return _fail(1, describe(error))
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def _run(argv: Sequence[str]) -> int:
    parser = Parser(prog="ds4kv", description="Compressed on-disk KV cache checkpoints, the .kv files of ds4.")
    parser.add_argument("--version", action="version", version=f"ds4kv {ds4kv.__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, summary in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
        if argv and argv[0] == name:
            command = importlib.import_module(f"ds4kv.cli.{name}")
            command.configure(subparser)
    args, unknown = parser.parse_known_args(argv)
    if unknown:  # which the subcommand's own --help is to be tried for
        subparsers.choices[args.command].error(f"unrecognized arguments: {' '.join(unknown)}")
    code: int = command.run(args)
    return code


def _fail(code: int, message: str) -> int:
    print(f"ds4kv: error: {message}", file=sys.stderr)
    return code


@contextlib.contextmanager
def _ending_cleanly() -> Iterator[None]:
    """Has ``kill`` and a closed terminal end the command as an exception does, so that it leaves no temporary file."""
    # nohup ignores one of them, and is not to be overruled.
    numbers = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) is signal.SIG_DFL]
    for number in numbers:
        signal.signal(number, _exit)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


def _exit(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


@contextlib.contextmanager
def _delivering() -> Iterator[None]:
    """Has what stdout holds back delivered here, where a failure still gets its line and its exit code."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            with contextlib.suppress(OSError):
                _flush()  # the first failure says more than that of what is left
        else:
            _flush()  # if it was stdout that failed it fails again, and the error names it
            if error.errno in _NO_ROOM:  # one without a buffer doesn't; and of files, those that are written have names
                error.filename = "stdout"
        raise
    finally:
        _flush()


def _flush() -> None:
    try:
        sys.stdout.flush()
    except OSError as error:
        # It stays in the buffer, and Python would try again as it exits.
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        raise OSError(error.errno, error.strerror, "stdout") from error


def _replace_closed() -> None:
    """Has a descriptor of 0 to 2 that whoever started us has closed lead to /dev/null.

    Else the next file that is opened gets its number, and what others write to it. Python has None for its stream, and
    print to that is print to stdout. What should be read from 0 or written to 1 is an error; messages to 2 are lost.
    """
    for number, access in enumerate((os.O_WRONLY, os.O_RDONLY, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, access)  # the lowest number that is free, which is this one
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
