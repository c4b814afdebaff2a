"""`quantplan verify --target cuda:0` finds nothing wrong with the kernels."""

import pytest

from quantplan.cli import main
from quantplan.ops import PLANS
from quantplan.programs import KernelVariant
from quantplan.verify import verify

WITH_KERNELS = [op for op, kind in PLANS.items() if any(isinstance(v, KernelVariant) for v in kind.variants)]


@pytest.mark.parametrize("strength", [2, pytest.param(None, marks=pytest.mark.slow)])
@pytest.mark.parametrize("op", WITH_KERNELS)
def test_kernels_keep_every_promise(target, op, strength):
    report = verify(target, op, strength=strength)
    assert report.problems == ()
    assert report.plans
    assert {plan.backend for plan in report.plans} == {"bespoke"}
    assert sum(plan.mismatches for plan in report.plans) == 0


def test_the_command_line_says_so(monkeypatch, target, capsys):
    descs = list(PLANS["quantize"].catalogue())[:1]
    monkeypatch.setattr(PLANS["quantize"], "catalogue", classmethod(lambda cls: iter(descs)))
    assert main(["verify", "--target", "cuda:0", "--op", "quantize"]) == 0
    assert "quantize" in capsys.readouterr().out
