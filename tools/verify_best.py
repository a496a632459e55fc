"""Recomputes the numbers of a sweep's best.json in this process, which loads the model with mp.load and nothing else,
and the parameters of every trial from the history that it recorded.

Usage: python tools/verify_best.py ROOT STATE DATA_FOLDER      exit 0: all equal; 1: not
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def replay_differences(state: Path) -> list[str]:
    """What replaying every trial's recorded history gives beyond its parameters; `state` is a local run's journal."""
    from modelpress.api.v1alpha1 import CompressionJob, CompressionSweep
    from modelpress.search import replay

    sweep = CompressionSweep.model_validate(json.loads((state / "object.json").read_text())["object"])
    files = sorted((state / "trials").glob("*.json"))
    trials = [CompressionJob.model_validate(json.loads(file.read_text())["object"]) for file in files]
    if len(trials) != sweep.spec.max_trials:
        return [f"{len(trials)} trials are recorded instead of {sweep.spec.max_trials}"]
    return replay(sweep.spec, trials)


def main(root: Path, state: Path, data_folder: Path) -> int:
    import modelpress as mp
    from modelpress_runner.measure.static import static_metrics

    best = json.loads((root / "best.json").read_text())
    model = mp.load(str(root / "best"))
    if "digits" in sys.modules:
        raise RuntimeError("mp.load imported the training script")
    sys.path.insert(0, str(data_folder))
    import digits

    _, _, images, labels = digits.load_data()
    recomputed = {"default": digits.accuracy(model, images, labels)}
    recomputed |= static_metrics(model, images[:1])
    recorded, baseline = best["metrics"]["compressed"], best["metrics"]["baseline"]
    wrong = [
        f"{name}: best.json says {recorded[name]}, recomputed {recomputed[name]}"
        for name in ("default", "parameters", "nonzeroParameters", "macs")
        if recorded[name] != recomputed[name]
    ]
    files = {path.name: path.stat().st_size for path in (root / "best").rglob("model.pt2")}
    if files["model.pt2"] != recorded["sizeBytes"]:
        wrong.append(f"sizeBytes: best.json says {recorded['sizeBytes']}, model.pt2 has {files['model.pt2']}")
    if recorded["macs"] > 0.5 * baseline["macs"]:
        wrong.append(f"macs: {recorded['macs']} is more than half of {baseline['macs']}")
    if recorded["default"] < 0.99 * baseline["default"]:
        wrong.append(f"default: {recorded['default']} lost more than 1 % of {baseline['default']}")
    wrong += replay_differences(state)
    for line in wrong:
        print(f"verify: {line}", file=sys.stderr)
    if not wrong:
        print(f"verify: trial {best['trial']} loaded in a fresh process gives the numbers of {root / 'best.json'};")
        print("verify: every trial's recorded history replays to its parameters")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:4])))
