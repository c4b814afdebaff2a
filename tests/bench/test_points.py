"""Points make times comparable: with the roofs of the same run, and with the peers beside them."""

import pytest

from quantplan.bench.points import Roofs, measured
from tests.bench import synthetic


@pytest.fixture
def points():
    return {(p.row, p.m): p for p in measured(synthetic.run())}


def test_only_points_with_times_count(points):
    assert set(points) == {("quantize s8 token", 8192), ("quantize s8 token", 16), ("quantized_linear int8", 16)}


def test_they_are_in_the_order_of_ops_and_m():
    assert [(p.row, p.m) for p in measured(synthetic.run())] == [
        ("quantize s8 token", 16),
        ("quantize s8 token", 8192),
        ("quantized_linear int8", 16),
    ]


def test_the_better_of_two_copies_is_the_roof():
    data = synthetic.run(roofs={"copy": {"value": 4.0}, "copy, torch": {"value": 5.0}, "bf16": {"absent": "no"}})
    assert Roofs.of(data) == Roofs(5.0, {})


def test_the_floor_of_what_only_moves_is_that_of_a_copy(points):
    point = points["quantize s8 token", 8192]
    assert point.floor == pytest.approx(201_359_360 / 4e12 * 1e6)
    assert point.fraction == pytest.approx(point.floor / 52.0)
    assert point.bandwidth == pytest.approx(point.fraction)


def test_a_product_has_a_floor_where_its_bytes_bound_it(points):
    point = points["quantized_linear int8", 16]
    assert point.floor == pytest.approx(67_534_912 / 4e12 * 1e6)
    assert point.rate == pytest.approx(2 * 16 * 8192 * 8192 / 20e-6)


def test_what_its_operations_bound_is_no_part_of_a_roof_that_it_may_exceed():
    data = synthetic.run()
    m = 4096
    data["points"][f"quantized_linear int8 | 8192 × 8192 | {m}"] = {
        **data["points"]["quantized_linear int8 | 8192 × 8192 | 16"],
        "operations": 2 * m * 8192 * 8192,
    }
    (point,) = (p for p in measured(data) if p.m == m)
    assert (point.floor, point.fraction) == (None, None)
    assert point.rate == pytest.approx(2 * m * 8192 * 8192 / 20e-6)


def test_without_the_roof_that_bounds_it_there_is_no_floor():
    roofs = {"copy": {"value": 4e12}, "int8": {"absent": "torch is not installed"}}
    points = {p.row: p for p in measured(synthetic.run(roofs=roofs))}
    assert points["quantized_linear int8"].floor is None
    assert points["quantized_linear int8"].fraction is None
    assert points["quantize s8 token"].fraction is not None


def test_a_speedup_is_the_peers_time_by_ours(points):
    assert points["quantize s8 token", 8192].speedup("torch eager int8") == pytest.approx(10.0)
    assert points["quantize s8 token", 16].speedup("torch eager int8") is None


def test_other_variants_are_no_peers():
    data = synthetic.run()
    data["points"]["quantize s8 token | 8192 | 16"]["us"] |= synthetic.times(quantplan__other=1.0, torch=2.0)
    (point,) = (p for p in measured(data) if p.row == "quantize s8 token" and p.m == 16)
    assert (point.peers, point.others) == (["torch"], ["quantplan other"])
