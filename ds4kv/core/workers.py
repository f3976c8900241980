"""How many worker threads, where the caller doesn't say."""

from __future__ import annotations

import os

__all__ = ["MAX_WORKERS", "THREADS_VARIABLE", "compression_is_off", "resolve"]

MAX_WORKERS = 64
THREADS_VARIABLE = "DS4_KV_CACHE_COMPRESSION_THREADS"


def _from_environment() -> int | None:
    """The variable's value, or None if it is unset or not a whole number from 0 to 64, as ds4 has it."""
    value = os.environ.get(THREADS_VARIABLE, "")
    is_number = value.isascii() and value.isdigit() and len(value) < 10
    return int(value) if is_number and int(value) <= MAX_WORKERS else None


def compression_is_off() -> bool:
    """Whether the environment asks for 0 threads, which makes codec ``none`` the default."""
    return _from_environment() == 0


def resolve(workers: int | None) -> int:
    """``workers`` as given, 0 to 64 (0: the calling thread does it all); ValueError outside.

    None is the environment's number, else 8. It is never more than the CPUs of this process: more threads than that
    take memory and time, and give nothing.
    """
    if workers is None:
        given = _from_environment()
        workers = 8 if given is None else max(given, 1)
    if not 0 <= workers <= MAX_WORKERS:
        raise ValueError(f"workers is {workers}, outside 0..{MAX_WORKERS}")
    return min(workers, _cpu_count())


def _cpu_count() -> int:
    """The CPUs that this process may run on."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS
    return len(affinity(0)) if affinity else os.cpu_count() or 1
