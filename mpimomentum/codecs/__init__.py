"""Compression of vectors: packed signs and error feedback."""
