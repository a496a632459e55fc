"""Which GPUs local runs get."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelpress.api.v1alpha1 import Runner
from modelpress.local.devices import environments, shares, visible_devices


@pytest.mark.parametrize(
    ("value", "devices"),
    [
        ("0,1", ("0", "1")),
        ("3", ("3",)),
        ("GPU-a, GPU-b", ("GPU-a", "GPU-b")),
        ("", ()),
        ("-1", ()),
        ("2,-1,0", ("2",)),
    ],
)
def test_the_variable_names_them(value: str, devices: tuple[str, ...]) -> None:
    """CUDA_VISIBLE_DEVICES as CUDA reads it: up to the first -1, by number or by name."""
    assert visible_devices({"CUDA_VISIBLE_DEVICES": value}) == devices


def test_else_the_driver_counts_them(tmp_path: Path) -> None:
    """One folder for each GPU; a machine without the driver has none."""
    for name in ("0000:01:00.0", "0000:02:00.0", "0000:41:00.0"):
        (tmp_path / "gpus" / name).mkdir(parents=True)
    assert visible_devices({}, tmp_path / "gpus") == ("0", "1", "2")
    assert visible_devices({}, tmp_path / "none") == ()


@pytest.mark.parametrize(
    ("devices", "slots", "runner", "expected"),
    [
        ("", 4, {}, []),
        ("01", 1, {}, []),
        ("0123", 2, {}, ["01", "23"]),
        ("0123", 3, {}, ["0", "1", "2"]),
        ("0123", 1, {"gpus": 2}, ["01"]),
        ("0123", 2, {"gpus": 1}, ["0", "1"]),
        ("0123", 2, {"gpus": 1, "nodes": 2}, ["01", "23"]),
        ("0123", 3, {"gpus": 2}, ["01", "23", "01"]),
        ("01", 3, {}, ["0", "1", "0"]),
        ("01", 2, {"gpus": 8}, ["01", "01"]),
    ],
)
def test_shares(devices: str, slots: int, runner: dict[str, int], expected: list[str]) -> None:
    """As many as the pods of a run would have; sets of their own while there are enough; nothing to say where one run
    may use all."""
    given = Runner.model_validate(runner)
    assert [*map("".join, shares(devices, slots, given))] == expected
    assert environments(devices, slots, given) == tuple({"CUDA_VISIBLE_DEVICES": ",".join(share)} for share in expected)


@given(st.integers(1, 16), st.integers(2, 8), st.integers(0, 8))
def test_runs_share_devices_only_where_there_are_too_few(devices: int, slots: int, gpus: int) -> None:
    """Every run has at least one, no run has one twice, and where they suffice no two runs have the same."""
    found = shares([str(number) for number in range(devices)], slots, Runner(gpus=gpus))
    assert len(found) == slots
    assert all(share and len(set(share)) == len(share) for share in found)
    if devices >= slots * max(1, gpus):
        assert len({device for share in found for device in share}) == sum(map(len, found))
