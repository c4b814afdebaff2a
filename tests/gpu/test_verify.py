"""`quantplan verify --target cuda:0` finds nothing wrong with the kernels."""

import pytest

from quantplan.bench import runs
from quantplan.cli import main
from quantplan.ops import PLANS
from quantplan.verify import verify
from quantplan.verify.runner import sample


@pytest.mark.parametrize("strength", [1, pytest.param(None, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kernel", runs.kernels())
def test_kernels_keep_every_promise(target, kernel, strength):
    """A GPU day holds more of them to theirs, on several processors."""
    op, _, variant = kernel.partition(".")
    if not sample(op, target, 1, variant):
        pytest.skip(f"nothing of {kernel} runs on {target.arch}")
    report = verify(target, op, strength=strength, variant=variant)
    assert report.problems == ()
    assert report.plans
    assert {plan.backend for plan in report.plans} == {"bespoke"}
    assert sum(plan.mismatches for plan in report.plans) == 0


def test_the_command_line_says_so(monkeypatch, target, capsys):
    descs = list(PLANS["quantize"].catalogue())[:1]
    monkeypatch.setattr(PLANS["quantize"], "catalogue", classmethod(lambda cls: iter(descs)))
    assert main(["verify", "--target", "cuda:0", "--op", "quantize"]) == 0
    assert "quantize" in capsys.readouterr().out
