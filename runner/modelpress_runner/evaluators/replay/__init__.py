"""Calling a training function again, so that it goes on where a checkpoint was."""
