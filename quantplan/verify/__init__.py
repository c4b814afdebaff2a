"""Holds each plan to its guarantee under attacking inputs, judged by exact arithmetic."""

from __future__ import annotations

from quantplan.verify.report import PlanReport, VerifyReport
from quantplan.verify.runner import verify

__all__ = ["PlanReport", "VerifyReport", "verify"]
