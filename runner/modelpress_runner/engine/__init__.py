"""Runs stages in order, resumable."""
