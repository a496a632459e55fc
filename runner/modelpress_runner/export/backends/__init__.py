"""Runtimes' own tools that quantize an exported model."""
