"""Lets the tests of this folder import their simulator, and names the profiles of its property tests."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from hypothesis import HealthCheck, settings

sys.path.insert(0, str(Path(__file__).parent))

_QUIET = {
    "deadline": None,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
}
settings.register_profile("reconcile", max_examples=30, stateful_step_count=50, derandomize=True, **_QUIET)
settings.register_profile("reconcile-deep", max_examples=2000, stateful_step_count=120, **_QUIET)

# MODELPRESS_HYPOTHESIS=reconcile-deep runs the long campaign.
PROFILE = settings.get_profile(os.environ.get("MODELPRESS_HYPOTHESIS", "reconcile"))
