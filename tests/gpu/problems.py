"""The problems whose kernels the tests on silicon run, so that all can be compiled together, and beforehand."""

import contextlib
import itertools

import quantplan as qp
from quantplan.bench.problems import ROWS
from tests.gpu import test_operands, test_plans, test_streams
from tests.kernels import test_conversions
from tests.kernels import test_quantize_family as family


def descriptors():
    """Return all of them, those of `test_plans` first."""
    sampled = [family.descriptor(op, case) for op, case in family.SAMPLE]
    others = [*family.ROWS, *family.RANGES, *family.GROUPS, *family.LIMITS, *family.EMPTY, *family.SCALES]
    return [*of_plans(), test_operands.DESC, test_streams.DESC, *sampled, *others, *test_conversions.problems()]


def of_plans():
    """Return those of `test_plans`."""
    found = []
    for row, m in itertools.product(ROWS, (test_plans.M, *test_plans.SOME, 0, 1, 3)):
        for shape in (row.small, *test_plans.ODD):
            with contextlib.suppress(qp.InvalidProblem):  # the tests say so
                found.append(row.descriptor(m, shape))
    return found
