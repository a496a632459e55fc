"""Compression methods, one module each, by family."""
