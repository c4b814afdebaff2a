"""What flows into every site of a model while it reads a text."""

from collections.abc import Iterable
from dataclasses import replace

from quantplan.recipes.smoothquant import ActivationRange

from .model import Block, Linear, Model
from .text import Tokens
from .weights import Array

# Of one layer: for each site, named as in Block, the range of its input.
Ranges = dict[str, ActivationRange]


class Observer:
    """A site that looks at its input before it does its work."""

    def __init__(self, linear: Linear, name: str, ranges: Ranges) -> None:
        self._linear = linear
        self._name = name
        self._ranges = ranges

    def __call__(self, x: Array) -> tuple[Array, ...]:
        """Take x into account, then multiply."""
        self._ranges.setdefault(self._name, ActivationRange(x.shape[1])).observe(x)
        return self._linear(x)


def calibrate(model: Model, windows: Iterable[Tokens]) -> list[Ranges]:
    """Read the windows with a float32 model, and return the ranges of every layer."""
    ranges: list[Ranges] = [{} for _ in model.blocks]
    blocks = [observed(block, seen) for block, seen in zip(model.blocks, ranges, strict=True)]
    observing = Model(model.weights, blocks)
    for window in windows:
        observing.hidden(window, observing.cache(len(window)))
    return ranges


def observed(block: Block, ranges: Ranges) -> Block:
    """Return the block with an observer before each of its sites."""
    return replace(
        block,
        attn_in=Observer(block.attn_in, "attn_in", ranges),
        attn_out=Observer(block.attn_out, "attn_out", ranges),
        ffn_in=Observer(block.ffn_in, "ffn_in", ranges),
        ffn_out=Observer(block.ffn_out, "ffn_out", ranges),
    )
