"""States of random number generators, read so cheaply that every training step may ask whether anybody drew.

Read are Python's, NumPy's and torch's global generators and those of the user's own that are behind his functions.
"""

from __future__ import annotations

import functools
import random
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from modelpress_runner.evaluators.replay import generator_states
from modelpress_runner.runtime import user_rng as generators

_WORDS = 624  # of a Mersenne Twister

# One generator's state: bytes, or plain data where it has no bytes of its own.
Reading = dict[str, Any]


class Draws:
    """The generators of one training.

    Args:
        roots: the user's functions by name; generators behind them are looked for once, now.
    """

    def __init__(self, roots: Mapping[str, Any]) -> None:
        self._own = {
            path: generator
            for path, generator in generators.walk(roots)
            if not isinstance(generator, torch.amp.GradScaler)
        }
        self._watched = {
            "torch": generator_states.of_torch(torch.default_generator),
            "python": generator_states.of_python(),
            "numpy": generator_states.of_numpy(),
        }
        for path, generator in self._own.items():
            if isinstance(generator, torch.Generator):
                self._watched[f"own.{path}"] = generator_states.of_torch(generator)
            else:
                self._watched[f"own.{path}"] = generator_states.Watched(functools.partial(_asked, generator))
        self._signs = [sign for watched in self._watched.values() for sign in watched.signs]
        self._seen: list[Any] = []  # what the signs were
        self._reading: Reading = {}
        self._all_seen = False  # whether the next draw from any of them changes a sign
        self._cuda = torch.cuda.is_available()

    def read(self) -> Reading:
        """The states by the names of the generators; two readings are equal, and mostly one, if nobody drew between."""
        before, now = self._seen, [sign() for sign in self._signs]
        if self._all_seen and now == before:
            return self._reading
        known, out, place = self._reading, {}, 0
        self._all_seen = True
        for name, watched in self._watched.items():
            end = place + len(watched.signs)
            if place == end or name not in known or now[place:end] != before[place:end] or watched.hidden(known[name]):
                out[name] = watched.whole()
            else:
                out[name] = known[name]
            if place == end or watched.hidden(out[name]):
                self._all_seen = False
            place = end
        if self._cuda and torch.cuda.is_initialized():
            out["cuda"] = tuple(state.cpu().numpy().tobytes() for state in torch.cuda.get_rng_state_all())
            self._all_seen = False
        self._seen, self._reading = now, out
        return out

    def put(self, states: Reading) -> None:
        """Sets generators to what `read` gave of them; those that are not named stay as they are."""
        for name, state in states.items():
            if name == "torch":
                torch.set_rng_state(_tensor(state))
            elif name == "python":
                words, gauss = state
                numbers = np.frombuffer(words, np.uint32).tolist()
                random.setstate((3, (*numbers[1:], numbers[0]), gauss))
            elif name == "numpy":
                words, has_gauss, gauss = state
                key, position = np.frombuffer(words, np.uint32), int(np.frombuffer(words[-4:], np.int32)[0])
                np.random.set_state(("MT19937", key[:_WORDS], position, has_gauss, gauss))
            elif name == "cuda":
                if torch.cuda.is_available():
                    torch.cuda.set_rng_state_all([_tensor(each) for each in state])
            elif name.removeprefix("own.") in self._own:
                generator = self._own[name.removeprefix("own.")]
                generators.set_state(generator, _tensor(state) if isinstance(state, bytes) else state)


def changed(before: Reading, after: Reading) -> list[str]:
    """The names of the generators that somebody drew from."""
    if before is after:
        return []
    return [name for name, state in after.items() if before.get(name) is not state and before.get(name) != state]


def checksum(states: Reading, names: list[str]) -> int:
    """A short number that tells states apart."""
    total = 0
    for name in names:
        total = zlib.crc32(repr(states.get(name)).encode(), total)
    return total


def _tensor(state: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(state), dtype=torch.uint8)


def _asked(generator: Any) -> Any:
    return generators.state_of(generator)["state"]
