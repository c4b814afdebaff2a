"""From weights and a recipe to a model whose plans are all selected and whose weights are all bound."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .calibrate import Ranges
from .linear import Recipe, Runtime, Use
from .model import Block, Model
from .weights import Array, LayerWeights, Weights


@dataclass(frozen=True, kw_only=True)
class Built:
    """A model that runs, and what it is made of."""

    model: Model
    uses: tuple[tuple[Use, ...], ...]  # of each layer
    weight_bytes: int  # of the linear layers, with their scales


def build(recipe: type[Recipe], weights: Weights, runtime: Runtime, calibration: Sequence[Ranges] = ()) -> Built:
    """Build every layer of a model under a recipe; nothing is selected, allocated or compiled after this.

    A recipe that `needs_calibration` takes what `calibrate` saw in the fp32 recipe's model.
    """
    layers: list[list[Recipe]] = []
    blocks: list[Block] = []
    for original, seen in zip(weights.layers, calibration or [{}] * len(weights.layers), strict=True):
        layer, scales = recipe.prepare(original, seen)
        sites = {site: recipe(runtime, site, matrices, scales.get(site)) for site, matrices in sites_of(layer)}
        layers.append(list(sites.values()))
        blocks.append(Block(attn_norm=layer.attn_norm, ffn_norm=layer.ffn_norm, **sites))
    runtime.allocate()
    return Built(
        model=Model(weights, blocks),
        uses=tuple(tuple(use for site in sites for use in site.uses) for sites in layers),
        weight_bytes=sum(site.weight_bytes for sites in layers for site in sites),
    )


def sites_of(layer: LayerWeights) -> Iterator[tuple[str, dict[str, Array]]]:
    """Yield the four sites of a layer: the name of the field in Block, and the named matrices."""
    yield "attn_in", {"q": layer.q, "k": layer.k, "v": layer.v}
    yield "attn_out", {"o": layer.o}
    yield "ffn_in", {"gate": layer.gate, "up": layer.up}
    yield "ffn_out", {"down": layer.down}
