"""A runner one release ahead of its controller: its results have keys that nobody here knows, and 20 more metrics."""

import json
import sys

from modelpress.result import RunResult
from modelpress_runner import fake_runner

FURTHER = [f"recall_at_{index:02d}_of_the_validation_split" for index in range(20)]
NEWER = {"peakMemory": {"trainBytes": 5}, "uncertain": ["speedup"]}


def newer(request: dict, result: dict) -> dict:
    """What a new runner makes of what the old one says."""
    if "compressed" in result:
        result["compressed"]["speedup"] = round(result["baseline"]["latencyMs"] / result["compressed"]["latencyMs"], 6)
    for side in ("baseline", "compressed"):
        if side in result:
            result[side] |= dict.fromkeys(FURTHER, 0.12345678901234567)
    text = RunResult.model_validate(result | {"message": "compressed " * 60}).to_message(request.get("keepMetrics", ()))
    assert len(text) <= 1024
    return json.loads(text) | NEWER


def wrapped(work):
    """That runner's answer, made newer."""
    return lambda request, folder: newer(request, work(request, folder))


if __name__ == "__main__":
    for name in ("trial", "prepare", "collect", "publish"):
        setattr(fake_runner, name, wrapped(getattr(fake_runner, name)))
    sys.exit(fake_runner.main())
