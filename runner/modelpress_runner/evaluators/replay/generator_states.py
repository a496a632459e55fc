"""States of random number generators, read where they lie: whether somebody drew is seen from a few bytes of memory.

Python's, NumPy's legacy and torch's CPU generators are Mersenne Twisters: 624 words and a position among them. Behind
as many draws as bring the position back to where it was, all words are others; so the position and the first words,
with the second of two normal numbers where one is kept, tell whether anybody drew. Only then the state is copied. Where
a generator does not keep its state as it is known to, which is tried out, it is asked for it each time.
"""

from __future__ import annotations

import ctypes
import functools
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

_WORDS = 624  # of a Mersenne Twister, and its position behind them
_BYTES = 4 * (_WORDS + 1)
_SIGN = 16  # bytes of the words that are looked at


@dataclass(frozen=True)
class Watched:
    """One generator.

    Attributes:
        whole: gives the state; two are equal if they are the same.
        signs: each gives bytes, or a number, that change with every draw; none: the state is asked for each time.
        hidden: whether the next draw from a state may change it without a sign.
    """

    whole: Callable[[], Any]
    signs: tuple[Callable[[], Any], ...] = ()
    hidden: Callable[[Any], bool] = lambda state: False


def _memory(place: int, size: int) -> Callable[[], bytes]:
    return memoryview((ctypes.c_char * size).from_address(place)).cast("B").tobytes


def of_python() -> Watched:
    """The generator of Python's module `random`: position and words, in CPython's order, and a kept normal number."""

    def kept() -> Any:
        return random._inst.gauss_next  # type: ignore[attr-defined]

    place = id(random._inst) + object.__basicsize__
    try:
        known = ctypes.string_at(place, _BYTES) == _python_words()[0]
    except Exception:  # whatever an unknown interpreter answers
        known = False
    if not known:
        return Watched(_python_words)
    return Watched(lambda: (ctypes.string_at(place, _BYTES), kept()), (_memory(place, _SIGN), kept))


def of_numpy() -> Watched:
    """NumPy's global generator: words and position, whether it keeps a normal number, and that."""
    bits = np.random.mtrand._rand._bit_generator
    place = int(bits.ctypes.state_address)

    def whole() -> tuple[bytes, int, float]:
        state: dict[str, Any] = np.random.get_state(legacy=False)
        return ctypes.string_at(place, _BYTES), int(state["has_gauss"]), float(state["gauss"])

    # A kept normal number is elsewhere, and used up without another draw.
    return Watched(whole, (_memory(place, _SIGN), _memory(place + _BYTES - 4, 4)), lambda state: bool(state[1]))


def of_torch(generator: torch.Generator) -> Watched:
    """A generator of torch's: its state as bytes."""

    def whole() -> bytes:
        state = generator.get_state()
        return ctypes.string_at(state.data_ptr(), state.numel())

    layout = _layout_of_torch() if generator.device.type == "cpu" else None
    return Watched(whole, tuple(_memory(generator._cdata + place, size) for place, size in layout or ()))  # type: ignore[attr-defined]


@functools.lru_cache(maxsize=1)
def _layout_of_torch() -> tuple[tuple[int, int], ...] | None:
    """Where in a CPU generator the numbers lie that change with a draw: (offset, bytes); None: not where they were.

    In front of the words are the seed, how many words are left, whether it was seeded and the position; behind them
    are two normal numbers that may be kept. All kinds of draws are tried on a generator of its own.
    """
    trial = torch.Generator().manual_seed(1)
    torch.rand(3, generator=trial)
    if not hasattr(trial, "_cdata"):
        return None
    state = trial.get_state().numpy().tobytes()
    words = np.frombuffer(state, np.uint64, _WORDS, offset=24).astype(np.uint32).tobytes()
    begin = ctypes.string_at(trial._cdata, 256 + len(words)).find(words)
    if begin < 16:
        return None
    end = begin + len(words)
    layout = ((begin - 12, 12 + _SIGN), (end, 32))

    def sign() -> list[bytes]:
        return [ctypes.string_at(trial._cdata + place, size) for place, size in layout]

    for size in (1, 1, 2, 700, _WORDS):
        for draw in (torch.rand, torch.randn):
            for dtype in (torch.float32, torch.float64):
                before = sign()
                draw(size, generator=trial, dtype=dtype)
                if sign() == before:
                    return None
    return layout


def _python_words() -> tuple[bytes, float | None]:
    _, numbers, gauss = random.getstate()
    return np.array([numbers[-1], *numbers[:-1]], np.uint32).tobytes(), gauss
