"""A package adds a pruning method and a schedule by one file: recipes, validation, CRDs and the suite know them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from modelpress.api.messages import in_words
from modelpress.api.v1alpha1 import algorithms

CODE = Path(__file__).parent / "method"


def job(path: Path, **prune: Any) -> str:
    document: dict[str, Any] = {
        "apiVersion": "modelpress.dev/v1alpha1",
        "kind": "CompressionJob",
        "metadata": {"name": "quiet"},
        "spec": {
            "model": {"entrypoint": "quiet:create"},
            "code": {"path": str(CODE)},
            "stages": [
                {
                    "prune": {
                        "algorithm": "mean_magnitude",
                        "schedule": {"type": "root", "rounds": 2},
                        "scores": {"steps": 3},
                        "configList": [{"opNames": ["0"], "sparsity": 0.34}],
                        **prune,
                    }
                },
                {"finetune": {"epochs": 1}},
            ],
            "benchmark": {"warmup": 0, "iterations": 1},
        },
    }
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    return str(path)


def test_a_job_prunes_by_a_method_of_a_plugin(modelpress: Callable[..., Any], tmp_path: Path) -> None:
    """The two silent channels go, whose norms are the largest; the model is smaller by their weights, and proven."""
    done = modelpress("run", job(tmp_path / "job.yaml"), "--no-progress", plugin=CODE)
    assert done.returncode == 0, done.stderr
    manifest = json.loads(next(tmp_path.glob("modelpress-runs/default/quiet-*/manifest.json")).read_text())
    assert manifest["metrics"]["baseline"]["parameters"] == 24 + 14
    assert manifest["metrics"]["compressed"]["parameters"] == 16 + 10
    assert manifest["metrics"]["stages"][0]["algorithm"] == "mean_magnitude"
    shrunk = json.loads(next(tmp_path.glob("modelpress-runs/default/quiet-*/*/shrink.json")).read_text())
    assert [cut["kept"] for cut in shrunk["edits"]] == [[1, 3, 4, 5], [1, 3, 4, 5]]


def test_calibration_data_of_an_entrypoint_are_looked_at(modelpress: Callable[..., Any], tmp_path: Path) -> None:
    """In them the two channels are the loudest: they stay, and two others go."""
    path = job(tmp_path / "job.yaml")
    document = yaml.safe_load(Path(path).read_text())
    document["spec"]["model"]["args"] = {"calibration": True}
    Path(path).write_text(yaml.safe_dump(document))
    done = modelpress("run", path, "--no-progress", plugin=CODE)
    assert done.returncode == 0, done.stderr
    shrunk = json.loads(next(tmp_path.glob("modelpress-runs/default/quiet-*/*/shrink.json")).read_text())
    kept = {tuple(cut["kept"]) for cut in shrunk["edits"]}
    assert len(kept) == 1
    assert {0, 2} < set(*kept)


def test_validation_and_crd_know_it(modelpress: Callable[..., Any], tmp_path: Path) -> None:
    """Its row says that it looks at data and removes channels; the CRD made beside the plug-in lists both names."""
    done = modelpress("validate", job(tmp_path / "job.yaml"), plugin=CODE)
    assert done.returncode == 0, done.stdout
    wrong = job(tmp_path / "job.yaml", algorithm="mean_magnitdue", schedule={"type": "roots"})
    done = modelpress("validate", wrong, plugin=CODE)
    assert done.returncode == 2
    assert "did you mean mean_magnitude?" in done.stdout
    assert "did you mean root?" in done.stdout
    assert modelpress("crd", "--output", str(tmp_path), plugin=CODE).returncode == 0
    crd = yaml.safe_load((tmp_path / "modelpress.dev_compressionjobs.yaml").read_text())
    schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["stages"]
    prune = schema["items"]["properties"]["prune"]["properties"]
    assert prune["algorithm"]["enum"] == [*algorithms.names("prune"), "mean_magnitude"]
    assert prune["configList"]["items"]["properties"]["algorithm"]["enum"][-1] == "mean_magnitude"
    assert prune["schedule"]["properties"]["type"]["enum"] == ["one_shot", *algorithms.gradual(), "root"]
    rules = [rule["message"] for rule in prune["schedule"]["x-kubernetes-validations"]]
    assert rules == [f"one_shot has one round; set type to {', '.join(algorithms.gradual())} or root"]


def test_without_the_plugin_it_is_unknown(modelpress: Callable[..., Any], tmp_path: Path) -> None:
    """The shipped names are listed."""
    done = modelpress("validate", job(tmp_path / "job.yaml"), plugin=tmp_path)
    assert done.returncode == 2
    assert f"must be {in_words(algorithms.names('prune'))}, found" in done.stdout
    assert f"must be {in_words(['one_shot', *algorithms.gradual()])}, found" in done.stdout


def test_it_passes_the_shipped_suite(tmp_path: Path) -> None:
    """Three lines in a test module of the package; in a process of its own, for a row stays until the process ends."""
    (tmp_path / "test_mine.py").write_text(
        "import activation_plugin\n"
        "from modelpress_runner.testing.prune_methods import PruneMethodContract\n"
        "class TestMine(PruneMethodContract):\n"
        "    algorithm = 'mean_magnitude'\n"
    )
    code = f"import sys; sys.path.insert(0, {str(CODE)!r}); import pytest; sys.exit(pytest.main(sys.argv[1:]))"
    options = ("-q", "-p", "no:cacheprovider", "-c", "/dev/null", "--rootdir", ".")
    command = [sys.executable, "-c", code, *options, "test_mine.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout
    assert "20 passed, 3 skipped" in done.stdout  # it takes no convolutions


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The table, put back afterwards."""
    from modelpress.api.v1alpha1 import algorithms

    monkeypatch.setattr(algorithms, "_ALGORITHMS", dict(algorithms._ALGORITHMS))
    monkeypatch.setattr(algorithms, "_LISTENERS", [])
    return algorithms


def test_two_methods_of_one_name_are_refused(table: Any) -> None:
    """A name or alias that is taken, and a row that does not say where its object is."""
    row = table.Algorithm("mine", "prune", "channel", frozenset(), ("Linear",), "", "x", (), "mine:METHOD")
    table.register(row)
    table.register(row)
    for other in (replace(row, sentence="y"), replace(row, name="l1"), replace(row, name="a", aliases=("l1_norm",))):
        with pytest.raises(ValueError, match="there is a method of prune called"):
            table.register(other)
    with pytest.raises(ValueError, match="says where its object is"):
        table.register(replace(row, name="b", runner=""))
