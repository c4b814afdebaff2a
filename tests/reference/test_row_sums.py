"""Sums of rows: in the order that docs/numerics.md states, which depends on the length of a row and on nothing else."""

import math
from fractions import Fraction

import numpy as np
import pytest

from quantplan.reference.row_sums import additions, row_lanes, row_sums

F32 = np.float32
BIG = 2.0**24  # adding 1 to it is a tie that changes nothing, and adding 2 is exact
LENGTHS = (1, 7, 8, 9, 63, 255, 256, 257, 1024, 1025, 1500, 2048, 2500, 4104)
RNG = np.random.default_rng(5)


def fold(values, add):
    while len(values) > 1:
        half = len(values) // 2
        values = [add(values[i], values[half + i]) for i in range(half)]
    return values[0]


def in_order(terms, add, zero):
    """Return what the four steps of the contract make of terms, one addition at a time."""
    lanes = 32
    while lanes * 32 < len(terms) and lanes < 512:
        lanes *= 2
    held = [None] * lanes
    for run in range(max(lanes, -(-len(terms) // 8))):
        values = terms[8 * run : 8 * run + 8]
        total = fold([*values, *[zero] * (8 - len(values))], add)
        own = run % lanes
        held[own] = total if held[own] is None else add(held[own], total)
    return fold([fold(held[warp : warp + 32], add) for warp in range(0, lanes, 32)], add)


def sum_of(k, **terms):
    """Return the sum of a row of zeros but for the terms at some places, such as ``at_3=1``."""
    row = np.zeros((1, k), F32)
    for place, value in terms.items():
        row[0, int(place.removeprefix("at_"))] = value
    return float(row_sums(row)[0])


# ---- by hand


@pytest.mark.parametrize("k, lanes", [(0, 32), (1, 32), (1024, 32), (1025, 64), (2048, 64), (2049, 128), (5000, 256)])
def test_lanes_by_hand(k, lanes):
    assert row_lanes(k) == lanes


def test_a_row_has_at_most_512_lanes():
    assert [row_lanes(k) for k in (16_384, 16_385, 32_768, 32_769, 1 << 24)] == [512, 512, 512, 512, 512]


def test_a_run_is_folded():
    """The second half is added to the first: 1 meets 5, and not its neighbour 0."""
    assert sum_of(8, at_0=BIG, at_1=1, at_5=1) == BIG + 2
    assert sum_of(8, at_0=BIG, at_4=1, at_2=1) == BIG
    assert sum_of(8, at_0=BIG, at_2=1, at_6=1) == BIG + 2


def test_runs_are_dealt_out_to_lanes_and_added_in_their_order():
    """Of a row of 512, runs 0 and 32 are lane 0's, and 1 and 33 lane 1's."""
    assert sum_of(512, at_0=BIG, at_256=1, at_8=1) == BIG
    assert sum_of(512, at_0=BIG, at_264=1, at_8=1) == BIG + 2
    assert sum_of(768, at_0=BIG, at_256=1, at_512=1) == BIG
    assert sum_of(768, at_0=1, at_256=1, at_512=BIG) == BIG + 2


def test_the_lanes_of_a_warp_are_folded_before_warps_are():
    """Of a row of 2048 there are two warps: lane 1 meets lane 0, and not lane 33 of the other warp."""
    assert sum_of(2048, at_0=BIG, at_8=1, at_264=1) == BIG
    assert sum_of(2048, at_0=BIG, at_8=1, at_136=1) == BIG + 2  # lanes 1 and 17


def test_what_is_negative_zero_adds_up_to_zero():
    for k in (1, 8, 256, 2048):
        (total,) = row_sums(np.full((1, k), -0.0, F32))
        assert not np.signbit(total)


def test_nothing_adds_up_to_zero():
    assert row_sums(np.empty((3, 0), F32)).tolist() == [0, 0, 0]
    assert row_sums(np.empty((0, 5), F32)).shape == (0,)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_stays_in_its_row(bad):
    terms = np.ones((2, 300), F32)
    terms[0, 299] = bad
    sums = row_sums(terms)
    assert not np.isfinite(sums[0])
    assert sums[1] == 300


# ---- the order, one addition at a time


@pytest.mark.parametrize("k", LENGTHS)
def test_sums_are_made_in_the_stated_order(k):
    terms = (RNG.standard_normal((2, k)) * np.exp2(RNG.integers(-12, 13, (2, k)))).astype(F32)
    expected = [in_order(list(row), lambda a, b: a + b, F32(0)) for row in terms]
    assert row_sums(terms).tolist() == [float(total) for total in expected]


def test_a_sum_depends_on_its_row_alone():
    terms = RNG.standard_normal((7, 600)).astype(F32)
    sums = row_sums(terms)
    assert row_sums(terms[3:4]).tolist() == sums[3:4].tolist()
    assert row_sums(np.asfortranarray(terms)).tolist() == sums.tolist()
    assert row_sums(np.repeat(terms, 2, axis=0)[::2]).tolist() == sums.tolist()
    assert row_sums(terms[::-1])[::-1].tolist() == sums.tolist()


def test_terms_are_not_written():
    terms = RNG.standard_normal((2, 600)).astype(F32)
    before = terms.tobytes()
    row_sums(terms)
    assert terms.tobytes() == before


# ---- how many additions a term takes part in


def longest(k):
    """Return the largest number of additions of a term that round; zeros behind the end cost nothing."""

    def deeper(a, b):
        return a if b is None else b if a is None else max(a, b) + 1

    return in_order([0] * k, deeper, None)


@pytest.mark.parametrize("k", LENGTHS)
def test_no_term_takes_part_in_more_additions(k):
    assert longest(k) <= additions(k)


def test_full_rows_have_all_of_them():
    assert [longest(k) for k in (256, 512, 1024, 2048)] == [additions(k) for k in (256, 512, 1024, 2048)]
    assert [additions(k) for k in (0, 256, 1024, 2048, 32_768, 1 << 24)] == [8, 8, 11, 12, 19, 4107]


def test_the_error_is_within_what_the_additions_allow():
    worst = 0
    for k in LENGTHS:
        terms = np.abs(RNG.standard_normal((3, k))).astype(F32)
        units = additions(k) * Fraction(1, 1 << 24)
        for row, total in zip(terms, row_sums(terms), strict=True):
            exact = Fraction(math.fsum(row.tolist()))  # off by 2⁻⁵³
            error = abs(Fraction(float(total)) - exact)
            assert error <= units / (1 - units) * exact
            worst = max(worst, error / (units * exact))
    assert worst > 0.01
