"""The machine: the C core, its threads, and forks. The only room that calls C.

It knows bytes and threads, no file format beyond what C tells, and no file by its name. Everything above calls C by
:mod:`ds4kv.core.native`, where each status of C becomes an exception.
"""
