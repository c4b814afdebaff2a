"""`quantplan verify --target cuda:0` finds nothing wrong with the kernels."""

import pytest

from quantplan.bench import runs
from quantplan.cli import main
from quantplan.ops import PLANS
from quantplan.verify import verify
from quantplan.verify.runner import sample
from tests.gpu.twin import refusal


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["one", "every"])
@pytest.mark.parametrize("kernel", runs.kernels())
def test_kernels_keep_every_promise(target, kernel, every):
    """One problem of each here, for it is one process: a GPU day attacks more of them on all processors."""
    op, _, variant = kernel.partition(".")
    subjects = sample(op, target, 1, variant)
    if not subjects:
        reasons = (refusal(PLANS[op], variant, desc, target) for desc in PLANS[op].catalogue())
        pytest.skip(next(filter(None, reasons)))
    descs = None if every else [subjects[0].desc]
    report = verify(target, op, descs, strength=None, variant=variant)
    assert report.problems == ()
    assert report.plans
    assert {plan.backend for plan in report.plans} == {"bespoke"}
    assert sum(plan.mismatches for plan in report.plans) == 0


def test_the_command_line_says_so(monkeypatch, target, capsys):
    descs = list(PLANS["quantize"].catalogue())[:1]
    monkeypatch.setattr(PLANS["quantize"], "catalogue", classmethod(lambda cls: iter(descs)))
    assert main(["verify", "--target", "cuda:0", "--op", "quantize"]) == 0
    assert "quantize" in capsys.readouterr().out
