"""What identifies a trial: read from the labels and annotations that it carries from its creation on."""

from __future__ import annotations

import json
from typing import Any

from modelpress.api.v1alpha1 import CompressionJob
from modelpress.trials import PARAMETERS_ANNOTATION, trial_number


def parameters_of(trial: CompressionJob) -> dict[str, Any]:
    """The trial's parameters; empty for a standalone job."""
    value = json.loads((trial.metadata.annotations or {}).get(PARAMETERS_ANNOTATION, "{}"))
    return value if isinstance(value, dict) else {}


def number_of(trial: CompressionJob) -> int | None:
    """The trial's number; None for a standalone job."""
    return trial_number(trial.metadata.labels)
