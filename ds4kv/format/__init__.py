"""What the bytes of a checkpoint mean: header, layout, name, tool map. Values only: nothing here opens a file."""

from ds4kv.format.header import Codec, Ext, Form, Header, Layout, Reason

__all__ = ["Codec", "Ext", "Form", "Header", "Layout", "Reason"]
