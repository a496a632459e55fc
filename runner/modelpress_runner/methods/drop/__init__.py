"""Whole layers and whole experts: which there are, what they are worth, and the edits that take them out."""
