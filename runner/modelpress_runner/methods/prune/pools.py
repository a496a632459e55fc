"""What a round ranks: pools of candidates, and what is removed of each, alone or together with others."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch

from modelpress.api.messages import keys_in_words
from modelpress_runner.errors import InvalidSpecError
from modelpress_runner.methods.prune.ranking import (
    Candidates,
    local_count,
    remove_below,
    remove_by_row,
    remove_global,
    remove_local,
)
from modelpress_runner.methods.prune.registry import method
from modelpress_runner.methods.prune.selection import Choice
from modelpress_runner.methods.prune.uniform import remove_alike


@dataclass
class Pool:
    """Something ranked: a layer alone, or a dependency group."""

    candidates: Candidates
    choice: Choice
    sparsity: float
    apply: Callable[[torch.Tensor], None]
    outputs: int | None = None  # rows of the candidates that are ranked by themselves, in a local ranking
    share: float = 1.0  # what of the module goes if all candidates go
    choose: Callable[[int], None] | None = None  # in a local ranking, takes so many of the candidates by itself
    family: str = ""  # what layers that are alike have in common


def of_what_is_left(pool: Pool, away: torch.Tensor) -> Pool:
    """The pool without the candidates `away`, bool (n,): they are removed as they were, and count for nothing."""
    if not away.any() or away.all():
        return pool
    every, left = pool.candidates, ~away

    def apply(removed: torch.Tensor) -> None:
        whole = every.already_pruned.clone()
        whole[left] = removed
        pool.apply(whole)

    weights = None if every.weights is None else every.weights[left]
    some = replace(every, scores=every.scores[left], weights=weights, already_pruned=every.already_pruned[left])
    return Pool(some, pool.choice, pool.sparsity, apply, share=pool.share, family=pool.family)


def decide(pools: Iterable[Pool], uniform: str | None) -> list[str]:
    """Ranks every local pool alone, and global ones with all others of the same method, kind and sparsity.

    Args:
        uniform: the path of a stage in which layers that are alike lose equally many; None: they need not.

    Returns:
        Notes on what keeps everything, because its sparsity is less than one channel or weight of it.
    """
    whole: dict[str, list[str]] = defaultdict(list)
    shared: dict[tuple[str, float, str | None, str | None], list[Pool]] = defaultdict(list)
    asked: dict[str, Pool] = {}
    for pool in pools:
        choice = pool.choice
        if uniform is not None and pool.family:
            _check_alike(asked.setdefault(pool.family, pool), pool, uniform)
        if choice.threshold is not None:
            pool.apply(remove_below(pool.candidates, choice.threshold if pool.sparsity else -math.inf))
        elif choice.scope == "global":
            shared[choice.algorithm, pool.sparsity, choice.pattern, choice.group].append(pool)
        else:
            if pool.choose is not None:
                pool.choose(local_count(pool.candidates, pool.sparsity))
                continue
            if pool.outputs is None:
                removed = remove_local(pool.candidates, pool.sparsity)
            else:
                removed = remove_by_row(pool.candidates, pool.outputs, pool.sparsity)
            pool.apply(removed)
            if _is_over(pool) and not removed.any():
                whole[_why_nothing(pool, len(removed))].append(choice.module)
    for (algorithm, sparsity, _, _), members in shared.items():
        comparable = method(algorithm).globally_comparable
        if uniform is None:
            parts = remove_global([m.candidates for m in members], sparsity, comparable)
        else:
            parts = remove_alike([(m.family, m.candidates) for m in members], sparsity, comparable)
        for pool, gone in zip(members, parts, strict=True):
            pool.apply(gone)
        if _is_over(members[0]) and not any(gone.any() for gone in parts):
            size = sum(pool.candidates.size for pool in members)
            whole[_why_nothing(members[0], size)].extend(pool.choice.module for pool in members)
    named = {why: keys_in_words((f"'{name}'" for name in names), 6) for why, names in whole.items()}
    return [f"Left as it was: {names}, {why}" for why, names in named.items()]


def _check_alike(one: Pool, other: Pool, path: str) -> None:
    """Raises InvalidSpecError if two layers of a family are asked to lose different shares."""
    same = (one.sparsity, one.choice.scope, one.candidates.least, one.candidates.most, one.candidates.multiple)
    if same == (
        *(other.sparsity, other.choice.scope),
        *(other.candidates.least, other.candidates.most, other.candidates.multiple),
    ) and (other.choice.threshold is None):
        return
    a, b = one.choice.module, other.choice.module
    what = f"'{a}' and '{b}' are asked to lose different shares" if a != b else f"of '{a}' a threshold says what goes"
    raise InvalidSpecError(
        f"target.uniform keeps layers alike, and {what}; give one sparsity, or remove target.uniform",
        f"{path}.configList[{other.choice.entry}]",
    )


def _is_over(pool: Pool) -> bool:
    """Whether the target is reached, and is one."""
    return 0 < pool.sparsity == pool.choice.sparsity / pool.share


def _why_nothing(pool: Pool, size: int) -> str:
    """Why a target that is reached takes nothing of `size` candidates."""
    sparsity = pool.choice.sparsity
    if size * pool.sparsity < 1:
        return f"where a sparsity of {sparsity:g} is less than one of {size}"
    if pool.candidates.multiple > 1:
        return f"where what a sparsity of {sparsity:g} keeps of {size} is rounded up to all of them by roundTo"
    return f"where maxSparsity lets nothing go of {size}"
