"""Typical chips: every capability has one."""

import pytest

from quantplan.chips import chip
from quantplan.occupancy import occupancy


@pytest.mark.parametrize(
    "capability, like", [((8, 7), (8, 6)), ((10, 3), (10, 0)), ((12, 1), (12, 0)), ((99, 0), (12, 0)), ((7, 5), (8, 0))]
)
def test_an_unknown_capability_is_like_the_nearest_older_one(capability, like):
    assert chip(capability) is chip(like)


@pytest.mark.parametrize("capability", [(8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)])
def test_shared_memory_is_what_blocks_share(capability):
    """As many blocks fit as their shared memory allows, and one that is larger by a byte does not."""
    all_of_it = chip(capability).shared_bytes - 1024
    assert occupancy(capability, 32, 32, all_of_it).blocks == 1
    assert occupancy(capability, 32, 32, all_of_it + 1).blocks == 0
