"""What a sampler is: a pure function from (seed, trial number, history) to parameters."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from modelpress.api.v1alpha1 import Goal
from modelpress.api.v1alpha1.base import Scalar
from modelpress.search.space import Space


@dataclass(frozen=True)
class Observation:
    """What a sampler sees of one earlier trial.

    `values`, one per objective, is there exactly if the trial is complete; `violations`, one per constraint, is 0 where
    the constraint is met, else its positive normalised amount (infinite: missed by an unknown amount).
    """

    number: int
    parameters: dict[str, Scalar]
    state: Literal["running", "complete", "failed"]
    values: tuple[float, ...] = ()
    violations: tuple[float, ...] = field(default=())


class Sampler(Protocol):
    """Chooses parameters. Equal arguments give equal answers, in every process and on every platform.

    Instances may cache what depends on nothing but their own arguments.
    """

    def __init__(self, space: Space, goals: Sequence[Goal], seed: int) -> None:
        """Raises SpaceError if the sampler cannot search this space."""

    def sample(self, number: int, observations: Sequence[Observation]) -> dict[str, Scalar] | None:
        """A point of the space for trial `number`; None: there is none any more.

        Args:
            number: of the trial, from 0.
            observations: earlier trials by ascending number, none of them `number` itself.
        """


def derive(seed: int, number: int, *names: str) -> int:
    """128 bits that depend on nothing but the arguments (SHA-256 of their text)."""
    text = "/".join(("modelpress", str(seed), str(number), *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:16])
