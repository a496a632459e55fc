"""How much of what could go the analysis lets go: against a search that tries every subset of a layer's channels."""

from __future__ import annotations

from channel_search import Net, could_and_may

SEEDS = 60


def test_what_could_go_may_go() -> None:
    """Of 60 random models, all that may go can, and at least 95 % of what can go may."""
    could = may = 0
    for seed in range(SEEDS):
        possible, allowed = could_and_may(Net(seed))
        assert allowed <= possible, (seed, allowed, possible)
        could, may = could + len(possible), may + len(allowed)
    assert could > 150
    assert may >= 0.95 * could, f"{may} of {could}"
