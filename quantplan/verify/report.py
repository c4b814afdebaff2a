"""VerifyReport: what was put to the test, as data."""

from __future__ import annotations

from typing import Any

import attrs

SCHEMA = 2
"""Version of the dictionaries that `VerifyReport.to_dict` writes."""


@attrs.frozen(kw_only=True)
class PlanReport:
    """How one SKU fared.

    Parameters
    ----------
    op : str
        Its operation.
    sku : str
        Its name.
    backend : str
        Who computed.
    cases : int
        Attacks that it was put through.
    mismatches : int
        Output elements that break the guarantee: other bits than the contract's, or further off than the error bound.
    worst_fraction : float, optional
        Largest observed error as a fraction of the bound; None where bits are compared.
    """

    op: str
    sku: str
    backend: str
    cases: int
    mismatches: int
    worst_fraction: float | None


@attrs.frozen(kw_only=True)
class Coverage:
    """How much of an op was put to the test.

    Parameters
    ----------
    op : str
        The operation.
    skus : int
        How many SKUs there were to choose from: all that the target runs, or those of given problems.
    attacked : int
        How many of them were put to the test.
    rule : str
        How they were chosen.
    """

    op: str
    skus: int
    attacked: int
    rule: str


@attrs.frozen(kw_only=True)
class VerifyReport:
    """The SKUs of a target that were put to the test, and every sentence there is to say against one.

    Parameters
    ----------
    target : str
        What was tested.
    plans : tuple[PlanReport, ...]
        One per SKU, in the order of the ops' catalogues.
    problems : tuple[str, ...]
        What is wrong; empty when every guarantee held.
    coverage : tuple[Coverage, ...]
        One per op that runs on the target: how many of its SKUs these are.
    """

    target: str
    plans: tuple[PlanReport, ...]
    problems: tuple[str, ...]
    coverage: tuple[Coverage, ...] = ()
    schema: int = SCHEMA

    @property
    def ok(self) -> bool:
        """Whether something was verified, and nothing is wrong."""
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-compatible data: ``schema``, ``target``, ``ok``, ``problems``, ``coverage`` and ``plans``."""
        return {
            "schema": self.schema,
            "target": self.target,
            "ok": self.ok,
            "problems": list(self.problems),
            "coverage": [attrs.asdict(share) for share in self.coverage],
            "plans": [attrs.asdict(plan) for plan in self.plans],
        }
