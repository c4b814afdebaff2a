"""The FP8 recipes: weights and activations in e4m3, with coarse or with fine scales."""

from typing import ClassVar

import quantplan as qp
from quantplan.formats.fp8 import Fp8Weight, from_fp8
from quantplan.recipes.fp8 import quantize_current, quantize_weight_blocks

from .linear import Matrices, Recipe
from .model import MAX_ROWS
from .weights import Array


class Fp8(Recipe):
    """FP8 weights with a scale per output channel; activations rounded to FP8 on the fly, with a scale per token."""

    name = "fp8"
    act_scope: ClassVar[qp.Scope] = qp.Scope.token()

    @staticmethod
    def quantize_weight(matrix: Array) -> Fp8Weight:
        """Round a matrix with a scale per output channel."""
        weight, scale = quantize_current(matrix, scope="token")
        return from_fp8(weight, weight_scale=scale)

    def load(self, site: str, matrices: Matrices, act_scale: float | None) -> None:  # noqa: ARG002 - scales are made later
        """Round the weights and bind them."""
        scales = self.act_scope.scale_shape(MAX_ROWS, self.k)
        self.act_q = self.runtime.buffer(f"{site}.fp8", MAX_ROWS, self.k, dtype=qp.FP8_E4M3.dtype)
        self.act_scale = self.runtime.buffer(f"{site}.scale", *scales)
        descriptor = qp.DynamicRangeQuantizeDescriptor(
            m=MAX_ROWS, k=self.k, output_element=qp.FP8_E4M3, scope=self.act_scope
        )
        self.quantize = self.plans(site, descriptor).bind()
        self.products = []
        for name, matrix in matrices.items():
            weight = self.quantize_weight(matrix)
            weights = weight.operands()
            self.weight_bytes += sum(part.nbytes for part in weights.values())
            family = self.plans(name, qp.Fp8GemmDescriptor(m=MAX_ROWS, **weight.descriptor_fields()))
            self.products.append(family.bind(**weights))

    def __call__(self, x: Array) -> tuple[Array, ...]:
        """Round the activations once, then multiply them with each matrix."""
        stream, workspace, m = self.runtime.stream, self.runtime.workspace, len(x)
        act_q, act_scale = self.act_q[:m], self.act_scale[:m]
        outputs = tuple(output[:m] for output in self.outputs)
        self.quantize.run(stream, workspace, x=x, q=act_q, scale=act_scale)
        for product, output in zip(self.products, outputs, strict=True):
            product.run(stream, workspace, act_q=act_q, act_scale=act_scale, output=output)
        return outputs


class Fp8Block(Fp8):
    """FP8 with a scale per 128 channels of each token, and per 128 × 128 block of a weight."""

    name = "fp8-block"
    act_scope = qp.Scope.group(128)

    @staticmethod
    def quantize_weight(matrix: Array) -> Fp8Weight:
        """Round a matrix with a scale per 128 × 128 block."""
        weight, scale = quantize_weight_blocks(matrix)
        return from_fp8(weight, weight_scale_inv=scale)
