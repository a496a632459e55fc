"""Which of several cuts are at fault when a model with all of them is not proven."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from modelpress_runner.dependency.counterparts import UnprovableError
from modelpress_runner.errors import CompressionError, InvalidModelError

T = TypeVar("T")

SECONDS = 60.0  # at least that are spent on the search,
PROOFS = 30  # or the time of so many proofs, if that is longer,
MOST_SECONDS = 1800.0  # but no more than that


def without_culprits(
    items: Sequence[T], proof: Callable[[list[T]], object], seconds: float | None = None
) -> tuple[list[T], dict[int, str]]:
    """The items that can be cut together, and why the others, by their index, cannot.

    `proof` raises CompressionError or InvalidModelError for items that cannot be cut together. What fails is halved
    until it is one item; each half is tried together with what has passed before, so that everything that is given back
    as good was proven as a whole, in about 2 log2(n) proofs for each culprit. Once something has failed, what has not
    been tried after `seconds` more (else after SECONDS or PROOFS) is left out, too.

    Raises:
        UnprovableError: the model cannot be proven, whatever is cut.
    """
    good: list[int] = []
    bad: dict[int, str] = {}
    start = time.monotonic()
    end = float("inf")

    def add(part: list[int]) -> None:
        nonlocal end
        if time.monotonic() > end:
            bad.update(dict.fromkeys(part, f"no time was left to prove it ({time.monotonic() - start:.0f} s)"))
            return
        try:
            proof([items[index] for index in sorted(good + part)])
        except UnprovableError:
            raise
        except (CompressionError, InvalidModelError) as error:
            if end == float("inf"):
                now = time.monotonic()
                most = min(max(SECONDS, PROOFS * (now - start)), MOST_SECONDS) if seconds is None else seconds
                end = now + most
            if len(part) == 1:
                bad[part[0]] = str(error)
                return
            middle = len(part) // 2
            add(part[:middle])
            add(part[middle:])
        else:
            good.extend(part)

    if items:
        add(list(range(len(items))))
    return [items[index] for index in sorted(good)], bad
