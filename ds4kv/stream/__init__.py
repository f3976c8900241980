"""Payload streams over any binary file object: compressed or raw, to write or to read.

The file object is somebody else's: streams leave it open, and know no path, no header and no store.
"""

from ds4kv.stream.encoding import Encoding, encoder_level
from ds4kv.stream.fileobj import Nowhere
from ds4kv.stream.reader import PayloadReader, RawReader
from ds4kv.stream.writer import PayloadWriter, RawWriter

__all__ = ["Encoding", "Nowhere", "PayloadReader", "PayloadWriter", "RawReader", "RawWriter", "encoder_level"]
