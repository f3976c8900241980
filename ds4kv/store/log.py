"""What a store tells its operator: ds4-server's lines, word for word and field for field, so that greps keep working.

One function an event, each logging one line to the standard library's logger ``ds4kv``, without the program's name in
front. Failures are warnings, all else is information. Sizes are given in bytes and logged in MiB (2^20 bytes), times
are given in seconds and logged in ms.

What went wrong and is none of ds4-server's lines goes through :mod:`ds4kv.file.trouble`.
"""

from __future__ import annotations

from ds4kv.errors import Ds4kvError
from ds4kv.file.trouble import logger, printable, trouble
from ds4kv.format.header import Codec, Ext, Header, Layout
from ds4kv.store.policy import HIT_HALF_LIFE, with_slack
from ds4kv.store.settings import Settings

__all__ = [
    "create_failed",
    "discarded",
    "evicted",
    "hit",
    "key_kind",
    "load_failed",
    "mkdir_failed",
    "opened",
    "refused",
    "replaced",
    "skipped_for_estimate",
    "skipped_for_size",
    "skipped_for_text",
    "store_failed",
    "stored",
    "trouble",
]

# ds4's words for what is wrong with a file, by the field of our errors.
_CAUSES = {
    **dict.fromkeys(
        ("magic", "header", "version", "quant_bits", "tokens", "codec", "chunk_size", "layout", "payload_bytes"),
        "bad header",
    ),
    "text_bytes": "text truncated",
    "text": "text hash mismatch",
    **dict.fromkeys(("frame", "chunk_count", "raw_total"), "LZ4 reader could not be opened"),
}

_logger = logger()


def key_kind(ext_flags: int) -> str:
    """What the text of a checkpoint is, as the field ``key=`` has it."""
    if ext_flags & Ext.RESPONSES_VISIBLE:
        return "responses-visible"
    return "thinking-visible" if ext_flags & Ext.THINKING_VISIBLE else "token-text"


def opened(directory: str, settings: Settings) -> None:
    """A store was opened, after its first eviction. Layout ``v1`` has no codec to be told of."""
    encoding = f", codec={_word(settings.codec)} threads={settings.workers} chunk={settings.new_chunk_size >> 10}K"
    _logger.info(
        "KV disk cache %s (budget=%d MiB, cross-quant=%s, min=%d, cold_max=%d, continued=%d, trim=%d, align=%d,"
        " hit_half_life=%ds%s)",
        printable(directory),
        settings.budget_bytes >> 20,
        "reject" if settings.reject_different_quant else "accept",
        settings.min_tokens,
        settings.cold_max_tokens,
        settings.continued_interval_tokens,
        settings.boundary_trim_tokens,
        settings.boundary_align_tokens,
        HIT_HALF_LIFE,
        "" if settings.layout is Layout.V1 else encoding,
    )


def mkdir_failed(directory: str, error: OSError) -> None:
    """The directory could not be made."""
    _logger.warning("failed to create KV cache directory %s: %s", printable(directory), _cause(error))


def stored(header: Header, *, file_size: int, raw_total: int, seconds: float, trimmed: int = 0) -> None:
    """A checkpoint was published.

    ``file_size`` is the whole file's, ``raw_total`` the payload's before compression, ``trimmed`` the tokens of the
    prompt that it leaves out. The logged size is the file's, and the region's alone if it is compressed.
    """
    if header.codec is Codec.NONE:
        size = f"size={_mib(file_size)} MiB"
    else:
        ratio = raw_total / header.payload_bytes
        size = f"codec={_word(header.codec)} size={_mib(header.payload_bytes)} MiB comp={ratio:.2f}x"
    _logger.info(
        "kv cache stored tokens=%d trimmed=%d reason=%s key=%s %s save=%s ms",
        header.tokens,
        trimmed,
        header.reason.word,
        key_kind(header.ext_flags),
        size,
        _ms(seconds),
    )


def refused(tokens: int, why: str) -> None:
    """A save was refused, and that is none of ds4-server's lines: for who looks for it, by level DEBUG."""
    _logger.debug("kv cache refused tokens=%d: %s", tokens, why)


def skipped_for_text(tokens: int) -> None:
    """Not saved: the text's length doesn't fit in 32 bits."""
    _logger.info("kv cache skipped tokens=%d rendered text too large", tokens)


def skipped_for_estimate(tokens: int, reason: str, *, file_size: int, budget_bytes: int) -> None:
    """Not saved: by the sizes known beforehand, the file would not fit the budget."""
    _logger.info(
        "kv cache skipped tokens=%d reason=%s estimated size over budget %s",
        tokens,
        reason,
        _against_budget(file_size, budget_bytes),
    )


def skipped_for_size(tokens: int, reason: str, *, file_size: int, budget_bytes: int, seconds: float) -> None:
    """Not saved: the written file does not fit the budget."""
    _logger.info(
        "kv cache skipped tokens=%d reason=%s final size over budget %s save=%s ms",
        tokens,
        reason,
        _against_budget(file_size, budget_bytes),
        _ms(seconds),
    )


def create_failed(path: str, error: OSError, seconds: float) -> None:
    """The temporary file could not be made."""
    _logger.warning("kv cache failed to create %s: %s save=%s ms", printable(path), _cause(error), _ms(seconds))


def store_failed(reason: str, error: BaseException, seconds: float) -> None:
    """A checkpoint was begun and could not be published."""
    _logger.warning("kv cache store failed (%s): %s save=%s ms", reason, _cause(error), _ms(seconds))


def replaced(path: str) -> None:
    """A file of the same name that this engine can't use was removed, for a new one."""
    _logger.info("kv cache replaced incompatible file %s", printable(path))


def evicted(header: Header, *, file_size: int, path: str) -> None:
    """A checkpoint was removed for the budget."""
    _logger.info(
        "kv cache evicted reason=disk-cache-full tokens=%d hits=%d size=%s MiB file=%s",
        header.tokens,
        header.hits,
        _mib(file_size),
        printable(path),
    )


def hit(header: Header, *, text_bytes: int, seconds: float, path: str, consumed: bool = False) -> None:
    """A checkpoint was loaded. ``consumed``: and removed by that."""
    _logger.info(
        "kv cache hit text tokens=%d text=%d quant=%d key=%s load=%s ms%s file=%s",
        header.tokens,
        text_bytes,
        header.quant_bits,
        key_kind(header.ext_flags),
        _ms(seconds),
        " consumed" if consumed else "",
        printable(path),
    )


def load_failed(path: str, error: BaseException, seconds: float) -> None:
    """A checkpoint could not be loaded. Where ds4 has words for the error these are logged, else the error's own."""
    cause = _CAUSES.get(error.field or "") if isinstance(error, Ds4kvError) else None
    _logger.warning(
        "kv cache load failed %s: %s load=%s ms",
        printable(path),
        cause or _cause(error),
        _ms(seconds),
    )


def discarded(path: str) -> None:
    """A checkpoint that is proven corrupt was taken out of the directory."""
    _logger.warning("kv cache discarded corrupt text-prefix payload %s", printable(path))


def _against_budget(file_size: int, budget_bytes: int) -> str:
    return f"size={_mib(file_size)} MiB safe={_mib(with_slack(file_size))} MiB budget={_mib(budget_bytes)} MiB"


def _word(codec: Codec) -> str:
    return codec.name.lower()


def _mib(size: int) -> str:
    return f"{size / (1 << 20):.2f}"


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.1f}"


def _cause(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, Ds4kvError):
        return error.why if error.offset is None else f"{error.why} at byte {error.offset}"
    return printable(str(error) or type(error).__name__)
