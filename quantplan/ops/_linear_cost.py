"""What a matrix product is expected to take: the model that ranks tiles where several run a problem."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import attrs

from quantplan.ops._quantize_kernels import ceil_div

if TYPE_CHECKING:
    from quantplan.chips import Chip

Desc: TypeAlias = Any
"""A descriptor of a matrix product."""

# Fitted to an H200's times of every tile, for 50 problems of 1 to 4096 rows: mostly within 15% of them.
_START = 3.3e-6  # seconds before the first bytes are there and after the last ones, the launch included
_LATENCY = 1.5e-6  # from a request to its bytes, in a busy memory system
_TURN = 2e-6  # what a block that is alone on its SM loses between the one before it and itself
_SHARED_TURN = 0.7e-6  # the same where another block works on meanwhile
_TILE_TURN = 1.2e-6  # the same of a block that goes from tile to tile, and loads ahead
_MULTICAST = 0.9  # of the time that a row of the weight takes, where blocks load it for each other
_RESERVED = 1024  # of each block's shared memory, for CUDA


@attrs.frozen(kw_only=True)
class Tile:
    """How blocks work on a product, as far as their time depends on it.

    Parameters
    ----------
    bm, bn : int
        Rows and columns of a block's tile of the output.
    bk : int
        Depth of a stage of its ring along K.
    stages : int
        Stages that are under way.
    shared_bytes : int
        A block's shared memory.
    cycles : float
        What the tile takes of an SM for each step along K.
    row_bytes, column_bytes : float
        What each step along K has of a row of activations, and of a column of the weight.
    gathered : float
        Bytes that come to an SM for each one of a row: more where a row's elements lie apart.
    split : int
        Blocks that share the K of one tile.
    below : int
        Blocks whose tiles lie one below the other, and which load the weight for each other.
    persistent : bool
        Whether a block goes from tile to tile.
    sms : int, optional
        SMs that find blocks at once, where it may be fewer than all.
    """

    bm: int
    bn: int
    bk: int
    stages: int
    shared_bytes: int
    cycles: float
    row_bytes: float = 1
    column_bytes: float = 1
    gathered: float = 1
    split: int = 1
    below: int = 1
    persistent: bool = False
    sms: int | None = None


def expected_seconds(desc: Desc, gpu: Chip, tile: Tile) -> float:
    """Return the seconds that a product is expected to take, by its slowest resource.

    Four of them are looked at: the tensor cores of the fullest SM; the bytes that come to it; L2, from which every
    block reads its rows of both operands; and memory, from which each byte comes once, as fast as the bytes that are
    under way at once allow. An SM also loses time between blocks that follow each other on it, and everything has a
    start.

    Parameters
    ----------
    desc : descriptor
        The product.
    gpu : Chip
        What it runs on.
    tile : Tile
        How blocks work.
    """
    together = tile.bm * tile.below
    groups = ceil_div(desc.m, together) * ceil_div(desc.n, tile.bn) * tile.split  # blocks below each other are one
    blocks = groups * tile.below
    fit = max(1, gpu.shared_bytes // (tile.shared_bytes + _RESERVED))
    rows, columns = min(tile.bm, desc.m) * tile.row_bytes, min(tile.bn, desc.n) * tile.column_bytes
    copied = rows * tile.gathered + columns * (_MULTICAST if tile.below > 1 and tile.bm < desc.m else 1)

    depth = ceil_div(desc.k, tile.bk) * tile.bk / tile.split
    sms = min(gpu.sms, tile.sms or gpu.sms)
    in_turn = ceil_div(blocks, sms)
    math = in_turn * depth * tile.cycles / gpu.clock
    arriving = in_turn * depth * copied / (gpu.sm_bytes * gpu.clock)
    cached = blocks // tile.split * (rows * tile.gathered + columns / tile.below) * desc.k / gpu.l2_bandwidth

    of_group = min(together, desc.m) * tile.row_bytes + columns  # some of its blocks may have no rows
    ring = of_group * min(tile.bk * tile.stages, depth)
    needed = (desc.m * tile.row_bytes + desc.n * tile.column_bytes) * desc.k
    under_way = max(1.0, min(min(groups, fit * sms / tile.below) * ring, needed))  # no more than there is
    written = desc.m * desc.n * desc.output_element.itemsize
    memory = needed / min(gpu.bandwidth, under_way / _LATENCY) + written / gpu.bandwidth

    turn = _TILE_TURN if tile.persistent else _TURN if fit == 1 else _SHARED_TURN
    turns = max(0, ceil_div(blocks, fit * sms) - 1)  # other SMs use the memory meanwhile
    return float(_START + max(max(math, arriving) + turns * turn, cached, memory))
