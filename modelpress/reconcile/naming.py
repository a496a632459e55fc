"""Names of children: a function of their owner's name and a number alone, so that creating one twice finds the first.

Job names are at most 63 characters. An attempt's name is the hostname of an Indexed Job's pods but for its index, so it
stays well below that with a name of 52 characters; only names that would still be too long are cut, with a digest.
"""

from __future__ import annotations

import hashlib

MAX_JOB_NAME = 63


def attempt_name(job: str, number: int) -> str:
    """Child Job of attempt `number` (from 1) of a CompressionJob: `digits-l1-1`."""
    return bounded(f"{job}-{number}")


def collect_name(job: str, number: int, round_: int = 1) -> str:
    """Job that reads the manifest of attempt `number`: `digits-l1-1-collect`, then `digits-l1-1-collect-2`."""
    return bounded(f"{job}-{number}-collect" + _again(round_))


def prepare_name(sweep: str, round_: int = 1) -> str:
    """Job that builds a sweep's dense model and baseline: `digits-sweep-prepare`, then `digits-sweep-prepare-2`."""
    return bounded(f"{sweep}-prepare" + _again(round_))


def publish_name(sweep: str, round_: int = 1) -> str:
    """Job that publishes a sweep's best: `digits-sweep-publish`, then `digits-sweep-publish-2`."""
    return bounded(f"{sweep}-publish" + _again(round_))


def suggest_name(sweep: str, number: int, round_: int = 1) -> str:
    """Job that is asked for the parameters of trial `number`: `search-suggest-7`, then `search-suggest-7-2`."""
    return bounded(f"{sweep}-suggest-{number}" + _again(round_))


def trial_name(sweep: str, number: int) -> str:
    """CompressionJob of trial `number` (from 0): `digits-sweep-00007`, at most 46 + 6 characters."""
    return f"{sweep}-{number:05d}"


def bounded(name: str, limit: int = MAX_JOB_NAME) -> str:
    """`name`, or its beginning and eight digits of its sha256 if it is longer than `limit` characters."""
    if len(name) <= limit:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{name[: limit - 9].rstrip('-')}-{digest}"


def _again(round_: int) -> str:
    return "" if round_ == 1 else f"-{round_}"
