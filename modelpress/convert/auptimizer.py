"""Experiments of Auptimizer: JSON for one compression, or for a search over them."""

from __future__ import annotations

from typing import Any

from modelpress.api.v1alpha1.base import plain

from . import pruners
from .drafts import Draft
from .notes import Field
from .quantizers import is_quantizer, quantize_stages
from .spaces import Space, of_auptimizer

_PROPOSERS = {
    "random": ("random", None),
    "sequence": ("grid", None),
    "grid": ("grid", None),
    "hyperopt": ("tpe", None),
    "tpe": ("tpe", None),
    "bohb": ("tpe", "its model is a tree of Parzen estimators; earlyStopping is its other half"),
    "hyperband": ("random", "it samples at random; earlyStopping is its other half"),
    "spearmint": ("tpe", "Gaussian processes have no counterpart"),
}
_LEFT = {
    "resource_args": "results of all trials are kept",
    "runtime_args": "resources of pods stand under runner.resources",
    "job_failure": "failed attempts are repeated by backoffLimit",
    "expand_op_names": "it belongs into an entry of config_list",
    "username": "there are no users here",
    "cwd": "the code's folder is code.path",
}


def detect(top: Field) -> bool:
    """Whether data is of Auptimizer."""
    if top.has("compression") or top.has("proposer", "resource_args"):
        return True
    entries = top.entries() if isinstance(top.data, list) else []
    return any(_searched(entry) for entry in entries)


def _searched(entry: Field) -> bool:
    return isinstance(entry.data, dict) and any(
        isinstance(value, dict) and "range" in value for value in entry.data.values()
    )


def convert(top: Field, model: dict[str, Any], algorithm: str | None) -> list[Draft]:
    """The recipe of an experiment, or the search.

    Args:
        top: the experiment, or a config_list alone.
        model: the block `model`; empty: what the experiment says.
        algorithm: of a config_list that stands alone.
    """
    space = Space(of_auptimizer)
    if isinstance(top.data, list):
        return [_of_list(top, space, model, algorithm)]
    if not top.mapping():
        return []
    name = top.take("name")
    draft = Draft((name.text() if name is not None else None) or "auptimizer", dict(model), space=space)
    block = top.take("compression")
    if block is None:
        top.wrong("it has no compression", "add compression: {framework, type, compressor, config_list}")
        return []
    if not block.mapping():
        return []
    _model(draft, top, block)
    _stages(draft, block)
    _search(draft, top)
    _surroundings(draft, top)
    top.leave(_LEFT)
    return [draft]


def _of_list(top: Field, space: Space, model: dict[str, Any], algorithm: str | None) -> Draft:
    draft = Draft("auptimizer", dict(model) or {"entrypoint": "model:create"}, space=space)
    if algorithm is None:
        top.say("todo", "the compressor, which a config_list does not name; l1 was taken (--algorithm says another)")
    name = Field(algorithm or "l1", top.book)
    stages = quantize_stages if is_quantizer(str(name.data)) else pruners.prune_stages
    draft.stages = stages(name, top.entries(), Field({}, top.book), space, 0)
    return draft


def _model(draft: Draft, top: Field, block: Field) -> None:
    """A script goes along as it is (modelpress.compat.auptimizer), where its loop can take the stage along."""
    script = top.take("script")
    name = (script.text() if script is not None else None) or "model.py"
    compressor = str((block.data or {}).get("compressor", ""))
    if draft.model:
        return
    word = plain(compressor)
    alone = word in pruners.AROUND or word in ("slim", "slimpruner", "movement") or is_quantizer(compressor)
    if script is not None and name.endswith(".py") and not alone:
        draft.model = {"script": name, "args": {"config": top.book.file.rpartition("/")[2] or "experiment.json"}}
        script.say("translated", "the script runs as it is, with 'from modelpress.compat import auptimizer as aup'")
        return
    module = name.rpartition("/")[2].removesuffix(".py").replace("-", "_")
    draft.model = {"entrypoint": f"{module if module.isidentifier() else 'model'}:create"}
    file = f"{draft.model['entrypoint'].partition(':')[0]}.py"
    text = f"the model: a function create() in {file} that returns it with what trains and scores it"
    if script is not None and alone:
        text += f": {compressor} takes part in the training, which modelpress calls"
    (script or top).say("todo", text)


def _stages(draft: Draft, block: Field) -> None:
    framework, kind, compressor = block.take("framework"), block.take("type"), block.take("compressor")
    if framework is not None and framework.data not in ("torch", "pytorch"):
        framework.wrong(f"models of {framework.data} cannot be compressed here", "give the same model in PyTorch")
    entries = block.take("config_list")
    if entries is None:
        block.wrong("it has no config_list", 'add "config_list": [{"sparsity": 0.5, "op_types": ["default"]}]')
        return
    if compressor is None:
        block.wrong("it has no compressor", 'add "compressor": "l1_filter"')
        return
    quantizes = is_quantizer(str(compressor.data))
    if (
        kind is not None
        and (said := kind.text()) in ("pruning", "quantization")
        and (said == "quantization") != quantizes
    ):
        kind.wrong(f"{compressor.data} is no method of {said}", f"write {'quantization' if quantizes else 'pruning'}")
    listed = [_names_alone(entry) for entry in entries.entries()]
    if quantizes:
        draft.stages = quantize_stages(compressor, listed, block, draft.space, 0)
    else:
        in_loop = "script" in draft.model
        draft.stages = pruners.prune_stages(compressor, listed, block, draft.space, 0, in_loop=in_loop)


def _names_alone(entry: Field) -> Field:
    """The entry without the types that stand beside names: there names select alone."""
    if not (entry.has("op_names") and entry.has("op_types")) or entry.data["op_types"] == ["default"]:
        return entry
    book, place = entry.book, (*entry.location, "op_types")
    book.say("changed", place, "names stand beside it, and they select alone; it was left out")
    return Field({key: value for key, value in entry.data.items() if key != "op_types"}, book, entry.location)


def _search(draft: Draft, top: Field) -> None:
    proposer, target = top.take("proposer"), top.take("target")
    trials, parallel = top.take("n_samples"), top.take("n_parallel")
    if not any((proposer, trials, parallel, draft.space.parameters)):
        if target is not None:
            target.say("missing", "one recipe has nothing to choose by")
        return
    sweep: dict[str, Any] = {}
    goal = {"max": "maximize", "min": "minimize"}.get(str(target.data) if target is not None else "max")
    if goal is None and target is not None:
        target.wrong(f"must be max or min, found {target.data}", "write one of them")
    sweep["objectives"] = [{"metric": "default", "goal": goal or "maximize"}]
    if goal == "minimize":
        draft.spec["metrics"] = {"default": {"goal": goal}}
    if proposer is not None and (name := proposer.text()) is not None:
        if name.lower() not in _PROPOSERS:
            proposer.wrong(f"there is no counterpart to the proposer {name}", f"write {' or '.join(_PROPOSERS)}")
        else:
            ours, remark = _PROPOSERS[name.lower()]
            sweep["algorithm"] = {"name": ours}
            if name.lower() in ("bohb", "hyperband"):
                sweep["earlyStopping"] = {"name": "hyperband"}
            if remark is not None:
                proposer.say("changed", f"{ours} takes its place: {remark}")
    if trials is not None and (count := trials.whole(1)) is not None:
        sweep["maxTrials"] = count
    if parallel is not None and (count := parallel.whole(1)) is not None:
        sweep["parallelism"] = count
    if (seed := top.take("random_seed")) is not None and (value := seed.whole()) is not None:
        sweep["algorithm"] = {**sweep.get("algorithm", {"name": "tpe"}), "seed": value}
        draft.spec["seed"] = value
    draft.sweep = sweep
    if "script" in draft.model:
        text = "a trial's score: give create_compressor(..., evaluator=FUNCTION), model -> number"
        top.say("todo", text)


def _early(sweep: dict[str, Any], stop: Field) -> None:
    policy, warmup = stop.take("aup_policy"), stop.take("warmup")
    steps = stop.take("aup_policy_steps")
    if policy is None:
        return
    block: dict[str, Any] = {"name": "median"}
    if policy.data != "median":
        policy.say("changed", f"median takes the place of {policy.data}")
    if warmup is not None and (count := warmup.whole()):
        block["minTrials"] = count
        warmup.say("changed", "is a number of trials here: none is stopped before so many others came as far")
    if steps is not None and (count := steps.whole()):
        block["minSteps"] = count
    stop.leave(dict.fromkeys(("bandit_factor", "truncation_percentage"), "median has no such setting"))
    sweep["earlyStopping"] = block


def _surroundings(draft: Draft, top: Field) -> None:
    resource, folder = top.take("resource"), top.take("workingdir")
    if resource is not None and resource.data == "gpu":
        draft.spec["runner"] = {"gpus": 1}
    elif resource is not None and resource.data not in ("cpu", "gpu"):
        resource.say("missing", "where it runs: modelpress run on this machine, kubectl apply on a cluster")
    if folder is not None and (path := folder.text()) is not None:
        folder.say("todo", f"the folder of the code, {path}, is code.path")
    if (seed := top.take("random_seed")) is not None and (value := seed.whole()) is not None:
        draft.spec["seed"] = value
    failure = top.take("job_failure")
    if failure is not None and failure.mapping():
        if (retries := failure.take("job_retries")) is not None and (count := retries.whole()) is not None:
            draft.spec["backoffLimit"] = count
        failure.leave({"ignore_fail": "a sweep goes on until more than maxFailedTrials have failed"})
    arguments = top.take("resource_args")
    if arguments is not None and arguments.mapping():
        if (best := arguments.take("save_model")) is not None:
            best.say("changed", "the best model is kept from its own trial, and is not trained a second time for it")
        if (stop := arguments.take("early_stop")) is not None and stop.mapping() and draft.sweep is not None:
            _early(draft.sweep, stop)
        arguments.leave()
