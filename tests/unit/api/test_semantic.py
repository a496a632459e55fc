"""Semantic problems: what single files of the corpus cannot show."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelpress.api.errors import Problem
from modelpress.api.search_space import Dimension
from modelpress.api.search_space_values import probes
from modelpress.api.semantic import job_problems, sweep_problems
from modelpress.api.semantic_locations import mount_path
from modelpress.api.semantic_runner import quantity
from modelpress.api.v1alpha1 import CompressionJobSpec, CompressionSweepSpec, FloatRange, IntRange, Parameter, Store

PRUNE = {"prune": {"configList": [{"opTypes": ["Conv2d"], "sparsity": 0.5}]}}


def job(*stages: Any, **spec: Any) -> CompressionJobSpec:
    model = spec.pop("model", {"entrypoint": "digits:create"})
    return CompressionJobSpec.model_validate({"model": model, "stages": list(stages) or [PRUNE], **spec})


def sweep(*space: dict[str, Any], template: CompressionJobSpec | None = None, **spec: Any) -> CompressionSweepSpec:
    data = {
        "template": {"spec": (template or job()).to_dict()},
        "searchSpace": list(space),
        "objectives": [{"metric": "default"}],
        "maxTrials": 4,
    }
    return CompressionSweepSpec.model_validate({**data, **spec})


def prune(*entries: dict[str, Any], **settings: Any) -> dict[str, Any]:
    return {"prune": {"configList": list(entries), **settings}}


def parameter(**data: Any) -> Parameter:
    return Parameter.model_validate({"name": "p", "paths": ["/seed"], **data})


def paths(problems: list[Problem]) -> list[str]:
    return [problem.path for problem in problems]


@pytest.mark.parametrize(
    "entries",
    [
        ({"opTypes": ["Conv2d"], "sparsity": 0.5}, {"opNames": ["conv1"], "algorithm": "l2"}),
        ({"opTypes": ["Conv2d"], "algorithm": "l2"}, {"opTypes": ["Conv2d"], "sparsity": 0.5}),
        ({"opNames": ["layer1.conv"], "algorithm": "l2"}, {"opNamesRe": [r"layer\d\..*"], "sparsity": 0.5}),
        ({"opTypes": ["default"], "sparsity": 0.5}, {"opTypes": ["Linear"], "algorithm": "l2"}),
    ],
)
def test_entries_that_overlap_share_a_sparsity(entries: tuple[dict[str, Any], ...]) -> None:
    """Entries override each other field by field, so an entry may take its sparsity from one that may overlap it."""
    assert job_problems(job(prune(*entries))) == []


@pytest.mark.parametrize(
    "entries",
    [
        ({"opTypes": ["Conv2d"], "sparsity": 0.5}, {"opTypes": ["Linear"]}),
        ({"opNames": ["a"], "sparsity": 0.5}, {"opNames": ["b"]}),
        ({"opNames": ["a"], "opNamesRe": ["x.*"], "sparsity": 0.5}, {"opNames": ["b"]}),
    ],
)
def test_entries_that_cannot_overlap_need_their_own(entries: tuple[dict[str, Any], ...]) -> None:
    """Disjoint types or names cannot lend a sparsity; the default of the stage can."""
    assert paths(job_problems(job(prune(*entries)))) == ["spec.stages[0].prune.configList[1].sparsity"]
    assert job_problems(job(prune(*entries, sparsity=0.3))) == []


def test_level_may_stand_beside_a_structured_algorithm() -> None:
    """A speed-up needs one structured entry, not all of them."""
    mixed = prune(
        {"opTypes": ["Linear"], "sparsity": 0.5, "algorithm": "level"}, {"opTypes": ["Conv2d"], "sparsity": 0.2}
    )
    assert job_problems(job(mixed)) == []
    only = prune({"sparsity": 0.5, "algorithm": "level"}, {"exclude": True, "opNames": ["a"]})
    assert paths(job_problems(job(only))) == ["spec.stages[0].prune.shrink"]


def test_entries_with_fewer_rounds_are_fine() -> None:
    """An entry may reach its target before the stage ends."""
    entry = {"sparsity": 0.5, "schedule": {"type": "linear", "rounds": 2}}
    assert job_problems(job(prune(entry, schedule={"type": "agp", "rounds": 3}))) == []


def test_regular_expressions_that_warn_are_accepted() -> None:
    """A pattern that Python only warns about is no problem, and the warning reaches nobody."""
    assert job_problems(job(prune({"opNamesRe": ["[[a]b.*"], "sparsity": 0.5}))) == []


def test_bounds_on_both_sides_are_fine() -> None:
    """A metric may be kept between two bounds, and bounds of different kinds do not compare."""
    constraints = [
        {"metric": "default", "min": 0.9},
        {"metric": "default", "max": 0.9},
        {"metric": "default", "minRatio": 2},
        {"metric": "macs", "maxRatio": 0.5},
    ]
    assert job_problems(job(constraints=constraints)) == []


def test_cluster_problems_are_told_only_when_asked() -> None:
    """What works on one machine is NotOnCluster, never InvalidSpec."""
    spec = job(
        model={"entrypoint": "a:b", "weights": {"uri": "weights/digits.pt"}},
        code={"path": "."},
        store={"uri": "memory://"},
    )
    assert job_problems(spec) == []
    problems = job_problems(spec, cluster=True)
    assert paths(problems) == ["spec.code.path", "spec.store.uri", "spec.model.weights.uri"]
    assert {problem.reason for problem in problems} == {"NotOnCluster"}


def test_local_data_is_not_on_cluster() -> None:
    """Relative paths of data and of a pretrained model are; absolute ones may be in the image, hf:// is anywhere."""
    model = {"huggingFace": {"source": {"uri": "model"}, "task": "causal-lm"}}
    data = {
        "train": {"uri": "train.csv"},
        "validation": {"uri": "/data/val.csv"},
        "calibration": {"uri": "memory://a/b.csv"},
    }
    spec = job(model=model, data=data, store={"uri": "s3://models/out"})
    assert job_problems(spec) == []
    problems = job_problems(spec, cluster=True)
    assert {(problem.path, problem.reason) for problem in problems} == {
        ("spec.data.train.uri", "NotOnCluster"),
        ("spec.data.calibration.uri", "NotOnCluster"),
        ("spec.model.huggingFace.source.uri", "NotOnCluster"),
    }
    hub = {"huggingFace": {"source": {"uri": "hf://org/name"}, "task": "causal-lm"}}
    assert job_problems(job(model=hub, store={"uri": "s3://models/out"}), cluster=True) == []


@pytest.mark.parametrize("uri", ["./out", "/data/out", "file:///data/out", "memory://x"])
def test_local_stores_are_not_on_cluster(uri: str) -> None:
    """Whatever dies with the pod is no store for a cluster."""
    assert paths(job_problems(job(store={"uri": uri}), cluster=True)) == ["spec.store.uri"]


@pytest.mark.parametrize("uri", ["s3://b/x", "gs://b", "az://c/x"])
def test_object_stores_are_on_cluster(uri: str) -> None:
    """Buckets outlive pods; so may weights at an absolute path, which an image can hold."""
    model = {"entrypoint": "a:b", "weights": {"uri": "/models/digits.pt"}}
    assert job_problems(job(store={"uri": uri}, model=model), cluster=True) == []
    assert paths(job_problems(job(), cluster=True)) == ["spec.store"]


def test_volumes_make_a_folder_outlive_its_pod() -> None:
    """A file:// store is on a cluster if it lies on a volume claim; so is code that comes with the pod."""
    store = {"uri": "file:///models/out", "volumeClaim": {"name": "models"}}
    assert job_problems(job(store=store, code={"path": ".", "configMap": {"name": "a"}}), cluster=True) == []
    problems = job_problems(job(store={"uri": "file:///models/out"}), cluster=True)
    assert [problem.fix for problem in problems] == ["use s3://, gs:// or az://, or add volumeClaim"]
    archive = {"source": {"uri": "code/a.tar.gz", "sha256": "0" * 64}}
    assert paths(job_problems(job(store=store, code=archive), cluster=True)) == ["spec.code.source.uri"]


@pytest.mark.parametrize(
    ("uri", "mounted"),
    [
        ("file:///models/out", "/models/out"),
        ("file://localhost/models/out/", "/models/out"),
        ("file:///models/../data%20sets", "/data sets"),
    ],
)
def test_volumes_are_mounted_where_the_uri_points(uri: str, mounted: str) -> None:
    """The path of a file:// URI is the folder in the pod, decoded and without detours."""
    assert mount_path(Store(uri=uri)) == mounted


@pytest.mark.parametrize("folder", ["/", "/etc/x", "/workspace", "/var", "/usr/../tmp", "/a:b"])
def test_volumes_hide_nothing_that_a_pod_needs(folder: str) -> None:
    """A volume is mounted neither over nor around the folders of the image and of modelpress."""
    store = {"uri": f"file://{folder}", "volumeClaim": {"name": "models"}}
    assert paths(job_problems(job(store=store))) == ["spec.store.uri"]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("2", "2"),
        ("500m", "0.5"),
        ("1.5Gi", "1610612736"),
        ("3k", "3000"),
        ("2Ki", "2048"),
        ("1E", "1e18"),
        ("7n", "7e-9"),
    ],
)
def test_quantities(text: str, number: str) -> None:
    """Units are powers of 1000, those with an i of 1024."""
    assert quantity(text) == Decimal(number)


def test_requests_are_compared_as_numbers() -> None:
    """1000m is one core; a device may be requested as long as the limit says the same."""
    resources = {
        "requests": {"cpu": "1000m", "memory": "1Gi", "amd.com/gpu": 1},
        "limits": {"cpu": 1, "memory": "1024Mi", "amd.com/gpu": "1"},
    }
    assert job_problems(job(runner={"resources": resources})) == []


@pytest.mark.parametrize(
    ("spec", "path"),
    [
        ({"volumes": "data"}, "volumes"),
        ({"volumes": [{"emptyDir": {}}]}, "volumes[0]"),
        ({"containers": [{"name": "runner", "env": {"A": "b"}}]}, "containers[0].env"),
        ({"containers": [{"name": "runner", "env": [{"value": "b"}]}]}, "containers[0].env[0]"),
        ({"containers": [{"name": "runner", "securityContext": []}]}, "containers[0].securityContext"),
        ({"initContainers": [{"name": "runner"}]}, "initContainers[0].name"),
        ({"securityContext": "none"}, "securityContext"),
        ({"securityContext": {"sysctls": []}}, "securityContext.sysctls"),
        ({"securityContext": {"seccompProfile": {"type": "Unconfined"}}}, "securityContext.seccompProfile"),
        ({"securityContext": {"seLinuxOptions": {"type": "spc_t"}}}, "securityContext.seLinuxOptions"),
        (
            {"initContainers": [{"name": "a", "securityContext": {"procMount": "Unmasked"}}]},
            "initContainers[0].securityContext.procMount",
        ),
        ({"affinity": {"$patch": "remove"}}, "affinity.$patch"),
        ({"tolerations": [{"$setElementOrder/x": []}]}, "tolerations[0].$setElementOrder/x"),
    ],
)
def test_pod_templates(spec: dict[str, Any], path: str) -> None:
    """What cannot be merged, and what a restricted pod cannot have, has one problem at its place."""
    problems = job_problems(job(runner={"podTemplate": {"spec": spec}}))
    assert paths(problems) == [f"spec.runner.podTemplate.spec.{path}"]


@pytest.mark.parametrize(
    "spec",
    [
        {"hostUsers": True, "hostNetwork": False, "containers": [{"name": "other", "$patch": "delete"}]},
        {"securityContext": {"seccompProfile": {"type": "Localhost", "localhostProfile": "a.json"}}},
        {"securityContext": {"seLinuxOptions": {"level": "s0:c123,c456"}, "fsGroup": 0, "supplementalGroups": [1]}},
        {"containers": [{"name": "runner", "securityContext": {"readOnlyRootFilesystem": False}}]},
        {"volumes": [{"name": "tmp", "$patch": "delete"}, {"name": "d", "csi": {"driver": "x"}}]},
    ],
)
def test_pod_templates_within_restricted(spec: dict[str, Any]) -> None:
    """What PodSecurity restricted allows may be said."""
    assert job_problems(job(runner={"podTemplate": {"spec": spec}})) == []


def test_cluster_problems_of_a_template_have_its_path() -> None:
    """A sweep tells its template's problems where they are, also when its parameters are sound."""
    space = {"name": "seed", "paths": ["/seed"], "int": {"min": 0, "max": 3}}
    problems = sweep_problems(sweep(space), cluster=True)
    assert [(problem.path, problem.reason) for problem in problems] == [("spec.template.spec.store", "NotOnCluster")]
    assert sweep_problems(sweep(space)) == []


@pytest.mark.parametrize(
    ("domain", "greatest"),
    [
        (FloatRange(min=0.1, max=0.9, step=0.1), 0.9),
        (FloatRange(min=0.1, max=1.0, step=0.25), 0.85),
        (FloatRange(min=0.1, max=0.5), 0.5),
        (FloatRange(min=0.0, max=1e-3, step=3e-4), 9e-4),
        (IntRange(min=1, max=10, step=4), 9),
        (IntRange(min=-3, max=2), 2),
    ],
)
def test_last_value_of_a_range(domain: FloatRange | IntRange, greatest: float) -> None:
    """Steps are counted in decimals, so 0.1 + 8 * 0.1 is 0.9, and the last step may lie below max."""
    assert Dimension("x", domain).greatest == greatest


def test_probes_are_the_outermost_values() -> None:
    """Both ends of a range, once if they are one; every categorical value."""
    assert [(p.value, p.where) for p in probes(parameter(int={"min": 1, "max": 10, "step": 4}))] == [
        (1, "int.min"),
        (9, "int.max"),
    ]
    assert [p.value for p in probes(parameter(float={"min": 0.5, "max": 0.5}))] == [0.5]
    assert [p.where for p in probes(parameter(categorical={"values": ["a", True]}))] == [
        "categorical.values[0]",
        "categorical.values[1]",
    ]


@pytest.mark.parametrize(
    ("domain", "value", "answer"),
    [
        ({"categorical": {"values": [1, "a", True]}}, 1.0, True),
        ({"categorical": {"values": [1, "a"]}}, True, False),
        ({"int": {"min": 1, "max": 9, "step": 4}}, 5, True),
        ({"int": {"min": 1, "max": 9, "step": 4}}, 6, False),
        ({"int": {"min": 1, "max": 9}}, 2.5, False),
        ({"int": {"min": 0, "max": 1}}, True, False),
        ({"float": {"min": 0.1, "max": 0.9, "step": 0.1}}, 0.3, True),
        ({"float": {"min": 0.1, "max": 0.9, "step": 0.1}}, 0.35, False),
        ({"float": {"min": 0.1, "max": 0.9}}, 0.35, True),
        ({"float": {"min": 0.1, "max": 0.9}}, "0.35", False),
        ({"float": {"min": 0.1, "max": 0.9}}, 0.95, False),
    ],
)
def test_can_take(domain: dict[str, Any], value: Any, answer: bool) -> None:
    """1 and 1.0 are one value, 1 and true are two; steps are exact in decimals."""
    assert Dimension.of(parameter(**domain)).contains(value) is answer


def test_values_are_judged_with_the_values_that_they_depend_on() -> None:
    """rounds: 5 is invalid beside one_shot; it is a problem only where no agp can be beside it."""
    kind = {"name": "type", "paths": ["/stages/0/prune/schedule/type"], "categorical": {"values": ["one_shot", "agp"]}}
    rounds = {"name": "rounds", "paths": ["/stages/0/prune/schedule/rounds"], "int": {"min": 2, "max": 5}}
    assert sweep_problems(sweep(kind, {**rounds, "when": {"type": ["agp"]}})) == []
    assert paths(sweep_problems(sweep(kind, {**rounds, "when": {"type": ["one_shot"]}}))) == [
        "spec.searchSpace[0].categorical.values[0]",
        "spec.searchSpace[1].int.min",
        "spec.searchSpace[1].int.max",
    ]
    # Unconditional, one_shot never finds a valid partner, as rounds is always above 1.
    assert paths(sweep_problems(sweep(kind, rounds))) == ["spec.searchSpace[0].categorical.values[0]"]


def test_conditions_in_a_chain() -> None:
    """A parameter two conditions deep is judged with both of them met."""
    template = job(prune({"sparsity": 0.5}), speedup := {"finetune": {"epochs": 1}})
    assert speedup
    space = [
        {"name": "a", "paths": ["/model/entrypoint"], "categorical": {"values": ["m:one", "m:two"]}},
        {
            "name": "b",
            "paths": ["/stages/0/prune/algorithm"],
            "categorical": {"values": ["l1", "l2"]},
            "when": {"a": ["m:two"]},
        },
        {"name": "c", "paths": ["/stages/1/finetune/epochs"], "int": {"min": 0, "max": 4}, "when": {"b": ["l2"]}},
    ]
    problems = sweep_problems(sweep(*space, template=template))
    assert paths(problems) == ["spec.searchSpace[2].int.min"]
    assert "0 does not suit spec.template.spec.stages[1].finetune.epochs: must be at least 1" in problems[0].message


def test_a_value_that_repairs_the_template_is_no_problem_of_the_template() -> None:
    """A level template with speed-up is wrong by itself, but every trial sets a structured algorithm."""
    template = job(prune({"sparsity": 0.5}, algorithm="level"))
    space = {"name": "a", "paths": ["/stages/0/prune/algorithm"], "categorical": {"values": ["l1", "l2"]}}
    assert paths(job_problems(template)) == ["spec.stages[0].prune.shrink"]
    assert sweep_problems(sweep(space, template=template)) == []


def test_one_parameter_with_two_paths_names_the_field_that_refuses() -> None:
    """A value that suits the first field but not the second is reported with the second."""
    space = {"name": "p", "paths": ["/seed", "/stages/0/prune/schedule/rounds"], "int": {"min": 0, "max": 1}}
    problems = sweep_problems(sweep(space))
    assert paths(problems) == ["spec.searchSpace[0].int.min"]
    assert (
        "0 does not suit spec.template.spec.stages[0].prune.schedule.rounds: must be at least 1" in problems[0].message
    )


def test_conditions_in_a_circle_are_told_and_end() -> None:
    """Parameters that wait for each other are reported; nothing loops."""
    space = [
        {"name": "a", "paths": ["/seed"], "int": {"min": 1, "max": 2}, "when": {"b": [1]}},
        {"name": "b", "paths": ["/seed"], "int": {"min": 1, "max": 2}, "when": {"a": [1]}},
    ]
    problems = sweep_problems(sweep(*space))
    assert paths(problems) == ["spec.searchSpace[0].when.b", "spec.searchSpace[1].paths[0]"]


def test_large_spaces_are_judged_with_bounded_effort() -> None:
    """8 parameters of 256 values, all of them impossible together, still give an answer."""
    names = [f"p{i}" for i in range(8)]
    args = dict.fromkeys(names, 0)
    template = job(prune({"sparsity": 0.5}, algorithm="level"), model={"entrypoint": "a:b", "args": args})
    space = [
        {"name": name, "paths": [f"/model/args/{name}"], "categorical": {"values": list(range(256))}} for name in names
    ]
    assert paths(sweep_problems(sweep(*space, template=template))) == ["spec.template.spec.stages[0].prune.shrink"]


@pytest.mark.parametrize("order", [1, -1])
def test_nested_pointers_are_told_in_either_order(order: int) -> None:
    """Whether the outer or the inner field comes first, the overlap is the only problem, and nothing breaks."""
    space = [
        {"name": "a", "paths": ["/stages/0/prune/schedule"], "categorical": {"values": ["x"]}},
        {"name": "b", "paths": ["/stages/0/prune/schedule/rounds"], "int": {"min": 1, "max": 2}},
    ]
    problems = sweep_problems(sweep(*space[::order]))
    assert paths(problems) == ["spec.searchSpace[1].paths[0]"]


def test_an_argument_takes_any_value_but_not_any_name() -> None:
    """Arguments are the entrypoint's business; what can never be a keyword is told once, not for each value."""
    template = job(model={"entrypoint": "a:b", "args": {}})
    space = {"name": "p", "paths": ["/model/args/a b"], "categorical": {"values": [1, "x", True]}}
    problems = sweep_problems(sweep(space, template=template))
    assert paths(problems) == ["spec.searchSpace[0].categorical.values[0]"]
    assert "'a b' cannot be the name of a keyword argument" in problems[0].message


def test_every_problem_has_a_fix_and_one_line() -> None:
    """Whatever is wrong at once, each problem is one sentence with what to do."""
    template = job(
        prune({"sparsity": 0.5, "opNamesRe": ["("]}, algorithm="level"),
        metrics={"macs": {"goal": "minimize"}},
        store={"uri": "ftp://x", "region": "eu"},
        constraints=[{"metric": "speedup", "maxRelativeLoss": 0.1}],
        suspend=True,
    )
    space = {"name": "a", "paths": ["/store/uri", "/nowhere/else"], "categorical": {"values": ["x"]}}
    problems = sweep_problems(sweep(space, template=template, objectives=[{"metric": "macs", "goal": "maximize"}]))
    assert len(problems) >= 9
    for problem in problems:
        assert problem.path.startswith("spec.")
        assert problem.fix
        assert "\n" not in str(problem)


POINTERS = [
    "/seed",
    "/stages/0/prune/algorithm",
    "/stages/0/prune/schedule",
    "/stages/0/prune/schedule/rounds",
    "/stages/0/prune/schedule/type",
    "/stages/0/prune/configList/0/sparsity",
    "/stages/0/prune/configList/0/exclude",
    "/stages/0/prune/configList",
    "/stages/1",
    "/model",
    "/model/args/x",
    "/target/format",
    "/",
]
VALUES = st.sampled_from(["l1", "level", "agp", "one_shot", 0, 1, 3, 0.5, 1.5, True, False])
DOMAINS = st.one_of(
    st.lists(VALUES, min_size=1, max_size=3, unique_by=lambda value: (isinstance(value, bool), value)).map(
        lambda values: {"categorical": {"values": values}}
    ),
    st.sampled_from([{"int": {"min": 0, "max": 4, "step": 2}}, {"float": {"min": 0.1, "max": 0.9}}]),
)
SPACES = st.lists(
    st.tuples(
        st.sampled_from("abc"),
        st.lists(st.sampled_from(POINTERS), min_size=1, max_size=2),
        DOMAINS,
        st.none() | st.dictionaries(st.sampled_from("abc"), st.lists(VALUES, min_size=1, max_size=2), min_size=1),
    ),
    min_size=1,
    max_size=3,
)


@settings(deadline=None)
@given(SPACES, st.sampled_from(["grid", "tpe"]))
def test_any_search_space_gets_an_answer(space: list[Any], algorithm: str) -> None:
    """However parameters, pointers and conditions are combined, the answer is a list of problems with fixes."""
    parameters = [
        {"name": name, "paths": found, **domain, **({"when": when} if when else {})}
        for name, found, domain, when in space
    ]
    for problem in sweep_problems(sweep(*parameters, algorithm={"name": algorithm}), cluster=True):
        assert problem.path.startswith("spec.")
        assert problem.fix
