"""What is wrong with a quantize stage beside the rest of its job: the format that is measured, and later stages."""

from __future__ import annotations

from collections.abc import Iterator

from .errors import Problem
from .messages import in_words
from .stages.quantize_backends import known
from .v1alpha1 import CompressionJobSpec, Quantize, Together, algorithms, backends

_EXPORTS = {"onnx": "onnxruntime", "openvino": "openvino"}  # value of export.formats -> of target.format


def quantize_problems(spec: CompressionJobSpec) -> Iterator[Problem]:
    """Results of a backend in a format that does not hold them; paths are those below the spec."""
    target = spec.target.format
    for block, path in _blocks(spec):
        found = known(block)
        row = algorithms.algorithm("quantize", block.algorithm)
        way = None if found is None else found.way(row)
        if found is None or way is None:
            continue  # said of the block itself
        if found.format is not None and target != found.format:
            message = f"what {found.name} makes is measured as {found.format}, and target.format is {target}"
            yield Problem(f"{path}.backend", message, f"write target: {{format: {found.format}}}")
        if found.name == "compressed-tensors" and spec.model.hugging_face is None:
            message = "only a model that is given as huggingFace has the folder that compressed-tensors writes"
            yield Problem(f"{path}.backend", message, "use torch, onnxruntime or openvino")
        held = set(way.formats)
        asked = {name: form for name, form in _EXPORTS.items() if name in spec.export.formats}
        for name, form in asked.items():
            if form not in held:
                message = f"{_what(found, row)} has no form as {name}"
                yield Problem("export.formats", message, _other(found, row, form, f"leave {name} out"))
        if found.name == "torch" and target in backends.RUNTIMES and target not in held:
            message = f"{_what(found, row)} has no form as {target}"
            yield Problem("target.format", message, _other(found, row, target, "use eager or pt2"))
        if found.quantizes and not path.startswith(f"stages[{len(spec.stages) - 1}]"):
            message = f"{found.name} quantizes the model as it is at the end, and there are stages behind this one"
            yield Problem(f"{path}.backend", message, "put this stage last")
        if found.quantizes and spec.model.script is not None:
            message = f"a loop of one's own ends with torch's numbers, not with a file of {found.name}"
            yield Problem(f"{path}.backend", message, "use torch, or a stage behind the training of an entrypoint")


def _blocks(spec: CompressionJobSpec) -> Iterator[tuple[Quantize, str]]:
    for index, stage in enumerate(spec.stages):
        if isinstance(stage.block, Quantize):
            yield stage.block, f"stages[{index}].quantize"
        if isinstance(stage.block, Together):
            for number, part in enumerate(stage.block.of):
                if isinstance(part.block, Quantize):
                    yield part.block, f"stages[{index}].together.of[{number}].quantize"


def _what(found: backends.Backend, row: algorithms.Algorithm) -> str:
    return f"what {found.name} makes of {row.name}"


def _other(found: backends.Backend, row: algorithms.Algorithm, form: str, else_: str) -> str:
    others = [
        each.name
        for each in backends.backends()
        if each is not found and (way := each.way(row)) is not None and form in way.formats
    ]
    return f"{else_}, or use backend {in_words(others)}" if others else else_
