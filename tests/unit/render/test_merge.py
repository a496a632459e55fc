"""Strategic merge of PodSpecs."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelpress_operator.merge import MERGE_KEYS, merge_pod_spec

BASE: dict[str, Any] = {
    "nodeSelector": {"pool": "a", "zone": "1"},
    "tolerations": [{"key": "a"}],
    "containers": [
        {
            "name": "runner",
            "image": "a:1",
            "command": ["x", "y"],
            "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}],
            "ports": [{"containerPort": 80, "name": "web"}],
            "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
        }
    ],
    "volumes": [{"name": "tmp", "emptyDir": {"medium": "Memory"}}, {"name": "x", "secret": {"secretName": "x"}}],
}


@pytest.mark.parametrize(
    ("patch", "path", "expected"),
    [
        # Mappings are merged, a null removes.
        ({"nodeSelector": {"pool": "b"}}, ("nodeSelector",), {"pool": "b", "zone": "1"}),
        ({"nodeSelector": {"zone": None}}, ("nodeSelector",), {"pool": "a"}),
        ({"nodeSelector": {"$patch": "replace", "pool": "b"}}, ("nodeSelector",), {"pool": "b"}),
        # Lists without a merge key are replaced.
        ({"tolerations": [{"key": "b"}]}, ("tolerations",), [{"key": "b"}]),
        ({"containers": [{"name": "runner", "command": ["z"]}]}, ("containers", 0, "command"), ["z"]),
        # Others are merged by their key, in place, new entries last.
        (
            {"containers": [{"name": "runner", "env": [{"name": "C", "value": "3"}, {"name": "A", "value": "9"}]}]},
            ("containers", 0, "env"),
            [{"name": "A", "value": "9"}, {"name": "B", "value": "2"}, {"name": "C", "value": "3"}],
        ),
        (
            {"containers": [{"name": "runner", "env": [{"name": "A", "$patch": "delete"}]}]},
            ("containers", 0, "env"),
            [{"name": "B", "value": "2"}],
        ),
        (
            {"containers": [{"name": "runner", "env": [{"$patch": "replace"}, {"name": "Z", "value": "0"}]}]},
            ("containers", 0, "env"),
            [{"name": "Z", "value": "0"}],
        ),
        (
            {"containers": [{"name": "runner", "ports": [{"containerPort": 80, "protocol": "UDP"}]}]},
            ("containers", 0, "ports"),
            [{"containerPort": 80, "name": "web", "protocol": "UDP"}],
        ),
        (
            {"containers": [{"name": "runner", "volumeMounts": [{"name": "big", "mountPath": "/tmp"}]}]},
            ("containers", 0, "volumeMounts"),
            [{"name": "big", "mountPath": "/tmp"}],
        ),
        # A volume is a union: what the patch does not name goes.
        (
            {"volumes": [{"name": "tmp", "emptyDir": {"sizeLimit": "1Gi"}}]},
            ("volumes", 0),
            {"name": "tmp", "emptyDir": {"medium": "Memory", "sizeLimit": "1Gi"}},
        ),
        (
            {"volumes": [{"name": "tmp", "persistentVolumeClaim": {"claimName": "c"}}]},
            ("volumes", 0),
            {"name": "tmp", "persistentVolumeClaim": {"claimName": "c"}},
        ),
        ({"volumes": [{"name": "y"}, {"name": "tmp", "$patch": "delete"}]}, ("volumes", 1), {"name": "y"}),
        # What was not there is as the patch has it, without its directives.
        (
            {"affinity": {"nodeAffinity": {"a": [{"$patch": "x", "b": 1, "c": None}]}}},
            ("affinity", "nodeAffinity", "a"),
            [{"b": 1}],
        ),
        ({"initContainers": [{"name": "i", "env": [{"name": "A"}]}]}, ("initContainers", 0, "env"), [{"name": "A"}]),
    ],
)
def test_merges_as_kubernetes_does(patch: dict[str, Any], path: tuple[Any, ...], expected: Any) -> None:
    """Each rule of a strategic merge patch, on the field it matters for; nothing else changes, and no argument does."""
    base, before = copy.deepcopy(BASE), copy.deepcopy(patch)
    value: Any = merge_pod_spec(base, patch)
    for key in path:
        value = value[key]
    assert value == expected
    assert base == BASE
    assert patch == before
    untouched = {key: value for key, value in BASE.items() if key != path[0]}
    assert untouched.items() <= merge_pod_spec(base, patch).items()


def test_a_mapping_can_be_removed() -> None:
    """`$patch: delete` in a mapping takes its key away."""
    assert "nodeSelector" not in merge_pod_spec(BASE, {"nodeSelector": {"$patch": "delete"}})


names = st.sampled_from(["runner", "a", "b"])
entries = st.lists(
    st.fixed_dictionaries({"name": names, "image": st.sampled_from(["x:1", "y:2"])}),
    unique_by=lambda item: item["name"],
)
specs = st.fixed_dictionaries(
    {}, optional={"containers": entries, "nodeSelector": st.dictionaries(names, names), "hostname": names}
)


@given(specs, specs)
def test_a_patch_holds_and_holds_again(base: dict[str, Any], patch: dict[str, Any]) -> None:
    """After a merge the patch is there; merging it again, or an empty one, changes nothing."""
    merged = merge_pod_spec(base, patch)
    assert merge_pod_spec(merged, patch) == merged
    assert merge_pod_spec(merged, {}) == merged
    for container in patch.get("containers", []):
        assert container in merged["containers"]
    assert {item["name"] for item in merged.get("containers", [])} == {
        item["name"] for spec in (base, patch) for item in spec.get("containers", [])
    }


def test_merge_keys_are_those_of_kubernetes() -> None:
    """The generated Python client does not carry patchMergeKey, so that the table at least names fields that exist."""
    from kubernetes.client import V1Container, V1PodSpec

    for path in MERGE_KEYS:
        owner = V1PodSpec if len(path) == 1 else V1Container
        assert path[-1] in owner.attribute_map.values(), path
