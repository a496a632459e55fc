"""Physically smaller models: which channels depend on each other, the shrink itself, and its proof."""
