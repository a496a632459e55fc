"""What a stage works on and what it may use."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from modelpress_runner.edits.base import Edit
from modelpress_runner.edits.masks import Masks
from modelpress_runner.evaluators.base import Evaluator
from modelpress_runner.training.participants import Participant
from modelpress_runner.training.step import Training


class Tables(Protocol):
    """What was worked out once and serves again, in other trials too: JSON-ready, by a digest of all it depends on."""

    def get(self, name: str) -> dict[str, Any] | None:
        """What lies there; None: nothing."""

    def put(self, name: str, table: dict[str, Any]) -> None:
        """Lays it there, in place of what is there."""


class Parts(Protocol):
    """What a step that takes long has done so far, beside the run's checkpoint: a run that goes on finds it there."""

    def get(self, name: str) -> dict[str, Any] | None:
        """What was put; None: nothing."""

    def put(self, name: str, content: dict[str, Any]) -> None:
        """Keeps tensors and plain data, which nobody changes from now on."""


class SharedFiles(Protocol):
    """Files that runs of one sweep leave for each other."""

    def read(self, folder: str) -> Iterator[Path]:
        """Each file there, for as long as it is the last one given."""

    def add(self, folder: str, name: str, path: Path) -> None:
        """Puts a file there; its name says what is in it, so one of that name need not be replaced."""


@dataclass(frozen=True)
class Measures:
    """Measures of models as the recipe's target has them.

    Attributes:
        of: from a metric (parameters, macs, sizeBytes, latencyMs) and models to its value for each; two models are
            timed in turn.
        conditions: what a time depends on besides the model: target, benchmark, machine.
        tables: where figures are kept; None: nowhere.
        free: names of axes that stay free in exported files, by input and axis.
        latency: ms of a call of two modules on inputs of their own, in turn, as the target has them.
        batch: rows that models are timed with.
        times_layers: the run times models, and timing single layers, too, costs next to nothing.
    """

    of: Callable[[str, Sequence[nn.Module]], list[float]]
    conditions: str = ""
    tables: Tables | None = None
    free: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    latency: Callable[[nn.Module, nn.Module, Any], tuple[float, float]] | None = None
    batch: int = 1
    times_layers: bool = False


@dataclass
class StageContext:
    """The state that stages hand on. A stage changes `model` in place or puts another one there."""

    model: nn.Module
    evaluator: Evaluator | None
    dummy_input: Any
    seed: int
    masks: Masks = field(default_factory=dict)  # in force from now on: training keeps masked weights at zero
    edits: list[Edit] = field(default_factory=list)  # all so far, against the dense model, in order of replay
    report: Callable[[str], None] = lambda message: None  # a line of progress for people
    stop: Callable[[], None] = lambda: None  # called at safe points; raises Stopped if the run should end
    notes: list[str] = field(default_factory=list)  # what the model card should say (an in-process plan, for one)
    calibration_data: Iterable[Any] | None = None  # batches as the model takes them, the same on every rank
    measures: Measures | None = None
    score: Callable[[], float] | None = None  # takes the job's own, of the model as it is; more is better
    score_of: Callable[[nn.Module], Mapping[str, float]] | None = None  # takes all of the evaluator's, of any model
    goal: str = "maximize"  # of the evaluator's score, or minimize
    dense: nn.Module | None = None  # the model before the first stage, not to be changed, where a stage asks for it
    teacher: nn.Module | None = None  # what the code gave as a teacher
    teachers: dict[str, nn.Module] = field(default_factory=dict)  # others, by the field that names them
    files: SharedFiles | None = None  # of other runs of the sweep, where it is a sweep's
    target_device: str = "cpu"  # where the result is to run: cpu or cuda
    uniform: bool = False  # layers that are alike but for their number are to keep one width
    in_loop: bool = False  # the user's own loop trains: parameters stay the objects that its optimizers have
    parts: Parts | None = None  # None: the run keeps no checkpoints
    record: dict[str, Any] = field(default_factory=dict)  # what the stage at work found out, for its record

    def note(self, *texts: str) -> None:
        """Adds what the model card should say, each text once."""
        self.notes += [text for text in dict.fromkeys(texts) if text not in self.notes]


@dataclass(frozen=True)
class TrainingContext:
    """A training that participants are made for.

    Attributes:
        context: the state of the run; its masks may change on the way.
        evaluator: what trains, bound to the context's model as soon as they are attached.
        report: a line of progress for people.
        earlier: the participants before these in the same training.
    """

    context: StageContext
    evaluator: Evaluator
    report: Callable[[str], None]
    earlier: Sequence[Participant] = ()


# The engine carries out the steps of a stage in order (methods.procedure), writes checkpoints within and behind each
# training, and after a restart goes on from the last one; so a Transform must give the same result when it runs again
# from the same model, masks, edits and seed.


@dataclass(frozen=True)
class Transform:
    """A step that is over quickly: scores and masks, a shrink, a conversion."""

    label: str
    apply: Callable[[StageContext], None]


@dataclass(frozen=True)
class Evaluation:
    """A step that takes the score of the model as it is, for what comes next to depend on."""

    label: str


Step = Transform | Training | Evaluation
