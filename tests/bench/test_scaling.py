"""The other rules are those that were published, the rules here keep their bounds, and tables say what is measured."""

import numpy as np
import pytest

import quantplan as qp
from quantplan.bench import scaling

MX, NVFP4 = qp.MXFP8BlockScaling(), qp.NVFP4BlockScaling()


@pytest.mark.parametrize("entry", scaling.PUBLISHED, ids=lambda entry: type(entry.recipe).__name__)
def test_published_cosines_are_met_and_where_the_rule_is_better_beaten(entry):
    """To the published digits: rules that are the same give the same figure."""
    here = f"{scaling.over_seeds(scaling.cosine, scaling.by(entry.recipe)):.4f}"
    assert here > entry.cosine if entry.recipe == MX else here == entry.cosine


@pytest.mark.parametrize("keep, recipe", [(scaling.other_mxfp8, MX), (scaling.other_nvfp4, NVFP4)])
def test_the_other_rules_give_the_figures_that_were_published_of_them(keep, recipe):
    (published,) = (entry.cosine for entry in scaling.PUBLISHED if entry.recipe == recipe)
    assert f"{scaling.over_seeds(scaling.cosine, keep):.4f}" == published


def test_the_other_rules_by_hand():
    ties = np.array([17.0, 19.0, -17.0, -19.0, 464.0, 1e9, 2.0**-10, 0.0])
    assert scaling.tie_to_zero(ties, qp.FP8_E4M3).tolist() == [16, 18, -16, -18, 448, 448, 0, 0]
    assert scaling.tie_to_zero(np.array([0.25, 0.75, 2.5, 5.0, 7.0]), qp.FP4_E2M1).tolist() == [0, 0.5, 2, 4, 6]
    # 448 · √2 lies halfway between two powers of two.
    assert scaling.nearest_power_of_two(np.array([448.0, 633.0, 634.0, np.nan])).tolist() == [1, 1, 2, 2.0**-127]


def test_an_mx_scale_to_the_nearest_clips_and_breaks_the_bound_that_ours_keeps():
    for x in scaling.gaussians():
        bound = qp.cast(x, MX).error_bound(x) + np.abs(x) * 2.0**-23
        assert (np.abs(scaling.by(MX)(x) - x) <= bound).all()
        assert (np.abs(scaling.other_mxfp8(x) - x) > bound).any()
    other, here = scaling.clipped_blocks()
    assert here == 0 < other


@pytest.mark.parametrize("exponent", [-60, -20, 0, 12, 60])
def test_two_levels_of_nvfp4_scales_keep_a_tensor_of_any_size(exponent):
    """Times a power of two, the codes and the block scales are the same, and so is what is lost."""
    errors = [scaling.over_seeds(scaling.rms_error, scaling.by(NVFP4), 2.0**power) for power in (0, exponent)]
    assert errors[0] == errors[1]


def test_one_level_loses_small_tensors_whole_and_clips_large_ones():
    assert scaling.over_seeds(scaling.rms_error, scaling.other_nvfp4, 2.0**-20) == pytest.approx(1, abs=2.0**-20)
    x = scaling.gaussians()[0] * np.float32(4096)
    assert np.abs(scaling.other_nvfp4(x)).max() == 448 * 6 < np.abs(x).max()


def test_ties_to_even_leave_a_sum_where_it_was():
    other, here = scaling.shift_of_ties()
    assert other < 0
    assert here == 0  # of 1 … 255, as many ties go up as go down, and as far


def test_a_nan_shows_in_its_block_or_hides_there():
    assert scaling.neighbours_of_nan() == (31, 0)
    x = scaling.gaussians()[0][:1, :32].copy()
    x[0, 3] = np.nan
    hidden = scaling.other_mxfp8(x)[0]
    assert np.isnan(hidden).nonzero()[0].tolist() == [3]
    assert np.nanmax(np.abs(hidden)) == 448 * 2.0**-127  # what the others have become


def test_tables_are_laid_out():
    published, rules = scaling.published_table().splitlines(), scaling.rules_table().splitlines()
    assert [line.split("|")[1].strip(" `") for line in published[2:]] == [
        type(entry.recipe).__name__ for entry in scaling.PUBLISHED
    ]
    assert "| `NVFP4BlockScaling` | 0.9955 | 0.9955 | 1.11 MB | 0.59 MB |" in published
    assert len({line.count("|") for line in rules}) == 1
