"""The distill stage: a training in which a teacher takes part."""

from __future__ import annotations

import functools
from typing import Any

from torch import nn

from modelpress.api.semantic_runner import quantity
from modelpress.api.stages.distill import DistillRules
from modelpress.api.v1alpha1 import Distill, HuggingFace, Model
from modelpress_runner.edits.copies import copied
from modelpress_runner.errors import InvalidModelError, InvalidSpecError, RunnerError
from modelpress_runner.export import state
from modelpress_runner.huggingface.source import load
from modelpress_runner.methods.context import StageContext, Step, TrainingContext
from modelpress_runner.methods.distill.kept_outputs import KeptOutputs
from modelpress_runner.methods.distill.layers import links_of
from modelpress_runner.methods.distill.participant import Distillation
from modelpress_runner.runtime import rng
from modelpress_runner.stages.base import Accompanied, StageKind
from modelpress_runner.subject.entrypoint import Entrypoint, find
from modelpress_runner.subject.subject import Subject
from modelpress_runner.training.participants import Participant
from modelpress_runner.training.step import Training

_SEEDS_APART = 1 << 20  # of the stages' projectors


class DistillKind(StageKind[Distill]):
    """Trains with the term of a teacher in every loss."""

    name = "distill"
    recovers = True

    def check(self, block: Distill, path: str, subject: Subject) -> None:
        """Its layers are there, and where the code must give a teacher it has."""
        links_of(block.layer_mappings or [], subject.model, path)
        if block.form == "entrypoint":
            _teacher_entrypoint(block, path)
        _bring_teacher(block, path, subject)
        if block.form == "given" and subject.teacher is None:
            raise InvalidSpecError(
                "the code gives no teacher; let the entrypoint return an mp.Subject with one, or write {self: true}",
                f"{path}.teacher",
            )

    def needs_dense(self, block: Distill, subject: Subject) -> bool:
        """Where it is the teacher."""
        return block.form == "self" or (block.form is None and subject.teacher is None)

    def steps(self, block: Distill, index: int) -> list[Step]:
        """All of its training in one step."""
        along = self.participants(block, f"spec.stages[{index}].distill", index, "")
        return [Training("distill", block.epochs, block.max_steps, along.participants)]

    def participants(self, block: Distill, path: str, index: int, name: str) -> Accompanied:
        """The teacher's."""
        made = functools.cache(functools.partial(_built, block, path))

        def participants(training: TrainingContext) -> list[Participant]:
            context = training.context

            def teacher() -> nn.Module | None:
                if block.form == "entrypoint":
                    return made(context.seed)
                return _teacher(block, context, path)

            return [
                Distillation(
                    block,
                    teacher,
                    links_of(block.layer_mappings or [], context.model, path),
                    context.dummy_input,
                    context.seed + index * _SEEDS_APART,
                    path,
                    _predicts_next(context.model),
                    functools.partial(_keeping, block, context) if block.teacher_cache is not None else None,
                    context.record,
                )
            ]

        return Accompanied(participants)

    def record(self, block: Distill) -> dict[str, Any]:
        """Who taught, and by what."""
        record: dict[str, Any] = {"teacher": block.form or "self", "temperature": block.temperature}
        record |= {"lossTypes": list(block.loss_types), "lossWeights": list(block.loss_weights)}
        return record


def _field(block: Distill, path: str) -> str | None:
    """The field that names the files of the teacher; None: it has none."""
    return next((where for where, _ in DistillRules().sources(block, path)), None)


def _bring_teacher(block: Distill, path: str, subject: Subject) -> None:
    """Makes the teacher of its files, before anything is trained."""
    where = _field(block, path)
    if where is None or where in subject.teachers:
        return
    if where not in subject.sources:
        raise InvalidSpecError("only a job fetches files; give the teacher itself, and write {given: true}", where)
    assert block.teacher is not None
    local = subject.sources[where]
    try:
        if block.teacher.weights is not None:
            model = copied(subject.model)
            state.load_strict(model, state.read(local), block.teacher.weights.uri)
        else:
            folder = block.teacher.hugging_face
            assert folder is not None
            model = load(HuggingFace(source=folder.source, task=folder.task), local).model
    except RunnerError as error:
        raise InvalidModelError(str(error).partition(": ")[2] if error.path else str(error), where) from error
    subject.teachers[where] = model


def _teacher(block: Distill, context: StageContext, path: str) -> nn.Module | None:
    """The teacher's model; None: the student is its own, or only the loop knows one."""
    if block.form == "student":
        return None
    where = _field(block, path)
    if where is not None:
        return context.teachers[where]
    if block.form == "given" or (block.form is None and context.teacher is not None):
        return context.teacher
    if context.dense is None:
        raise InvalidModelError("the dense model is not there any more, and no other teacher is given", path)
    return context.dense


def _keeping(block: Distill, context: StageContext, teacher: nn.Module) -> KeptOutputs:
    cache = block.teacher_cache
    assert cache is not None
    again = (block.epochs or 1) > 1
    return KeptOutputs(teacher, cache.top_k, int(quantity(cache.max_memory)), context.files, again, context.note)


def _built(block: Distill, path: str, seed: int) -> nn.Module:
    """The model that the teacher's entrypoint gives."""
    entry = _teacher_entrypoint(block, path)
    with rng.fork_rng():
        try:
            return entry.module(_as_model(block), seed=seed)
        except RunnerError as error:
            raise _replaced(error, path) from error


def _teacher_entrypoint(block: Distill, path: str) -> Entrypoint:
    try:
        return find(_as_model(block))
    except RunnerError as error:
        raise _replaced(error, path) from error


def _as_model(block: Distill) -> Model:
    assert block.teacher is not None
    return Model(entrypoint=block.teacher.entrypoint, args=block.teacher.args)


def _replaced(error: RunnerError, path: str) -> RunnerError:
    """The error of an entrypoint, at the place of the teacher's."""
    where = (error.path or "spec.model.entrypoint").replace("spec.model", f"{path}.teacher", 1)
    kind = InvalidSpecError if isinstance(error, InvalidSpecError) else InvalidModelError
    return kind(str(error).partition(": ")[2] if error.path else str(error), where)


def _predicts_next(model: nn.Module) -> bool:
    """Whether a model's output for a token is of the next one: a decoder of the transformers library."""
    config = getattr(model, "config", None)
    causal = type(model).__name__.endswith(("ForCausalLM", "LMHeadModel"))
    return causal and not getattr(config, "is_encoder_decoder", False)


KIND = DistillKind()
