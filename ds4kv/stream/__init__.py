"""Payload streams over any binary file object: compressed or raw, to write or to read.

The file object is somebody else's: streams leave it open, and know no path, no header and no store.
"""

from ds4kv.stream.fileobj import Nowhere
from ds4kv.stream.streams import PayloadReader, PayloadWriter, RawReader, RawWriter, encoder_level

__all__ = ["Nowhere", "PayloadReader", "PayloadWriter", "RawReader", "RawWriter", "encoder_level"]
