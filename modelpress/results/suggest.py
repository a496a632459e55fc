"""Answers a question of a search whose sampler imports torch, in a process that may: purpose `suggest` of a runner."""

from __future__ import annotations

from pydantic import ValidationError

from modelpress.api.v1alpha1 import CompressionSweepSpec, reasons
from modelpress.request import RunRequest
from modelpress.result import RunResult, SuggestedPoint
from modelpress.search.strategy import SearchStrategy, observation_of

from .errors import InvalidRequestError


def answer(request: RunRequest) -> RunResult:
    """The result with the point of the trial that is asked for. It depends on the question alone.

    Raises:
        InvalidRequestError: this is no question, another version of modelpress wrote it, or torch or scipy are missing.
    """
    asked = request.suggest
    if asked is None:
        raise InvalidRequestError(
            "a run that suggests needs to know for which trial; the controller that writes the request sets it"
        )
    try:
        sweep = asked.sweep | {"template": {"spec": request.spec.to_dict()}}
        strategy = SearchStrategy(CompressionSweepSpec.model_validate(sweep), torch=True)
        observations = [observation_of(told, asked.names) for told in asked.observations]
    except (ValidationError, ValueError, TypeError) as error:
        raise InvalidRequestError(
            f"the request holds no question of this version's ({error}); give spec.runner.image the operator's release"
        ) from None
    try:
        found = strategy.point(asked.number, observations)
    except ImportError as error:
        raise InvalidRequestError(
            f"algorithm gp needs torch and scipy where runners run ({error}); install both"
        ) from None
    values = None if found is None else [found.get(name) for name in asked.names]
    return RunResult(
        phase="Succeeded",
        reason=reasons.SUGGESTED,
        message=f"the parameters of trial {asked.number}",
        suggested=SuggestedPoint(history=asked.history, values=values),
    )
