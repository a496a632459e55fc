"""The distill stage: what can be wrong with its teacher, its layers and its length."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from modelpress.api.errors import Problem
from modelpress.api.semantic_runner import quantity
from modelpress.api.v1alpha1 import Distill, FolderSource, Source

from . import length
from .base import StageRules
from .selectors import regex_error


class DistillRules(StageRules[Distill]):
    """A training in which a teacher takes part."""

    name = "distill"
    block = Distill
    runner = "modelpress_runner.stages.distill:KIND"
    goes_along = True

    def problems(self, block: Distill, path: str) -> Iterator[Problem]:
        """Of its weights and its layers."""
        mappings = block.layer_mappings or []
        if block.teacher is not None and block.teacher.args is not None and block.form != "entrypoint":
            yield Problem(f"{path}.teacher.args", "args are those of an entrypoint", "remove them, or name one")
        if block.form == "student":
            if not mappings:
                message = "a model that learns from its own deeper layers needs to know which"
                yield Problem(f"{path}.layerMappings", message, "add {student: SHALLOW, teacher: DEEP}")
            for number, mapping in enumerate(mappings):
                if mapping.teacher in (None, mapping.student):
                    message = "a layer learns nothing from itself"
                    yield Problem(f"{path}.layerMappings[{number}].teacher", message, "name a deeper layer")
        elif not mappings and block.output_weight == 0:
            message = "nothing is learnt from the teacher: its weight is 0, and there are no layerMappings"
            yield Problem(f"{path}.lossWeights[1]", message, "raise it, or write a finetune stage")
        if block.teacher_cache is not None:
            yield from _cache_problems(block, f"{path}.teacherCache")
        for number, mapping in enumerate(mappings):
            if mapping.student_re is not None and (error := regex_error(mapping.student_re)) is not None:
                where = f"{path}.layerMappings[{number}].studentRe"
                yield Problem(where, f"{mapping.student_re!r} is no regular expression: {error}", "correct it")
            if mapping.weight == 0:
                where = f"{path}.layerMappings[{number}].weight"
                yield Problem(where, "a weight of 0 has no effect", "raise it, or remove the mapping")

    def problems_in_loop(self, block: Distill, path: str) -> Iterator[Problem]:
        """A script builds its models itself."""
        yield from self.problems_along(block, path)
        for where, _ in self.sources(block, path):
            message = "a script with a loop of its own gives its teacher itself"
            yield Problem(where, message, "write {given: true}, and mp.prepare_compression(..., teacher=model)")

    def problems_along(self, block: Distill, path: str) -> Iterator[Problem]:
        """The training that it goes along with has its own length."""
        yield from length.refused(block, path, "the training that it goes along with says how long")

    def problems_outside(self, block: Distill, path: str) -> Iterator[Problem]:
        """There must be a length."""
        yield from length.needed(block, path)

    def training(self, block: Distill) -> Iterator[str]:
        """All of it."""
        yield ""

    def sources(self, block: Distill, path: str) -> Iterator[tuple[str, Source | FolderSource]]:
        """The teacher's."""
        if block.teacher is not None and block.teacher.weights is not None:
            yield f"{path}.teacher.weights", block.teacher.weights
        if block.teacher is not None and block.teacher.hugging_face is not None:
            yield f"{path}.teacher.huggingFace.source", block.teacher.hugging_face.source

    def sentence(self, block: Mapping[str, Any]) -> str:
        """From whom, by which losses, and for how long."""
        teacher = next(iter(block.get("teacher") or {"self": True}), "self")
        source = {
            "self": "the dense model",
            "student": "its own deeper layers",
            "given": "a teacher that its code gave",
            "weights": "a model of its own kind with other weights",
            "huggingFace": "a pretrained model of transformers",
        }.get(teacher) or f"the teacher {block['teacher']['entrypoint']}"
        layers = len(block.get("layerMappings") or [])
        what = [] if teacher == "student" else [str((block.get("lossTypes") or ["task", "KL"])[1])]
        what += [f"{layers} layer mapping{'' if layers == 1 else 's'}"] if layers else []
        return f"distilled from {source} ({', '.join(what)}){length.in_words(block)}"


def _cache_problems(block: Distill, path: str) -> Iterator[Problem]:
    """Only outputs are kept, and a part of them serves a softmax only."""
    cache = block.teacher_cache
    assert cache is not None
    if block.form == "student":
        yield Problem(path, "the model is its own teacher, and its outputs change with every step", "remove it")
    elif block.layer_mappings:
        message = "what inner layers of the teacher give is not kept"
        yield Problem(path, message, "remove it, or layerMappings")
    elif block.output_weight == 0:
        yield Problem(path, "the teacher's outputs have no weight", "remove it, or raise lossWeights[1]")
    if cache.top_k is not None and block.loss_types[1] not in ("KL", "CE"):
        message = f"{block.loss_types[1]} compares all numbers of an output"
        yield Problem(f"{path}.topK", message, "remove it, or let lossTypes[1] be KL")
    if quantity(cache.max_memory) < 1:
        yield Problem(f"{path}.maxMemory", "there is no room for anything", "write 1Gi, or remove teacherCache")
