"""Evaluators: adapters around the user's training and evaluation code."""
