"""`modelpress analyze` in a process of its own, where the user's code may be imported.

`main` takes REQUEST and RESULT, two JSON files. The request: what (layers, dependency, sensitivity, or recipe, which is
what `modelpress init` asks), spec, codePath, basePath, sparsities. The result: rows, a list of objects, and notes, of
recipe canTrain, canEvaluate, layers, groups and notes; or error and exitCode.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from modelpress.api.v1alpha1 import DEFAULT_METRIC, CompressionJobSpec, Prune
from modelpress.search import goal_of
from modelpress_runner.analysis.channels import channel_dependency
from modelpress_runner.analysis.layers import layers
from modelpress_runner.analysis.sensitivity import sensitivity
from modelpress_runner.errors import InvalidModelError, InvalidSpecError
from modelpress_runner.inputs.gather import gathered
from modelpress_runner.runs.answering import answer
from modelpress_runner.runs.trial import model_source
from modelpress_runner.runtime import rng
from modelpress_runner.subject.entrypoint import load_weights
from modelpress_runner.subject.subject import Subject
from modelpress_runner.usercode import location as code


def main(arguments: Sequence[str]) -> int:
    """Analyses; the exit code."""
    return answer(arguments, _analyse)


def _analyse(request: Mapping[str, Any]) -> dict[str, Any]:
    spec = CompressionJobSpec.model_validate(request["spec"])
    what, path = request["what"], request.get("codePath")
    with gathered(spec, request.get("basePath") or path) as inputs:
        code.use(path)
        rng.seed_all(spec.seed)
        train = what == "sensitivity" and spec.model.weights is None
        subject = model_source(spec, path, inputs).subject(spec.model, seed=spec.seed, train=train)
        if spec.model.weights is not None:
            load_weights(subject, spec.model.weights, request.get("basePath"), spec.store)
        subject.find_inputs()
        if what == "recipe":
            return _facts(subject)
        if what == "sensitivity":
            return _sensitivity(spec, subject, request.get("sparsities"))
        if subject.dummy_input is None:
            raise InvalidModelError("there is no example input to run the model on; let the code give a dummy_input")
        if what == "layers":
            return {"rows": [dataclasses.asdict(layer) for layer in layers(subject.model, subject.dummy_input)]}
        found = channel_dependency(subject.model, subject.dummy_input)
        rows = [{**dataclasses.asdict(group), "reason": ""} for group in found.groups]
        rows += [{**dataclasses.asdict(frozen), "followers": ()} for frozen in found.frozen]
        blocks = [f"can go whole: {', '.join(found.blocks)}"] if found.blocks else []
        return {"rows": rows, "notes": [*found.notes, *blocks]}


def _facts(subject: Subject) -> dict[str, Any]:
    """What a first recipe is chosen by."""
    judge, example = subject.evaluator, subject.dummy_input
    found: dict[str, Any] = {
        "canTrain": judge is not None and judge.can_train,
        "canEvaluate": judge is not None and judge.can_evaluate,
        "layers": [],
        "groups": [],
        "notes": [] if example is not None else ["there is no example input; let the code give a dummy_input"],
    }
    if example is not None:
        found["layers"] = [dataclasses.asdict(layer) for layer in layers(subject.model, example)]
        dependency = channel_dependency(subject.model, example)
        found["groups"] = [dataclasses.asdict(group) for group in dependency.groups]
        found["notes"] += dependency.notes
    return found


def _sensitivity(spec: CompressionJobSpec, subject: Subject, sparsities: Sequence[float] | None) -> dict[str, Any]:
    block = next((stage.block for stage in spec.stages if stage.method == "prune"), None)
    if not isinstance(block, Prune):
        raise InvalidSpecError("no stage prunes; add one that says by which method, and which layers", "spec.stages")
    given = {} if sparsities is None else {"sparsities": sparsities}
    points = sensitivity(
        subject.model,
        block,
        subject.evaluator,
        subject.dummy_input,
        calibration_data=subject.calibration_data,
        goal=goal_of(DEFAULT_METRIC, spec.metrics),
        seed=spec.seed,
        report=lambda line: print(line, file=sys.stderr, flush=True),
        **given,
    )
    return {"rows": [dataclasses.asdict(point) for point in points], "goal": goal_of(DEFAULT_METRIC, spec.metrics)}
