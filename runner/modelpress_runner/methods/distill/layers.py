"""Inner layers whose outputs are compared: what they gave in each call of their model."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from modelpress.api.v1alpha1 import LayerMapping
from modelpress_runner.errors import InvalidModelError, InvalidSpecError
from modelpress_runner.methods.distill.outputs import feature

Features = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Link:
    """One layer of the student and the one of the teacher that it learns from.

    Attributes:
        path: of its mapping in the spec.
    """

    student: str
    teacher: str
    loss_type: str
    weight: float
    path: str


def links_of(mappings: Sequence[LayerMapping], model: nn.Module, path: str) -> list[Link]:
    """The links that mappings stand for.

    Args:
        mappings: of the block.
        model: the student.
        path: of the block.

    Raises:
        InvalidSpecError: the student has no layer of a name, or none that an expression matches.
    """
    names = [name for name, _ in model.named_modules() if name]
    links: list[Link] = []
    for number, mapping in enumerate(mappings):
        where = f"{path}.layerMappings[{number}]"
        if mapping.student is not None:
            check_name(mapping.student, names, f"{where}.student", "the model")
            matched = [mapping.student]
        else:
            assert mapping.student_re is not None
            matched = [name for name in names if re.fullmatch(mapping.student_re, name)]
            if not matched:
                message = f"no module of the model has a name that {mapping.student_re!r} matches as a whole"
                raise InvalidSpecError(message, f"{where}.studentRe")
        links += [Link(name, mapping.teacher or name, mapping.loss_type, mapping.weight, where) for name in matched]
    return links


def check_name(name: str, names: Iterable[str], path: str, whose: str) -> None:
    """Raises InvalidSpecError if there is no module of the name."""
    known = list(names)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise InvalidSpecError(f"{whose} has no module {name!r}{hint}", path)


class Watch:
    """Notes what named modules give in each call of their model.

    Args:
        model: whose calls count.
        names: of its modules.
        always: also in calls without gradients.
    """

    def __init__(self, model: nn.Module, names: Iterable[str], always: bool = False) -> None:
        self._calls: list[Features] = []
        self._present: Features | None = None
        self._always = always
        self._handles = [
            model.register_forward_pre_hook(self._begin),
            model.register_forward_hook(self._end),
            *(model.get_submodule(name).register_forward_hook(self._noting(name)) for name in dict.fromkeys(names)),
        ]

    def take(self) -> list[Features]:
        """What was noted since this was last asked, one entry for each call, oldest first."""
        noted, self._calls = self._calls, []
        return noted

    def close(self) -> None:
        """Takes all hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._calls, self._present = [], [], None

    def _begin(self, module: nn.Module, inputs: Any) -> None:
        # Checkpointed parts run once more on the way back: by then there is no call to note anything for.
        self._present = {} if self._always or torch.is_grad_enabled() else None

    def _end(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if self._present is not None:
            self._calls.append(self._present)
        self._present = None

    def _noting(self, name: str) -> Any:
        def note(module: nn.Module, inputs: Any, output: Any) -> None:
            found = feature(output)
            if self._present is not None and found is not None:
                self._present[name] = found

        return note


class Projector(nn.Module):
    """A linear map that brings a student's layer to the teacher's width, along the one dimension in which they differ
    (FitNets, Romero et al. 2015, arXiv:1412.6550).

    Args:
        dimension: that one.
        given: the student's width.
        wanted: the teacher's.
        seed: of its weights, which begin uniform in +-1 / sqrt(given).
    """

    def __init__(self, dimension: int, given: int, wanted: int, seed: int) -> None:
        super().__init__()
        self.dimension = dimension
        generator = torch.Generator().manual_seed(seed)
        bound = given**-0.5
        self.weight = nn.Parameter(torch.empty(wanted, given).uniform_(-bound, bound, generator=generator))

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        """`value` with its dimension of the teacher's width, in the type of the weights."""
        moved = value.movedim(self.dimension, -1).to(self.weight.dtype)
        return F.linear(moved, self.weight).movedim(-1, self.dimension)


def projector_for(link: Link, student: torch.Tensor, teacher: torch.Tensor, seed: int) -> Projector | None:
    """What a link needs between the two, seen from one call of each on the same inputs; None: nothing.

    Raises:
        InvalidSpecError: they differ in more than one dimension, or in their number.
    """
    apart = [
        number for number, pair in enumerate(zip(student.shape, teacher.shape, strict=False)) if pair[0] != pair[1]
    ]
    if student.ndim != teacher.ndim or len(apart) > 1 or 0 in apart:
        raise InvalidSpecError(
            f"'{link.student}' gives {tuple(student.shape)} and the teacher's '{link.teacher}' "
            f"{tuple(teacher.shape)}, which differ in more than their width; link layers of one resolution",
            link.path,
        )
    if not apart:
        return None
    return Projector(apart[0], student.shape[apart[0]], teacher.shape[apart[0]], seed)


def noted(features: Features, name: str, path: str, whose: str) -> torch.Tensor:
    """What a layer gave in a call.

    Raises:
        InvalidModelError: the call did not reach it, or it gave no numbers.
    """
    if name not in features:
        raise InvalidModelError(f"{whose} '{name}' was not run, or gave no tensor of numbers; name another layer", path)
    return features[name]
