"""What a model of transformers is for: how rows become batches, what its loss is, and how it is scored."""

from __future__ import annotations

import importlib

from modelpress.api.v1alpha1 import HuggingFace
from modelpress_runner.huggingface.source import Pretrained
from modelpress_runner.huggingface.tasks.base import Task

_TASKS = {
    "text-classification": ("text_classification", "TextClassification"),
    "token-classification": ("token_classification", "TokenClassification"),
    "feature-extraction": ("feature_extraction", "FeatureExtraction"),
    "causal-lm": ("causal_lm", "CausalLm"),
    "image-classification": ("image_classification", "ImageClassification"),
}


def task_of(spec: HuggingFace, pretrained: Pretrained) -> Task:
    """The task that a recipe names.

    Raises:
        InvalidSpecError: a setting does not fit the model.
    """
    module, name = _TASKS[spec.task]
    made: Task = getattr(importlib.import_module(f"{__name__}.{module}"), name)(spec, pretrained)
    return made
