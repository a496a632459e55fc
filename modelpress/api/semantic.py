"""Semantic problems: what is wrong with a specification that its schema accepts, found without the model.

They come second: exit code 2 locally, `Stalled=True` with reason InvalidSpec or NotOnCluster on a cluster.
"""

from __future__ import annotations

from .semantic_job import job_problems
from .semantic_sweep import sweep_problems

__all__ = ["job_problems", "sweep_problems"]
