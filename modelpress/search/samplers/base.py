"""What a sampler is: a pure function from (seed, trial number, history) to parameters."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Protocol

from modelpress.api.search_space import Space
from modelpress.api.v1alpha1 import Goal
from modelpress.api.v1alpha1.base import Scalar


@dataclass(frozen=True)
class Observation:
    """What a sampler sees of one earlier trial.

    `values`, one per objective, is there exactly if the trial is complete; `violations`, one per constraint, is 0 where
    the constraint is met, else its positive normalised amount (infinite: missed by an unknown amount). A stopped
    trial is no failed one: its recipe works, and `intermediate` holds how far it came, as (step, value of the one
    objective) by ascending step.
    """

    number: int
    parameters: dict[str, Scalar]
    state: Literal["running", "complete", "failed", "stopped"]
    values: tuple[float, ...] = ()
    violations: tuple[float, ...] = field(default=())
    intermediate: tuple[tuple[int, float], ...] = ()


class Sampler(Protocol):
    """Chooses parameters. Equal arguments give equal answers, in every process and on every platform.

    Instances may cache what depends on nothing but their own arguments. Whether a point was tried before is not theirs
    to know: the search asks again, with the next `attempt`.
    """

    # Whether observations change nothing, so that trial n is the same whatever became of the others.
    independent: ClassVar[bool]

    def __init__(self, space: Space, goals: Sequence[Goal], seed: int) -> None:
        """Raises SpaceError if the sampler cannot search this space."""

    def sample(self, number: int, observations: Sequence[Observation], attempt: int = 0) -> dict[str, Scalar] | None:
        """A point of the space for trial `number`; None: there is none any more.

        Args:
            number: of the trial, from 0.
            observations: earlier trials by ascending number, none of them `number` itself.
            attempt: how many points were given for this trial and turned out to be tried before.
        """


def derive(seed: int, number: int, *names: str) -> int:
    """128 bits that depend on nothing but the arguments (SHA-256 of their text)."""
    text = "/".join(("modelpress", str(seed), str(number), *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:16])
