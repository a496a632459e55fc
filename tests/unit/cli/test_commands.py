"""The commands besides `run`, as processes: what they print, what they exit with, and how little they load."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import modelpress

HEAVY = ("torch", "kopf", "kubernetes", "optuna")
JOB = """\
apiVersion: modelpress.dev/v1alpha1
kind: CompressionJob
metadata: {name: one}
spec:
  model: {entrypoint: 'digits:create'}
  code: {path: .}
  stages:
  - prune: {configList: [{opTypes: [Conv2d], sparsity: 0.5}]}
"""


def call(*words: str, cwd: Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run `modelpress ...` to its end."""
    environment = {**os.environ, "COLUMNS": "120", "NO_COLOR": "1"}
    return subprocess.run(
        (sys.executable, "-m", "modelpress.cli", *words),
        cwd=cwd,
        env=environment,
        input=stdin,
        text=True,
        capture_output=True,
        timeout=60,
        check=False,
    )


def test_version(tmp_path: Path) -> None:
    """--version prints the package's version."""
    done = call("--version", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"modelpress {modelpress.__version__}\n")


@pytest.mark.parametrize("command", [(), ("run",), ("validate",), ("convert",), ("crd",), ("report",)])
def test_help_has_an_example(tmp_path: Path, command: tuple[str, ...]) -> None:
    """Every command's help shows how it is used."""
    done = call(*command, "--help", cwd=tmp_path)
    assert done.returncode == 0
    assert "Example: modelpress " in re.sub(r"\s+", " ", done.stdout)


def test_completion_can_be_installed(tmp_path: Path) -> None:
    """Shell completion is on."""
    assert "--install-completion" in call("--help", cwd=tmp_path).stdout


def test_unknown_commands_are_usage_errors(tmp_path: Path) -> None:
    """Exit code 2 and a sentence."""
    done = call("rnu", cwd=tmp_path)
    assert done.returncode == 2
    assert "rnu" in done.stderr
    assert "Traceback" not in done.stderr


def test_valid_files_are_told_so(tmp_path: Path) -> None:
    """One line for each file, with the number of objects."""
    (tmp_path / "a.yaml").write_text(JOB)
    (tmp_path / "b.yaml").write_text(JOB + "---\n" + JOB.replace("one", "two"))
    done = call("validate", "a.yaml", "b.yaml", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "a.yaml: valid, 1 object\nb.yaml: valid, 2 objects\n")


def test_every_problem_of_every_file_is_told(tmp_path: Path) -> None:
    """File, line, field, what is wrong, what to do; a valid file among them is still called valid."""
    (tmp_path / "a.yaml").write_text(JOB.replace("sparsity", "sparsty"))
    (tmp_path / "b.yaml").write_text(JOB)
    (tmp_path / "c.yaml").write_text(JOB.replace("metadata: {name: one}", "metadata: {name: One}"))
    done = call("validate", "a.yaml", "b.yaml", "c.yaml", "d.yaml", cwd=tmp_path)
    assert done.returncode == 2
    first, second, third, fourth = done.stdout.splitlines()
    assert first.startswith("a.yaml:8: spec.stages[0].prune.configList[0].sparsty: unknown key 'sparsty'; did you mean")
    assert second == "b.yaml: valid, 1 object"
    assert third.startswith("c.yaml:3: metadata.name: must be ")
    assert fourth == "d.yaml: there is no such file; check the path"


def test_cluster_adds_what_no_pod_can_honour(tmp_path: Path) -> None:
    """code.path alone is fine on a laptop, not on a cluster; the line is that of the field."""
    (tmp_path / "a.yaml").write_text(JOB)
    assert call("validate", "a.yaml", cwd=tmp_path).returncode == 0
    done = call("validate", "--cluster", "a.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert re.search(r"^a\.yaml:6: spec\.code", done.stdout, re.MULTILINE)


def test_standard_input_is_validated_too(tmp_path: Path) -> None:
    """`-` reads standard input."""
    assert call("validate", "-", cwd=tmp_path, stdin=JOB).stdout == "-: valid, 1 object\n"
    done = call("validate", "-", cwd=tmp_path, stdin="kind: [")
    assert done.returncode == 2
    assert done.stdout.startswith("<stdin>:1: ")


def test_the_crds_are_one_stream_or_one_file_each(tmp_path: Path) -> None:
    """Both ways give the same two definitions."""
    stream = list(yaml.load_all(call("crd", cwd=tmp_path).stdout, Loader=yaml.CSafeLoader))
    assert [crd["spec"]["names"]["kind"] for crd in stream] == ["CompressionJob", "CompressionSweep"]
    done = call("crd", "--output", "out/crds", cwd=tmp_path)
    files = [tmp_path / line for line in done.stdout.splitlines()]
    assert [yaml.load(file.read_text(), Loader=yaml.CSafeLoader) for file in files] == stream


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    """One sentence, exit code 2."""
    (tmp_path / "file").write_text("")
    done = call("crd", "--output", "file/crds", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("modelpress: --output: cannot write into file/crds: ")


# How little is loaded ------------------------------------------------------------------------------------------------


def loaded_by(script: str, cwd: Path) -> set[str]:
    """The heavy packages that a fresh process has loaded after `script`."""
    ask = f"{script}\nimport sys\nprint('LOADED', *(n for n in {HEAVY!r} if n in sys.modules))"
    done = subprocess.run((sys.executable, "-c", ask), cwd=cwd, text=True, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split()[1:])


AS_COMMAND = """
import sys
from modelpress.cli import main
sys.argv = ['modelpress', *WORDS]
try:
    main()
except SystemExit as exit_:
    assert exit_.code in (0, None), exit_.code
"""


@pytest.mark.parametrize(
    "script",
    [
        "import modelpress",
        "import modelpress; dir(modelpress); modelpress.run",
        AS_COMMAND.replace("WORDS", "['--help']"),
        AS_COMMAND.replace("WORDS", "['run', '--help']"),
        AS_COMMAND.replace("WORDS", "['validate', 'a.yaml']"),
        AS_COMMAND.replace("WORDS", "['crd']"),
    ],
)
def test_nothing_heavy_is_loaded(tmp_path: Path, script: str) -> None:
    """Importing, help, validation and CRDs load none of torch, kopf, kubernetes, optuna."""
    (tmp_path / "a.yaml").write_text(JOB)
    assert loaded_by(script, tmp_path) == set()


def test_import_modelpress_loads_next_to_nothing(tmp_path: Path) -> None:
    """Not even pydantic, typer or rich."""
    script = "import modelpress, sys; assert not {'pydantic', 'typer', 'rich', 'yaml'} & set(sys.modules)"
    assert loaded_by(script, tmp_path) == set()
