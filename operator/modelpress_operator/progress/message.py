"""What a runner says of its progress."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import ConfigDict, Field, ValidationError

from modelpress.api.v1alpha1 import ApiModel
from modelpress.api.v1alpha1.base import Text
from modelpress.api.v1alpha1.job import Point
from modelpress.control_characters import escape_control_characters

MAX_BODY = 64 * 1024
MAX_POINTS = 64
MAX_STAGE = 1024  # characters of status.progress.stage


class MessageError(ValueError):
    """The body is no message; the text says what is wrong with it."""


class Message(ApiModel):
    """Where a run is, and its scores so far, by step."""

    # Runners of a later version may say more.
    model_config = ConfigDict(extra="ignore")

    stage: Text
    step: Annotated[int, Field(ge=0, le=2**53)]
    total: Annotated[int, Field(ge=0, le=2**53)] = 0
    points: Annotated[list[Point], Field(max_length=MAX_POINTS)] = Field(default_factory=list)

    def status(self, time: str) -> dict[str, Any]:
        """The part of a CompressionJob's status that this message is, said at `time` (RFC 3339)."""
        progress = {
            "stage": escape_control_characters(self.stage)[:MAX_STAGE],
            "step": self.step,
            "total": self.total,
            "time": time,
        }
        points = {point.step: point.to_dict() for point in self.points}
        return {"progress": progress, "intermediate": [points[step] for step in sorted(points)]}


def parse(body: bytes) -> Message:
    """The message in a body.

    Raises:
        MessageError: it is none, or beyond what a status takes.
    """
    try:
        return Message.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise MessageError(f"{where or 'the body'}: {first['msg']}") from None
    except RecursionError:
        raise MessageError("the body: nested too deeply") from None
