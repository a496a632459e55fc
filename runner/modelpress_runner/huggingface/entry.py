"""`model.huggingFace` as what a run needs: the dense model with its evaluator, its data and its own layout."""

from __future__ import annotations

from dataclasses import dataclass

from modelpress.api.v1alpha1 import HuggingFace, Model
from modelpress_runner.huggingface.layout import PretrainedLayout
from modelpress_runner.huggingface.source import load
from modelpress_runner.huggingface.tasks import task_of
from modelpress_runner.huggingface.training import TaskEvaluator, calibration_batches
from modelpress_runner.inputs.gather import Inputs
from modelpress_runner.runtime import rng
from modelpress_runner.subject.subject import Subject


@dataclass(frozen=True)
class PretrainedModel:
    """What `spec.model.huggingFace` names; where an entrypoint's place is, see entrypoint.ModelSource."""

    spec: HuggingFace
    inputs: Inputs
    knows_train: bool = True  # nothing to train: the weights are the source's
    path: str = "spec.model.huggingFace"

    @property
    def name(self) -> str:
        """What messages call it."""
        return self.spec.source.uri

    def subject(self, model: Model, *, seed: int, train: bool) -> Subject:
        """Loads the model and makes ready what trains and scores it.

        Raises:
            InvalidModelError: the source is not what the task needs.
            InvalidSpecError: the data does not fit the task.
        """
        assert self.inputs.source is not None
        rng.seed_all(seed)  # what a folder has no weights for, such as an unused pooler, is random
        pretrained = load(self.spec, self.inputs.source)
        layout = PretrainedLayout(pretrained)
        task = task_of(self.spec, pretrained)
        evaluator = TaskEvaluator(self.spec, task, self.inputs)
        return Subject(
            pretrained.model,
            evaluator,
            evaluator.dummy_input,
            calibration_batches(self.spec, task, self.inputs),
            layout=layout,
        )
