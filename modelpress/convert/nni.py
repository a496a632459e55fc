"""NNI: config lists with their pruners and quantizers, search spaces of its auto compression, experiments.

Spellings of versions 1 (2019), 2 (2021) and 3 (2023).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from modelpress.api.v1alpha1.base import plain

from . import distillers, pruners
from .drafts import Draft
from .entries import AMOUNTS, OF_METHODS, SELECTORS
from .notes import Computed, Field
from .quantizers import is_quantizer, quantize_stages
from .scripts import ARGUMENTS, CALL, Script
from .spaces import Space, of_nni

_ENTRY_KEYS = {
    *AMOUNTS,
    *SELECTORS,
    *OF_METHODS,
    *("quant_types", "quant_bits", "quant_dtype", "quant_scheme", "target_names", "target_settings", "lambda", "link"),
}
_EXPERIMENT = (
    "experiment_name",
    "trial_concurrency",
    "max_trial_number",
    "max_experiment_duration",
    "search_space",
    "tuner",
    "trial_gpu_number",
)
_TUNERS = {
    "tpe": ("tpe", None),
    "random": ("random", None),
    "gridsearch": ("grid", None),
    "anneal": ("tpe", "annealing has no counterpart"),
    "evolution": ("nsga2", None),
    "smac": ("tpe", "random forests have no counterpart"),
    "gptuner": ("gp", None),
    "gp": ("gp", None),
    "metis": ("gp", "its own way of exploring has no counterpart"),
    "bohb": ("tpe", "earlyStopping: {name: hyperband} is its other half"),
    "hyperband": ("random", "earlyStopping: {name: hyperband} is its other half"),
    "batch": ("grid", None),
}
_LEFT = {
    "training_service": "where trials run: modelpress run on this machine, kubectl apply on a cluster",
    "trial_command": "trials run the model's entrypoint",
    "advisor": "its tuner and assessor in one",
    "debug": "MODELPRESS_DEBUG=1 shows tracebacks",
    "log_level": "the log of a trial holds everything",
    "experiment_working_directory": "results lie in the store: store: {path: ...}",
    "nni_manager_ip": "there is no manager",
    "use_annotation": "what is searched stands in searchSpace",
}
_CHOSEN = "algorithm"  # the parameter that says which
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@dataclass
class Algorithm:
    """One pruner or quantizer with its config list and arguments; a distiller likewise."""

    name: Field
    entries: list[Field]
    given: Field


def detect(top: Field, script: Script | None) -> bool:
    """Whether a file is of NNI."""
    if script is not None:
        called = {call[CALL].rpartition(".")[2] for _, call in script.calls}
        ours = any(name == "add_config" or _compressor(name) for name in called)
        return ours or any(_is_list(value) for value in script.names.values())
    if _is_list(top.data) or top.has("algorithm_name", "config_list", "configList"):
        return True
    return isinstance(top.data, dict) and any(plain(key) in {plain(each) for each in _EXPERIMENT} for key in top.data)


def _compressor(name: str) -> bool:
    return name.endswith(("Pruner", "Quantizer", "Distiller")) and not name.startswith("Abstract")


def _is_list(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(item, dict) for item in value)
        and any(_ENTRY_KEYS & item.keys() for item in value)
    )


def convert(top: Field, script: Script | None, model: dict[str, Any], algorithm: str | None) -> list[Draft]:
    """Recipes of a file, and searches.

    Args:
        top: a config list, a search space, an experiment, or what a script assigns.
        script: what else it says.
        model: the block `model`; empty: what the file says.
        algorithm: of config lists that stand alone.
    """
    if script is not None:
        return list(_of_script(top, script, model, algorithm))
    if isinstance(top.data, list):
        return [_recipe("nni", _alone(top, algorithm), model)]
    if not top.mapping():
        return []
    if top.has("config_list", "configList"):
        name, entries = (
            top.take("pruner", "quantizer", "algorithm", "algorithm_name"),
            top.take("config_list", "configList"),
        )
        assert entries is not None
        if name is None:
            return [_recipe("nni", _alone(entries, algorithm), model)]
        return [_recipe("nni", Algorithm(name, entries.entries(), top), model)]
    if top.has("algorithm_name"):
        return _searches("nni", _of_space(top), model, {}, {})
    experiment = _snake(top)
    space = experiment.take("search_space")
    if space is None or not isinstance(space.data, dict):
        fix = "put the search space into it as searchSpace, or give modelpress the search space itself"
        experiment.wrong("it has no search space", fix)
        return []
    spec, sweep = _experiment(experiment)
    return _searches(_name(experiment), _of_space(space), model, spec, sweep)


def _snake(top: Field) -> Field:
    """An experiment's mapping with its keys as the Python API has them."""
    known = {plain(key): key for key in (*_EXPERIMENT, *_LEFT, "trial_code_directory", "assessor")}
    data = {known.get(plain(key), key): value for key, value in top.data.items()}
    lines = {
        (*place[:-1], known.get(plain(str(place[-1])), place[-1])): line
        for place, line in top.book.lines.items()
        if len(place) == len(top.location) + 1
    }
    top.book.lines = {**top.book.lines, **lines}
    return Field(data, top.book, top.location)


# Recipes --------------------------------------------------------------------------------------------------------------


def _alone(entries: Field, algorithm: str | None) -> Algorithm:
    """A config list that stands alone: NNI names the pruner in Python."""
    listed = entries.entries()
    quantized = any(
        isinstance(entry.data, dict) and {"quant_types", "quant_bits", "quant_dtype"} & entry.data.keys()
        for entry in listed
    )
    distilled = any(isinstance(entry.data, dict) and {"lambda", "link"} & entry.data.keys() for entry in listed)
    taken = algorithm or ("DynamicLayerwiseDistiller" if distilled else "qat" if quantized else "l1")
    if algorithm is None:
        text = f"the method, which NNI names in Python; {taken} was taken (--algorithm says another)"
        entries.say("todo", text)
    return Algorithm(Field(taken, entries.book, entries.location), listed, Field({}, entries.book, entries.location))


def _recipe(name: str, algorithm: Algorithm, model: dict[str, Any]) -> Draft:
    draft = Draft(name, model or _unknown(algorithm.given), space=Space(of_nni))
    draft.stages = _stages(algorithm, draft.space, 0)
    return draft


def _unknown(field: Field) -> dict[str, Any]:
    field.book.say(
        "todo", (), "the model: a function create() in model.py that returns it with what trains and scores it"
    )
    return {"entrypoint": "model:create"}


def _stages(algorithm: Algorithm, space: Space, number: int) -> list[dict[str, Any]]:
    name = str(algorithm.name.data)
    if name.endswith("Distiller"):
        return distillers.distill_stages(algorithm.name, algorithm.entries, algorithm.given)
    if is_quantizer(name):
        return quantize_stages(algorithm.name, algorithm.entries, algorithm.given, space, number)
    return pruners.prune_stages(algorithm.name, algorithm.entries, algorithm.given, space, number)


# Searches -------------------------------------------------------------------------------------------------------------


def _searches(
    name: str, algorithms: list[Algorithm], model: dict[str, Any], spec: dict[str, Any], sweep: dict[str, Any]
) -> list[Draft]:
    """One search: over the parameters of an algorithm, and where there are several over them, too."""
    made: list[tuple[str, list[dict[str, Any]], Space]] = []
    for algorithm in algorithms:
        space = Space(of_nni)
        stages = _stages(algorithm, space, 0)
        if stages:
            label = str(algorithm.name.data)
            number = sum(1 for other, _, _ in made if re.sub(r"_\d+$", "", other) == label)
            made.append((f"{label}_{number + 1}" if number else label, stages, space))
    if not made:
        return []
    draft = Draft(name, model or _unknown(algorithms[0].name), stages=made[0][1], spec=spec, sweep=sweep)
    if len(made) == 1:
        draft.space = made[0][2]
        return [draft]
    draft.space = Space(of_nni)
    values = [{"name": label, "value": stages} for label, stages, _ in made]
    draft.space.add(_CHOSEN, ["/stages"], {"choice": {"values": values}})
    for label, _, space in made:
        for parameter in space.parameters:
            body = {key: value for key, value in parameter.items() if key not in ("name", "paths")}
            draft.space.add(f"{label}_{parameter['name']}", parameter["paths"], body, when={_CHOSEN: [label]})
    return [draft]


def _of_space(top: Field) -> list[Algorithm]:
    """The algorithms of a search space as the generator dumps it: choices with flattened keys."""
    choice = top.take("algorithm_name")
    values = choice.take("_value") if choice is not None else None
    if choice is None or values is None or not isinstance(values.data, list):
        top.wrong(
            "it names no algorithms", 'write {"algorithm_name": {"_type": "choice", "_value": [{"_name": "l1", ...}]}}'
        )
        return []
    top.leave()
    return [found for value in values.entries() if (found := _unflattened(value)) is not None]


def _unflattened(value: Field) -> Algorithm | None:
    """`config_list::Conv2d::::sparsity` and `parameter::NAME`; of quantizers quant_types stand before the types."""
    name = value.take("_name") if value.mapping() else None
    if name is None:
        value.wrong("it has no _name", 'add "_name": "l1"')
        return None
    count = 3 if is_quantizer(str(name.data)) else 2  # what stands before a variable
    entries: dict[tuple[str, ...], dict[str, Any]] = {}
    given: dict[str, Any] = {}
    for key, field in value.members():
        head, *parts = key.split("::")
        if head == "parameter" and len(parts) == 1:
            given[parts[0]] = _single(field.data)
        elif head == "config_list" and len(parts) > count:
            entry = entries.setdefault(tuple(parts[:count]), _selected(parts[:count]))
            _set(entry, "::".join(parts[count:]), _single(field.data))
        elif key != "_name":
            field.say("missing", "is not known here, and was left out")
    book = value.book
    fields = [Field(entry, book, value.location) for entry in entries.values()]
    return Algorithm(name, fields, Field(given, book, value.location))


def _selected(where: list[str]) -> dict[str, Any]:
    keys = ("quant_types", "op_types", "op_names")[-len(where) :]
    return {key: part.split(":") for key, part in zip(keys, where, strict=True) if part.strip(":")}


def _set(entry: dict[str, Any], variable: str, value: Any) -> None:
    """`quant_bits::weight` is a key of a mapping."""
    holder, _, key = variable.rpartition("::")
    if holder:
        entry.setdefault(holder, {})[key] = value
    else:
        entry[variable] = value


def _single(value: Any) -> Any:
    """A choice between one value is that value."""
    if isinstance(value, dict) and value.get("_type") == "choice" and len(value.get("_value") or ()) == 1:
        return value["_value"][0]
    return value


def _name(experiment: Field) -> str:
    name = experiment.take("experiment_name")
    return (name.text() if name is not None else None) or "nni"


def _experiment(experiment: Field) -> tuple[dict[str, Any], dict[str, Any]]:
    """What else stands in the spec of the template, and in that of the sweep."""
    spec: dict[str, Any] = {}
    sweep: dict[str, Any] = {}
    _name(experiment)
    for theirs, ours in (("trial_concurrency", "parallelism"), ("max_trial_number", "maxTrials")):
        if (field := experiment.take(theirs)) is not None and (count := field.whole(1)) is not None:
            sweep[ours] = count
    if (field := experiment.take("max_experiment_duration")) is not None and (seconds := _seconds(field)) is not None:
        sweep["budget"] = {"wallClockSeconds": seconds}
    if (field := experiment.take("trial_gpu_number")) is not None and (gpus := field.whole()):
        spec["runner"] = {"gpus": gpus}
    folder = experiment.take("trial_code_directory")
    if folder is not None and isinstance(folder.data, str) and folder.data not in (".", "./"):
        folder.say("todo", f"the folder of the code, {folder.data}, is code.path")
    goal = _tuner(experiment.take("tuner"), sweep)
    _assessor(experiment.take("assessor"), sweep)
    sweep["objectives"] = [{"metric": "default", "goal": goal}]
    if goal == "minimize":
        spec["metrics"] = {"default": {"goal": goal}}
    experiment.leave(_LEFT, (CALL, ARGUMENTS))
    return spec, sweep


def _tuner(tuner: Field | None, sweep: dict[str, Any]) -> str:
    if tuner is None:
        return "maximize"
    name, arguments = tuner.take("name"), tuner.take("class_args", "classArgs")
    if name is not None and (text := name.text()) is not None:
        word = plain(text).removesuffix("tuner")
        if word not in _TUNERS:
            name.wrong(f"there is no counterpart to the tuner {text}", "write TPE, Random or GridSearch")
        else:
            ours, remark = _TUNERS[word]
            sweep["algorithm"] = {"name": ours}
            if remark is not None:
                name.say("changed", f"{ours} takes its place: {remark}")
    if arguments is None:
        return "maximize"
    mode, seed = arguments.take("optimize_mode"), arguments.take("seed")
    if seed is not None and (value := seed.whole()) is not None:
        sweep["algorithm"] = {**sweep.get("algorithm", {"name": "tpe"}), "seed": value}
    arguments.leave()
    if mode is not None and mode.data not in ("maximize", "minimize"):
        mode.wrong(f"must be maximize or minimize, found {mode.data}", "write one of them")
    return "minimize" if mode is not None and mode.data == "minimize" else "maximize"


def _assessor(assessor: Field | None, sweep: dict[str, Any]) -> None:
    name = assessor.take("name") if assessor is not None else None
    if assessor is None or name is None or (text := name.text()) is None:
        return
    block: dict[str, Any] = {"name": "median"}
    if not plain(text).startswith("median"):
        name.say("changed", f"median takes the place of {text}")
    arguments = assessor.take("class_args", "classArgs")
    start = arguments.take("start_step") if arguments is not None else None
    if start is not None and (count := start.whole()):
        block["minSteps"] = count
    sweep["earlyStopping"] = block


def _seconds(field: Field) -> int | None:
    found = re.fullmatch(r"(\d+)\s*([smhd]?)", str(field.data))
    if found is None:
        field.wrong(f"must be a time such as 1h or 30m, found {field.data}", "write it with s, m, h or d")
        return None
    return int(found[1]) * _UNITS[found[2] or "s"]


# Scripts --------------------------------------------------------------------------------------------------------------


def _of_script(top: Field, script: Script, model: dict[str, Any], algorithm: str | None) -> Iterator[Draft]:
    calls = [(Field(call, top.book, place), call[CALL].rpartition(".")[2]) for place, call in script.calls]
    choices = [found for call, name in calls if name == "add_config" and (found := _added(call)) is not None]
    model = model or _module(calls, script)
    experiments = [Field(value, top.book, (name,)) for name, value in script.names.items() if isinstance(value, dict)]
    configs = [_config(value) for value in experiments]
    config = next((each for each in configs if each is not None), None)
    if choices or config is not None:
        space = config.take("search_space") if config is not None else None
        spec, sweep = _experiment(config) if config is not None else ({}, {})
        label = _name(config) if config is not None else "nni"
        if config is not None and not choices:
            if space is None or not space.has("algorithm_name"):
                fix = "give modelpress the file that makes the search space (generator.add_config), too"
                config.wrong("its search space is not in this file", fix)
                return
            choices = _of_space(space)
        yield from _searches(label, choices, model, spec, sweep)
        return
    made = [_constructed(call) for call, name in calls if _compressor(name)]
    algorithms = [each for each in made if each is not None]
    inner = {id(each.given.data) for each in algorithms} & _arguments_of(script)
    algorithms = [each for each in algorithms if id(each.given.data) not in inner]
    if algorithms:
        _lengths(algorithms, calls)
        draft = Draft("nni", model or _unknown(top), space=Space(of_nni))
        for each in algorithms:
            draft.stages += _stages(each, draft.space, len(draft.stages))
        yield draft
        return
    for name, value in script.names.items():
        if _is_list(value):
            field = Field(value, top.book, (name,))
            yield _recipe(name.replace("_", "-"), _alone(field, algorithm), model)


def _lengths(algorithms: list[Algorithm], calls: list[tuple[Field, str]]) -> None:
    """compress(max_steps=..., max_epochs=...), of the last compressor, as arguments of it."""
    for call, name in calls:
        if name == "compress" and algorithms:
            given = algorithms[-1].given
            said = {key: call.data[key] for key in ("max_steps", "max_epochs") if call.data.get(key) is not None}
            algorithms[-1].given = Field({**said, **given.data}, given.book, given.location)


def _arguments_of(script: Script) -> set[int]:
    """Identities of the calls that are arguments of other calls: the pruner in AGPPruner(pruner, ...)."""
    return {
        id(value)
        for _, call in script.calls
        for value in (*call[ARGUMENTS], *call.values())
        if isinstance(value, dict) and CALL in value
    }


def _config(value: Field) -> Field | None:
    """`experiment.config`, as the script has filled it."""
    config = value.take("config")
    return config if config is not None and config.has(*_EXPERIMENT) else None


def _module(calls: list[tuple[Field, str]], script: Script) -> dict[str, Any]:
    """The entrypoint that an experiment names: AutoCompressionExperiment(MODULE, ...)."""
    for call, name in calls:
        first = (call.data[ARGUMENTS] or [None])[0]
        if name == "AutoCompressionExperiment" and isinstance(first, Computed) and first.source in script.imports:
            call.say("translated", f"{first.source} is the model's entrypoint: a CompressionModule")
            return {"entrypoint": f"{script.imports[first.source].lstrip('.')}:{first.source}"}
    return {}


def _added(call: Field) -> Algorithm | None:
    """generator.add_config(NAME, CONFIG_LIST, **parameters)."""
    arguments = Field(call.data[ARGUMENTS], call.book, call.location).entries()
    name = call.take("algorithm_name") or (arguments[0] if arguments else None)
    entries = call.take("config_list") or (arguments[1] if len(arguments) > 1 else None)
    if name is None or entries is None:
        call.wrong("needs a name and a config list", "write add_config('l1', [{...}])")
        return None
    return Algorithm(name, entries.entries(), call)


def _constructed(call: Field) -> Algorithm | None:
    """L1NormPruner(model, CONFIG_LIST, ...), or AGPPruner(pruner, ...) around another."""
    arguments = call.data[ARGUMENTS]
    name = Field(call.data[CALL].rpartition(".")[2], call.book, call.location)
    given = call
    inner = next(
        (value for value in (*arguments, call.data.get("pruner")) if isinstance(value, dict) and CALL in value), None
    )
    entries: Any = call.data.get("config_list")
    listed = next((value for value in arguments if _is_list(value)), None)
    entries = entries if entries is not None else listed
    place = (*call.location, "config_list")
    if entries is listed and listed is not None:
        place = (*call.location, arguments.index(listed))
    if entries is None and inner is not None:
        entries = inner.get("config_list") or next((value for value in inner[ARGUMENTS] if _is_list(value)), None)
        data = {**call.data, "pruner": inner}
        given = Field(data, call.book, call.location)
    if not isinstance(entries, list):
        call.wrong("its config list is not a literal", "write the list into the file")
        return None
    return Algorithm(name, Field(entries, call.book, place).entries(), given)
