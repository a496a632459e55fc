"""Checks of the runner on a machine with a GPU: see docs/guides/gpu-machine.md."""
