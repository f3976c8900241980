"""Where the command ``ds4kv`` begins: Ctrl-C is no traceback either while the package is still being imported."""

from __future__ import annotations


def main() -> int:
    """Runs ``ds4kv.cli.main``; the exit code."""
    try:
        from ds4kv.cli import main as run

        return run()
    except KeyboardInterrupt:
        return 130
