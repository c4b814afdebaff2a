"""The oracle of RepackMarlin sees every way to get it wrong, and the reference does not."""

import numpy as np
import pytest

import quantplan as qp
from quantplan.ops import repack_marlin as module
from quantplan.reference.repack_marlin import repack_marlin
from quantplan.verify import verify
from quantplan.verify.attacks_repack import repack_attacks


def without_perm(qweight, weight_q, perm, *, source):
    repack_marlin(qweight, weight_q, None, source=source)


def zero_padding(qweight, weight_q, perm, *, source):
    repack_marlin(qweight, weight_q, perm, source=source)
    if qweight.shape == (17, 72):
        weight_q[-1, -1] = 0


def one_code_off(qweight, weight_q, perm, *, source):
    repack_marlin(qweight, weight_q, perm, source=source)
    if weight_q.size:
        weight_q.flat[weight_q.size // 2] ^= 1


def inverse_perm(qweight, weight_q, perm, *, source):
    repack_marlin(qweight, weight_q, None if perm is None else np.argsort(perm).astype(np.int32), source=source)


def nothing(qweight, weight_q, perm, *, source):
    pass


@pytest.mark.untraced
@pytest.mark.parametrize("faulty", [without_perm, zero_padding, one_code_off, inverse_perm, nothing])
def test_faults_are_seen(monkeypatch, faulty):
    """On some problem; the ones behind it need not show it."""
    monkeypatch.setattr(module, "repack_marlin", faulty)
    reports = (verify(descriptors=[desc]) for desc in qp.RepackMarlinPlan.catalogue())
    assert any(plan.mismatches for report in reports for plan in report.plans)


def test_the_reference_is_right():
    report = verify("cpu", "repack_marlin")
    assert report.problems == ()
    assert len(report.plans) == 3


def test_attacks_have_names_of_their_own_and_are_the_same_on_every_call():
    for desc in qp.RepackMarlinPlan.catalogue():
        first = list(repack_attacks(qp.RepackMarlinPlan, desc))
        again = list(repack_attacks(qp.RepackMarlinPlan, desc))
        assert len({case.name for case in first}) == len(first)
        assert [case.inputs["qweight"].codes for case in first] == [case.inputs["qweight"].codes for case in again]
