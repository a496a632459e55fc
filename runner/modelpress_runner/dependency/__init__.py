"""Physically smaller models: which channels hang together, the shrink itself, and its proof."""
