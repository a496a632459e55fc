"""Measuring models: what they hold, what they compute, how long they take."""
