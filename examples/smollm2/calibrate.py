"""What flows into every site: the largest magnitude of each channel, over a calibration text."""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from .model import Block, Linear, Model
from .text import Tokens
from .weights import Array

# For one layer: site → the largest magnitude seen in each of its input channels.
Maxima = dict[str, Array]


class Observer:
    """A site that looks at its input before it does its work."""

    def __init__(self, linear: Linear, name: str, maxima: Maxima) -> None:
        self._linear = linear
        self._name = name
        self._maxima = maxima

    def __call__(self, x: Array) -> tuple[Array, ...]:
        """Note the maxima of x, then multiply."""
        seen = np.max(np.abs(x), axis=0)
        self._maxima[self._name] = np.maximum(seen, self._maxima.get(self._name, seen))
        return self._linear(x)


def calibrate(model: Model, windows: Iterable[Tokens]) -> list[Maxima]:
    """Read the windows with a float32 model, and return the maxima of every layer."""
    maxima: list[Maxima] = [{} for _ in model.blocks]
    blocks = [observed(block, seen) for block, seen in zip(model.blocks, maxima, strict=True)]
    observing = Model(model.weights, blocks)
    for window in windows:
        observing.hidden(window, observing.cache(len(window)))
    return maxima


def observed(block: Block, maxima: Maxima) -> Block:
    """Return the block with an observer before each of its sites."""
    return replace(
        block,
        attn_in=Observer(block.attn_in, "attn_in", maxima),
        attn_out=Observer(block.attn_out, "attn_out", maxima),
        ffn_in=Observer(block.ffn_in, "ffn_in", maxima),
        ffn_out=Observer(block.ffn_out, "ffn_out", maxima),
    )
