"""Runs the stages of a recipe on a model: in order, seeded, resumable behind every training and within it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from modelpress.api.v1alpha1 import DEFAULT_METRIC, Stage
from modelpress_runner.dependency.analyse import UNREACHED
from modelpress_runner.edits.base import Edit
from modelpress_runner.edits.masks import Masks
from modelpress_runner.engine.checkpoint import Checkpoint, Checkpointer
from modelpress_runner.engine.keeping import StepKeeper
from modelpress_runner.engine.records import stage_record
from modelpress_runner.errors import CompressionError, InvalidSpecError, UserCodeError
from modelpress_runner.evaluators.base import Evaluator, Score
from modelpress_runner.evaluators.replay.tape import Diverged
from modelpress_runner.methods.context import StageContext, Step, TrainingContext
from modelpress_runner.process.progress import Event, EventCallback, silent
from modelpress_runner.process.stopping import Stopped
from modelpress_runner.runtime import distributed as ranks
from modelpress_runner.runtime import rng
from modelpress_runner.runtime import user_rng as generators
from modelpress_runner.stages import kind
from modelpress_runner.subject.subject import ModuleEvaluator, Subject
from modelpress_runner.training.participants import check_masks
from modelpress_runner.training.run import training_session
from modelpress_runner.training.session import Resumed
from modelpress_runner.training.step import Training

_SCORING = 2**31 - 1  # part of the seed for scoring: every score of a run sees the same random numbers
_APART = 1e-3  # weights of two ranks that differ by more, relative to the largest, were not trained together


@dataclass
class RecipeOutcome:
    """What came out of a recipe.

    Attributes:
        model: the compressed model.
        masks: masks that are still in force, 1 = kept.
        edits: what makes its structure of the dense one's, in order of replay.
        stages: one record per stage.
        notes: remarks for the model card.
        steps: optimizer steps that the result has behind it.
        executed: optimizer steps that all attempts made, as far as they could still say so.
        checkpoints: how many checkpoints this attempt wrote.
        resumed: whether an earlier attempt's checkpoint was used.
    """

    model: nn.Module
    masks: Masks
    edits: list[Edit]
    stages: list[dict[str, Any]]
    notes: list[str]
    steps: int = 0
    executed: int = 0
    checkpoints: int = 0
    resumed: bool = False

    @property
    def training(self) -> dict[str, int]:
        """Counts of the training's optimizer steps, as metrics.json has them."""
        return {
            "steps": self.steps,
            "executed": self.executed,
            "repeated": max(0, self.executed - self.steps),
            "checkpoints": self.checkpoints,
        }


@dataclass(frozen=True)
class _Planned:
    """One step of the recipe with its place in it."""

    index: int  # among all steps
    step: Step


@dataclass(frozen=True)
class _PlannedStage:
    name: str
    method: str
    algorithm: str | None  # of this stage, or of the last one before that has one
    record: dict[str, Any]  # what the kind of stage adds to its record
    path: str
    steps: tuple[_Planned, ...]


@dataclass
class _Progress:
    """How far a run is, in optimizer steps; grows while it runs."""

    steps: int = 0
    within: int = 0  # of the present stage, behind its trainings that are over
    checkpoints: int = 0
    records: list[dict[str, Any]] = field(default_factory=list)


def run_stages(
    subject: Subject,
    stages: Sequence[Stage],
    *,
    seed: int,
    checkpointer: Checkpointer | None = None,
    report: EventCallback = silent,
    stop: Callable[[], None] = lambda: None,
    scores: bool = True,
    static: Callable[[nn.Module], dict[str, float]] | None = None,
) -> RecipeOutcome:
    """Runs `stages` on the subject's model, in place.

    In a process group every rank must call it, alike: all run the stages in step, decide alike, and go on from the same
    checkpoint. Rank 0 alone reports and writes, and its scores count.

    Args:
        subject: the dense model, its evaluator and example inputs.
        stages: the recipe.
        seed: seeds each step on its own; equal seeds give equal results, also after a restart.
        checkpointer: where to save within and after each training, and to go on from; none: nothing is saved.
        report: gets an event per step, score and stage.
        stop: called at safe points; raises Stopped to end the run there.
        scores: whether to score within trainings and after each stage, if the evaluator can.
        static: counts of a model for the records (parameters, macs); none: parameters only.

    Raises:
        InvalidSpecError: a stage does not fit the model or the evaluator.
        CompressionError: a method failed on this model.
        UserCodeError: the user's code raised.
        Stopped: `stop` raised it.
    """
    plan = plan_stages(subject, stages)
    run = _RecipeRun(subject, plan, seed, checkpointer, report, stop, scores, static)
    try:
        return run.run()
    finally:
        if checkpointer is not None:
            checkpointer.wait()


def plan_stages(subject: Subject, stages: Sequence[Stage]) -> list[_PlannedStage]:
    """The recipe as steps, checked against what the evaluator can do.

    Raises:
        InvalidSpecError: a stage needs something that the evaluator or the subject does not have.
    """
    planned: list[_PlannedStage] = []
    index, algorithm = 0, None
    for number, stage in enumerate(_with_module_finetuning(subject.evaluator, stages)):
        path = f"spec.stages[{number}].{stage.method}"
        known, block = kind(stage.method), stage.block
        algorithm = known.algorithm(block) or algorithm
        known.check(block, path, subject)
        steps = []
        for step in known.steps(block, number):
            if isinstance(step, Training):
                _check_can_train(subject.evaluator, step, stage.method, algorithm, path)
            steps.append(_Planned(index, step))
            index += 1
        name = stage.name or f"{number}-{stage.method}"
        planned.append(_PlannedStage(name, stage.method, algorithm, known.record(block), path, tuple(steps)))
    return planned


def _with_module_finetuning(evaluator: Evaluator | None, stages: Sequence[Stage]) -> list[Stage]:
    """The stages, and the finetuning that a CompressionModule asks for where the recipe has none of its own.

    It stands behind the last stage that takes weights away: what follows, a conversion for one, may not be trainable.
    """
    out = list(stages)
    if not isinstance(evaluator, ModuleEvaluator) or any(kind(stage.method).recovers for stage in out):
        return out
    removing = [number for number, stage in enumerate(out) if kind(stage.method).removes]
    algorithms = [kind(out[number].method).algorithm(out[number].block) for number in removing]
    epochs = evaluator.finetune_epochs(algorithms[-1] if algorithms else None)
    if epochs:
        place = removing[-1] + 1 if removing else len(out)
        finetuning = Stage.model_validate({"name": "post-compress-finetuning", "finetune": {"epochs": epochs}})
        out.insert(place, finetuning)
    return out


def _check_can_train(
    evaluator: Evaluator | None, step: Training, method: str, algorithm: str | None, path: str
) -> None:
    if evaluator is None:
        raise InvalidSpecError("this stage trains, but there is no evaluator; give one that can train", path)
    evaluator.on_stage_begin(method, algorithm)
    if not evaluator.can_train:
        raise InvalidSpecError(
            f"this stage trains, but the evaluator cannot; give it {evaluator.train_needs}, or remove the training",
            path,
        )
    if step.max_steps is not None and not evaluator.supports_max_steps:
        raise InvalidSpecError("this evaluator trains by epochs; give epochs instead of maxSteps", path)


class _RecipeRun:
    """One run over a plan."""

    def __init__(
        self,
        subject: Subject,
        plan: list[_PlannedStage],
        seed: int,
        checkpointer: Checkpointer | None,
        report: EventCallback,
        stop: Callable[[], None],
        scores: bool,
        static: Callable[[nn.Module], dict[str, float]] | None,
    ) -> None:
        self._plan, self._seed, self._checkpointer = plan, seed, checkpointer
        self._report, self._stop, self._static = report if ranks.is_rank_zero() else silent, stop, static
        self._evaluator = subject.evaluator
        self._scoring = scores and self._evaluator is not None and self._evaluator.can_evaluate
        trainings = [step.step for stage in plan for step in stage.steps if isinstance(step.step, Training)]
        # 0: not known, for nobody knows how many steps an epoch has.
        self._total = sum(step.max_steps or 0 for step in trainings) if all(s.max_steps for s in trainings) else 0
        self._trains = bool(trainings)
        self._progress = _Progress()
        self._stage = ""
        self._began = 0.0
        self._score: Score | None = None
        self._score_seconds: float | None = None
        self._dense = sum(parameter.numel() for parameter in subject.model.parameters())
        self._context = StageContext(
            model=subject.model,
            evaluator=self._evaluator,
            dummy_input=subject.dummy_input,
            seed=seed,
            report=self._say,
            stop=stop,
        )

    def run(self) -> RecipeOutcome:
        if self._evaluator is not None:
            self._evaluator.record_parameter_names(self._context.model)
        checkpoint = self._resume()
        resumed = checkpoint is not None
        first_stage = len(checkpoint.records) if checkpoint else 0
        for stage in self._plan[first_stage:]:
            self._run_stage(stage, checkpoint)
            checkpoint = None
        executed = self._progress.steps
        if self._checkpointer is not None:
            executed = max(executed, self._checkpointer.executed())
        context = self._context
        if self._evaluator is not None and not self._evaluator.resumable and self._trains:
            context.notes.append("no checkpoints were taken inside of a training, as the evaluator has resumable=False")
        return RecipeOutcome(
            model=context.model,
            masks=context.masks,
            edits=context.edits,
            stages=self._progress.records,
            notes=context.notes,
            steps=self._progress.steps,
            executed=executed,
            checkpoints=self._progress.checkpoints,
            resumed=resumed,
        )

    def _resume(self) -> Checkpoint | None:
        if self._checkpointer is None:
            return None
        checkpoint, note = self._checkpointer.load()
        if note is not None:
            self._context.notes.append(note)
            self._say(note)
        if checkpoint is None:
            return None
        checkpoint.apply_to(self._context)
        own = checkpoint.generators_of(ranks.rank()).own
        missing = [] if self._evaluator is None else generators.restore(self._evaluator.rng_roots(), own)
        if checkpoint.world != ranks.world_size():
            self._context.note(
                f"the run goes on with {ranks.world_size()} processes; before there were {checkpoint.world}"
            )
        if missing:
            self._context.notes.append(
                f"the random number generators {', '.join(missing)} were not found again when the run was resumed"
            )
        self._progress.records = list(checkpoint.records)
        self._progress.steps, self._progress.within = checkpoint.steps
        return checkpoint

    def _run_stage(self, stage: _PlannedStage, checkpoint: Checkpoint | None) -> None:
        self._stage = stage.name
        self._began = time.perf_counter() - (checkpoint.seconds if checkpoint else 0.0)
        self._score = None
        if checkpoint is None:
            self._progress.within = 0
        for planned in stage.steps:
            if checkpoint is not None and planned.index < checkpoint.step:
                continue
            self._stop_together()
            rng.seed_all(rng.derive(self._seed, planned.index))
            if isinstance(planned.step, Training):
                at_work = checkpoint if checkpoint is not None and planned.index == checkpoint.step else None
                self._train(stage, planned, at_work)
            else:
                self._say(planned.step.label)
                planned.step.apply(self._context)
                self._score = None
        check_masks(self._context.model, self._context.masks, f"stage {stage.name}")
        self._finish_stage(stage)

    def _train(self, stage: _PlannedStage, planned: _Planned, checkpoint: Checkpoint | None) -> None:
        context, evaluator, step = self._context, self._evaluator, planned.step
        assert evaluator is not None
        assert isinstance(step, Training)
        if checkpoint is not None:
            self._score = checkpoint.score
            if checkpoint.within is None:
                return
        keeper = StepKeeper(
            context,
            evaluator,
            self._checkpointer,
            planned.index,
            self._complete,
            lambda steps: self._score_within(step.label, steps),
            lambda steps: self._say(f"{step.label}: step {steps}", None, steps),
            scores=self._scoring,
            score_seconds=self._score_seconds,
        )
        evaluator.on_stage_begin(stage.method, stage.algorithm)
        resumed: Resumed | None = None
        moved = checkpoint is not None and checkpoint.world != ranks.world_size()
        if moved and evaluator.sharded and not evaluator.replays:
            self._context.note(
                "the training began anew, with the weights that it had reached: its optimizers were kept in parts"
            )
            checkpoint = None
        try:
            if checkpoint is not None:
                resumed = keeper.resumed(checkpoint)
            else:
                keeper.begin()
            made = self._session(stage, planned, keeper, resumed)
        except Diverged as error:
            self._start_over(planned, keeper, error)
            made = self._session(stage, planned, keeper, None)
        self._bring_together(stage)
        self._progress.steps += made
        self._progress.within += made
        self._score = self._scored() if self._scoring else None
        if self._checkpointer is not None:
            keeper.finish(made)
        self._progress.checkpoints += keeper.saved
        self._say(f"{step.label}: {made} steps", None if self._score is None else self._score[DEFAULT_METRIC])

    def _session(self, stage: _PlannedStage, planned: _Planned, keeper: StepKeeper, resumed: Resumed | None) -> int:
        """One call of the training; the optimizer steps that it made."""
        context, evaluator, step = self._context, self._evaluator, planned.step
        assert evaluator is not None
        assert isinstance(step, Training)
        evaluator.on_training_begin(step.max_steps, step.epochs)
        along = step.participants(TrainingContext(context, evaluator, self._say))
        with training_session(context.model, evaluator, lambda: context.masks, self._stop, keeper, along) as session:
            try:
                made = session.train(step.max_steps, step.epochs, resumed)
            except CompressionError as error:
                raise error if error.path else CompressionError(str(error), stage.path) from error.__cause__
            except UserCodeError as error:
                hint = next((note for note in context.notes if note.startswith(UNREACHED)), None)
                if hint is None:
                    raise
                raise UserCodeError(f"{error}. {hint}", error.path) from error.__cause__
            for note in session.notes:
                self._context.note(note)
        return made

    def _start_over(self, planned: _Planned, keeper: StepKeeper, error: Diverged) -> None:
        if not error.everywhere and ranks.is_distributed():
            ranks.any_rank(True)
        if self._checkpointer is None:
            raise CompressionError(f"training cannot go on: {error}")
        self._context.note(
            f"a training began anew where the run was resumed, as training_func, called again, is not the same: {error}"
        )
        keeper.start_over()
        rng.seed_all(rng.derive(self._seed, planned.index))

    def _complete(self, checkpoint: Checkpoint, steps: int) -> None:
        """What a checkpoint says of the run: the training has made so many steps by then."""
        progress = self._progress
        checkpoint.records = list(progress.records)
        checkpoint.steps = (progress.steps, progress.within)
        checkpoint.seconds = time.perf_counter() - self._began
        checkpoint.score = self._score

    def _score_within(self, label: str, steps: int) -> None:
        score = self._scored()
        self._score = score
        self._say(f"{label}: step {steps}", score[DEFAULT_METRIC], steps)

    def _bring_together(self, stage: _PlannedStage) -> None:
        """After a training every rank gets rank 0's weights and statistics; the weights should have been the same.

        Raises:
            CompressionError: they were apart.
        """
        assert self._evaluator is not None
        if self._evaluator.sharded:
            return
        apart = ranks.sync_and_diff(self._context.model)
        if apart > _APART:
            raise CompressionError(
                f"after training the weights of two processes differ by {apart:.3g} of the largest, so they did not "
                "train one model together; let every process call backward() on a loss of the model that it is given",
                stage.path,
            )

    def _stop_together(self) -> None:
        """Raises Stopped on every rank if one of them is to stop: at places where all of them come by."""
        asked = False
        try:
            self._stop()
        except Stopped:
            asked = True
        if ranks.any_rank(asked):
            raise Stopped

    def _scored(self) -> Score:
        assert self._evaluator is not None
        began = time.perf_counter()
        score = score_aside(self._evaluator, self._context.model, self._seed)
        self._score_seconds = time.perf_counter() - began
        return score

    def _finish_stage(self, stage: _PlannedStage) -> None:
        model = self._context.model
        if self._scoring and self._score is None:
            self._score = self._scored()
        record = stage_record(stage.name, stage.method, stage.record, model, self._dense, self._static)
        if self._score is not None:
            record["score"] = dict(self._score)
        record["seconds"] = time.perf_counter() - self._began
        record["steps"] = self._progress.within
        self._progress.records.append(record)
        self._say("done", None if self._score is None else self._score[DEFAULT_METRIC])

    def _say(self, message: str, value: float | None = None, within: int = 0) -> None:
        """Reports, `within` steps behind the trainings that are over."""
        self._report(Event(self._stage, self._progress.steps + within, self._total, message, value))


def score_aside(evaluator: Evaluator, model: nn.Module, seed: int) -> Score:
    """The score of `model`, without effect on the random numbers of the run and seeded alike each time.

    Every rank evaluates, so that an evaluation may use all of them; rank 0's score counts.
    """
    with rng.fork_rng(rng.derive(seed, _SCORING)):
        return ranks.broadcast_object(evaluator.evaluate(model))
