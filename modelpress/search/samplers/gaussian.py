"""The distribution of CMA-ES (Hansen 2016, arXiv 1604.00772), in plain floats."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

Vector = list[float]
_TRIES = 100  # draws until one lies inside; then the last one is brought inside


class Gaussian:
    """A normal distribution over [0, 1]^n that follows generations of ranked points.

    Directions come from the Cholesky factor of the covariance, which is unique, in place of its eigenvectors, which
    are not (Krause, Arbones and Igel 2016): so every platform draws alike. Points that were not drawn from the
    distribution may be among those that it is told, their step cut to the length of a plausible one (Hansen 2011,
    "Injecting external solutions into CMA-ES").

    Args:
        middle: the mean at the start, at least one number of [0, 1].
        sigma: standard deviation at the start.
        generation: points that are told at a time, at least 4.
    """

    def __init__(self, middle: Sequence[float], sigma: float, generation: int) -> None:
        self._mean, self._sigma = list(middle), sigma
        size = len(self._mean)
        self._covariance = [[float(i == j) for j in range(size)] for i in range(size)]
        self._factor = [row[:] for row in self._covariance]
        self._path_sigma, self._path = [0.0] * size, [0.0] * size
        self._told = 0
        self.weights = recombination(generation)
        effective = 1 / math.fsum(weight**2 for weight in self.weights)
        self._effective = effective
        self._c_sigma = (effective + 2) / (size + effective + 5)
        self._damping = 1 + 2 * max(0.0, math.sqrt((effective - 1) / (size + 1)) - 1) + self._c_sigma
        self._c_path = (4 + effective / size) / (size + 4 + 2 * effective / size)
        self._c_one = 2 / ((size + 1.3) ** 2 + effective)
        rank_mu = 2 * (effective - 2 + 1 / effective) / ((size + 2) ** 2 + effective)
        self._c_mu = min(1 - self._c_one, rank_mu)
        self._norm = math.sqrt(size) * (1 - 1 / (4 * size) + 1 / (21 * size**2))  # of a standard normal vector
        self._longest = math.sqrt(size) + 2 * size / (size + 2)

    def draw(self, normal: Callable[[], float]) -> Vector:
        """A point of [0, 1]^n; `normal` gives standard normal numbers."""
        point: Vector = []
        for _ in range(_TRIES):
            steps = [normal() for _ in self._mean]
            point = [
                mean + self._sigma * math.fsum(a * b for a, b in zip(row, steps, strict=True))
                for mean, row in zip(self._mean, self._factor, strict=True)
            ]
            if all(0 <= value <= 1 for value in point):
                return point
        return [min(max(value, 0.0), 1.0) for value in point]

    def tell(self, ranked: Sequence[Vector]) -> None:
        """Move towards the better half of a generation, best first."""
        size, sigma = len(self._mean), self._sigma
        steps, whitened = [], []
        for point in ranked[: len(self.weights)]:
            step = [(value - mean) / sigma for value, mean in zip(point, self._mean, strict=True)]
            white = _solve(self._factor, step)
            length = math.hypot(*white)
            cut = min(1.0, self._longest / length) if length > 0 else 1.0
            steps.append([cut * value for value in step])
            whitened.append([cut * value for value in white])
        mean_step, mean_white = (_weighted(self.weights, rows) for rows in (steps, whitened))
        self._mean = [mean + sigma * step for mean, step in zip(self._mean, mean_step, strict=True)]
        self._told += 1
        self._path_sigma = _path(self._path_sigma, mean_white, self._c_sigma, self._effective, 1.0)
        length = math.hypot(*self._path_sigma)
        settled = math.sqrt(1 - (1 - self._c_sigma) ** (2 * (self._told + 1)))
        short = 1.0 if length / settled < (1.4 + 2 / (size + 1)) * self._norm else 0.0
        self._path = _path(self._path, mean_step, self._c_path, self._effective, short)
        lost = (1 - short) * self._c_path * (2 - self._c_path)
        kept = 1 + self._c_one * lost - self._c_one - self._c_mu
        for i in range(size):
            for j in range(i + 1):
                spread = math.fsum(w * step[i] * step[j] for w, step in zip(self.weights, steps, strict=True))
                value = (
                    kept * self._covariance[i][j] + self._c_one * self._path[i] * self._path[j] + self._c_mu * spread
                )
                self._covariance[i][j] = self._covariance[j][i] = value
        self._factor = _cholesky(self._covariance)
        growth = self._c_sigma / self._damping * (length / self._norm - 1)
        self._sigma = min(1.0, sigma * math.exp(min(1.0, growth)))


def recombination(generation: int) -> Vector:
    """Weights of the better half of a generation, best first; they sum to 1."""
    half = generation // 2
    raw = [math.log((generation + 1) / 2) - math.log(place + 1) for place in range(half)]
    return [value / math.fsum(raw) for value in raw]


def _path(path: Vector, step: Vector, rate: float, effective: float, share: float) -> Vector:
    scale = share * math.sqrt(rate * (2 - rate) * effective)
    return [(1 - rate) * old + scale * new for old, new in zip(path, step, strict=True)]


def _weighted(weights: Vector, rows: Sequence[Vector]) -> Vector:
    return [
        math.fsum(w * value for w, value in zip(weights, column, strict=True)) for column in zip(*rows, strict=True)
    ]


def _cholesky(matrix: list[Vector]) -> list[Vector]:
    """The lower triangle L with L L^T = matrix; a direction that has vanished keeps a least width."""
    size = len(matrix)
    factor = [[0.0] * size for _ in range(size)]
    for i in range(size):
        for j in range(i + 1):
            rest = matrix[i][j] - math.fsum(factor[i][k] * factor[j][k] for k in range(j))
            factor[i][j] = math.sqrt(max(rest, 1e-16)) if i == j else rest / factor[j][j]
    return factor


def _solve(factor: list[Vector], vector: Vector) -> Vector:
    """x with factor x = vector."""
    found: Vector = []
    for i, row in enumerate(factor):
        found.append((vector[i] - math.fsum(row[k] * found[k] for k in range(i))) / row[i])
    return found
