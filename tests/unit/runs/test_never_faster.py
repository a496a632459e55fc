"""What is slower than the dense model is nowhere called faster: in result, manifest, card and report."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from modelpress.api.v1alpha1 import CompressionJobSpec
from modelpress.request import RunRequest
from modelpress.results.collect import collect
from modelpress.results.report import Frame, findings, render
from modelpress.results.trials import read_trials
from modelpress.store import open_store
from modelpress_runner.measure import latency
from modelpress_runner.process.progress import silent
from modelpress_runner.process.stopping import StopFlag
from modelpress_runner.runs import trial
from modelpress_runner.runtime import rng

CODE = """
import torch
from torch import nn
import modelpress as mp

def create():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 2))
    evaluate = lambda model: 1.0
    return mp.Subject(model, mp.TorchEvaluator(evaluating_func=evaluate, dummy_input=torch.ones(1, 4)))
"""
# Median 5 ms; quartiles 4.5 + .75 * .5 = 4.875 and 5 + .25 * .5 = 5.125, so that a median counts from .25 ms less on.
DENSE = (4.5, 5.0, 5.0, 5.5)


class Clock:
    """The dense model, which has no zeros among its weights, takes DENSE in turn; the compressed one `ms`."""

    def __init__(self, ms: float) -> None:
        self._dense: Iterator[float] = itertools.cycle(DENSE)
        self._ms = ms

    def __call__(self, call: Callable[[], object]) -> int:
        call()
        whole = bool((call.func[0].weight != 0).all())  # type: ignore[attr-defined]
        return round((next(self._dense) if whole else self._ms) * 1e6)


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One folder for all cases: a module is imported once."""
    folder = tmp_path_factory.mktemp("code")
    (folder / "never_faster.py").write_text(CODE)
    return str(folder)


@pytest.mark.parametrize(
    ("ms", "smaller", "collected", "speedup", "latency_change", "speedup_written"),
    [
        (6.0, False, False, 5 / 6, "+20.0%", "0.83x"),
        (5.0, False, False, 1.0, "+0.0%", "1.00x"),
        (4.75, False, None, 5 / 4.75, "-5.0%", "1.05x"),  # by the margin and no more
        (4.7, True, None, 5 / 4.7, "-6.0%", "1.06x"),
    ],
)
def test_only_what_is_faster_beyond_the_spread_is_called_so(
    tmp_path: Path,
    code: str,
    monkeypatch: pytest.MonkeyPatch,
    ms: float,
    smaller: bool,
    collected: bool | None,
    speedup: float,
    latency_change: str,
    speedup_written: str,
) -> None:
    """Half of the weights are masked: counts and bytes stay, so that time alone decides. A manifest without the run's
    message tells no spread: what is a little faster is left open there."""
    monkeypatch.setattr(latency, "clock_of", lambda device: Clock(ms))
    uri = str(tmp_path / "store")
    prune = {"algorithm": "level", "shrink": False, "configList": [{"sparsity": 0.5}]}
    given = {
        "model": {"entrypoint": "never_faster:create"},
        "stages": [{"prune": prune}],
        "benchmark": {"warmup": 0, "iterations": len(DENSE)},
        "store": {"uri": uri},
    }
    request = RunRequest(
        purpose="trial",
        namespace="default",
        name="sweep-0",
        uid="0" * 8,
        run_uid="1" * 8,
        attempt=1,
        root="root",
        prefix="root/trials/00000",
        trial={"number": 0, "parameters": {"sparsity": 0.5}},
        spec=CompressionJobSpec.model_validate(given),
        code_path=code,
    )
    store = open_store(uri)
    with rng.fork_rng():
        result = trial.run(request, store, silent, StopFlag())
    assert (result.baseline["latencyMs"], result.compressed["latencyMs"]) == (5.0, ms)
    assert result.baseline["sizeBytes"] == result.compressed["sizeBytes"]
    assert result.compressed["speedup"] == pytest.approx(speedup)
    assert result.smaller is smaller
    assert collect(request, store).smaller is collected
    (card,) = (tmp_path / "store").rglob("README.md")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in card.read_text().splitlines() if "|" in line]
    by_label = {row[0]: row for row in rows}
    assert by_label["Latency"][3] == latency_change
    assert by_label["Speed-up"][1:3] == ["-", speedup_written]
    frame = Frame("sweep", uri, (("latencyMs", "minimize"),), best=0, front=frozenset({0}))
    page = render(findings(frame, list(read_trials(store, "root").values()))).decode()
    assert f"latencyMs {ms:.4g} ({latency_change.replace('+0.0', '0.0')})" in page
