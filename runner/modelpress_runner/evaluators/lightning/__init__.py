"""The adapter for Lightning."""
