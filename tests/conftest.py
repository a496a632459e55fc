"""Shared by all tests: one thread per process, so that runs repeat and two workers fit on two cores."""

from __future__ import annotations

import os
import signal

from hypothesis import HealthCheck, settings

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

# Started in the background of a script, a test run inherits an ignored SIGINT, and so would every process that a test
# starts and interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Seeded, and without a clock: a busy machine is no defect.
settings.register_profile("modelpress", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("modelpress")
