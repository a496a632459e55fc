"""Keys that had another name: both are read, the present one is written."""

from __future__ import annotations

from typing import Any

import pytest
from reconcile_objects import job_spec

from modelpress.api.crd import job_crd
from modelpress.api.errors import SpecError
from modelpress.api.load import load_dict
from modelpress.api.v1alpha1 import CompressionSweep
from modelpress.search.resolve import resolve


def stages(**keys: Any) -> list[dict[str, Any]]:
    """One prune stage with these keys."""
    return [{"prune": {"algorithm": "l1", "configList": [{"opTypes": ["Conv2d"], "sparsity": 0.5}], **keys}}]


def job(**keys: Any) -> dict[str, Any]:
    """A job with such a stage."""
    meta = {"name": "digits"}
    spec = job_spec(stages=stages(**keys))
    return {"apiVersion": "modelpress.dev/v1alpha1", "kind": "CompressionJob", "metadata": meta, "spec": spec}


@pytest.mark.parametrize("python", [False, True])
def test_both_names_are_one_key(python: bool) -> None:
    """The object is the same, and holds the present names."""
    old = load_dict(job(speedup=False, speedupTimeoutSeconds=60), python_spelling=python)
    new = load_dict(job(shrink=False, shrinkTimeoutSeconds=60), python_spelling=python)
    assert old == new
    prune = old.to_dict()["spec"]["stages"][0]["prune"]
    assert (prune["shrink"], prune["shrinkTimeoutSeconds"]) == (False, 60)
    assert "speedup" not in prune
    assert "speedupTimeoutSeconds" not in prune


def test_python_takes_the_earlier_name_in_snake_case() -> None:
    """As every other key."""
    found = load_dict(job(speedup_timeout_seconds=60), python_spelling=True)
    assert found.to_dict()["spec"]["stages"][0]["prune"]["shrinkTimeoutSeconds"] == 60
    with pytest.raises(SpecError, match="speedup_timeout_seconds"):
        load_dict(job(speedup_timeout_seconds=60))


@pytest.mark.parametrize("python", [False, True])
def test_both_at_once_are_refused(python: bool) -> None:
    """Whatever their values."""
    with pytest.raises(SpecError) as caught:
        load_dict(job(shrink=True, speedup=True), python_spelling=python)
    (problem,) = caught.value.problems
    assert problem.path == "spec.stages[0].prune"
    assert "speedup" in problem.message
    assert problem.fix == "give one of them"


@pytest.mark.parametrize("template", ["speedup", "shrink"])
@pytest.mark.parametrize("pointer", ["speedup", "shrink"])
def test_a_sweep_may_mix_the_names(template: str, pointer: str) -> None:
    """A pointer to either reaches what the template gives under either."""
    sweep = CompressionSweep.model_validate(
        {
            "metadata": {"name": "search"},
            "spec": {
                "template": {"spec": job_spec(stages=stages(**{template: True}))},
                "searchSpace": [
                    {"name": "s", "paths": [f"/stages/0/prune/{pointer}"], "categorical": {"values": [True, False]}}
                ],
                "objectives": [{"metric": "default"}],
                "maxTrials": 4,
            },
        }
    )
    assert sweep.spec.search_space[0].paths == ["/stages/0/prune/shrink"]
    assert resolve(sweep.spec, {"s": False}).to_dict()["stages"][0]["prune"]["shrink"] is False


def test_the_api_server_takes_both_and_defaults_neither() -> None:
    """A default of one would stand beside the other in objects that are stored already."""
    version = job_crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    prune = version["properties"]["spec"]["properties"]["stages"]["items"]["properties"]["prune"]
    for name in ("speedup", "shrink", "speedupTimeoutSeconds", "shrinkTimeoutSeconds"):
        assert "default" not in prune["properties"][name]
    rules = [rule["rule"] for rule in prune["x-kubernetes-validations"]]
    assert "!(has(self.speedup) && has(self.shrink))" in rules
