"""Training through a cast: the values that a scaled tensor gives back, and a gradient that passes straight through.

    from quantplan.straight_through import fake_quantize

    y = fake_quantize(x, MXFP8BlockScaling()) @ fake_quantize(weight, MXFP8BlockScaling()).T
    y.sum().backward()                                   # x.grad and weight.grad, as if nothing had been rounded

Rounding is flat between its steps: its own gradient is zero, and nothing would learn. A straight-through estimator
takes the identity's instead. Where a value was clipped it takes zero: there the output does not follow the value at
all, and a gradient that passed would push it ever further out.

It needs torch, which nothing else here does: the extra ``quantplan[torch]``.

Source: Bengio, Léonard and Courville, "Estimating or Propagating Gradients Through Stochastic Neurons for Conditional
Computation", 2013, https://arxiv.org/abs/1308.3432; Courbariaux, Hubara et al., "Binarized Neural Networks", 2016,
section 1.3, https://arxiv.org/abs/1602.02830 (zero where the value saturates).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from quantplan.errors import InvalidProblem
from quantplan.recipes.fp8 import AmaxHistory
from quantplan.recipes.scaling import INT4Scaling, ScalingRecipe
from quantplan.scaled import cast, dequantize
from quantplan.tensor import TensorView

try:
    import torch
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("fake_quantize needs torch: pip install 'quantplan[torch]'", name="torch") from error


def fake_quantize(x: Any, recipe: ScalingRecipe | AmaxHistory, *, target: object = None) -> Any:  # noqa: ANN401 - torch's
    """Return ``dequantize(cast(x, recipe))``, bit for bit, with a gradient that passes straight through.

    The gradient of a value is the output's, and zero where the value was clipped: where the recipe's error bound is
    infinite, because an unlimited format would have rounded it beyond the largest code. Only scales that do not come
    from all of the tensor clip, those of an AmaxHistory and of ``INT4Scaling(mse=True)``. Scales count as constants.

    Parameters
    ----------
    x : torch.Tensor
        f32, f16 or bf16, of any shape: leading axes are rows. On a GPU it runs on torch's current stream.
    recipe : ScalingRecipe or AmaxHistory
        As for `quantplan.cast`. Each call is a step of a history.
    target : str or Target, optional
        As for `quantplan.cast`.

    Returns
    -------
    torch.Tensor
        Of the shape and dtype of ``x``.

    Raises
    ------
    InvalidProblem
        No tensor of torch with an axis, or what `quantplan.cast` refuses.
    Unsupported
        No kernel does this on the target. Delayed scales and 4-bit weights are made in host memory.
    """
    if not isinstance(x, torch.Tensor) or not x.shape:
        got = type(x).__name__ if not isinstance(x, torch.Tensor) else "a number"
        raise InvalidProblem(op="fake_quantize", field="x", expected="a torch.Tensor with at least one axis", got=got)
    return _FakeQuantize.apply(x, recipe, target)


class _FakeQuantize(torch.autograd.Function):  # type: ignore[misc] # torch's types are not seen here
    """The cast as torch differentiates it.

    ``x + (y − x).detach()`` would need no class, and would round: its values are not always those of y.
    """

    @staticmethod
    def forward(ctx: Any, x: Any, recipe: ScalingRecipe | AmaxHistory, target: object) -> Any:  # noqa: ANN401 - torch's
        """Cast and dequantize; remember what was clipped, where anything can be."""
        matrix = x.detach().reshape(math.prod(x.shape[:-1]), x.shape[-1]).contiguous()
        stream = torch.cuda.current_stream(x.device) if x.is_cuda else None
        values = torch.empty_like(matrix)
        codes = cast(matrix, recipe, stream=stream, target=target)
        dequantize(codes, TensorView.of(values).element, stream=stream, target=target, out=values)
        if _clips(recipe):
            clipped = torch.from_numpy(~np.isfinite(codes.error_bound(matrix)))
            ctx.save_for_backward(clipped.reshape(x.shape))
        return values.reshape(x.shape)

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> tuple[Any, None, None]:  # noqa: ANN401 - torch's
        """Pass the gradient on, but not to what was clipped."""
        for clipped in ctx.saved_tensors:  # one, or none
            gradient = gradient.masked_fill(clipped, 0)
        return gradient, None, None


def _clips(recipe: ScalingRecipe | AmaxHistory) -> bool:
    """Whether scales may be too small for some value; those live in host memory, where the error bound can be asked."""
    return isinstance(recipe, AmaxHistory) or (isinstance(recipe, INT4Scaling) and recipe.mse)
