"""README.md of an artifact: the model card that a person reads first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from modelpress.api.stages import rules
from modelpress.results.stage_rows import COLUMNS, stage_rows
from modelpress_runner.export.formats import format_names, format_of

# metric -> (label, how it is written)
_ROWS: dict[str, tuple[str, str]] = {
    "default": ("Score", "number"),
    "parameters": ("Parameters", "count"),
    "nonzeroParameters": ("Nonzero parameters", "count"),
    "macs": ("MACs (batch 1)", "count"),
    "sizeBytes": ("Size on disk", "bytes"),
    "latencyMs": ("Latency", "ms"),
    "throughput": ("Throughput (rows/s)", "number"),
    "peakMemoryBytes": ("Peak memory", "bytes"),
    "sparsity": ("Sparsity", "share"),
    "compressionRatio": ("Compression ratio", "times"),
    "speedup": ("Speed-up", "times"),
}


def card(
    *,
    name: str,
    recipe: Sequence[Mapping[str, Any]],
    metrics: Mapping[str, Any],
    timing: Mapping[str, Any] | None,
    target: str,
    files: Sequence[str],
    portable_reason: str | None,
    required_imports: Sequence[str],
    versions: Mapping[str, str],
    notes: Sequence[str],
    stages: Sequence[Mapping[str, Any]] = (),
) -> str:
    """The card as Markdown with a YAML front matter; equal arguments give equal text.

    Args:
        name: of the job.
        recipe: the stages, as in the spec.
        metrics: {baseline, compressed} by metric name.
        timing: `measure.Timed.detail`, if latency was measured.
        target: the form that size and latency were measured on.
        files: names of the files beside the card.
        portable_reason: why there is no program; None: there is one.
        required_imports: modules to import before the program is opened.
        versions: of what made it.
        notes: sentences.
        stages: their records.
    """
    methods = sorted({_method(stage) for stage in recipe})
    front = {"library_name": "modelpress", "tags": ["modelpress", "model-compression", "pytorch", *methods]}
    parts = [
        f"---\n{_yaml(front)}---",
        f"# {name}",
        f"A PyTorch model compressed by modelpress: {_summary(recipe)}",
        "## Before and after",
        _table(metrics, timing),
        _measured(target, timing),
        *_layers(stages),
        "## How to load it",
        _loading(portable_reason, required_imports) + _other_forms(files, target),
        "## Recipe",
        f"```yaml\n{_yaml({'stages': [dict(stage) for stage in recipe]})}```",
        "## Files",
        "\n".join(f"- `{file}`: {text}" for file, text in _described(files)),
        "## Versions",
        "\n".join(f"- {package} {version}" for package, version in sorted(versions.items())),
    ]
    if rows := stage_rows(metrics.get("baseline") or {}, metrics.get("stages") or ()):
        parts[6:6] = ["## Stage by stage", _stages(rows)]
    if notes:
        parts += ["## Notes", "\n".join(f"- {note}" for note in notes)]
    return "\n\n".join(parts) + "\n"


_FILES = {
    "model.pt2": "the program, to be opened without the model's code",
    "model.onnx": "the model for ONNX Runtime, which needs no torch",
    "model.onnx.data": "the tensors of model.onnx",
    "model.xml": "the model for OpenVINO, which needs no torch",
    "model.bin": "the tensors of model.xml",
    "model.safetensors": "the weights",
    "shrink.json": "what was changed in the structure of the dense model: channels kept, quantizers",
    "masks.safetensors": "which weights are held at zero (1 = kept)",
    "transformers/": "the model and its tokenizer or image processor, as save_pretrained of transformers writes them",
    "per_layer/": "the model and its tokenizer or image processor; layers differ in width, so loader.py builds it",
    "metrics.json": "everything that was measured",
    "job.yaml": "the recipe as a CompressionJob, all values resolved",
}


_MOST_LAYERS = 50


def _described(files: Sequence[str]) -> list[tuple[str, str]]:
    """Files with what is in them, in order of their names; those of a folder as one."""
    known = {name.partition("/")[0] + "/" if "/" in name else name for name in files}
    return [(name, _FILES.get(name, "a file")) for name in sorted(known)]


def _summary(recipe: Sequence[Mapping[str, Any]]) -> str:
    return ", then ".join(_stage(stage) for stage in recipe) + "."


def _method(stage: Mapping[str, Any]) -> str:
    return next((key for key in stage if key != "name"), "none")


def _stage(stage: Mapping[str, Any]) -> str:
    method = _method(stage)
    return rules(method).sentence(stage.get(method) or {})


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _table(metrics: Mapping[str, Any], timing: Mapping[str, Any] | None) -> str:
    baseline, compressed = metrics.get("baseline") or {}, metrics.get("compressed") or {}
    names = [name for name in _ROWS if name in baseline or name in compressed]
    names[1:1] = sorted((baseline.keys() | compressed.keys()) - _ROWS.keys())
    lines = ["| Metric | Before | After | Change |", "|---|---:|---:|---:|"]
    for name in names:
        label, style = _ROWS.get(name, (name, "number"))
        before, after = baseline.get(name), compressed.get(name)
        spread = [_spread(timing, side) if name == "latencyMs" else "" for side in ("dense", "compressed")]
        lines.append(
            f"| {label} | {_write(before, style)}{spread[0]} | {_write(after, style)}{spread[1]} "
            f"| {_change(before, after, style)} |"
        )
    return "\n".join(lines)


def _stages(rows: Sequence[Sequence[str]]) -> str:
    head = [f"| {' | '.join(heading.capitalize() if heading.islower() else heading for heading in COLUMNS)} |"]
    return "\n".join([*head, "|---" + "|---:" * (len(COLUMNS) - 1) + "|", *(f"| {' | '.join(row)} |" for row in rows)])


def _spread(timing: Mapping[str, Any] | None, side: str) -> str:
    found = (timing or {}).get(side)
    return f" (p10 {found['p10Ms']:.3g}, p90 {found['p90Ms']:.3g})" if found else ""


def _write(value: float | None, style: str) -> str:
    if value is None:
        return "-"
    if style == "count":
        return f"{value:,.0f}"
    if style == "bytes":
        unit, size = next((u, s) for u, s in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3), ("B", 1)) if value >= s or s == 1)
        return f"{value / size:,.0f} B" if unit == "B" else f"{value / size:.2f} {unit}"
    if style == "ms":
        return f"{value:.3g} ms"
    if style == "share":
        return f"{value:.1%}"
    if style == "times":
        return f"{value:.2f}x"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _change(before: float | None, after: float | None, style: str) -> str:
    if before is None or after is None or style in ("share", "times"):
        return ""
    return f"{(after - before) / abs(before):+.1%}" if before else ""


def _layers(stages: Sequence[Mapping[str, Any]]) -> list[str]:
    """A table of what was quantized, layer by layer; of many those that lose most."""
    # Records of plug-ins have fields of their own, of whatever names.
    quantized = [stage for stage in stages if stage.get("method") in ("quantize", "together")]
    layers = [layer for stage in quantized for layer in stage.get("layers") or ()]
    if not layers:
        return []
    shown = sorted(layers, key=lambda layer: float(layer.get("sqnrDb", 1e9)))[:_MOST_LAYERS]
    timed = any("msBefore" in layer for layer in shown)
    heads = "| Layer | Weight | Input | Output | SQNR (dB) | Bytes |"
    lines = [f"{heads} ms alone |" if timed else heads, "|---|---|---|---|---:|---:|" + ("---:|" if timed else "")]
    for layer in shown:
        types = " | ".join(str(layer.get(target, "-")) for target in ("weight", "input", "output"))
        bytes_ = f"{layer['bytesBefore']:,} -> {layer['bytesAfter']:,}"
        row = f"| {layer['name']} | {types} | {layer.get('sqnrDb', '-')} | {bytes_} |"
        if timed:
            row += f" {layer['msBefore']:.3g} -> {layer['msAfter']:.3g} |" if "msBefore" in layer else " - |"
        lines.append(row)
    text = "SQNR: the squares of a layer's outputs by those of the error that its rounding makes."
    more = f" Shown are the {_MOST_LAYERS} of {len(layers)} layers that lose most." if len(layers) > len(shown) else ""
    return ["## Quantized layers", "\n".join(lines), text + more]


def _measured(target: str, timing: Mapping[str, Any] | None) -> str:
    text = f"Measured on {format_of(target).measured}."
    if timing:
        text += (
            f" Latency is the median of {_counted(timing['dense']['iterations'], 'call')} of each model in turn, "
            f"with a batch of {timing['batchSize']} on {_where(timing)}; it holds for the machine it was measured on."
        )
    return text + " MACs are those of one row."


def _where(timing: Mapping[str, Any]) -> str:
    return "one GPU" if timing.get("device") == "cuda" else _counted(timing["threads"], "CPU thread")


def _loading(portable_reason: str | None, required_imports: Sequence[str]) -> str:
    imports = "".join(f"import {module}\n" for module in required_imports)
    into = (
        "As the module it was made from, to prune it again or change its code (`build_model` is yours, and gives the "
        "dense model):\n\n"
        "```python\nimport modelpress as mp\n\nmodel = mp.load(uri, into=build_model())\n```"
    )
    if portable_reason is not None:
        return f"There is no program: {portable_reason}.\n\n{into}"
    return (
        "As a program, without the code of the model. It runs, takes any batch size, switches with `train()` and "
        "`eval()`, and can be finetuned:\n\n"
        f"```python\n{imports}import modelpress as mp\n\nmodel = mp.load(uri)  # the folder with manifest.json\n```\n\n"
        f"{into}"
    )


def _other_forms(files: Sequence[str], target: str) -> str:
    """How to load the forms beside the two that every artifact has: what lies there, and what was measured."""
    texts = [
        format_of(name).loading()
        for name in format_names()
        if name == target
        or any(file.startswith(f"{name}/") for file in files)
        or (format_of(name).exported and format_of(name).file in files)
    ]
    if any(file.startswith("per_layer/") for file in files):
        texts.append(
            "With transformers alone, where modelpress is not there: layers differ in width, which `config.json` says "
            "as `per_layer_config`. `loader.py`, thirty lines, builds such a model:\n\n"
            '```python\nimport sys\n\nsys.path.insert(0, "per_layer")\nfrom loader import load\n\nmodel = load()\n```'
        )
    return "".join(f"\n\n{text}" for text in texts if text)


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, sort_keys=False, default_flow_style=False, allow_unicode=True, width=100)
