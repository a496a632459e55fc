"""The examples as `kubectl apply -f examples/<name>/` and `modelpress run` take them: one file for both."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from modelpress.api.semantic import job_problems
from modelpress.api.semantic_locations import not_on_cluster
from modelpress.api.v1alpha1 import CompressionSweep
from modelpress.local.plan import plan_run
from modelpress.local.sources import load_documents

ROOT = Path(__file__).resolve().parents[3]
CLUSTER = sorted(path.parent for path in (ROOT / "examples").glob("*/code.yaml"))
FILES = [path for folder in CLUSTER for path in sorted(folder.glob("*.yaml")) if path.name != "code.yaml"]


@pytest.fixture
def examples() -> ModuleType:
    """tools/examples.py."""
    spec = importlib.util.spec_from_file_location("modelpress_examples", ROOT / "tools" / "examples.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("folder", CLUSTER, ids=lambda path: path.name)
def test_the_config_map_holds_the_code_beside_it(folder: Path, examples: ModuleType) -> None:
    """code.yaml is what tools/examples.py writes, and its files are byte for byte the folder's."""
    text = (folder / "code.yaml").read_text()
    assert text == examples.manifest(folder)
    assert yaml.safe_load(text)["data"] == {path.name: path.read_text() for path in folder.glob("*.py")}


def test_changed_code_changes_the_config_map(tmp_path: Path, examples: ModuleType) -> None:
    """An edited Python file no longer fits; the comment above the ConfigMap stays."""
    folder = Path(shutil.copytree(ROOT / "examples" / "digits", tmp_path / "digits"))
    before = (folder / "code.yaml").read_text()
    with open(folder / "digits.py", "a") as file:
        file.write("\nMORE = 1\n")
    after = examples.manifest(folder)
    assert after != before
    assert after.splitlines()[0] == before.splitlines()[0] == "# The example on a cluster, code and all:"
    assert yaml.safe_load(after)["data"]["digits.py"].endswith("MORE = 1\n")


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_file_is_fit_for_a_pod_and_for_this_machine(path: Path, tmp_path: Path) -> None:
    """Every object that kubectl applies can run on a cluster, and modelpress runs the same file into a folder."""
    (document,) = load_documents(str(path))
    obj = document.obj
    spec = obj.spec.template.spec if isinstance(obj, CompressionSweep) else obj.spec
    assert [str(one) for one in (*job_problems(spec), *not_on_cluster(spec))] == []
    plan = plan_run(document, cwd=tmp_path)
    assert plan.problems == ()
    assert plan.store == str(tmp_path / "modelpress-runs")


def test_the_sweep_of_the_digits_has_eight_trials_or_more() -> None:
    """Fewer say little about parallel pods."""
    (document,) = load_documents(str(ROOT / "examples" / "digits" / "sweep.yaml"))
    assert isinstance(document.obj, CompressionSweep)
    assert document.obj.spec.max_trials >= 8
