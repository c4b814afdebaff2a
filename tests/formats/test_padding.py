import attrs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantplan.errors import InvalidProblem
from quantplan.formats import marlin
from quantplan.formats.padding import pad_to_supported, padded_size, remove_padding
from tests.formats.weights import random_weight, real, same, weights


@given(weight=weights())
def test_padding_is_exactly_zero_and_changes_nothing_else(weight):
    """What does not fit the tile is padded, and the padding adds nothing to any product."""
    padded = pad_to_supported(weight)
    k, n = weight.q.shape
    assert (padded.k, padded.n) == (k, n)
    assert padded.q.shape == (-(-k // 64) * 64, -(-n // 64) * 64) == (padded_size(k), padded_size(n))
    everything = real(padded)
    np.testing.assert_array_equal(everything[:k, :n], real(weight))
    assert not everything[k:].any()
    assert not everything[:, n:].any()
    assert (padded.scales[:, n:] == 1).all()
    np.testing.assert_array_equal(padded.dequantize()[:k, :n], weight.dequantize())


@given(weight=weights())
def test_a_padded_weight_goes_through_marlin(weight):
    """With act-order the gather reaches only columns that the activation has."""
    packed = marlin.to_marlin(pad_to_supported(weight))
    assert (packed.k, packed.n) == weight.q.shape
    if packed.perm is not None:
        assert sorted(packed.perm.tolist()) == list(range(packed.k))
    perm = np.arange(packed.k) if packed.perm is None else packed.perm
    sizes = (packed.weight_scale, packed.group_size)
    group = np.arange(packed.k) // (packed.k if packed.group_size == -1 else packed.group_size)
    zeros = (
        np.full(packed.weight_scale.shape, 8)
        if packed.weight_zero_point is None
        else marlin.unpack_zeros(packed.weight_zero_point)
    )
    q = marlin.unpack_weight(packed.weight_q)[: packed.k].astype(np.float64)
    sorted_rows = (q - zeros[group]) * marlin.unpack_scales(*sizes).astype(np.float64)[group]
    np.testing.assert_array_equal(sorted_rows[:, : packed.n], real(weight)[perm])
    back = remove_padding(marlin.from_marlin(packed))
    np.testing.assert_array_equal(real(back), real(weight))
    np.testing.assert_array_equal(back.row_groups, weight.row_groups)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("extreme", [65504, -65504, 2**-24, 0, -0.0])
def test_padding_is_zero_whatever_the_scale_of_the_group(symmetric, extreme):
    weight = random_weight(np.random.default_rng(0), 40, 20, 32, symmetric=symmetric)
    weight.scales[...] = extreme
    padded = pad_to_supported(weight)
    activation = np.random.default_rng(1).integers(-100, 100, (3, 64)).astype(np.float64)  # garbage beyond K, too
    product = activation @ real(padded)
    np.testing.assert_array_equal(product[:, :20], activation[:, :40] @ real(weight))
    assert not product[:, 20:].any()
    assert np.isfinite(padded.dequantize()).all()


def test_rows_first_fill_the_last_group():
    """K = 40 in groups of 32 is 32 + 8; padded to 128 it is four groups, of which two are padding only."""
    weight = random_weight(np.random.default_rng(0), 40, 64, 32, symmetric=False)
    padded = pad_to_supported(weight, k_multiple=128)
    assert padded.scales.shape == padded.zeros.shape == (4, 64)
    np.testing.assert_array_equal(padded.scales[:2], weight.scales)
    np.testing.assert_array_equal(padded.q[40:64], np.repeat(weight.zeros[1:], 24, axis=0))
    assert (padded.scales[2:] == 1).all()
    assert (padded.zeros[2:] == 8).all()
    assert (padded.q[64:] == 8).all()


@pytest.mark.parametrize("group_size", [-1, 40, 128])
def test_one_group_stays_one(group_size):
    """The layout of a single row of scales is another than that of several, and follows the logical K."""
    padded = pad_to_supported(random_weight(np.random.default_rng(0), 40, 64, group_size))
    assert padded.scales.shape == (1, 64)
    assert padded.group_size == -1


def test_a_weight_that_fits_is_returned_as_it_is():
    weight = random_weight(np.random.default_rng(0), 64, 64, 32)
    assert pad_to_supported(weight) is weight
    assert remove_padding(weight) is weight


@given(weight=weights())
def test_padding_comes_off_again(weight):
    back = remove_padding(pad_to_supported(weight))
    # One group may have become -1 on the way, which says the same.
    same(attrs.evolve(back, group_size=weight.group_size), weight)


def test_padding_twice_keeps_the_logical_size():
    weight = random_weight(np.random.default_rng(0), 40, 20, 16, symmetric=False, act_order=True)
    twice = pad_to_supported(pad_to_supported(weight), k_multiple=96, n_multiple=80)
    assert twice.q.shape == (96, 80)
    assert (twice.k, twice.n) == (40, 20)
    same(remove_padding(twice), weight)
    assert repr(twice) == "Int4Weight(k=40, n=20, group_size=16, asymmetric, act-order, padded to (96, 80))"


def test_the_original_stays_as_it_was():
    weight = random_weight(np.random.default_rng(0), 40, 20, 16, symmetric=False, act_order=True)
    parts = [weight.q, weight.scales, weight.zeros, weight.g_idx]
    before = [part.copy() for part in parts]
    pad_to_supported(weight)
    for part, copy in zip(parts, before, strict=True):
        np.testing.assert_array_equal(part, copy)


@pytest.mark.parametrize("tile", [0, -64, 2**40, 64.0, True, None])
@pytest.mark.parametrize("name", ["k_multiple", "n_multiple"])
def test_a_tile_that_is_none_is_refused(name, tile):
    """A tile far beyond any kernel's would be an allocation of that size."""
    with pytest.raises(InvalidProblem) as caught:
        pad_to_supported(random_weight(np.random.default_rng(0), 16, 8), **{name: tile})
    assert (caught.value.op, caught.value.field) == ("pad_to_supported", name)


@given(k=st.integers(1, 100), tile=st.integers(1, 70))
def test_no_more_rows_than_needed(k, tile):
    rows, columns = pad_to_supported(
        random_weight(np.random.default_rng(0), k, 1), k_multiple=tile, n_multiple=1
    ).q.shape
    assert rows % tile == 0
    assert k <= rows < k + tile
    assert columns == 1
