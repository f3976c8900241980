"""What many tests need."""

from __future__ import annotations

import importlib.metadata
import json


def is_editable() -> bool:
    """Whether what is installed is the source folder: ``pip install -e``."""
    origin = importlib.metadata.distribution("ds4kv").read_text("direct_url.json")
    return origin is not None and json.loads(origin).get("dir_info", {}).get("editable", False)
