"""What is wrong with `data` and `model.huggingFace` beyond their schema, found without opening either."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

from .errors import Problem
from .semantic_locations import uri_problems
from .semantic_sources import source_problems
from .stages import rules
from .v1alpha1 import Columns, CompressionJobSpec, Constraint, HuggingFace
from .v1alpha1.data import SUFFIXES

_PATH = "model.huggingFace"
PERPLEXITY = "perplexity"


def data_problems(spec: CompressionJobSpec) -> Iterator[Problem]:
    """Problems of `data` and `model.huggingFace`; paths below spec."""
    for name, split in spec.data.splits.items() if spec.data is not None else ():
        yield from uri_problems(split.uri, f"data.{name}.uri")
        if split.form is None:
            suffix = PurePosixPath(split.uri).suffix
            message = f"the suffix '{suffix}' does not say which format this is"
            yield Problem(
                f"data.{name}.format", message, f"add format, or use one of {', '.join(filter(None, SUFFIXES))}"
            )
        if split.form == "imageFolder" and split.sha256 is not None:
            yield Problem(f"data.{name}.sha256", "a folder has no sha256", "remove it")
    if spec.model.script is not None and spec.data is not None:
        yield Problem("data", "a script reads its data itself", "remove it, and pass the place in model.args")
    if spec.model.hugging_face is None:
        if spec.target.format == "transformers":
            message = "only a model that is given as huggingFace has this form"
            yield Problem("target.format", message, "use eager or pt2")
        return
    yield from source_problems(spec.model.hugging_face.source, f"{_PATH}.source")
    yield from _alone_problems(spec)
    yield from _task_problems(spec, spec.model.hugging_face)
    yield from _training_problems(spec)


def _alone_problems(spec: CompressionJobSpec) -> Iterator[Problem]:
    """What belongs to the other forms of a model."""
    if spec.code is not None:
        yield Problem("code", "huggingFace runs no code of yours", "remove it, or write an entrypoint")
    if spec.model.args is not None:
        yield Problem("model.args", "huggingFace takes no arguments", "remove it, or write an entrypoint")
    if spec.model.weights is not None:
        message = "the weights of huggingFace are those of its source"
        yield Problem("model.weights", message, "remove it, or put the weights into the folder of the source")


def _task_problems(spec: CompressionJobSpec, model: HuggingFace) -> Iterator[Problem]:
    images = model.task == "image-classification"
    for name, split in spec.data.splits.items() if spec.data is not None else ():
        if split.form is not None and (split.form == "imageFolder") != images:
            message = f"{model.task} reads {'a folder of images' if images else 'rows of text'}, not {split.form}"
            fix = "give a folder with one folder of images for each class" if images else "give csv, jsonl or parquet"
            yield Problem(f"data.{name}.format", message, fix)
    if images and model.max_length is not None:
        yield Problem(f"{_PATH}.maxLength", "an image has no length in tokens", "remove it")
    columns = model.columns or Columns()
    unused: dict[str, tuple[str, ...]] = {
        "image-classification": ("text", "textPair", "label"),
        "causal-lm": ("textPair", "label"),
        "token-classification": ("textPair",),
        "feature-extraction": ("label",),
    }
    for name in unused.get(model.task, ()):
        if columns.to_dict().get(name) is not None:
            yield Problem(f"{_PATH}.columns.{name}", f"{model.task} reads no such column", "remove it")
    if model.task == "causal-lm":
        yield from _goal_problems(spec)


def _goal_problems(spec: CompressionJobSpec) -> Iterator[Problem]:
    known = (spec.metrics or {}).get(PERPLEXITY)
    if known is not None and known.goal != "minimize":
        yield Problem("metrics.perplexity.goal", "less perplexity is better", "write minimize")
    yield from unsaid_goals(spec, spec.constraints or [], "constraints")


def unsaid_goals(
    spec: CompressionJobSpec, constraints: Sequence[Constraint], path: str, where: str = "metrics"
) -> Iterator[Problem]:
    """Bounds on a loss of perplexity where nothing says that less of it is better, so that a loss would be a gain.

    Args:
        spec: whose metrics count.
        constraints: at `path`.
        where: the spec's metrics, for the remedy.
    """
    if not lacks_goal(spec, PERPLEXITY):
        return
    for index, constraint in enumerate(constraints):
        if constraint.metric == PERPLEXITY and constraint.bound.endswith("_loss"):
            message = "nothing says that less perplexity is better"
            yield Problem(f"{path}[{index}].metric", message, f"add {where}: {{perplexity: {{goal: minimize}}}}")


def lacks_goal(spec: CompressionJobSpec, metric: str) -> bool:
    """Whether `metric` is one of huggingFace's own that is to be minimized, and `metrics` does not name it."""
    model = spec.model.hugging_face
    return (
        model is not None and model.task == "causal-lm" and metric == PERPLEXITY and metric not in (spec.metrics or {})
    )


def _training_problems(spec: CompressionJobSpec) -> Iterator[Problem]:
    if spec.data is not None and spec.data.train is not None:
        return
    for index, stage in enumerate(spec.stages):
        for place in rules(stage.method).training(stage.block):
            message = "this trains, and there is nothing to train on"
            yield Problem(f"stages[{index}].{stage.method}{place}", message, "add data.train, or remove the training")
