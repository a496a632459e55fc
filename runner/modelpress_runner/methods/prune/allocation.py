"""Sparsities of layers from scores of the pruned model: what searches propose and what they make of a score.

Layers that lose the same channels are one dimension. Sparsities are such that their mean, weighted by how many weights
a dimension has, is the one that was asked for.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Sequence
from typing import Any

import torch

MOST = 0.99  # of a layer


def scaled(wanted: Sequence[float], sizes: Sequence[int], mean: float) -> list[float]:
    """The sparsities, multiplied by one number and at most MOST, whose mean weighted by `sizes` is `mean`.

    Where that would need more of some than MOST, these stay there and the others make up for it. All zero: all `mean`.
    """
    wanted = [each if each > 1e-6 else 0.0 for each in wanted]
    if not any(wanted):
        return [mean] * len(wanted)
    low, high = 0.0, 1.0
    total = sum(sizes)

    def at(factor: float) -> float:
        return sum(min(MOST, factor * each) * size for each, size in zip(wanted, sizes, strict=True)) / total

    reachable = at(math.inf if min(wanted) > 0 else 1e12)
    if reachable < mean:  # those that are zero have to give some, too
        return scaled([max(each, 1e-3) for each in wanted], sizes, mean)
    while at(high) < mean:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if at(middle) < mean else (low, middle)
    return [min(MOST, high * each) for each in wanted]


class Allocation(abc.ABC):
    """A search at work. Scores are higher for better models.

    Args:
        sizes: weights of each dimension.
        mean: the sparsity that is asked for.
        seed: of what draws lots.
    """

    def __init__(self, sizes: Sequence[int], mean: float, seed: int) -> None:
        self.sizes, self.mean, self.seed = list(sizes), mean, seed

    @abc.abstractmethod
    def propose(self) -> list[float] | None:
        """Sparsities to score next; None: the search is over."""

    @abc.abstractmethod
    def told(self, score: float) -> None:
        """The score of what was proposed last."""

    @property
    @abc.abstractmethod
    def found(self) -> list[float]:
        """The sparsities that the search has come to."""

    def leads(self, score: float) -> bool:
        """Whether a model of this score is one to go on from, unless a better one comes in the same step."""
        return False

    @property
    def step_is_over(self) -> bool:
        """Whether what is proposed next goes on from the model that led last; else from the one before, too."""
        return False

    @abc.abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Where it is, as plain data."""

    @abc.abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on there."""


class Sensitivity(Allocation):
    """Each dimension alone at each sparsity; then the least loss that all may have for the mean to be reached."""

    def __init__(self, sizes: Sequence[int], mean: float, seed: int, levels: Sequence[float]) -> None:
        super().__init__(sizes, mean, seed)
        self._levels = sorted(levels)
        self._scores: list[float] = []  # that of the model as it is, then of each dimension at each level

    def propose(self) -> list[float] | None:
        """As Allocation.propose: nothing pruned, for the begin."""
        number = len(self._scores) - 1
        if number < 0:
            return [0.0] * len(self.sizes)
        if number == len(self.sizes) * len(self._levels):
            return None
        dimension, level = divmod(number, len(self._levels))
        return [self._levels[level] if each == dimension else 0.0 for each in range(len(self.sizes))]

    def told(self, score: float) -> None:
        """As Allocation.told."""
        self._scores.append(score)

    @property
    def found(self) -> list[float]:
        """As Allocation.found."""
        whole, each = self._scores[0], len(self._levels)
        losses = [
            [whole - score for score in self._scores[1 + number * each : 1 + (number + 1) * each]]
            for number in range(len(self.sizes))
        ]
        total, wanted = sum(self.sizes), [0.0] * len(self.sizes)
        for bound in sorted({loss for row in losses for loss in row}):
            wanted = [self._most(row, bound) for row in losses]
            if sum(share * size for share, size in zip(wanted, self.sizes, strict=True)) >= self.mean * total:
                break
        return scaled(wanted, self.sizes, self.mean)

    def _most(self, losses: Sequence[float], bound: float) -> float:
        """The highest level up to which none loses more than the bound."""
        most = 0.0
        for level, loss in zip(self._levels, losses, strict=True):
            if loss > bound:
                break
            most = level
        return most

    def state_dict(self) -> dict[str, Any]:
        """As Allocation.state_dict."""
        return {"scores": self._scores}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """As Allocation.load_state_dict."""
        self._scores = list(state["scores"])


class Annealing(Allocation):
    """Random changes of all sparsities (Liu et al. 2019, arXiv 1907.03141).

    A worse one is taken with probability exp(-loss / temperature), the loss being relative to the score that it is
    compared with, in thousandths; changes are as large as the temperature's share of the first allows.
    """

    def __init__(
        self, sizes: Sequence[int], mean: float, seed: int, start: float, stop: float, rate: float, perturbation: float
    ) -> None:
        super().__init__(sizes, mean, seed)
        self._start, self._stop, self._rate, self._perturbation = start, stop, rate, perturbation
        self._temperature, self._tries = start, 0
        self._now: list[float] = []
        self._score = self._best_score = -math.inf
        self._best: list[float] = []
        self._proposed = [mean] * len(self.sizes)

    def propose(self) -> list[float] | None:
        """As Allocation.propose: the same for all, for the begin."""
        if self._temperature < self._stop:
            return None
        if self._now:
            self._proposed = self._changed()
        return self._proposed

    def told(self, score: float) -> None:
        """As Allocation.told."""
        if score > self._best_score:
            self._best, self._best_score = self._proposed, score
        loss = 1000 * (self._score - score) / max(abs(self._score), 1e-12) if self._now else -math.inf
        if loss <= 0 or self._draws(1)[0] < math.exp(-loss / self._temperature):
            self._now, self._score = self._proposed, score
        if self._tries:
            self._temperature *= self._rate
        self._tries += 1

    @property
    def found(self) -> list[float]:
        """As Allocation.found: what scored best."""
        return self._best

    def state_dict(self) -> dict[str, Any]:
        """As Allocation.state_dict."""
        names = ("temperature", "tries", "now", "score", "best", "best_score", "proposed")
        return {name: getattr(self, f"_{name}") for name in names}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """As Allocation.load_state_dict."""
        for name, value in state.items():
            setattr(self, f"_{name}", value)

    def _changed(self) -> list[float]:
        reach = self._perturbation * self._temperature / self._start
        drawn = self._draws(len(self.sizes) + 1)[1:]
        moved = [min(MOST, max(0.0, now + reach * (2 * lot - 1))) for now, lot in zip(self._now, drawn, strict=True)]
        return scaled(moved, self.sizes, self.mean)

    def _draws(self, count: int) -> list[float]:
        """Alike for the same try, whenever it is made."""
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + self._tries) % 2**63)
        numbers: list[float] = torch.rand(count, generator=generator, dtype=torch.float64).tolist()
        return numbers


class NetAdapt(Allocation):
    """At each step as many weights go of one dimension; which one, the scores say (Yang et al. 2018, arXiv 1804.03230).

    Each step tries the next share of the weights on each dimension that has so much, and goes on from what scored best.

    Args:
        step: the share of all weights that goes at each.
    """

    def __init__(self, sizes: Sequence[int], mean: float, seed: int, step: float) -> None:
        super().__init__(sizes, mean, seed)
        self._step = step
        self._now = [0.0] * len(self.sizes)
        self._scores: list[float] = []  # of this step's tries

    def propose(self) -> list[float] | None:
        """As Allocation.propose."""
        tries = self._tries()
        return tries[len(self._scores)] if tries else None

    def told(self, score: float) -> None:
        """As Allocation.told."""
        tries = self._tries()
        self._scores.append(score)
        if len(self._scores) == len(tries):
            self._now, self._scores = tries[self._scores.index(max(self._scores))], []

    def leads(self, score: float) -> bool:
        """As Allocation.leads."""
        return score > max(self._scores, default=-math.inf)

    @property
    def step_is_over(self) -> bool:
        """As Allocation.step_is_over."""
        return not self._scores

    @property
    def found(self) -> list[float]:
        """As Allocation.found."""
        return self._now

    @property
    def _reached(self) -> float:
        return sum(share * size for share, size in zip(self._now, self.sizes, strict=True)) / sum(self.sizes)

    def _tries(self) -> list[list[float]]:
        """What this step tries; []: the mean is reached."""
        total = sum(self.sizes)
        rooms = [(MOST - share) * size / total for share, size in zip(self._now, self.sizes, strict=True)]
        more = min(self._step, self.mean - self._reached, max(rooms))
        if more <= 1e-9:
            return []
        return [
            [share + (number == dimension) * more * total / size for number, (share, size) in enumerate(pairs)]
            for dimension, room in enumerate(rooms)
            if room >= more - 1e-12
            for pairs in [list(zip(self._now, self.sizes, strict=True))]
        ]

    def state_dict(self) -> dict[str, Any]:
        """As Allocation.state_dict."""
        return {"now": self._now, "scores": self._scores}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """As Allocation.load_state_dict."""
        self._now, self._scores = list(state["now"]), list(state["scores"])
