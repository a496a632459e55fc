"""Passes over data in which the model stays as it is: calibration, training steps, evaluation."""
