"""Layers that are timed alone: what is not faster with few bits stays as it is, and a budget of ms is solved."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn

import modelpress as mp
from modelpress.api.errors import SpecError
from modelpress.api.v1alpha1 import Stage
from modelpress_runner.edits.quantize import FrozenLayer, QuantizedLayer, quantized_layers
from modelpress_runner.engine.outcome import RecipeOutcome
from modelpress_runner.engine.run import run_stages
from modelpress_runner.errors import InvalidSpecError
from modelpress_runner.methods.context import Measures
from modelpress_runner.subject.subject import Subject

LINEAR = [{"opTypes": ["Linear"]}]
NAMES = ["wide", "again", "narrow"]
# ms of a layer by its outputs, and of its floats what it takes with so many bits.
BEFORE = {16: 4.0, 4: 1.0}
SHARES = {(16, 8): 0.5, (16, 4): 0.25, (4, 8): 0.985, (4, 4): 1.5}


class Net(nn.Module):
    """`again` is called twice, and as large as `wide`."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.again, self.narrow = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.narrow(torch.tanh(self.again(torch.tanh(self.again(torch.tanh(self.wide(x)))))))


class Clock:
    """Times as they are written above; `asked` has what was timed alone, `rest` what a call takes besides."""

    rest = 2.0

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []
        self.tables: dict[str, dict[str, Any]] = {}

    def get(self, name: str) -> dict[str, Any] | None:
        return self.tables.get(name)

    def put(self, name: str, table: dict[str, Any]) -> None:
        self.tables[name] = table

    def alone(self, one: nn.Module, other: nn.Module, given: torch.Tensor) -> tuple[float, float]:
        assert given.shape == (3, 16)
        assert not quantized_layers(one)
        layer: Any = other.layer
        self.asked.append((layer.out_features, layer.weight_quantizer.bits))
        return self._time(one.layer), self._time(layer)

    def of(self, metric: str, models: Sequence[nn.Module]) -> list[float]:
        assert metric == "latencyMs"
        sums = [sum(self._time(getattr(model, name)) * (1 + (name == "again")) for name in NAMES) for model in models]
        return [self.rest + each for each in sums]

    def _time(self, layer: Any) -> float:
        share = SHARES[layer.out_features, layer.weight_quantizer.bits] if isinstance(layer, QuantizedLayer) else 1.0
        return BEFORE[layer.out_features] * share

    def measures(self) -> Measures:
        return Measures(self.of, "one machine", self, latency=self.alone, batch=3)


def net() -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Net().eval()


def run(clock: Clock, **block: Any) -> RecipeOutcome:
    x = torch.randn(2, 16, generator=torch.Generator().manual_seed(1))
    given = {"algorithm": "weight_only", "configList": LINEAR, **block}
    subject = Subject(net(), None, x, [x])
    return run_stages(subject, [Stage.model_validate({"quantize": given})], seed=0, measures=clock.measures())


def frozen(model: nn.Module) -> list[str]:
    return [name for name in NAMES if isinstance(model.get_submodule(name), FrozenLayer)]


@pytest.mark.parametrize("algorithm", ["weight_only", "gptq", "smoothquant", "ptq_dynamic"])
def test_only_what_is_faster(algorithm: str) -> None:
    """1.5 % is not enough: `narrow` stays, and the record says what it would have taken. Alike layers are timed once,
    and what is called twice counts twice."""
    clock = Clock()
    outcome = run(clock, algorithm=algorithm, keepOnlyIfFaster=True)
    assert frozen(outcome.model) == ["wide", "again"]
    assert clock.asked == [(16, 8), (4, 8)]
    layers = {entry["name"]: entry for entry in outcome.stages[0]["layers"]}
    assert {name: (entry["msBefore"], entry["msAfter"]) for name, entry in layers.items()} == {
        "wide": (4.0, 2.0),
        "again": (8.0, 4.0),
        "narrow": (1.0, 0.985),
    }
    assert layers["narrow"]["left"]
    assert layers["narrow"]["bytesAfter"] == layers["narrow"]["bytesBefore"] == 4 * 64
    assert layers["wide"]["bytesAfter"] < layers["wide"]["bytesBefore"]
    (note,) = [note for note in outcome.notes if note.startswith("keepOnlyIfFaster")]
    assert note.endswith("2 of 3 layers are at least 2% faster with few bits; these are not, and stay as they are: "
                         "narrow (1 -> 0.985 ms)")  # fmt: skip
    run(clock, algorithm=algorithm, keepOnlyIfFaster=True)
    assert len(clock.asked) == 2  # the table is beside the dense model


class Tokens(nn.Module):
    """Two tables, whose indices are alike in shape."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places, self.head = nn.Embedding(50, 16), nn.Embedding(5, 16), nn.Linear(16, 4)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.words(ids) + self.places(torch.arange(ids.shape[1]).expand_as(ids)))


def test_each_table_is_timed_with_indices_of_its_own() -> None:
    """Words are no places: a table of 5 rows cannot be called with the 49th word."""
    timed = []

    def alone(one: nn.Module, other: nn.Module, given: torch.Tensor) -> tuple[float, float]:
        layer: Any = one.layer
        assert one(given).shape == other(given).shape
        timed.append(layer.weight.shape[0])
        return 1.0, 0.5

    ids = torch.tensor([[49, 7, 7, 48, 0]])
    subject = Subject(Tokens().eval(), None, ids, [ids])
    entry = [{"opTypes": ["Embedding", "Linear"]}]
    block = {"algorithm": "weight_only", "configList": entry, "keepOnlyIfFaster": True}
    stage = Stage.model_validate({"quantize": block})
    clock = Clock()
    measures = Measures(lambda metric, models: [1.0 for _ in models], "one machine", clock, latency=alone, batch=1)
    outcome = run_stages(subject, [stage], seed=0, measures=measures)
    assert timed == [50, 5, 4]
    assert [one["msAfter"] for one in outcome.stages[0]["layers"]] == [0.5, 0.5, 0.5]


def test_nothing_is_faster() -> None:
    """Then nothing is quantized, and that is no error."""
    outcome = run(Clock(), keepOnlyIfFaster=True, configList=[{"opNames": ["narrow"]}])
    assert frozen(outcome.model) == []
    assert [entry["name"] for entry in outcome.stages[0]["layers"]] == ["narrow"]


@pytest.mark.parametrize("most", [12.5, 9.0, 6.0])
def test_bits_for_a_latency(most: float) -> None:
    """The choice with the least effect of all that take no longer; what it takes is measured at the end."""
    clock = Clock()
    outcome = run(clock, budget={"metric": "latencyMs", "max": most, "bits": [4, 8]})
    allocation = outcome.stages[0]["allocation"]
    assert allocation["before"] == 15.0
    assert allocation["measured"] == {"before": 15.0, "after": allocation["after"]}
    assert allocation["after"] <= most
    assert sorted(clock.asked) == [(4, 4), (4, 8), (16, 4), (16, 8)]
    times = {name: {int(k): v[1] for k, v in row.items()} for name, row in allocation["times"].items()}
    choices = []
    for row in itertools.product((None, 8, 4), repeat=3):
        each = dict(zip(NAMES, row, strict=True))
        cost = 2.0 + sum(times[n][b] if b else (8.0 if n == "again" else BEFORE[4 if n == "narrow" else 16])
                         for n, b in each.items())  # fmt: skip
        effect = sum(allocation["effects"][n][b] for n, b in each.items() if b)
        choices.append((effect, cost))
    effect = sum(allocation["effects"][n][b] for n, b in allocation["bits"].items() if b)
    assert effect == pytest.approx(min(e for e, c in choices if c <= allocation["after"] + 1e-9))
    entries = {entry["name"]: entry for entry in outcome.stages[0]["layers"]}
    for name, bits in allocation["bits"].items():
        if bits:
            assert entries[name]["msAfter"] == pytest.approx(times[name][bits])


def test_a_latency_out_of_reach() -> None:
    with pytest.raises(InvalidSpecError, match=r"latencyMs cannot come down to 3: with the fewest bits .* it is 5.985"):
        run(Clock(), budget={"metric": "latencyMs", "max": 3, "bits": [4, 8]})


def test_other_budgets_keep_to_what_is_faster() -> None:
    """Four bits make `narrow` slower, and eight hardly faster."""
    outcome = run(Clock(), keepOnlyIfFaster=True, budget={"metric": "effectiveBits", "max": 12, "bits": [4, 8]})
    assert frozen(outcome.model) == ["wide", "again"]
    assert outcome.stages[0]["allocation"]["bits"]["narrow"] is None


def test_times_are_real_ones() -> None:
    """By the clock: what is kept is what the record says was faster, and of eager targets with a benchmark every
    quantize stage tells of times."""
    x = torch.randn(2, 16)
    how = {"target": {"format": "eager"}, "benchmark": {"iterations": 3, "warmup": 1}}
    for keep in (True, False):
        block = {"algorithm": "ptq_static", "configList": LINEAR, "keepOnlyIfFaster": keep}
        result = mp.compress(net(), [{"quantize": block}], dummy_input=x, calibration_data=[x], **how)
        layers = {entry["name"]: entry for entry in result.metrics["stages"][0]["layers"]}
        assert list(layers) == NAMES
        assert all(entry["msBefore"] > 0 and entry["msAfter"] > 0 for entry in layers.values())
        faster = [name for name, entry in layers.items() if not entry.get("left")]
        assert faster == frozen(result.model)
        if not keep:
            assert faster == NAMES


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"algorithm": "qat", "epochs": 1, "keepOnlyIfFaster": True}, "qat trains, and layers are timed before"),
        ({"backend": "compressed-tensors", "keepOnlyIfFaster": True}, "what servers make of one layer"),
        (
            {"keepOnlyIfFaster": True, "budget": {"metric": "effectiveBits", "max": 8, "keepFloat": False}},
            "budget.keepFloat lets no layer stay",
        ),
        ({"quantDtype": "fp8"}, "quantDtype: the text 'fp8' is not to be had; fp8 is for GPUs of compute capability"),
        ({"quantDtype": "float8_e4m3fn"}, "quantDtype: .*; fp8 is for GPUs of compute capability 8.9 and above"),
        ({"quantDtype": {"weight": "fp8_e5m2"}}, "quantDtype.weight: .*; fp8 is for GPUs of compute capability"),
    ],
)
def test_what_is_refused(block: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        mp.compress(
            net(), [{"quantize": {"algorithm": "weight_only", "configList": LINEAR, **block}}],
            dummy_input=torch.randn(2, 16), target={"format": "eager"},
        )  # fmt: skip
