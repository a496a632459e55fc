"""The together stage: what can be wrong with its length and its parts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from modelpress.api.errors import Problem
from modelpress.api.v1alpha1 import ApiModel, FolderSource, Source, Together

from . import base, length


class TogetherRules(base.StageRules[Together]):
    """One training that several stages go along with."""

    name = "together"
    block = Together
    runner = "modelpress_runner.stages.together:KIND"

    def problems(self, block: Together, path: str) -> Iterator[Problem]:
        """Those of the parts; and two shrinks, of which the second would be of a model that is no longer there."""
        for rules, part, where in _parts(block, path):
            yield from rules.problems(part, where)
            yield from rules.problems_along(part, where)
        places = [f"{path}{place}" for place in self.shrinking(block)]
        for place in places[1:]:
            message = (
                f"{places[0].removeprefix(path + '.')} shrinks the model behind the training, and that happens once"
            )
            yield Problem(place, message, "write 'shrink: false', or put both into one part")
        frozen = next((where for each, _, where in _parts(block, path) if each.freezes), None)
        if frozen is not None and places:
            message = f"{frozen.removeprefix(path + '.')} trains through rounded weights, which cannot be cut meanwhile"
            yield Problem(places[0], message, "write 'shrink: false', or prune in a stage of its own before")

    def problems_in_loop(self, block: Together, path: str) -> Iterator[Problem]:
        """A loop of the user's own says itself how long it trains."""
        yield from length.refused(block, path, "the script trains in a loop of its own, which says how long")

    def problems_outside(self, block: Together, path: str) -> Iterator[Problem]:
        """There must be a length."""
        yield from length.needed(block, path)

    def training(self, block: Together) -> Iterator[str]:
        """All of it."""
        yield ""

    def shrinking(self, block: Together) -> Iterator[str]:
        """Those of the parts."""
        for rules, part, where in _parts(block, ""):
            yield from (f"{where}{place}" for place in rules.shrinking(part))

    def sources(self, block: Together, path: str) -> Iterator[tuple[str, Source | FolderSource]]:
        """Those of the parts."""
        for rules, part, where in _parts(block, path):
            yield from rules.sources(part, where)

    def sentence(self, block: Mapping[str, Any]) -> str:
        """For how long, and what its parts did."""
        from . import rules

        done = [rules(name).sentence(part) for each in block.get("of", []) for name, part in each.items()]
        return f"trained{length.in_words(block)} and on the way {' and '.join(done)}"


def _parts(block: Together, path: str) -> Iterator[tuple[base.StageRules[Any], ApiModel, str]]:
    """The rules of each part, its block, and its place."""
    from . import rules

    for number, part in enumerate(block.of):
        yield rules(part.method), part.block, f"{path}.of[{number}].{part.method}"
