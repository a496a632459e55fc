"""The health checks of docs/gitops, run by a real Lua and a real CEL on statuses that the reconcile core wrote."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import lupa.lua51  # Argo CD's interpreter speaks Lua 5.1
import pytest
import yaml
from cel_expr_python import cel
from chart_statuses import job_states, sweep_states

DOCS = Path(__file__).resolve().parents[3] / "docs" / "gitops"
HEALTH = (DOCS / "health.lua").read_text()
EXPRESSIONS = yaml.safe_load((DOCS / "health-checks.yaml").read_text())
STATES = {
    **{f"job {name}": raw for name, raw in job_states().items()},
    **{f"sweep {name}": raw for name, raw in sweep_states().items()},
}
# State: Argo CD's health, Flux' status with the expressions, kstatus without.
EXPECTED = {
    "job created": ("Progressing", "InProgress", "InProgress"),
    "job pending": ("Progressing", "InProgress", "InProgress"),
    "job running": ("Progressing", "InProgress", "Current"),
    "job retrying": ("Progressing", "InProgress", "Current"),
    "job suspended": ("Suspended", "Current", "InProgress"),
    "job suspend not seen": ("Progressing", "InProgress", "InProgress"),
    "job succeeded": ("Healthy", "Current", "Current"),
    "job constraint missed": ("Healthy", "Current", "Current"),
    "job nothing smaller": ("Healthy", "Current", "Current"),
    "job failed": ("Degraded", "Failed", "Failed"),
    "job model refused": ("Degraded", "Failed", "Failed"),
    "job invalid": ("Degraded", "Failed", "Failed"),
    "sweep created": ("Progressing", "InProgress", "InProgress"),
    "sweep preparing": ("Progressing", "InProgress", "Current"),
    "sweep running": ("Progressing", "InProgress", "Current"),
    "sweep suspended": ("Suspended", "Current", "InProgress"),
    "sweep publishing": ("Progressing", "InProgress", "InProgress"),
    "sweep succeeded": ("Healthy", "Current", "Current"),
    "sweep publish failed": ("Healthy", "Current", "Current"),
    "sweep none feasible": ("Healthy", "Current", "Current"),
    "sweep failed": ("Degraded", "Failed", "Failed"),
    "sweep invalid": ("Degraded", "Failed", "Failed"),
}


def argo_cd(obj: dict[str, Any]) -> tuple[str, str]:
    """Health and message, by health.lua."""
    lua = lupa.lua51.LuaRuntime(unpack_returned_tuples=True)
    lua.globals()["obj"] = lua.table_from(obj, recursive=True)
    answer = lua.execute(HEALTH)
    return answer["status"], answer["message"]


def flux(obj: dict[str, Any], expressions: list[dict[str, str]]) -> str:
    """By the rules of healthCheckExprs: the generation, then inProgress, failed, current, else in progress."""
    if obj["status"].get("observedGeneration", obj["metadata"]["generation"]) != obj["metadata"]["generation"]:
        return "InProgress"
    (found,) = [one for one in expressions if (one["apiVersion"], one["kind"]) == (obj["apiVersion"], obj["kind"])]
    environment = cel.NewEnv(variables=dict.fromkeys(obj, cel.Type.DYN))
    for field, status in (("inProgress", "InProgress"), ("failed", "Failed"), ("current", "Current")):
        if field in found:
            answer = environment.compile(found[field]).eval(data=obj)
            assert answer.type() == cel.Type.BOOL, answer.value()  # an error would fail the whole Kustomization
            if answer.value():
                return status
    return "InProgress"


def kstatus(obj: dict[str, Any]) -> str:
    """kstatus' rules for kinds that it does not know."""
    status = obj["status"]
    if status.get("observedGeneration", obj["metadata"]["generation"]) != obj["metadata"]["generation"]:
        return "InProgress"
    conditions = {item["type"]: item["status"] for item in status.get("conditions", ())}
    if conditions.get("Reconciling") == "True":
        return "InProgress"
    if conditions.get("Stalled") == "True":
        return "Failed"
    return "Current" if conditions.get("Ready", "True") == "True" else "InProgress"


def test_all_states_are_judged() -> None:
    """Every state of the scenarios has its row."""
    assert STATES.keys() == EXPECTED.keys()


@pytest.mark.parametrize("state", EXPECTED)
def test_health(state: str) -> None:
    """Argo CD and Flux say what the pages say."""
    raw = STATES[state]
    assert (argo_cd(raw)[0], flux(raw, EXPRESSIONS), kstatus(raw)) == EXPECTED[state]


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ("job created", "Waiting for the operator"),
        ("job suspend not seen", "Waiting for the operator"),
        ("job failed", "spec.backoffLimit is 0"),
        ("job invalid", "store"),
        ("job constraint missed", "lost 47 %"),
        ("job nothing smaller", "smaller"),
        ("sweep publish failed", "no such layer"),
        ("sweep failed", "trials"),
    ],
)
def test_messages_say_why(state: str, words: str) -> None:
    """The message in Argo CD is that of the condition which decided."""
    assert words in argo_cd(STATES[state])[1]


def test_an_object_without_status_is_in_progress() -> None:
    """Before the API server gave it a default, a status may be missing altogether."""
    raw = {key: value for key, value in STATES["job created"].items() if key != "status"}
    assert argo_cd(raw) == ("Progressing", "Waiting for the operator")


def test_the_page_shows_the_same_expressions() -> None:
    """The Kustomization on the page carries health-checks.yaml."""
    blocks = re.findall(r"```yaml\n(.*?)```", (DOCS / "flux.md").read_text(), flags=re.DOTALL)
    assert yaml.safe_load(blocks[0])["spec"]["healthCheckExprs"] == EXPRESSIONS


def test_expressions_that_wait_for_constraints() -> None:
    """The page's stricter form fails where a constraint is missed and is current where all are met."""
    page = (DOCS / "flux.md").read_text()
    (more,) = re.findall(r"```\n(has\(.*)\n```", page)
    strict = [
        {
            **one,
            "failed": f"{one['failed']} || {more}",
            "current": one["current"].replace("'Complete'", "'ConstraintsMet'"),
        }
        for one in EXPRESSIONS
    ]
    assert flux(STATES["job constraint missed"], strict) == "Failed"
    assert flux(STATES["sweep none feasible"], strict) == "Failed"
    assert flux(STATES["job succeeded"], strict) == "Current"
    assert flux(STATES["job running"], strict) == "InProgress"
