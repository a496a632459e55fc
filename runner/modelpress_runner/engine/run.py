"""Runs the stages of a recipe on a model: in order, seeded, resumable behind every training and within it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import nn

from modelpress.api.v1alpha1 import DEFAULT_METRIC, Goal, Stage
from modelpress_runner.dependency.analyse import UNREACHED
from modelpress_runner.edits.copies import copied
from modelpress_runner.engine.checkpoint import Asked, Checkpoint, Checkpointer
from modelpress_runner.engine.keeping import StepKeeper
from modelpress_runner.engine.outcome import RecipeOutcome
from modelpress_runner.engine.plan import PlannedStage, check_can_evaluate, check_can_train, needs_dense, plan_stages
from modelpress_runner.engine.progress import Progress
from modelpress_runner.engine.records import stage_record
from modelpress_runner.engine.scoring import score_aside
from modelpress_runner.engine.stage_cache import CACHED, StageCache
from modelpress_runner.errors import CompressionError, UserCodeError
from modelpress_runner.evaluators.base import Score
from modelpress_runner.evaluators.replay.tape import Diverged
from modelpress_runner.methods.context import Measures, SharedFiles, StageContext, Step, TrainingContext, Transform
from modelpress_runner.methods.procedure import plain_state
from modelpress_runner.process.progress import EventCallback, silent
from modelpress_runner.process.stopping import Stopped
from modelpress_runner.runtime import distributed as ranks
from modelpress_runner.runtime import rng
from modelpress_runner.runtime import user_rng as generators
from modelpress_runner.subject.subject import Subject
from modelpress_runner.training.pace import CHECKPOINT_SHARE, Pace
from modelpress_runner.training.participants import check_masks
from modelpress_runner.training.run import training_session
from modelpress_runner.training.session import BYTES_A_SECOND, SAVING_SECONDS, Resumed
from modelpress_runner.training.step import Training

_APART = 1e-3  # weights of two ranks that differ by more, relative to the largest, were not trained together


def run_stages(
    subject: Subject,
    stages: Sequence[Stage],
    *,
    seed: int,
    checkpointer: Checkpointer | None = None,
    cache: StageCache | None = None,
    report: EventCallback = silent,
    stop: Callable[[], None] = lambda: None,
    scores: bool = True,
    static: Callable[[nn.Module], dict[str, float]] | None = None,
    goal: Goal = "maximize",
    measures: Measures | None = None,
    dense: nn.Module | None = None,
    target_device: str = "cpu",
    uniform: bool = False,
    files: SharedFiles | None = None,
) -> RecipeOutcome:
    """Runs `stages` on the subject's model, in place.

    In a process group every rank must call it, alike: all run the stages in step, decide alike, and go on from the same
    checkpoint. Rank 0 alone reports and writes, and its scores count.

    Args:
        subject: the dense model, its evaluator and example inputs.
        stages: the recipe.
        seed: seeds each step on its own; equal seeds give equal results, also after a restart.
        checkpointer: where to save within and after each training, and to go on from; none: nothing is saved.
        cache: first stages that other runs have alike, computed once; none: there are none.
        report: gets an event per step, score and stage.
        stop: called at safe points; raises Stopped to end the run there.
        scores: whether to score within trainings and after each stage, if the evaluator can.
        static: counts of a model for the records (parameters, macs); none: parameters only.
        goal: of the evaluator's score.
        measures: for budgets; none: there can be none.
        dense: a second object with the model as it is, for stages that look at it; none: a copy, if one does.
        target_device: where the result is to run, cpu or cuda.
        uniform: layers that are alike but for their number are to keep one width.
        files: what runs of one sweep leave for each other; none: nothing.

    Raises:
        InvalidSpecError: a stage does not fit the model or the evaluator.
        CompressionError: a method failed on this model.
        UserCodeError: the user's code raised.
        Stopped: `stop` raised it.
    """
    plan = plan_stages(subject, stages)
    if dense is None and needs_dense(subject, stages):
        dense = copied(subject.model)
    run = _RecipeRun(
        subject,
        plan,
        seed,
        checkpointer,
        cache,
        report,
        stop,
        scores,
        static,
        goal,
        measures,
        dense,
        target_device,
        uniform,
        files,
    )
    try:
        return run.run()
    finally:
        if checkpointer is not None:
            checkpointer.wait()


class _RecipeRun:
    """One run over a plan."""

    def __init__(
        self,
        subject: Subject,
        plan: list[PlannedStage],
        seed: int,
        checkpointer: Checkpointer | None,
        cache: StageCache | None,
        report: EventCallback,
        stop: Callable[[], None],
        scores: bool,
        static: Callable[[nn.Module], dict[str, float]] | None,
        goal: Goal,
        measures: Measures | None,
        dense: nn.Module | None,
        target_device: str,
        uniform: bool,
        files: SharedFiles | None,
    ) -> None:
        self._plan, self._seed, self._checkpointer, self._cache = plan, seed, checkpointer, cache
        self._stop, self._static = stop, static
        self._evaluator = subject.evaluator
        self._scoring = scores and self._evaluator is not None and self._evaluator.can_evaluate
        self._trains = any(stage.procedure.trainings() for stage in plan)
        self._step = 0  # among all steps of the recipe
        self._asked: Asked | None = None
        self._marking: Pace | None = None
        self._progress = Progress(plan, report if ranks.is_rank_zero() else silent, lambda: self._context.model)
        self._began = 0.0
        self._score_seconds: float | None = None
        self._dense = sum(parameter.numel() for parameter in subject.model.parameters())
        self._context = StageContext(
            model=subject.model,
            evaluator=self._evaluator,
            dummy_input=subject.dummy_input,
            seed=seed,
            report=self._progress.say,
            stop=stop,
            calibration_data=subject.calibration_data,
            dense=dense,
            teacher=subject.teacher,
            teachers=subject.teachers,
            measures=measures,
            target_device=target_device,
            uniform=uniform,
            files=files,
            goal=goal,
            parts=checkpointer,
        )
        if self._evaluator is not None and self._evaluator.can_evaluate:
            self._context.score = lambda: self._own_score(1 if goal == "maximize" else -1)
            self._context.score_of = self._score_of

    def run(self) -> RecipeOutcome:
        if self._evaluator is not None:
            self._evaluator.record_parameter_names(self._context.model)
        checkpoint, resumed = self._resume()
        for stage in self._plan[len(self._progress.records) :]:
            self._run_stage(stage, checkpoint)
            checkpoint = None
        executed = self._progress.steps - sum(record["steps"] for record in self._progress.records if CACHED in record)
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

    def _resume(self) -> tuple[Checkpoint | None, bool]:
        """Goes on from what is there: the checkpoint, if it is within a stage, and whether this run had one."""
        checkpoint = None
        if self._checkpointer is not None:
            checkpoint, note = self._checkpointer.load()
            if note is not None:
                self._context.notes.append(note)
                self._progress.say(note)
        if self._cache is not None:
            done = 0 if checkpoint is None else len(checkpoint.records)
            found = self._cache.find(self._plan, done)
            if found is not None:
                self._go_on(found)
                self._step = found.step
                names = ", ".join(record["name"] for record in found.records[done:])
                self._progress.say(f"another trial has run {names}: its result is used")
                return None, checkpoint is not None
        if checkpoint is not None:
            self._go_on(checkpoint)
        return checkpoint, checkpoint is not None

    def _go_on(self, checkpoint: Checkpoint) -> None:
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

    def _run_stage(self, stage: PlannedStage, checkpoint: Checkpoint | None) -> None:
        self._progress.stage = stage.name
        self._began = time.perf_counter() - (checkpoint.seconds if checkpoint else 0.0)
        self._progress.score = None
        if checkpoint is None:
            self._progress.within = 0
        score: Score | None = None
        if checkpoint is not None:
            assert checkpoint.asked is not None
            stage.procedure.load_state_dict(checkpoint.asked.state)
            score, self._step = checkpoint.asked.score, checkpoint.step
        while True:
            state, announced = plain_state(stage.procedure), stage.procedure.trainings()
            step = stage.procedure.next(score)
            if step is None:
                break
            if isinstance(step, Training) and step not in announced:
                check_can_train(self._evaluator, step, stage.method, stage.algorithm, stage.path)
                self._trains, self._progress.by_epochs = True, self._progress.by_epochs or step.max_steps is None
            self._asked = Asked(state, score)
            score = self._carry_out(stage, step, checkpoint)
            checkpoint = None
            self._step += 1
        check_masks(self._context.model, self._context.masks, f"stage {stage.name}")
        self._finish_stage(stage)

    def _carry_out(self, stage: PlannedStage, step: Step, checkpoint: Checkpoint | None) -> Score | None:
        """Carries a step out; its score, if it is an evaluation. With a checkpoint of this step it goes on."""
        if checkpoint is not None:
            self._progress.score = checkpoint.score
        if checkpoint is not None and checkpoint.within is None:
            assert checkpoint.asked is not None
            return checkpoint.asked.seen
        self._stop_together()
        rng.seed_all(rng.derive(self._seed, self._step))
        if isinstance(step, Training):
            self._train(stage, step, checkpoint)
            return None
        self._progress.say(step.label)
        if isinstance(step, Transform):
            step.apply(self._context)
            self._progress.score = None
            return None
        check_can_evaluate(self._evaluator, stage.path)
        score = self._progress.score = self._scored()
        self._mark(score)
        self._progress.say(f"{step.label}: done", score[DEFAULT_METRIC])
        return score

    def _mark(self, score: Score) -> None:
        """Keeps a checkpoint behind an evaluation, if it is time for one or the run is to stop."""
        assert self._asked is not None
        if self._checkpointer is None:
            return
        if self._marking is None:
            size = sum(value.numel() * value.element_size() for value in self._context.model.parameters())
            every = None if self._checkpointer.every is None else 1
            self._marking = Pace(CHECKPOINT_SHARE, SAVING_SECONDS + size / BYTES_A_SECOND, every)
        due = ranks.broadcast_object(self._marking.is_due(self._step + 1))
        asked = ranks.any_rank(self._is_asked())
        if due or asked:
            began = time.monotonic()
            self._asked = replace(self._asked, seen=dict(score))
            keeper = self._keeper("")
            keeper.mark()
            self._progress.checkpoints += keeper.saved
            self._marking.done(self._step + 1, time.monotonic() - began)
        if asked:
            raise Stopped

    def _keeper(self, label: str) -> StepKeeper:
        assert self._evaluator is not None
        return StepKeeper(
            self._context,
            self._evaluator,
            self._checkpointer,
            self._step,
            self._complete,
            lambda steps: self._score_within(label, steps),
            lambda steps: self._progress.say(f"{label}: step {steps}", None, steps),
            scores=self._scoring,
            score_seconds=self._score_seconds,
        )

    def _train(self, stage: PlannedStage, step: Training, checkpoint: Checkpoint | None) -> None:
        evaluator = self._evaluator
        assert evaluator is not None
        keeper, self._progress.present = self._keeper(step.label), step
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
            made = self._session(stage, step, keeper, resumed)
        except Diverged as error:
            self._start_over(keeper, error)
            made = self._session(stage, step, keeper, None)
        self._bring_together(stage)
        progress = self._progress
        progress.present = None
        progress.steps += made
        progress.within += made
        progress.score = self._scored() if self._scoring else None
        if self._checkpointer is not None:
            keeper.finish(made)
        progress.checkpoints += keeper.saved
        progress.say(f"{step.label}: {made} steps", None if progress.score is None else progress.score[DEFAULT_METRIC])

    def _session(self, stage: PlannedStage, step: Training, keeper: StepKeeper, resumed: Resumed | None) -> int:
        """One call of the training; the optimizer steps that it made."""
        context, evaluator = self._context, self._evaluator
        assert evaluator is not None
        evaluator.on_training_begin(step.max_steps, step.epochs)
        along = step.participants(TrainingContext(context, evaluator, self._progress.say))
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

    def _start_over(self, keeper: StepKeeper, error: Diverged) -> None:
        if not error.everywhere and ranks.is_distributed():
            ranks.any_rank(True)
        if self._checkpointer is None:
            raise CompressionError(f"training cannot go on: {error}")
        self._context.note(
            f"a training began anew where the run was resumed, as training_func, called again, is not the same: {error}"
        )
        keeper.start_over()
        rng.seed_all(rng.derive(self._seed, self._step))

    def _complete(self, checkpoint: Checkpoint, steps: int) -> None:
        """What a checkpoint says of the run: the training has made so many steps by then."""
        progress = self._progress
        checkpoint.records = list(progress.records)
        checkpoint.steps = (progress.steps, progress.within)
        checkpoint.seconds = time.perf_counter() - self._began
        checkpoint.score = self._progress.score
        checkpoint.asked = self._asked

    def _score_within(self, label: str, steps: int) -> None:
        score = self._progress.score = self._scored()
        self._progress.say(f"{label}: step {steps}", score[DEFAULT_METRIC], steps)

    def _bring_together(self, stage: PlannedStage) -> None:
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
        if ranks.any_rank(self._is_asked()):
            raise Stopped

    def _is_asked(self) -> bool:
        try:
            self._stop()
        except Stopped:
            return True
        return False

    def _scored(self) -> Score:
        assert self._evaluator is not None
        began = time.perf_counter()
        score = score_aside(self._evaluator, self._context.model, self._seed)
        self._score_seconds = time.perf_counter() - began
        return score

    def _own_score(self, sign: int) -> float:
        """For a step that goes by scores, a safe point of the run."""
        self._stop_together()
        return sign * self._scored()[DEFAULT_METRIC]

    def _score_of(self, model: nn.Module) -> Score:
        self._stop_together()
        assert self._evaluator is not None
        return score_aside(self._evaluator, model, self._seed)

    def _finish_stage(self, stage: PlannedStage) -> None:
        model, progress = self._context.model, self._progress
        if self._scoring and progress.score is None:
            progress.score = self._scored()
        own = stage.record | self._context.record
        self._context.record = {}
        record = stage_record(stage.name, stage.method, own, model, self._dense, self._static)
        if progress.score is not None:
            record["score"] = dict(progress.score)
        record["seconds"] = time.perf_counter() - self._began
        record["steps"] = progress.within
        progress.records.append(record)
        if self._cache is not None and self._evaluator is not None:
            self._cache.keep(self._plan, len(progress.records), lambda: self._keeper("").behind(self._step))
        progress.say("done", None if progress.score is None else progress.score[DEFAULT_METRIC])
