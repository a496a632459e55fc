"""Errors of the results in a store."""

from __future__ import annotations


class ResultsError(Exception):
    """What stands in the store cannot be published or shown; the message says what to do."""


class InvalidRequestError(ResultsError):
    """The request lacks what it needs: exit code 2, never tried again."""
