"""The adapter for transformers' Trainer."""
