"""Many checkpoints: a directory with a budget, as an engine uses it, and what is done to all of it.

The directory is the state. Other processes, ds4 among them, may use it at the same time.
"""

from ds4kv.store.store import Store

__all__ = ["Store"]
