"""What a model's score loses where one layer is pruned and no other (sensitivity analysis, Li et al. 2017, "Pruning
filters for efficient ConvNets", section 3.2)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from torch import nn

from modelpress.api.errors import Problem, SpecError, problems_of
from modelpress.api.stages import rules
from modelpress.api.v1alpha1 import DEFAULT_METRIC, PYTHON_SPELLING, Prune, Schedule, Search
from modelpress_runner.edits.copies import copied
from modelpress_runner.edits.wrappers import unwrapped
from modelpress_runner.engine.plan import check_can_evaluate
from modelpress_runner.engine.scoring import score_aside
from modelpress_runner.errors import InvalidSpecError
from modelpress_runner.methods.context import Evaluation, StageContext, Transform
from modelpress_runner.runtime import rng
from modelpress_runner.stages.prune import KIND, PruneStage
from modelpress_runner.stages.prune_search import Searching
from modelpress_runner.subject.subject import Subject

LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
_PATH = "prune"
_NOT_HERE = dict.fromkeys(("sparsity_threshold", "min_sparsity", "max_sparsity"))


@dataclass(frozen=True)
class SensitivityPoint:
    """The score where these layers, which lose channels together, are pruned to this sparsity; at 0 the model's."""

    layers: tuple[str, ...]
    sparsity: float
    score: float


def sensitivity(
    model: nn.Module,
    prune: Mapping[str, Any] | Prune,
    evaluator: Any,
    dummy_input: Any = None,
    *,
    sparsities: Sequence[float] = LEVELS,
    calibration_data: Iterable[Any] | None = None,
    goal: str = "maximize",
    seed: int = 0,
    report: Callable[[str], None] = lambda message: None,
) -> list[SensitivityPoint]:
    """Prunes each layer alone to each sparsity and takes the score; nothing trains, and the model stays as it is.

    Args:
        model: the dense model, trained.
        prune: a prune block as under `stages`, whose entries say which layers; their sparsities count for nothing.
        evaluator: that can evaluate, or a function model -> number.
        dummy_input: an example input, batch first; else the evaluator's.
        sparsities: each between 0 and 1.
        calibration_data: for methods that look at activations.
        goal: of the score: maximize or minimize.
        seed: equal seeds give equal points.
        report: gets a line for each score.

    Returns:
        The model's own score first, with no layers, then by layers and sparsity ascending.

    Raises:
        SpecError: the block is not valid.
        RunnerError: it does not fit the model, or the user's code raised; see its subclasses.
    """
    block = _block(prune, sorted(set(sparsities)))
    model = unwrapped(model)
    subject = Subject(copied(model), evaluator, dummy_input, calibration_data)
    subject.find_inputs()
    KIND.check(block, _PATH, subject)
    check_can_evaluate(subject.evaluator, _PATH)
    judge = subject.evaluator
    assert judge is not None
    judge.record_parameter_names(model)
    context = StageContext(
        model=subject.model,
        evaluator=judge,
        dummy_input=subject.dummy_input,
        seed=seed,
        calibration_data=subject.calibration_data,
        goal=goal,
    )
    assert block.search is not None
    search = Searching(PruneStage(block, 0, _PATH), block.search)
    points: list[SensitivityPoint] = []
    score = None
    with rng.fork_rng(rng.derive(seed, 0)):
        while True:
            step = search.next(score)
            score = None
            if isinstance(step, Evaluation):
                score = score_aside(judge, context.model, seed)
                names, level = next(iter(search.proposed), ((), 0.0))
                points.append(SensitivityPoint(names, level, score[DEFAULT_METRIC]))
                what = f"{'+'.join(names)} at {level:g}" if names else "dense"
                report(f"{what}: {score[DEFAULT_METRIC]:.6g}")
            elif isinstance(step, Transform) and not search.settles:
                step.apply(context)
            else:
                break
    judge.unbind()
    return points


def _block(prune: Mapping[str, Any] | Prune, sparsities: list[float]) -> Prune:
    """The block with a search over these sparsities; its other settings for what comes behind a round count no more."""
    plain = prune.to_dict() if isinstance(prune, Prune) else dict(prune)
    try:
        block = Prune.model_validate(plain, context=PYTHON_SPELLING)
    except ValidationError as error:
        raise SpecError(problems_of(error, Prune, root=_PATH)) from None
    if not sparsities or not all(0 < level < 1 for level in sparsities):
        raise SpecError([Problem("sparsities", "each must lie between 0 and 1", "give some such as [0.25, 0.5]")])
    asked = block.model_copy(
        update={
            "search": Search(type="sensitivity", sparsities=sparsities),
            "sparsity": sparsities[-1],
            "config_list": [
                entry if entry.exclude else entry.model_copy(update={"sparsity": sparsities[-1], **_NOT_HERE})
                for entry in block.config_list
            ],
            "schedule": Schedule(),
            "reconstruct": "none",
            "budget": None,
            "sparsify": None,
            **_NOT_HERE,
        }
    )
    problems = list(rules("prune").problems(asked, _PATH))
    if problems:
        raise InvalidSpecError(str(problems[0]))
    return asked
