"""Layers that are alike and lose equally many units: what stands for all of a family in a ranking."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace

import torch

from modelpress_runner.dependency.groups import DependencyGroup
from modelpress_runner.methods.prune.ranking import Candidates, remove_global, remove_local


def family(group: DependencyGroup) -> str:
    """What layers have in common that are alike but for their numbers: names of their producers, and width."""
    return f"{' '.join(re.sub(r'[0-9]+', '#', name) for name in group.producers)} {len(group.units)}"


def as_families(names: Sequence[str]) -> list[list[int]]:
    """The places of equal names, in order of their first; an empty name stands for itself."""
    found: dict[str, list[int]] = {}
    for number, name in enumerate(names):
        found.setdefault(name or f"{number}", []).append(number)
    return list(found.values())


def merged(members: Sequence[Candidates], comparable: bool) -> Candidates:
    """Candidates that stand for those of several layers, from each the one that is as low in its ranking: what goes
    with one of them goes of every layer. Scores are divided by their layer's L2 norm unless they are `comparable`.

    All have equally many, and as many of them gone.
    """
    first, rows = members[0], []
    for each in members:
        norm = torch.linalg.vector_norm(each.scores)
        scores = each.scores if comparable or norm == 0 else each.scores / norm
        order = torch.sort(scores.masked_fill(each.already_pruned, -math.inf), stable=True).indices
        rows.append(scores[order])
    gone = torch.arange(len(first.scores)) < int(first.already_pruned.sum())
    weights = (
        None if first.weights is None else torch.full_like(rows[0], sum(each.size for each in members) / len(gone))
    )
    return replace(first, scores=torch.stack(rows).sum(dim=0), weights=weights, already_pruned=gone)


def remove_alike(pools: Sequence[tuple[str, Candidates]], sparsity: float, comparable: bool) -> list[torch.Tensor]:
    """As remove_global, with as many removed from all of a family."""
    families = as_families([name for name, _ in pools])
    whole = [merged([pools[number][1] for number in numbers], comparable) for numbers in families]
    out: dict[int, torch.Tensor] = {}
    for numbers, gone in zip(families, remove_global(whole, sparsity, True), strict=True):
        for number in numbers:
            out[number] = remove_local(pools[number][1], float(gone.sum()) / len(gone))
    return [out[number] for number in range(len(pools))]
