"""The adapter for DeepSpeed."""
