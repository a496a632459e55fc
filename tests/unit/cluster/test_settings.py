"""Settings from flags and variables, log lines, and probes."""

from __future__ import annotations

import io
import json
import logging

import pytest
from aiohttp.test_utils import TestClient, TestServer
from aiohttp.web import Application

from modelpress_operator import logs
from modelpress_operator.health import Health, metrics_routes, probe_routes
from modelpress_operator.metrics import Metrics
from modelpress_operator.resources import PODS, WATCHED
from modelpress_operator.settings import SettingsError, load_settings


def test_flags_win_over_variables() -> None:
    """Lists are separated by commas; what is not given has its default."""
    environ = {"MODELPRESS_NAMESPACES": "a, b,,a", "MODELPRESS_WORKERS": "3", "MODELPRESS_PORT": "0"}
    settings = load_settings(["--workers", "5"], environ)
    assert settings.namespaces == ("a", "b")
    assert (settings.workers, settings.port, settings.lease_seconds) == (5, 0, 15.0)
    assert settings.lease_namespace == "a"
    assert not settings.cluster_wide
    assert settings.identity


def test_the_lease_lies_in_the_pods_namespace() -> None:
    """Unless it is told otherwise."""
    assert load_settings([], {"POD_NAMESPACE": "system"}).lease_namespace == "system"
    assert load_settings([], {"POD_NAMESPACE": "system", "MODELPRESS_LEASE_NAMESPACE": "x"}).lease_namespace == "x"
    assert load_settings([], {}).lease_namespace == "default"


@pytest.mark.parametrize(
    ("arguments", "environ", "text"),
    [
        (["--workers", "many"], {}, "--workers: 'many' is not a whole number; give a whole number of at least 1"),
        ([], {"MODELPRESS_WORKERS": "0"}, "MODELPRESS_WORKERS: 0 is out of range; give at least 1"),
        (["--lease-seconds", "nan"], {}, "--lease-seconds: nan is out of range; give at least 1"),
        (["--log-level", "loud"], {}, "--log-level: 'loud' is not known; use one of debug, info, warning, error"),
        (["--runner-fs-group", "staff"], {}, "--runner-fs-group: 'staff' is no group; give its number, or none"),
        (
            ["--runner-grace-seconds", "0"],
            {},
            "--runner-grace-seconds: 0 is out of range; give at least 1",
        ),
        (
            [],
            {"MODELPRESS_RUNNER_POD_TEMPLATE": "[]"},
            "MODELPRESS_RUNNER_POD_TEMPLATE: is no mapping; "
            "give it the keys of spec.runner.podTemplate: metadata and spec",
        ),
    ],
)
def test_nonsense_is_refused(arguments: list[str], environ: dict[str, str], text: str) -> None:
    """With the flag's or the variable's name and what to do."""
    with pytest.raises(SettingsError) as caught:
        load_settings(arguments, environ)
    assert str(caught.value) == text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"spec": {"hostNetwork": true}}', "podTemplate.spec.hostNetwork"),
        ('{"specs": {}}', "specs"),
        ("spec: [", "is no YAML"),
        ('{"spec": {"containers": [{"name": "runner", "command": ["sh"]}]}}', "command"),
    ],
)
def test_a_bad_template_is_refused(text: str, said: str) -> None:
    """A template that no job could have, is none for all jobs either; one line says where it is wrong."""
    with pytest.raises(SettingsError) as caught:
        load_settings(["--runner-pod-template", text], {})
    assert str(caught.value).startswith("--runner-pod-template: ")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_runners_get() -> None:
    """Template, group and grace; `none` is no group, and an empty template none."""
    given = {
        "MODELPRESS_RUNNER_POD_TEMPLATE": '{"spec": {"nodeSelector": {"pool": "gpu"}}}',
        "MODELPRESS_RUNNER_FS_GROUP": "none",
        "MODELPRESS_RUNNER_GRACE_SECONDS": "30",
    }
    settings = load_settings([], given)
    assert settings.runner_pod_template == {"spec": {"nodeSelector": {"pool": "gpu"}}}
    assert (settings.runner_fs_group, settings.runner_grace_seconds) == (None, 30)
    settings = load_settings(["--runner-fs-group", "0", "--runner-pod-template", "{}"], {})
    assert (settings.runner_fs_group, settings.runner_pod_template) == (0, None)
    assert load_settings([], {}).runner_fs_group == 65532


def test_log_lines_say_what_they_are_about() -> None:
    """One JSON object per line; keys that do not apply are left out, tracebacks are a value; what kopf sends again
    because a server was busy is no error."""
    stream = io.StringIO()
    root, before = logging.getLogger(), (logging.getLogger().handlers[:], logging.getLogger().level)
    try:
        logs.configure("info", stream)
        log = logging.getLogger("modelpress_operator.test")
        with logs.about(controller="compressionjob", namespace="n", name="j", generation=2, trial=None):
            log.info("hello %s", "there")
        log.debug("not this")
        try:
            raise ValueError("no")
        except ValueError:
            log.exception("failed")
        for error in ("APITooManyRequestsError('storage is (re)initializing')", "APIServerError('down')"):
            logging.getLogger("kopf.test").error("Request attempt #1/9 failed; will retry: GET https://h -> %s", error)
    finally:
        root.handlers[:] = before[0]
        root.setLevel(before[1])
    first, second, *kopfs = (json.loads(line) for line in stream.getvalue().splitlines())
    assert [line["level"] for line in kopfs] == ["info", "error"]
    assert list(first) == ["ts", "level", "logger", "msg", "controller", "namespace", "name", "generation"]
    assert (first["msg"], first["level"], first["name"], first["generation"]) == ("hello there", "info", "j", 2)
    assert list(second) == ["ts", "level", "logger", "msg", "error"]
    assert second["error"].endswith("ValueError: no")


async def test_probes_notice_a_silent_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ready once the cluster is listed; not alive when one of the watches has said nothing for too long."""
    clock = [1000.0]
    monkeypatch.setattr("modelpress_operator.health.time.monotonic", lambda: clock[0])
    metrics = Metrics()
    health = Health(metrics, silence=300)
    app = Application()
    app.add_routes([*probe_routes(health), *metrics_routes(metrics)])
    async with TestClient(TestServer(app)) as client:

        async def get(path: str) -> tuple[int, str]:
            async with client.get(path) as response:
                return response.status, await response.text()

        assert (await get("/healthz"))[0] == 200
        assert (await get("/readyz"))[0] == 503
        health.synced = True
        assert (await get("/readyz"))[0] == 200
        clock[0] += 299
        for resource in WATCHED:
            if resource is not PODS:
                health.heard(resource)
        clock[0] += 2
        assert await get("/healthz") == (503, "nothing heard from the watch of pods (301 s)\n")
        assert (await get("/readyz"))[0] == 503
        health.heard(PODS)
        assert await get("/healthz") == (200, "ok\n")
        text = (await get("/metrics"))[1]
    assert 'modelpress_watch_last_activity_timestamp_seconds{resource="pods"}' in text
