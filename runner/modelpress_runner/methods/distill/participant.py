"""A teacher in a training: its term in every loss."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from modelpress.api.v1alpha1 import Distill
from modelpress_runner.errors import CompressionError, InvalidModelError
from modelpress_runner.evaluators.parameter_groups import ParameterGroup
from modelpress_runner.methods.distill.kept_outputs import KeptOutputs
from modelpress_runner.methods.distill.layers import Features, Link, Projector, Watch, check_name, noted, projector_for
from modelpress_runner.methods.distill.losses import output_loss
from modelpress_runner.methods.distill.outputs import compared, rows_of
from modelpress_runner.runtime.example_inputs import as_call, map_tensors, tensors
from modelpress_runner.runtime.preserve import devices_restored, flags_restored, untouched
from modelpress_runner.training.calls import Call
from modelpress_runner.training.participants import Participant

_NO_CALL = (
    "distillation compares the outputs of the model, and here the loss comes from no call of the model itself; let the "
    "training step call model(...), not parts of it"
)


class Distillation(Participant):
    """Adds what a teacher asks for to every loss: w0 * loss + w1 * outputs' + the sum of weighted layers'.

    The teacher is called on what the student was called on, in eval mode and without gradients; it stays as it was.
    Where one loss comes from several calls, the means over them are added.

    Args:
        block: the losses and their weights.
        teacher: makes or gives the teacher's model; asked once, when the training is bound. It gives None where the
            student teaches itself, or where only the loop gives a teacher's outputs.
        links: the layers.
        dummy_input: example inputs, to see how wide the layers are.
        seed: of the projectors.
        path: of the block.
        next_token: as outputs.rows_of has it.
        keep: makes what keeps the outputs of the teacher; None: they are not kept.
        record: gets what came of that, at the end.
    """

    def __init__(
        self,
        block: Distill,
        teacher: Callable[[], nn.Module | None],
        links: list[Link],
        dummy_input: Any,
        seed: int,
        path: str,
        next_token: bool,
        keep: Callable[[nn.Module], KeptOutputs] | None = None,
        record: dict[str, Any] | None = None,
    ) -> None:
        self._block, self._make, self._links = block, teacher, links
        self._dummy_input, self._seed, self._path, self._next_token = dummy_input, seed, path, next_token
        self._keep, self._record = keep, record
        self._kept: KeptOutputs | None = None
        self._teacher: nn.Module | None = None
        self._projectors: dict[int, Projector] = {}
        self._own: Watch | None = None
        self._theirs: Watch | None = None
        self._open = contextlib.ExitStack()
        self._asked = False
        self.takes_teacher_output = not self._itself

    @property
    def _itself(self) -> bool:
        return self._block.form == "student"

    def parameter_groups(self, model: nn.Module) -> list[ParameterGroup]:
        """Those of the projectors."""
        self._teacher = self._make()
        if self._links:
            self._project(model)
        parameters = [parameter for each in self._projectors.values() for parameter in each.parameters()]
        return [{"params": parameters}] if parameters else []

    def _project(self, model: nn.Module) -> None:
        teaching = model if self._itself else self._teacher
        if teaching is None:
            raise InvalidModelError(
                "layers learn from a teacher's, and there are only its outputs; give the teacher itself",
                f"{self._path}.layerMappings",
            )
        names = [name for name, _ in teaching.named_modules()]
        for link in self._links:
            check_name(link.teacher, names, f"{link.path}.teacher", "the teacher")
        if self._dummy_input is None:
            raise InvalidModelError(
                "there are no example inputs to see how wide the layers are; give the Subject example_inputs, or the "
                "evaluator a dummy_input",
                f"{self._path}.layerMappings",
            )
        mine = _once(model, self._dummy_input, [link.student for link in self._links])
        theirs = _once(teaching, self._dummy_input, [link.teacher for link in self._links])
        for number, link in enumerate(self._links):
            student = noted(mine, link.student, link.path, "the model's")
            teacher = noted(theirs, link.teacher, link.path, "the teacher's")
            projector = projector_for(link, student, teacher, self._seed + number)
            if projector is not None:
                self._projectors[number] = projector

    def attach(self, model: nn.Module) -> None:
        """Puts hooks on the layers, and the teacher into eval mode."""
        teacher = self._teacher
        if teacher is not None:
            self._open.enter_context(devices_restored(teacher))
            self._open.enter_context(flags_restored(teacher))
            teacher.eval()
            self._kept = self._keep(teacher) if self._keep is not None else None
        if self._links:
            names = [link.student for link in self._links]
            names += [link.teacher for link in self._links] if self._itself else []
            self._own = Watch(model, names)
            self._open.callback(self._own.close)
        if self._links and teacher is not None:
            self._theirs = Watch(teacher, [link.teacher for link in self._links], always=True)
            self._open.callback(self._theirs.close)

    def finish(self) -> None:
        """Raises CompressionError if no loss has come along: the student has learnt nothing from the teacher."""
        if not self._asked:
            raise CompressionError(
                "no loss of the training came to the teacher; in a loop of your own go on with the loss that "
                "on_after_compute_loss() returns",
                self._path,
            )
        if self._kept is not None:
            self._kept.finish()
            if self._record is not None:
                self._record["teacherCache"] = self._kept.record

    def state_dict(self) -> dict[str, Any]:
        """Whether a loss has come along."""
        return {"asked": self._asked}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """As state_dict gave it."""
        self._asked = state["asked"]

    def detach(self) -> None:
        """Leaves teacher and student as they were."""
        self._open.close()
        self._own = self._theirs = self._kept = None

    def loss(self, call: Call | None, loss: torch.Tensor) -> torch.Tensor:
        """The weighted sum; see the class.

        Raises:
            InvalidModelError: there is no call of the model, or no teacher.
            CompressionError: the teacher's outputs are not like the student's.
        """
        self._asked = True
        if call is None:
            raise InvalidModelError(_NO_CALL, self._path)
        calls = (*call.earlier, call)
        features: list[Features] = [{}] * len(calls)
        if self._own is not None:
            features = self._own.take()[-len(calls) :]
            if len(features) != len(calls):
                raise InvalidModelError(_NO_CALL, self._path)
        own = self._block.loss_weights[0]
        terms = [own * loss] if own else []
        for each, mine in zip(calls, features, strict=True):
            terms += [term / len(calls) for term in self._terms(each, mine)]
        if not terms:
            raise CompressionError("nothing of the loss has a weight", self._path)
        return torch.stack([term.to(torch.promote_types(term.dtype, torch.float32)) for term in terms]).sum()

    def _terms(self, call: Call, mine: Features) -> list[torch.Tensor]:
        theirs = mine
        terms: list[torch.Tensor] = []
        if not self._itself:
            outputs, theirs = self._ask(call)
            if self._block.output_weight:
                terms.append(self._block.output_weight * self._outputs(call, outputs))
        for number, link in enumerate(self._links):
            student = noted(mine, link.student, link.path, "the model's")
            teacher = noted(theirs, link.teacher, link.path, "the teacher's").detach()
            if number in self._projectors:
                student = self._projectors[number](student)
            rows = rows_of(call, student.shape, next_token=False)
            temperature, reduction = self._block.temperature, self._block.reduction
            term = output_loss(
                link.loss_type, student, teacher, temperature=temperature, reduction=reduction, rows=rows
            )
            terms.append(link.weight * term)
        return terms

    def _outputs(self, call: Call, given: Any) -> torch.Tensor:
        mine, theirs = compared(call.outputs), compared(given)
        if len(mine) == 1 and len(theirs) == 1:  # whatever they are called
            theirs = dict(zip(mine, theirs.values(), strict=True))
        if not mine or mine.keys() != theirs.keys():
            raise CompressionError(
                f"the teacher gives {_listed(theirs)} and the model {_listed(mine)}; they cannot be compared",
                self._path,
            )
        losses = []
        for name, student in mine.items():
            teacher = theirs[name].detach()
            if student.shape != teacher.shape:
                raise CompressionError(
                    f"the teacher's {name} is {tuple(teacher.shape)} and the model's {tuple(student.shape)}; a teacher "
                    "needs the same classes, and the same tokens",
                    self._path,
                )
            rows = rows_of(call, student.shape, self._next_token)
            kind, temperature = self._block.loss_types[1], self._block.temperature
            losses.append(
                output_loss(kind, student, teacher, temperature=temperature, reduction=self._block.reduction, rows=rows)
            )
        return torch.stack(losses).mean()

    @torch.no_grad()
    def _ask(self, call: Call) -> tuple[Any, Features]:
        if call.teacher_output is not None:
            return call.teacher_output, {}
        teacher = self._teacher
        if teacher is None:
            raise InvalidModelError(
                "there is no teacher: on_after_compute_loss got no teacher_output, and the recipe names none; write "
                "teacher: {self: true} for the dense model",
                f"{self._path}.teacher",
            )
        place = next((tensor.device for tensor in tensors(call.outputs)), None)
        first = next(teacher.parameters(), None)
        if place is not None and first is not None and first.device != place:
            teacher.to(place)
        if self._kept is not None:
            return self._kept.outputs(call), {}
        outputs = teacher(*call.inputs, **call.kwargs)
        return outputs, self._theirs.take()[-1] if self._theirs is not None else {}


def _once(model: nn.Module, dummy_input: Any, names: list[str]) -> Features:
    """What modules give on example inputs; the model stays as it was."""
    args, kwargs = as_call(dummy_input)
    first = next(model.parameters(), None)
    watch = Watch(model, names, always=True)
    try:
        with untouched(model), torch.no_grad():
            if first is not None:
                args, kwargs = _moved((args, kwargs), first.device)
            model(*args, **kwargs)
        return watch.take()[-1]
    finally:
        watch.close()


def _moved(value: Any, device: torch.device) -> Any:
    return map_tensors(value, lambda tensor: tensor.to(device))


def _listed(found: dict[str, torch.Tensor]) -> str:
    return ", ".join(f"{name} {tuple(value.shape)}" for name, value in found.items()) or "nothing to compare"
