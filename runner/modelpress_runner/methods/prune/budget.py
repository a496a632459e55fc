"""How many units each dependency group loses for a budget: a path of removals, and the first place on it that fits.

Units are removed in the order of what is lost for each unit of cost saved, the greedy rule for knapsacks (Dantzig 1957,
doi 10.1287/opre.5.2.266; Molchanov et al. 2019, arXiv 1906.10771, section 3.3 for latency): where savings add up, no
choice of the same cost loses less, but for the last step. So models along the path are nested, and one path serves all
budgets. What a place on it costs is measured on the model that is cut there, never added up from the table.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from modelpress_runner.methods.prune.ranking import Candidates, rounded


@dataclass(frozen=True)
class Path:
    """The order of removals: step i leaves group `steps[i][0]` with `steps[i][1]` units removed.

    `start` are those that are gone before the first step: by earlier rounds, or because bounds ask for it.
    """

    start: tuple[int, ...]
    steps: tuple[tuple[int, int], ...]

    @classmethod
    def through(cls, groups: Sequence[Candidates], savings: Sequence[float]) -> Path:
        """The path over these groups, whose bounds and multiples hold at every place. Of equal steps that of the
        earlier group comes first; a group of which a unit saves nothing loses none.

        What is lost is how much less of the group's sum of scores is left, as a logarithm, of whatever kind the scores
        are: what passes through one layer after the other is multiplied, and each unit of a group that is nearly empty
        is worth more than one of a whole group.

        Args:
            groups: their units.
            savings: what one unit less saves.
        """
        start: list[int] = []
        found: list[tuple[float, int, int]] = []  # loss for what is saved, group, units removed then
        for number, (one, saving) in enumerate(zip(groups, savings, strict=True)):
            scores = one.scores.masked_fill(one.already_pruned, 0.0)
            places = one.places()
            start.append(places[0])
            order = torch.sort(rounded(scores).masked_fill(one.already_pruned, -math.inf), stable=True).indices
            left = [*scores[order].flip(0).cumsum(0).flip(0).tolist(), 0.0]
            last = -math.inf
            for before, after in itertools.pairwise(places if saving > 0 else places[:1]):
                # No step is cheaper than one that it stands on.
                last = max(last, _logarithm(left[before], left[after]) / ((after - before) * saving))
                found.append((last, number, after))
        return cls(tuple(start), tuple((number, after) for _, number, after in sorted(found)))

    def removed(self, steps: int) -> tuple[int, ...]:
        """Units that each group has lost after so many steps."""
        counts = list(self.start)
        for number, after in self.steps[:steps]:
            counts[number] = after
        return tuple(counts)


def _logarithm(before: float, after: float) -> float:
    """Of how many times as much was there before, 0 if nothing was."""
    return (math.log(before / after) if after > 0 else math.inf) if before > 0 else 0.0


def first_within(
    last: int,
    bound: float,
    cost: Callable[[int], float],
    known: dict[int, float],
    *,
    near: float = 0.0,
    tries: int = 0,
    saved: Callable[[int], float] | None = None,
) -> int | None:
    """The least number of steps in 0..last whose cost is at most `bound`; None: that of `last` is above it.

    Costs fall along the path. Places are guessed by interpolation, every third one is the middle.

    Args:
        cost: measured, after so many steps.
        known: costs that are known; further ones are added.
        near: a place within this share below the bound is good enough.
        tries: measurements at most before the last place within the bound is taken; 0: as many as it takes.
        saved: what the last of so many steps saved at most: a place that would not fit without it is the first.
    """

    def at(steps: int) -> float:
        if steps not in known:
            known[steps] = cost(steps)
        return known[steps]

    if at(0) <= bound:
        return 0
    if at(last) > bound:
        return None
    above = max((steps for steps, value in known.items() if value > bound), default=0)
    within = min(steps for steps, value in known.items() if value <= bound and steps > above)
    made = 0
    while within - above > 1:
        now = known[within]
        if (tries and made >= tries) or (near and now >= bound * (1 - near)) or (saved and now + saved(within) > bound):
            break
        made += 1
        high, low = known[above], known[within]
        share = 0.5 if made % 3 == 0 or high <= low else (high - bound) / (high - low)
        middle = min(within - 1, max(above + 1, above + math.ceil(share * (within - above))))
        if at(middle) > bound:
            above = middle
        else:
            within = middle
    return within
