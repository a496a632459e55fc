"""Compression inside the user's own process: compress, prepare_compression, report."""
