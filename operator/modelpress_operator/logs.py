"""One JSON object per line on standard error, with the object that it is about."""

from __future__ import annotations

import contextlib
import contextvars
import datetime as dt
import json
import logging
import re
import sys
from collections.abc import Iterator
from typing import Any, TextIO

_about: contextvars.ContextVar[dict[str, Any] | None] = contextvars.ContextVar("about", default=None)
KEYS = ("controller", "namespace", "name", "uid", "generation", "attempt", "trial", "reconcile_id")


class JsonFormatter(logging.Formatter):
    """Keys: ts, level, logger, msg, and what about() and `extra` say of KEYS; error holds a traceback."""

    def format(self, record: logging.LogRecord) -> str:
        at = dt.datetime.fromtimestamp(record.created, dt.UTC)
        line: dict[str, Any] = {
            "ts": at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "msg": record.getMessage(),
        }
        about = dict(getattr(record, "about", None) or {})  # noted by AboutFilter
        about |= {key: getattr(record, key) for key in KEYS if key != "name" and hasattr(record, key)}
        line |= {key: about[key] for key in KEYS if about.get(key) is not None}
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)


_THROTTLED = re.compile(r"Request attempt \S+ failed; will retry: .* -> APITooManyRequestsError\(", re.DOTALL)


class AboutFilter(logging.Filter):
    """Notes on each record what it is about; never drops one."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.about = _about.get()
        return True


class ThrottledFilter(logging.Filter):
    """Makes kopf's errors about requests that it sends again, as a server that is busy asked it to, mere information.

    A CustomResourceDefinition that was created a moment ago is served with 429 until its storage is ready.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        if record.name.partition(".")[0] == "kopf" and _THROTTLED.match(record.getMessage()):
            record.levelno, record.levelname = logging.INFO, "INFO"
            return logging.getLogger().isEnabledFor(logging.INFO)
        return True


@contextlib.contextmanager
def about(**what: Any) -> Iterator[None]:
    """Everything logged inside carries these keys, threads started by asyncio.to_thread included."""
    token = _about.set({**(_about.get() or {}), **what})
    try:
        yield
    finally:
        _about.reset(token)


def configure(level: str, stream: TextIO | None = None) -> None:
    """Send all logging through one JSON handler. kopf and its libraries report warnings and worse only."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter())
    handler.addFilter(AboutFilter())
    handler.addFilter(ThrottledFilter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in ("kopf", "aiohttp.access", "kubernetes", "asyncio"):
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
