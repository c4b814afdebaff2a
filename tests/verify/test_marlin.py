"""The formula of Marlin's layout, against quantplan.formats, which was checked against the format's own packer."""

import random

import numpy as np
import pytest

from quantplan.elements import ElementKind
from quantplan.formats.marlin import pack_scales, pack_weight, pack_zeros
from quantplan.verify import marlin
from quantplan.verify.tensors import HostTensor


def codes(rows, columns):
    draw = random.Random(rows * columns)
    return [[draw.randrange(16) for _ in range(columns)] for _ in range(rows)]


def words(packed):
    return packed.view(np.uint32).ravel().tolist()


@pytest.mark.parametrize("k, n", [(16, 64), (64, 64), (48, 192)])
def test_codes_lie_where_the_packer_puts_them(k, n):
    rows = codes(k, n)
    tensor = marlin.pack(rows, (k // 16, 2 * n), marlin.code_place)
    assert tensor.codes == words(pack_weight(np.array(rows)))
    assert marlin.unpack(tensor, k, n, n, marlin.code_place) == rows
    assert marlin.unpack(tensor, 3, 5, n, marlin.code_place) == [row[:5] for row in rows[:3]]


@pytest.mark.parametrize("groups, n", [(1, 64), (3, 128)])
def test_zero_points_lie_where_the_packer_puts_them(groups, n):
    rows = codes(groups, n)
    tensor = marlin.pack(rows, (groups, n // 8), marlin.zero_place)
    assert tensor.codes == words(pack_zeros(np.array(rows)))
    assert marlin.unpack(tensor, groups, n - 1, n, marlin.zero_place) == [row[:-1] for row in rows]


@pytest.mark.parametrize("groups, group_size", [(1, -1), (1, 128), (2, 64), (5, 32)])
def test_scales_lie_where_the_packer_puts_them(groups, group_size):
    rows = [[float(128 * g + n) for n in range(128)] for g in range(groups)]
    stored = marlin.pack_scales(rows)
    assert stored == pack_scales(np.array(rows, np.float32), group_size).ravel().tolist()
    tensor = HostTensor.of(ElementKind.F32, (groups, 128), stored)
    assert marlin.unpack_scales(tensor, 70) == [row[:70] for row in rows]
