"""Quantization: how scales are found, and the methods that train through rounded numbers."""
