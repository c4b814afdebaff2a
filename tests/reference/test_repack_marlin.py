import numpy as np
import pytest

from quantplan.errors import InvalidProblem
from quantplan.formats import awq, gptq, marlin
from quantplan.reference.repack_marlin import RepackErrorBound, repack_marlin
from quantplan.types import LayoutSku
from tests.formats.weights import nibble, random_weight


def words_of(weight, source):
    tensors = gptq.to_gptq(weight, version=1) if source is LayoutSku.GPTQ else awq.to_awq(weight)
    return tensors["qweight"]


@pytest.mark.parametrize("source", [LayoutSku.GPTQ, LayoutSku.AWQ])
@pytest.mark.parametrize("k, n", [(8, 8), (16, 64), (72, 264), (136, 40)])
def test_every_code_is_where_marlins_formula_says_and_padding_is_8(source, k, n):
    weight = random_weight(np.random.default_rng(k), k, n)
    rows, columns = -(-k // 64) * 64, -(-n // 64) * 64
    packed = np.full((rows // 16, 2 * columns), -1, np.int32)
    repack_marlin(words_of(weight, source), packed, None, source=source)
    order = (0, 2, 4, 6, 1, 3, 5, 7)
    for row in range(0, rows, 3):
        for column in range(0, columns, 5):
            v = 4 * (column % 16 // 8) + 2 * (row % 16 // 8) + row % 2
            lane, j = 4 * (column % 8) + row % 8 // 2, column % 64 // 16
            word = packed[row // 16, 128 * (column // 64) + 4 * lane + j]
            expected = weight.q[row, column] if row < k and column < n else 8
            assert nibble(word, order.index(v)) == expected


def test_rows_are_taken_in_the_order_of_perm():
    weight = random_weight(np.random.default_rng(0), 64, 64)
    perm = np.random.default_rng(1).permutation(64).astype(np.int32)
    packed = np.empty((4, 128), np.int32)
    repack_marlin(words_of(weight, LayoutSku.GPTQ), packed, perm, source=LayoutSku.GPTQ)
    np.testing.assert_array_equal(packed, marlin.pack_weight(weight.q[perm]))


@pytest.mark.parametrize("index", [-1, 64, 2**31 - 1])
def test_rows_that_there_are_not_are_refused(index):
    """A hostile order reads nothing else."""
    perm = np.arange(64, dtype=np.int32)
    perm[7] = index
    with pytest.raises(InvalidProblem, match=r"RepackMarlin: perm: expected indices in \[0, 64\)"):
        repack_marlin(np.zeros((8, 64), np.int32), np.empty((4, 128), np.int32), perm, source=LayoutSku.GPTQ)


def test_there_is_no_error():
    bound = RepackErrorBound()
    assert bound.formula.startswith("0")

    class Args:
        weight_q = np.empty((4, 128), np.int32)

    assert not bound.bound(None, Args).any()
