"""States of random number generators, read so cheaply that every training step may ask whether anybody drew.

Read are Python's, NumPy's and torch's global generators and those of the user's own that are behind his functions.
"""

from __future__ import annotations

import ctypes
import random
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from modelpress_runner.runtime import user_rng as generators

_WORDS = 624  # of a Mersenne Twister, and its position behind them
_BYTES = 4 * (_WORDS + 1)
# Whether somebody drew is seen from the position and the first words: behind as many draws as bring the position back
# to where it was, all words are others.
_SIGN = 16

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
        self._python = _address_of_python()
        self._numpy = int(np.random.mtrand._rand._bit_generator.ctypes.state_address)
        self._python_seen: tuple[bytes, tuple[bytes, float | None]] = (b"", (b"", None))
        self._numpy_seen: tuple[bytes, tuple[bytes, int, float]] = (b"", (b"", 0, 0.0))

    def read(self) -> Reading:
        """The states by the names of the generators; two readings are equal if nobody drew in between."""
        out: Reading = {
            "torch": _bytes(torch.default_generator.get_state()),
            "python": self._read_python(),
            "numpy": self._read_numpy(),
        }
        if torch.cuda.is_initialized():
            out["cuda"] = tuple(map(_bytes, torch.cuda.get_rng_state_all()))
        for path, generator in self._own.items():
            if isinstance(generator, torch.Generator):
                out[f"own.{path}"] = _bytes(generator.get_state())
            else:
                out[f"own.{path}"] = generators.state_of(generator)["state"]
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

    def _read_python(self) -> tuple[bytes, float | None]:
        """Position and words, in the order in which CPython keeps them."""
        if self._python is None:
            return _python_words()
        gauss: float | None = random._inst.gauss_next  # type: ignore[attr-defined]
        sign = ctypes.string_at(self._python, _SIGN)
        if sign != self._python_seen[0] or gauss != self._python_seen[1][1]:
            self._python_seen = (sign, (ctypes.string_at(self._python, _BYTES), gauss))
        return self._python_seen[1]

    def _read_numpy(self) -> tuple[bytes, int, float]:
        """Words and position, and the second of two normal numbers, which NumPy keeps elsewhere: read where it can
        have changed only, for that is slow.
        """
        sign = ctypes.string_at(self._numpy, _SIGN) + ctypes.string_at(self._numpy + _BYTES - 4, 4)
        if sign != self._numpy_seen[0] or self._numpy_seen[1][1]:
            state: dict[str, Any] = np.random.get_state(legacy=False)
            words = ctypes.string_at(self._numpy, _BYTES)
            self._numpy_seen = (sign, (words, int(state["has_gauss"]), float(state["gauss"])))
        return self._numpy_seen[1]


def changed(before: Reading, after: Reading) -> list[str]:
    """The names of the generators that somebody drew from."""
    return [name for name, state in after.items() if name not in before or before[name] != state]


def checksum(states: Reading, names: list[str]) -> int:
    """A short number that tells states apart."""
    total = 0
    for name in names:
        total = zlib.crc32(repr(states.get(name)).encode(), total)
    return total


def _bytes(state: torch.Tensor) -> bytes:
    return ctypes.string_at(state.data_ptr(), state.numel())


def _tensor(state: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(state), dtype=torch.uint8)


def _python_words() -> tuple[bytes, float | None]:
    _, numbers, gauss = random.getstate()
    return np.array([numbers[-1], *numbers[:-1]], np.uint32).tobytes(), gauss


def _address_of_python() -> int | None:
    """Where CPython keeps the state of the module's generator; None if it does not keep it as it is known to."""
    place = id(random._inst) + object.__basicsize__
    try:
        found = ctypes.string_at(place, _BYTES)
    except Exception:  # whatever an unknown interpreter answers
        return None
    return place if found == _python_words()[0] else None
