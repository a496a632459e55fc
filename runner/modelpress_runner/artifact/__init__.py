"""The committed folder: written, described, loaded."""
