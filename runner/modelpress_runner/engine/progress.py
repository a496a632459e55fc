"""How far a run of a recipe is, and what it says of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from modelpress.api.v1alpha1 import DEFAULT_METRIC
from modelpress_runner.engine.plan import PlannedStage
from modelpress_runner.evaluators.base import Score
from modelpress_runner.process.progress import Event, EventCallback
from modelpress_runner.training.step import Training


class Progress:
    """How far a run is, in optimizer steps; grows while it runs.

    Args:
        plan: all stages of the recipe.
        report: gets what the run says.
        model: gives the model as it is now.

    Attributes:
        steps: of the trainings that are over.
        within: of those, what the present stage made.
        checkpoints: how many this attempt wrote.
        records: of the stages that are over.
        stage: the name of the present stage.
        present: the training that is under way.
        score: the newest of the model as it is; None: it has changed since, or nobody has scored it.
        by_epochs: whether a training goes by epochs, so that nobody knows how many steps there will be.
    """

    def __init__(self, plan: list[PlannedStage], report: EventCallback, model: Callable[[], nn.Module]) -> None:
        self._plan, self._report, self._model = plan, report, model
        self.steps = self.within = self.checkpoints = 0
        self.records: list[dict[str, Any]] = []
        self.stage = ""
        self.present: Training | None = None
        self.score: Score | None = None
        self.by_epochs = any(step.max_steps is None for stage in plan for step in stage.procedure.trainings())

    def say(self, message: str, value: float | None = None, within: int = 0) -> None:
        """Reports, `within` steps behind the trainings that are over; with the score `value`, if one is new."""
        metrics = {} if value is None else self._beside()
        self._report(Event(self.stage, self.steps + within, self._total, message, value, metrics=metrics))

    def _beside(self) -> dict[str, float]:
        """What is known beside the newest score: the evaluator's other metrics, and counts that still hold."""
        found = {name: float(value) for name, value in (self.score or {}).items() if name != DEFAULT_METRIC}
        parameters = sum(parameter.numel() for parameter in self._model().parameters())
        last = self.records[-1] if self.records else {}
        counted = {name: float(last[name]) for name in ("parameters", "macs") if name in last}
        # A record's counts are those of a model of so many parameters; while a stage changes it nobody has counted.
        return found | (counted if last.get("parameters") == parameters else {"parameters": float(parameters)})

    @property
    def _total(self) -> int:
        """Steps of the trainings that are over, the present one's and those that may still come; 0: not known, for
        nobody knows how many steps an epoch has."""
        coming = [step for stage in self._plan[len(self.records) :] for step in stage.procedure.trainings()]
        coming += [] if self.present is None else [self.present]
        if self.by_epochs:
            return 0
        return self.steps + sum(step.max_steps or 0 for step in coming)
