"""`modelpress init`: looks at a model and writes a commented sweep that suits it."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from modelpress.api.errors import SpecError
from modelpress.api.load import load_dict
from modelpress.api.semantic import sweep_problems
from modelpress.api.v1alpha1 import CompressionJobSpec, CompressionSweep
from modelpress.api.v1alpha1.data import SUFFIXES
from modelpress.api.v1alpha1.huggingface import LABEL_COLUMNS, PAIR_COLUMN, TEXT_COLUMNS
from modelpress.local.errors import LocalError, UsageError

from .analyze import run_analysis
from .asking import needs_torch
from .exits import Exit
from .outputs import check_output, write_output

# What the name of an architecture of transformers says of its task.
_TASKS = {
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForImageClassification": "image-classification",
    "ForCausalLM": "causal-lm",
    "LMHeadModel": "causal-lm",
    "Model": "feature-extraction",
}
_LABELS = ("label", "labels", "target", "class", "y", "tags", "ner_tags")
_TEXTS = ("text", "sentence", "tokens", "content", "question", "input")
_QUANTIZED = ("Linear", "Conv1d", "Conv2d")
_LEAST = 4  # channels that a layer keeps at the least, in the search
_MOST = 0.8  # share of them that goes at the most
MAX_DIMENSIONS = 6  # of sparsities; where there are more kinds of layers, all have one
_PLACEHOLDER = {
    "prune": {"algorithm": "l1", "configList": [{"opTypes": ["Conv2d", "Linear", "Conv1d"], "sparsity": 0.5}]}
}


@dataclass(frozen=True)
class Wanted:
    """What the user asks for.

    Attributes:
        model: module:attribute, or a folder in the layout of transformers.
        code: folder of the module.
        train: file that training goes over; None: the code has its own.
        validation: file that the score is taken on.
        task: of transformers; None: what its configuration says.
        target: cpu (latency), gpu (latency, channels in multiples of 8), or size (bytes).
        minutes: of the whole sweep.
    """

    model: str
    code: Path
    train: str | None = None
    validation: str | None = None
    task: str | None = None
    target: str = "cpu"
    minutes: int = 60


@dataclass(frozen=True)
class Prunable:
    """Layers of a kind, with those that lose channels together with them, and what they bear.

    Attributes:
        patterns: regular expressions that match their names and no others.
        layers: how many there are.
        channels: of the narrowest.
    """

    patterns: tuple[str, ...]
    layers: int
    channels: int

    @property
    def name(self) -> str:
        """Of the parameter."""
        words = re.sub(r"[^A-Za-z0-9]+", "_", self.patterns[0].replace("[0-9]+", "")).strip("_")
        return f"sparsity_{words}"[:60].rstrip("_")

    @property
    def most(self) -> float:
        """The highest sparsity of the search."""
        return min(_MOST, int(20 * (1 - _LEAST / self.channels)) / 20)


def init(wanted: Wanted, output: Path | None) -> int:
    """Writes the sweep, to standard output where no file is named; the exit code.

    Raises:
        UsageError: the model is not there, or cannot be told what it is; or the file cannot be written.
        LocalError: the model cannot be looked at; the message says why.
    """
    needs_torch()
    check_output("--output", output, new=True)
    folder = (output.parent if output is not None else Path.cwd()).resolve()
    model = _model(wanted, folder)
    facts = _facts(model, wanted)
    text = document(wanted, model, facts, folder)
    _check(text)
    if output is None:
        print(text, end="")
        return Exit.DONE
    write_output("--output", output, text, new=True)
    print(f"{output}: written, and valid. What comes next:")
    print(f"  modelpress validate --smoke {output}     runs it once in short")
    print(f"  modelpress preflight {output}            says what a trial takes")
    print(f"  modelpress run {output}")
    return Exit.DONE


def prunable(facts: Mapping[str, Any]) -> list[Prunable]:
    """Kinds of layers that can lose channels, the widest first; kinds that go together in some block are one."""
    known = {name for group in facts["groups"] for name in group["layers"]}
    others = {layer["name"] for layer in facts["layers"]} - known
    kinds: list[dict[str, list[int]]] = []  # pattern -> channels of each of its layers
    for group in facts["groups"]:
        here: dict[str, list[int]] = {}
        for name in group["layers"]:
            pattern = re.sub(r"[0-9]+", "[0-9]+", re.escape(name))
            if any(re.fullmatch(pattern, other) for other in others):
                pattern = re.escape(name)  # it would take in a layer that cannot lose any
            here.setdefault(pattern, []).append(int(group["channels"]))
        apart = []
        for kind in kinds:
            if kind.keys() & here.keys():
                here = {pattern: [*kind.get(pattern, []), *here.get(pattern, [])] for pattern in {**kind, **here}}
            else:
                apart.append(kind)
        kinds = [*apart, here]
    found = [
        Prunable(tuple(kind), sum(map(len, kind.values())), min(map(min, kind.values()))) for kind in kinds if kind
    ]
    return sorted((item for item in found if item.channels >= 2 * _LEAST), key=lambda item: -item.channels)


def document(wanted: Wanted, model: Mapping[str, Any], facts: Mapping[str, Any], folder: Path) -> str:
    """The sweep as YAML with comments."""
    entries, space = _entries(prunable(facts))
    trains, scores = bool(facts["canTrain"]), bool(facts["canEvaluate"])
    cost = {"cpu": "latencyMs", "gpu": "latencyMs", "size": "sizeBytes"}[wanted.target]
    parts = [_head(wanted, facts)]
    spec: dict[str, Any] = {"model": dict(model)}
    if "entrypoint" in model:
        spec["code"] = {"path": _relative(wanted.code, folder)}
    if data := _data(wanted, folder):
        spec["data"] = data
    parts.append(_dump({"template": {"spec": spec}}, 2))
    kinds = {layer["kind"] for layer in facts["layers"]}
    stages = _stages(entries, trains, wanted.target, [kind for kind in _QUANTIZED if kind in kinds])
    parts.append("      # What every trial does. Recovery gets back what pruning takes: the longer, the better.\n")
    if not stages:
        raise UsageError(f"{wanted.model} has no layers that could lose channels or bits, and nothing trains it")
    parts.append(_dump({"stages": stages}, 6))
    if wanted.target == "gpu":
        parts.append(_dump({"target": {"device": "cuda"}}, 6))
    parts.append("      benchmark: {warmup: 10, iterations: 100}  # how latency is measured\n")
    if space:
        parts.append("  # What the trials vary. A layer keeps some channels; how much it bears, its score says:\n")
        parts.append("  #   modelpress analyze sensitivity FILE --bounds space.yaml\n")
        parts.append(_dump({"searchSpace": space}, 2))
    objectives = [*([{"metric": "default"}] if scores else []), {"metric": cost}]
    parts.append("  # What is best: the score, which the code takes, and what the model costs.\n")
    parts.append(_dump({"objectives": objectives}, 2))
    if scores:
        parts.append("  # What no result may miss: at most 2 % of the dense model's score lost.\n")
        parts.append(_dump({"constraints": [{"metric": "default", "maxRelativeLoss": 0.02}]}, 2))
    parts.append(_dump({"algorithm": {"name": "tpe", "seed": 0}}, 2))
    trials = 24 if space else 1
    if trains and trials > 1:
        parts.append("  # All trials are ranked behind pruning; the best go on to recovery.\n")
        parts.append(_dump({"screening": {"stages": 1, "top": 6}}, 2))
    parts.append(
        "  parallelism: 1                             # trials at a time, each with cores or a GPU of its own\n"
    )
    parts.append(f"  maxTrials: {trials}\n")
    parts.append(f"  budget: {{wallClockSeconds: {60 * wanted.minutes}}}           # no further trial starts then\n")
    return "".join(parts)


def _head(wanted: Wanted, facts: Mapping[str, Any]) -> str:
    layers = facts["layers"]
    parameters, macs = (sum(layer[name] for layer in layers) for name in ("parameters", "macs"))
    name = re.sub(r"[^a-z0-9]+", "-", Path(wanted.model.replace(":", "-")).name.lower()).strip("-")[:40] or "model"
    notes = [f"# Note: {' '.join(str(note).split())}\n" for note in facts["notes"][:5]]
    return "".join(
        [
            f"# Looks for smaller forms of {wanted.model}: {len(layers)} layers, {parameters:,} parameters, "
            f"{macs:,} MACs.\n",
            "#   modelpress run FILE        on this machine; stop it and run it again as you like\n",
            *notes,
            "apiVersion: modelpress.dev/v1alpha1\nkind: CompressionSweep\n",
            f"metadata: {{name: {name}}}\nspec:\n",
        ]
    )


def _entries(kinds: Sequence[Prunable]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    if not kinds:
        return [], []
    if len(kinds) > MAX_DIMENSIONS:
        most = min(kind.most for kind in kinds)
        every = [pattern for kind in kinds for pattern in kind.patterns]
        entries = [{"opNamesRe": every[:64], "sparsity": min(0.5, most)}]
        groups = [("sparsity", most)]
    else:
        entries = [{"opNamesRe": list(kind.patterns), "sparsity": min(0.5, kind.most)} for kind in kinds]
        groups = [(kind.name, kind.most) for kind in kinds]
    space = [
        {
            "name": name,
            "paths": [f"/stages/0/prune/configList/{number}/sparsity"],
            "float": {"min": min(0.1, most), "max": most, "step": 0.05},
        }
        for number, (name, most) in enumerate(groups)
    ]
    return entries, space


def _stages(
    entries: Sequence[Mapping[str, Any]], trains: bool, target: str, kinds: Sequence[str]
) -> list[dict[str, Any]]:
    prune: dict[str, Any] = {"algorithm": "l1", "configList": list(entries)}
    if target == "gpu":
        prune["roundTo"] = 8
    stages: list[dict[str, Any]] = [{"prune": prune}] if entries else []
    if trains:
        stages.append({"finetune": {"epochs": 3}})
    if kinds and (target == "size" or not stages):
        quantized = [{"opTypes": list(kinds), "quantBits": 8}]
        stages.append({"quantize": {"algorithm": "weight_only", "configList": quantized}})
    return stages


def _model(wanted: Wanted, folder: Path) -> dict[str, Any]:
    path = Path(wanted.model)
    if not path.is_dir():
        if ":" not in wanted.model:
            raise UsageError(
                f"{wanted.model} is no folder; give one with a config.json, or module:attribute of your code"
            )
        if wanted.task is not None:
            raise UsageError(
                f"--task: is of a pretrained model in a folder, and {wanted.model} is code, which trains and scores "
                "itself; leave it out"
            )
        return {"entrypoint": wanted.model}
    config = path / "config.json"
    if not config.is_file():
        raise UsageError(f"{path} has no config.json, so it is no model as save_pretrained writes it")
    try:
        architectures = json.loads(config.read_text(encoding="utf-8")).get("architectures") or [""]
    except (ValueError, AttributeError) as error:
        raise UsageError(f"{config} cannot be read: {error}") from None
    task = wanted.task or next((task for end, task in _TASKS.items() if str(architectures[0]).endswith(end)), None)
    if task is None:
        raise UsageError(f"{config}: {architectures[0] or 'no architecture'} names no task; say which with --task")
    model: dict[str, Any] = {"source": {"uri": _relative(path, folder)}, "task": task}
    if columns := _columns(wanted, task):
        model["columns"] = columns
    return {"huggingFace": model}


def _columns(wanted: Wanted, task: str) -> dict[str, str]:
    """Names of columns where they are not the task's own."""
    given = wanted.train or wanted.validation
    names = _header(Path(given)) if given is not None and task in TEXT_COLUMNS else []
    if not names:
        return {}
    columns: dict[str, str] = {}
    for key, own, likely in (
        ("text", TEXT_COLUMNS.get(task), _TEXTS),
        ("label", LABEL_COLUMNS.get(task), _LABELS),
    ):
        if own is None or own in names:
            continue
        found = next((name for name in likely if name in names), None)
        if found is None:
            raise UsageError(f"{given}: none of its columns ({', '.join(names[:12])}) looks like the {key}; rename one")
        columns[key] = found
    if task == "feature-extraction" and PAIR_COLUMN not in names:
        rest = [name for name in names if name not in columns.values()]
        if len(rest) != 1:
            raise UsageError(f"{given}: no column {PAIR_COLUMN!r} holds what belongs to the text; rename one")
        columns["textPair"] = rest[0]
    return columns


def _header(path: Path) -> list[str]:
    form = SUFFIXES.get(path.suffix.lower())
    if not path.exists():
        raise UsageError(f"{path} is not there; name a file on this machine")
    if form not in ("csv", "jsonl"):
        return []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return next(csv.reader(file), []) if form == "csv" else list(json.loads(file.readline() or "{}"))
    except (ValueError, OSError, csv.Error) as error:
        raise UsageError(f"{path} cannot be read: {error}") from None


def _data(wanted: Wanted, folder: Path) -> dict[str, Any]:
    given = {"train": wanted.train, "validation": wanted.validation}
    return {split: {"uri": _relative(Path(path), folder)} for split, path in given.items() if path is not None}


def _facts(model: Mapping[str, Any], wanted: Wanted) -> dict[str, Any]:
    here = Path.cwd()
    spec: dict[str, Any] = {"model": dict(model), "stages": [_PLACEHOLDER]}
    if "huggingFace" in model:
        spec["model"]["huggingFace"] = {**model["huggingFace"], "source": {"uri": str(Path(wanted.model).resolve())}}
    data = {split: {"uri": str(Path(item).resolve())} for split, item in _given(wanted).items()}
    if data:
        spec["data"] = data
    checked = CompressionJobSpec.model_validate(spec)
    code = str(wanted.code.resolve()) if "entrypoint" in model else None
    return run_analysis({"what": "recipe", "spec": checked.to_dict(), "codePath": code, "basePath": str(here)})


def _given(wanted: Wanted) -> dict[str, str]:
    given = {"train": wanted.train, "validation": wanted.validation}
    return {split: path for split, path in given.items() if path is not None}


def _check(text: str) -> None:
    """What is written is valid, or it is not written."""
    try:
        obj = load_dict(yaml.safe_load(text))
        assert isinstance(obj, CompressionSweep)
        problems = sweep_problems(obj.spec)
    except SpecError as error:
        problems = error.problems
    if problems:
        raise LocalError(f"no sweep was found that suits the model: {problems[0]}")


def _relative(path: Path, folder: Path) -> str:
    try:
        return str(path.resolve().relative_to(folder)) or "."
    except ValueError:
        return str(path.resolve())


def _dump(data: Mapping[str, Any], indent: int) -> str:
    text = yaml.safe_dump(data, sort_keys=False, width=110, default_flow_style=None)
    return "".join(f"{' ' * indent}{line}\n" for line in text.splitlines())
