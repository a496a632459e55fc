"""Pruning: what to remove, from which modules, and when."""
