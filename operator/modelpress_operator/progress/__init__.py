"""Progress of running trials: runners push it over HTTP, and it becomes status.progress and status.intermediate."""

from __future__ import annotations

from .keys import KeySet
from .message import Message, MessageError, parse
from .pods import CachedPods
from .server import ProgressServer
from .tokens import PodIdentity, TokenError, TokenVerifier
from .writes import StatusWrites

__all__ = [
    "CachedPods",
    "KeySet",
    "Message",
    "MessageError",
    "PodIdentity",
    "ProgressServer",
    "StatusWrites",
    "TokenError",
    "TokenVerifier",
    "parse",
]
