"""report.html of a sweep: one self-contained page with the plot of the front and a table of all trials."""

from __future__ import annotations

from .findings import Findings, findings
from .frame import Frame, ReportError, published_frame, standing_frame
from .page import render
from .refresh import refresh

__all__ = ["Findings", "Frame", "ReportError", "findings", "published_frame", "refresh", "render", "standing_frame"]
