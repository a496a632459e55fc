"""`modelpress warm-start`: what the trials of an earlier sweep found, as a search may begin with it."""

from __future__ import annotations

import math
import os

import yaml

from modelpress.api.v1alpha1.sweep import MAX_EARLIER
from modelpress.local.errors import LocalError, UsageError
from modelpress.results.trials import read_trials
from modelpress.store import StoreError, StoreUriError, open_store

from .exits import Exit


def warm_start(folder: str, *, endpoint: str | None, region: str | None) -> int:
    """Prints `warmStart`, which belongs under `spec.algorithm`, from a sweep's results; the exit code.

    Of a sweep with two rungs those of the second one count. More than MAX_EARLIER trials: the last ones.

    Raises:
        UsageError: this is no sweep's folder, or nothing in it succeeded.
        LocalError: the store refused or failed.
    """
    if "://" not in folder and not os.path.isdir(folder):
        raise UsageError(f"there is no folder {folder}; name a sweep's folder, <store>/<namespace>/<sweep>-<uid>")
    try:
        trials = read_trials(open_store(folder, endpoint=endpoint, region=region), "")
    except StoreUriError as error:
        raise UsageError(str(error)) from error
    except StoreError as error:
        raise LocalError(str(error)) from error
    done = [trial for trial in trials.values() if trial.state == "Succeeded" and trial.parameters]
    if any(trial.screened is not None for trial in done):
        done = [trial for trial in done if trial.screened is not None]
    if not done:
        raise UsageError(f"{folder} holds no trial that succeeded; name a sweep's folder, the one that holds trials/")
    found = {
        "baseline": _finite(done[-1].baseline),
        "trials": [
            {"parameters": trial.parameters, "metrics": _finite(trial.compressed)} for trial in done[-MAX_EARLIER:]
        ],
    }
    print(yaml.safe_dump({"warmStart": found}, sort_keys=False, width=200, default_flow_style=None), end="")
    return Exit.DONE


def _finite(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if math.isfinite(value)}
