"""What processes of one run tell each other: plain data and tensors, bit for bit, and never a pickle."""

from __future__ import annotations

import json
import math
import pickle
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modelpress_runner.errors import CompressionError
from modelpress_runner.runtime import rng, wire

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=4), inner, max_size=4)
        | st.dictionaries(st.integers(), inner, max_size=4)
    ),
    max_leaves=20,
)


@given(plain)
def test_plain_data_comes_back_as_it_was(value: Any) -> None:
    """Types of lists, tuples, keys and numbers too; no key is taken for a mark."""
    back = wire.decode(*wire.encode(value))
    assert back == value
    assert repr(back) == repr(value)


@pytest.mark.parametrize("value", [{"$tuple": [1]}, {"$tensor": ["torch.float32", [1]]}, {"$map": []}, {"$": 1}])
def test_data_that_looks_like_a_mark_stays_data(value: Any) -> None:
    """A user's metric may be called as he likes."""
    assert wire.decode(*wire.encode(value)) == value


def test_numbers_that_json_has_not() -> None:
    """Infinities, NaN, minus nought and integers of 128 bits."""
    nan, up, down, zero, big = wire.decode(*wire.encode([math.nan, math.inf, -math.inf, -0.0, 2**127 + 1]))
    assert math.isnan(nan)
    assert (up, down, big) == (math.inf, -math.inf, 2**127 + 1)
    assert math.copysign(1.0, zero) == -1.0


@pytest.mark.parametrize(
    "dtype",
    [
        *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.bool),
        *(torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64, torch.float8_e4m3fn),
    ],
)
def test_tensors_come_back_bit_for_bit(dtype: torch.dtype) -> None:
    """Of every kind and shape, also views, scalars and empty ones."""
    generator = torch.Generator().manual_seed(0)
    for shape in [(3, 4), (), (0, 5), (2, 1, 3)]:
        raw = torch.randint(0, 2, shape, generator=generator, dtype=torch.uint8)
        value = raw.to(dtype)
        for each in (value, value.t() if value.ndim == 2 else value):
            back = wire.decode(*wire.encode({"a": [each], "b": (each, 1)}))
            for found in (back["a"][0], back["b"][0]):
                assert (found.dtype, found.shape) == (each.dtype, each.shape)
                assert torch.equal(
                    found.contiguous().reshape(-1).view(torch.uint8), each.contiguous().reshape(-1).view(torch.uint8)
                )


def test_the_state_of_generators_travels() -> None:
    """What a checkpoint keeps of every rank draws the same numbers afterwards."""
    state = wire.decode(*wire.encode(rng.capture()))
    wanted = (random.random(), torch.rand(3).tolist())
    rng.restore(state)
    assert (random.random(), torch.rand(3).tolist()) == wanted


@pytest.mark.parametrize("value", [object(), {"a": {1.5: 2}}, {"fn": [print]}, torch.eye(2).to_sparse(), {1, 2}])
def test_what_is_no_plain_data_is_not_sent(value: Any) -> None:
    """The text says where it is."""
    with pytest.raises(TypeError, match="value"):
        wire.encode(value)


class _Code:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def test_a_pickle_is_an_error(tmp_path: Path) -> None:
    """It would run on pickle.loads; here it is no text, and nothing of it is called."""
    ran = tmp_path / "ran"
    payload = pickle.dumps(_Code(ran))
    with pytest.raises(CompressionError, match="something else than plain data"):
        wire.decode(payload, torch.empty(0, dtype=torch.uint8))
    _, numbers = wire.encode(torch.frombuffer(bytearray(payload), dtype=torch.uint8))
    with pytest.raises(CompressionError, match="something else than plain data"):
        wire.decode(b"{}", numbers)
    assert not ran.exists()
    pickle.loads(payload)
    assert ran.exists()


@pytest.mark.parametrize(
    "text",
    [
        *(b"", b"{", b"\xff", b"[" * 100_000, b"[" * 80 + b"]" * 80, b'{"$code":1}', b'{"$tuple":3}'),
        *(b'{"$tuple":[],"b":1}', b'{"$map":[[1]]}', b'{"$map":[[[],1]]}', b'{"$bytes":"*"}', b'{"$bytes":3}'),
        *(
            b'{"$tensor":["torch.float32",[9]]}',
            b'{"$tensor":["torch.float32",[-1]]}',
            b'{"$tensor":["os.system",[1]]}',
        ),
        *(b'{"$tensor":["torch.float32",[1e9]]}', b'{"$tensor":["torch.uint8",[true]]}', b'{"$tensor":[]}'),
        *(b'{"$tensor":["torch.float32",[4611686018427387904,0,9]]}', b"[1]"),
    ],
)
def test_damaged_messages_are_errors_of_our_own(text: bytes) -> None:
    """Whatever a stranger sends ends as one sentence."""
    with pytest.raises(CompressionError, match="something else than plain data"):
        wire.decode(text, torch.zeros(7, dtype=torch.uint8))


def test_random_damage_is_an_error_or_other_data() -> None:
    """Of 2,000 messages with changed bytes none raises anything else."""
    chance = random.Random(0)
    text, numbers = wire.encode({"a": [1, (2, 3)], "b": {1: torch.arange(6)}, "c": b"xyz"})
    for _ in range(2000):
        damaged = bytearray(text)
        for _ in range(chance.randint(1, 3)):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        try:
            wire.decode(bytes(damaged), numbers)
        except CompressionError:
            continue
    assert json.loads(text)
