"""Holds each plan to its guarantee under attacking inputs, judged by exact arithmetic."""

from __future__ import annotations

from quantplan.verify.cover import STRENGTH
from quantplan.verify.report import Coverage, PlanReport, VerifyReport
from quantplan.verify.runner import verify

__all__ = ["STRENGTH", "Coverage", "PlanReport", "VerifyReport", "verify"]
