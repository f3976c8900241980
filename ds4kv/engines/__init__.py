"""Engines with a disk cache: an adapter a module, and the only users of their engine.

The adapters are imported by name, ``ds4kv.engines.llama_cpp``: each needs its engine, and none is needed by ds4kv.
"""
