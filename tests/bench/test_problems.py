"""The table of ops: every line describes sound problems, and the points that tell most come first."""

import pytest

from quantplan.bench import peers, problems, roofs
from quantplan.bench.problems import FEW, MS, ROWS, Point, nbytes, operations, points, small_points
from quantplan.ops import PLANS

ALL = list(points())


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_line_describes_problems_that_the_reference_runs(row):
    kind = PLANS[row.op]
    for shape in (*row.shapes, row.small):
        reports = kind.why_not("cpu", row.descriptor(16, shape))
        assert any(report.supported for report in reports), (shape, reports)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_line_names_peers_and_a_rate_that_exist(row):
    assert set(row.peers) <= set(peers.PEERS)
    assert row.rate is None or row.rate in roofs.RATES


def test_every_op_has_a_line():
    assert {row.op for row in ROWS} == set(PLANS)


def test_names_and_keys_are_unique():
    assert len({row.name for row in ROWS}) == len(ROWS)
    assert len({point.key for point in ALL}) == len(ALL)
    assert problems.row(ROWS[3].name) is ROWS[3]


def test_all_points_are_there():
    assert len(ALL) == sum(len(row.shapes) * len(row.ms) for row in ROWS)


def test_few_rows_of_one_shape_of_every_op_come_first():
    head = ALL[: sum(m in row.ms for row in ROWS for m in FEW)]
    assert {(p.row.name, p.m) for p in head} == {(row.name, m) for row in ROWS for m in FEW if m in row.ms}
    assert all(point.shape is point.row.shapes[0] for point in head)
    assert [p.m for p in head[: len(ROWS)]] == [FEW[0]] * len(ROWS), "every op before the next M"


def test_then_come_all_rows_of_it_and_only_then_other_shapes():
    first = sum(len(row.ms) for row in ROWS)
    assert all(point.shape is point.row.shapes[0] for point in ALL[:first])
    assert not any(point.shape is point.row.shapes[0] for point in ALL[first:])


def test_the_shape_to_compare_published_figures_at_is_the_first():
    assert all((row.shapes[0].n, row.shapes[0].k) == (8192, 8192) for row in ROWS if row.rate)


def test_small_points_are_few():
    found = list(small_points())
    assert len(found) == sum(2 if row.ms == MS else 1 for row in ROWS)
    assert all(nbytes(point.descriptor) < 200_000 for point in found)


def test_bytes_count_each_operand_once_and_operations_two_a_product():
    row = problems.row("quantized_linear int8")
    point = Point(row, problems.Shape("any", 24, 40), 10)
    assert nbytes(point.descriptor) == 10 * 40 + 24 * 40 + 4 * 10 + 4 * 24 + 2 * 10 * 24
    assert operations(point.descriptor) == 2 * 10 * 24 * 40
    quantize = problems.row("quantize s8 token").descriptor(10, problems.Shape("any", 0, 40))
    assert (nbytes(quantize), operations(quantize)) == (10 * 40 * 3 + 4 * 10, 0)
