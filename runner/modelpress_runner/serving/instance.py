"""One instance of a benchmark: a process of its own, on cores of its own, that times calls of a file.

It is told what to do in JSON as its one argument, and says in lines of JSON: `ready`, then, told to go on, how far it
is, and at last what it measured. Started by `modelpress benchmark`.
"""

from __future__ import annotations

import gc
import json
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

from modelpress_runner.errors import RunnerError

_EVERY = 0.5  # seconds between two words about how far it is


def main(text: str) -> int:
    """Runs the instance; the exit code."""
    asked: dict[str, Any] = json.loads(text)
    cores = set(asked["cores"])
    os.sched_setaffinity(0, cores)  # before a runtime starts threads, which inherit it
    try:
        return _run(asked, cores)
    except RunnerError as error:
        _say({"state": "error", "message": str(error)})
        return 2


def _run(asked: dict[str, Any], cores: set[int]) -> int:
    from modelpress_runner.serving.inputs import batch_of, random_feed, user_rows
    from modelpress_runner.serving.session import open_session

    session = open_session(Path(asked["path"]), len(cores))
    rows = asked["batchSize"]
    if asked["data"] is None:
        feed, batches = random_feed(session.signature, rows, asked["seed"]), 1
    else:
        feed = user_rows(Path(asked["data"]), session.signature)
        length = len(next(iter(feed.values())))
        batches = min(asked["iterations"], -(-length // rows))
    calls = [batch_of(feed, number, rows) if asked["data"] is not None else feed for number in range(batches)]
    for number in range(max(asked["warmup"], 1)):
        session.run(calls[number % batches])
    _say({"state": "ready", "runtime": session.runtime, "call": session.signature.described()})
    if not sys.stdin.readline():
        return 0  # whoever started us has gone
    took: list[int] = []
    gc.collect()
    gc.disable()
    began = told = time.perf_counter_ns()
    for number in range(asked["iterations"]):
        given = calls[number % batches]
        start = time.perf_counter_ns()
        session.run(given)
        end = time.perf_counter_ns()
        took.append(end - start)
        if end - told > _EVERY * 1e9:
            _say({"state": "running", "done": len(took)})
            told = end
    seconds = (time.perf_counter_ns() - began) / 1e9
    done = {"state": "done", "nanoseconds": took, "seconds": seconds, "cores": sorted(_allowed())}
    if asked["metric"] is not None:
        from modelpress_runner.serving.accuracy import measured

        done["value"] = measured(session, Path(asked["data"]), asked["metric"], rows)
    _say(done)
    return 0


def _allowed() -> set[int]:
    """The cores that threads of this process may run on, as the kernel says."""
    found: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        text = (task / "status").read_text()
        listed = re.search(r"^Cpus_allowed_list:\s*(\S+)", text, re.MULTILINE)
        for part in listed.group(1).split(",") if listed else ():
            first, _, last = part.partition("-")
            found |= set(range(int(first), int(last or first) + 1))
    return found


def _say(what: dict[str, Any]) -> None:
    print(json.dumps(what), flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
