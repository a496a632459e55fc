"""Every random number generator that a run may touch: seeded, saved, restored, kept apart."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch


def derive(seed: int, index: int) -> int:
    """A seed for part `index` of a run: parts have streams of their own, the same in every run."""
    return int(np.random.SeedSequence([seed, index]).generate_state(1, np.uint32)[0])


def seed_all(seed: int) -> None:
    """Seeds Python's, NumPy's and torch's global generators, torch's on every device that there is."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    if torch.accelerator.is_available():
        torch.manual_seed(seed)
    else:  # which would keep a note for devices to come, with the stack of its caller: a tenth of a second
        torch.default_generator.manual_seed(seed)


def capture() -> dict[str, Any]:
    """The state of all global generators as tensors and plain data."""
    version, numbers, gauss = random.getstate()
    legacy: dict[str, Any] = np.random.get_state(legacy=False)
    return {
        "python": [version, list(numbers), gauss],
        "numpy": {
            "key": torch.from_numpy(legacy["state"]["key"].astype(np.int64)),
            "pos": int(legacy["state"]["pos"]),
            "has_gauss": int(legacy["has_gauss"]),
            "gauss": float(legacy["gauss"]),
        },
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore(state: dict[str, Any]) -> None:
    """Sets all global generators to what `capture` gave."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    legacy = state["numpy"]
    key = legacy["key"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", key, legacy["pos"], legacy["has_gauss"], legacy["gauss"]))
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


@contextlib.contextmanager
def fork_rng(seed: int | None = None) -> Iterator[None]:
    """What runs inside leaves the generators as they were; with a seed it starts from that."""
    state = capture()
    try:
        if seed is not None:
            seed_all(seed)
        yield
    finally:
        restore(state)
