"""Evaluators: adapters around the user's training and evaluation code."""

from .base import Evaluator, Score
from .torch_evaluator import TorchEvaluator

__all__ = ["Evaluator", "Score", "TorchEvaluator"]
