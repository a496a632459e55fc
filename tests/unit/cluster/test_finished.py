"""Finished trials as their sweep sees them: in short, unless the whole of one decides whether it is a trial."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path
from typing import Any

import pytest

from modelpress.api.json_numbers import to_json_numbers
from modelpress.api.v1alpha1 import CompressionSweep
from modelpress.reconcile import AdmitTrial, PatchStatus, Plan, reconcile_sweep
from modelpress.search import strategy_for
from modelpress.trials import History
from modelpress_operator.cache import Cache
from modelpress_operator.compact import transform
from modelpress_operator.failed_create import FailedCreateEvents
from modelpress_operator.finished import is_summarized
from modelpress_operator.memory import MemoryClient
from modelpress_operator.resources import COMPRESSION_JOBS, COMPRESSION_SWEEPS, RawObject
from modelpress_operator.snapshot import Problems, Snapshots

TEXT = (Path(__file__).parent / "fleet.json").read_text()
NOW = dt.datetime(2027, 1, 1, tzinfo=dt.UTC)
RECORDED = {"created": 1, "trialRecords": True, "phase": "Running"}


def sweep(status: dict[str, Any]) -> RawObject:
    """The sweep with another status."""
    raw: RawObject = json.loads(TEXT)["sweep"]
    raw["spec"]["maxTrials"] = 2
    raw["status"] = status
    return raw


def unrecorded(owner: RawObject) -> RawObject:
    """Trial 0 exactly as the sweep makes it, finished, and without status.trial."""
    raw: RawObject = json.loads(TEXT)["cr"]
    typed = CompressionSweep.model_validate(to_json_numbers(owner))
    suggestion = strategy_for(typed.spec).suggest(0, History(), {})
    assert suggestion.spec is not None
    meta = raw["metadata"]
    meta |= {"name": "search-00000", "uid": "uid-0", "resourceVersion": "7"}
    meta["labels"]["modelpress.dev/trial"] = "0"
    meta["annotations"] = {
        "modelpress.dev/history": "finished=;running=",
        "modelpress.dev/parameters": json.dumps(dict(suggestion.parameters)),
    }
    raw["spec"] = suggestion.spec.to_dict()
    raw["status"].pop("trial", None)
    return raw


def decided(owner: RawObject, *jobs: RawObject) -> Plan:
    """What the core decides on what the operator shows it of these."""
    cache, raw = Cache(), transform(COMPRESSION_SWEEPS, owner)
    cache.put(COMPRESSION_SWEEPS, raw)
    for job in jobs:
        cache.put(COMPRESSION_JOBS, job)
    seen = Snapshots(cache, FailedCreateEvents(MemoryClient())).observe_sweep(raw, Problems(), NOW)
    return reconcile_sweep(seen, NOW, strategy_for(seen.sweep.spec))


@pytest.mark.parametrize("status", [RECORDED, {}], ids=["its record was not written", "nor the sweep's first status"])
def test_a_trial_that_finished_before_its_record_was_written_is_admitted(status: dict[str, Any]) -> None:
    """It is recognised by its whole spec, and its result counts."""
    owner = sweep(status)
    plan = decided(owner, unrecorded(owner))
    admitted = [action for action in plan.actions if isinstance(action, AdmitTrial)]
    assert [(one.name, one.uid, one.record.number) for one in admitted] == [("search-00000", "uid-0", 0)]
    first = plan.actions[0]
    assert isinstance(first, PatchStatus)
    assert first.status.trials.succeeded == 1  # type: ignore[union-attr]
    assert first.status.best.number == 0  # type: ignore[union-attr]


@pytest.mark.parametrize("status", [RECORDED, {}], ids=["records", "begins"])
def test_one_with_another_spec_is_not(status: dict[str, Any]) -> None:
    """Also where the template's spec would have been right."""
    owner = sweep(status)
    job = unrecorded(owner)
    job["spec"] = owner["spec"]["template"]["spec"]
    assert not [action for action in decided(owner, job).actions if isinstance(action, AdmitTrial)]


@pytest.mark.parametrize(
    ("status", "job", "summarized"),
    [
        (RECORDED, {"phase": "Succeeded", "trial": {"number": 0}}, True),
        (RECORDED, {"phase": "Succeeded"}, False),
        (RECORDED, {"phase": "Running", "trial": {"number": 0}}, False),
        ({}, {"phase": "Failed"}, False),
        ({"created": 3}, {"phase": "Failed"}, True),  # an older version's sweep, whose trials have no records
    ],
)
def test_what_a_sweep_reads_in_short(status: dict[str, Any], job: dict[str, Any], summarized: bool) -> None:
    """Finished trials that are known as such."""
    assert is_summarized({"status": job}, {"status": status}) is summarized
