"""The images of the Dockerfile, in pods that a restricted namespace admits."""

from __future__ import annotations

import json
import zlib

from running import Running

MB = 1_000_000


def test_the_runner_imports_torch_as_a_plain_user_on_a_read_only_root(cluster: Running, namespace: str) -> None:
    """The runner's image computes with torch under PodSecurity restricted."""
    program = "import os, torch; print(os.getuid(), float((torch.arange(4.0) * torch.ones(4)).sum()))"
    assert cluster.output(namespace, cluster.images["runner"], ["python", "-c", program]).split() == ["65532", "6.0"]


def test_the_runner_has_the_packages_of_every_evaluator(cluster: Running, namespace: str) -> None:
    """Lightning, Transformers, DeepSpeed and what reads their data import in the runner's image, as a plain user."""
    names = "lightning transformers accelerate deepspeed pyarrow"
    program = f"import {', '.join(names.split())}; print('imported')"
    output = cluster.output(namespace, cluster.images["runner"], ["python", "-c", program])
    assert output.split()[-1] == "imported"


def test_the_runner_can_fetch_code_from_git(cluster: Running, namespace: str) -> None:
    """The runner's image has what code.git needs, for https:// and for ssh://."""
    program = (
        "import shutil, subprocess; print(bool(shutil.which('ssh'))); subprocess.run(['git', '--version'], check=True)"
    )
    text = cluster.output(namespace, cluster.images["runner"], ["python", "-c", program])
    assert "True" in text
    assert "git version" in text


def test_the_runner_says_how_it_is_used(cluster: Running, namespace: str) -> None:
    """python -m modelpress_runner.main --help lists the options that the operator gives."""
    command = ["python", "-m", "modelpress_runner.main", "--help"]
    text = cluster.output(namespace, cluster.images["runner"], command)
    assert "--request" in text
    assert "--result" in text


def test_the_operator_has_no_torch(cluster: Running, namespace: str) -> None:
    """The operator's image has its own packages and the search's, and not the runner's."""
    program = (
        "import importlib.util as u, json; "
        "print(json.dumps({n: u.find_spec(n) is not None for n in "
        "('modelpress_operator', 'kopf', 'optuna', 'kubernetes', 'torch', 'torch_pruning', 'pip')}))"
    )
    found = json.loads(cluster.output(namespace, cluster.images["operator"], ["python", "-c", program]))
    assert found == {
        "modelpress_operator": True,
        "kopf": True,
        "optuna": True,
        "kubernetes": True,
        "torch": False,
        "torch_pruning": False,
        "pip": False,
    }


def test_the_operators_image_is_small(cluster: Running) -> None:
    """The operator's layers are small: below 150 MB compressed, as a registry keeps them, and below 300 MB unpacked."""
    compressed = 0
    for chunks in cluster.layers("operator"):
        packer = zlib.compressobj(1)
        compressed += sum(len(packer.compress(chunk)) for chunk in chunks) + len(packer.flush())
    assert 10 * MB < compressed < 150 * MB
    assert cluster.image_bytes["operator"] < 300 * MB
