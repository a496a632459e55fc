"""How long the property tests of this folder search."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

_QUIET = {
    "deadline": None,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
}
settings.register_profile("reconcile", max_examples=30, stateful_step_count=50, derandomize=True, **_QUIET)
settings.register_profile("reconcile-deep", max_examples=2000, stateful_step_count=120, **_QUIET)

# MODELPRESS_HYPOTHESIS=reconcile-deep runs the long campaign.
PROFILE = settings.get_profile(os.environ.get("MODELPRESS_HYPOTHESIS", "reconcile"))
# Walks of a job, each from its own seed; there are a third as many of either kind of sweep.
WALKS = int(os.environ.get("MODELPRESS_WALKS", "120"))
