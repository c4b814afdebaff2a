"""The 4-bit recipe: weights in Marlin's layout, activations in f16."""

import numpy as np

import quantplan as qp
from quantplan.formats.marlin import to_marlin
from quantplan.formats.padding import pad_to_supported
from quantplan.recipes.int4 import round_to_nearest

from .linear import Matrices, Recipe
from .model import MAX_ROWS
from .weights import Array

# A model this small feels every bit: groups of 128, which serve large models, and weights without zero points cost it
# its knowledge of France.
GROUP_SIZE = 32


class W4A16(Recipe):
    """Int4 weights with a scale and a zero point per 32 input channels; activations in f16."""

    name = "w4a16"

    def load(self, site: str, matrices: Matrices, act_scale: float | None) -> None:  # noqa: ARG002 - nothing is scaled
        """Round the weights, pack them into Marlin's words, and bind them."""
        self.act = self.runtime.buffer(f"{site}.act", MAX_ROWS, self.k, dtype=np.float16)
        self.products = []
        for name, matrix in matrices.items():
            rounded = round_to_nearest(matrix, group_size=GROUP_SIZE, symmetric=False)
            packed = to_marlin(pad_to_supported(rounded))
            weights = packed.operands()
            self.weight_bytes += sum(part.nbytes for part in weights.values())
            descriptor = qp.Int4MarlinGemmDescriptor(m=MAX_ROWS, output_element=qp.F32, **packed.descriptor_fields())
            self.products.append(self.plans(name, descriptor).bind(**weights))

    def __call__(self, x: Array) -> tuple[Array, ...]:
        """Round the activations to f16 once, then multiply them with each matrix."""
        stream, workspace, m = self.runtime.stream, self.runtime.workspace, len(x)
        act = self.act[:m]
        act[...] = x
        outputs = tuple(output[:m] for output in self.outputs)
        for product, output in zip(self.products, outputs, strict=True):
            product.run(stream, workspace, act=act, output=output)
        return outputs
