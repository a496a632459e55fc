"""report.html of a sweep: one self-contained page with the plot of the front and a table of all trials."""

from __future__ import annotations

from .frame import Frame, ReportError, candidates, published_frame, standing_frame
from .page import render
from .refresh import refresh

__all__ = ["Frame", "ReportError", "candidates", "published_frame", "refresh", "render", "standing_frame"]
