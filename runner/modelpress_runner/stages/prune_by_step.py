"""Pruning in the course of a training: a schedule that counts optimizer steps, as a participant."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from modelpress_runner.edits.masks import placed
from modelpress_runner.errors import CompressionError, InvalidSpecError
from modelpress_runner.methods.context import TrainingContext
from modelpress_runner.methods.prune.schedule import last_step, next_step, prunes_at, sparsity_at
from modelpress_runner.methods.prune.score_window import ScoreWindow
from modelpress_runner.methods.prune.selection import Choice, Selection, select
from modelpress_runner.passes.run import DEFAULT_STEPS
from modelpress_runner.stages.prune import PruneStage
from modelpress_runner.training.participants import Participant


class StepPruner(Participant):
    """Prunes behind the optimizer steps that a stage's schedules name; the masks are the context's.

    Args:
        stage: the stage; its shrink is somebody else's affair.
        name: for progress and messages.
        training: that it goes along with. Of several pruners a later one's shares are of what the earlier ones leave.
    """

    def __init__(self, stage: PruneStage, name: str, training: TrainingContext) -> None:
        self._stage, self._name, self._training = stage, name, training
        self._context = training.context
        self._earlier = [each for each in training.earlier if isinstance(each, StepPruner)]
        self._selection: Selection | None = None
        self._window: ScoreWindow | None = None
        self._steps = 0
        self._pruned_at = -1

    def attach(self, model: nn.Module) -> None:
        """Finds the modules, and goes once through everything that could be wrong with them.

        Raises:
            InvalidSpecError: the stage does not fit the model.
            CompressionError: a method failed on it.
        """
        stage = self._stage
        self._selection = select(model, stage.prune, stage.path)
        stage.check(self._context)
        self._window = ScoreWindow(model, self._choices, stage.path, self._training.evaluator)
        if self._window and self._is_due(0):
            raise InvalidSpecError(
                "nothing is known of any step before the first one, and a method here scores by steps; prune after "
                "some, as with startStep: 10",
                f"{stage.path}.schedule.startStep",
            )

    def begin(self) -> None:
        self._prune(0)
        self._look_ahead()

    def detach(self) -> None:
        if self._window is not None:
            self._window.close()

    def before_step(self, step: int) -> None:
        if self._window and self._scores_at(step):
            self._window.step()

    def touches(self, step: int) -> str | None:
        due = self._pruned_at != step and (self._is_due(step) or any(each._is_due(step) for each in self._earlier))
        return "writes" if due else None

    def after_step(self, step: int) -> None:
        if step != self._steps:
            self._steps = step
            self._prune(step)
            self._look_ahead()

    def finish(self) -> None:
        if self._steps < self._last:
            raise CompressionError(
                f"training made {self._steps} optimizer steps, and {self._name} reaches its target after {self._last}; "
                "train longer, or lower endStep",
                f"{self._stage.path}.schedule",
            )

    def state_dict(self) -> dict[str, Any]:
        return {
            "steps": self._steps,
            "units": self._stage.units,
            "window": {} if self._window is None else self._window.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._steps, self._stage.units = state["steps"], state["units"]
        if self._window is not None:
            self._window.load_state_dict(state["window"])

    @property
    def _choices(self) -> list[Choice]:
        assert self._selection is not None
        return list(self._selection.choices.values())

    @property
    def _last(self) -> int:
        """Steps after which its target is reached."""
        return max(last_step(choice.schedule) for choice in self._choices)

    def _is_due(self, step: int) -> bool:
        """Whether the sparsity of one of its modules grows behind `step`."""
        return any(
            prunes_at(choice.schedule, step) and sparsity_at(choice.schedule, choice.sparsity, step) > 0
            for choice in self._choices
        )

    def _has_begun(self, step: int) -> bool:
        """Whether it has pruned before `step`, by weights alone, so that it can do so again at any time."""
        started = any(sparsity_at(each.schedule, each.sparsity, step - 1) > 0 for each in self._choices)
        return step > 0 and started and not self._window

    @torch.no_grad()
    def _prune(self, step: int) -> None:
        # Where an earlier stage has taken more, a later one's share is of less.
        less = any(each._pruned_at == step for each in self._earlier)
        if not (self._is_due(step) or (less and self._has_begun(step))):
            return
        context, stage = self._context, self._stage
        context.masks = placed(context.masks, context.model)  # training may have moved the model
        scores = self._window.scores() if self._window else {}
        stage.round(context, step, scores, [each._stage for each in self._earlier if each._stage.shrinks])
        self._pruned_at = step
        if step == self._last:
            self._training.report(f"target reached after {step} steps")

    def _look_ahead(self) -> None:
        """Puts the hooks of methods that look at activations in place ahead of the forward pass that they score."""
        if self._window and self._scores_at(self._steps + 1):
            self._window.open()

    def _scores_at(self, step: int) -> bool:
        """Whether step number `step` is one of those that are scored by, as it is soon time to prune."""
        steps = self._stage.scoring_steps or DEFAULT_STEPS
        coming = (self._next(choice, step - 1) for choice in self._choices)
        return any(due is not None and due - step < steps for due in coming)

    def _next(self, choice: Choice, step: int) -> int | None:
        """When the sparsity of a module grows next."""
        due = next_step(choice.schedule, step)
        if due is not None and sparsity_at(choice.schedule, choice.sparsity, due) == 0:
            due = next_step(choice.schedule, due)
        return due
