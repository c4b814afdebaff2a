"""What the tests of all formats share: random weights, their exact values, and tensors that claim too much."""

import ml_dtypes
import numpy as np
from hypothesis import strategies as st

from quantplan.formats.int4 import Int4Weight

INTERLEAVED = (0, 2, 4, 6, 1, 3, 5, 7)
SCALE_DTYPES = [np.float16, ml_dtypes.bfloat16, np.float32]


def nibble(word, p):
    """Return bits 4p … 4p + 3 of an int32."""
    return (int(word) & 0xFFFFFFFF) >> (4 * p) & 15


def random_weight(rng, k, n, group_size=-1, *, symmetric=True, act_order=False, dtype=np.float16):
    groups = 1 if group_size == -1 else -(-k // group_size)
    g_idx = None
    if act_order:
        g_idx = (rng.permutation(k) // (k if group_size == -1 else group_size)).astype(np.int32)
    return Int4Weight(
        q=rng.integers(0, 16, (k, n), dtype=np.uint8),
        scales=rng.uniform(-2, 2, (groups, n)).astype(dtype),
        zeros=None if symmetric else rng.integers(0, 16, (groups, n), dtype=np.uint8),
        g_idx=g_idx,
        group_size=group_size,
    )


@st.composite
def weights(draw, k_multiple=1, n_multiple=1, *, act_order=True):
    """Draw a weight: any group size, ragged last groups, zero points or none, rows shuffled or in order."""
    k = k_multiple * draw(st.integers(1, max(3, 48 // k_multiple)))
    n = n_multiple * draw(st.integers(1, max(2, 24 // n_multiple)))
    return random_weight(
        np.random.default_rng(draw(st.integers(0, 2**32))),
        k,
        n,
        draw(st.sampled_from([-1, 1, 3, 8, 16, 32, 128])),
        symmetric=draw(st.booleans()),
        act_order=act_order and draw(st.booleans()),
        dtype=draw(st.sampled_from(SCALE_DTYPES)),
    )


def picks(*limits):
    """Return 2,000 random positions below the limits, for spot checks of a large layer."""
    rng = np.random.default_rng(9)
    return np.stack([rng.integers(0, limit, 2000) for limit in limits], axis=1).tolist()


def real(weight):
    """Return the exact weight in float64, from the definition and nothing else."""
    k, _ = weight.q.shape
    size = k if weight.group_size == -1 else weight.group_size
    group = np.arange(k) // size if weight.g_idx is None else weight.g_idx
    zeros = np.full(weight.scales.shape, 8) if weight.zeros is None else weight.zeros
    return (weight.q.astype(np.float64) - zeros[group]) * weight.scales.astype(np.float64)[group]


def same(a, b):
    """Assert that two weights are the same, down to every bit of every part."""
    assert (a.k, a.n, a.group_size) == (b.k, b.n, b.group_size)
    np.testing.assert_array_equal(a.q, b.q)
    assert a.scales.dtype == b.scales.dtype
    np.testing.assert_array_equal(a.scales, b.scales)
    np.testing.assert_array_equal(a.zero_points, b.zero_points)
    np.testing.assert_array_equal(a.row_groups, b.row_groups)


def read_only(tensors):
    """Return copies that cannot be written, so that a function which tries to is noticed."""
    copies = {name: array.copy() for name, array in tensors.items()}
    for array in copies.values():
        array.flags.writeable = False
    return copies


def claims(shape, dtype=np.int32):
    """Return an array that claims far more elements than the one that it holds."""
    return np.broadcast_to(np.zeros((), dtype), shape)
