"""A linear layer with dynamic quantization, in two plans: quantize the tokens, then multiply.

``python examples/dynamic_linear.py [--target cpu|emulated:sm_90a|cuda:0]``

Both plans are selected and bound once, and launched every step; on a GPU the two launches are captured in a CUDA graph,
and a step is one replay of it.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

import quantplan as qp

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Array: TypeAlias = Any
"""NumPy's, or CuPy's on a GPU."""

TOKENS, FEATURES, OUTPUTS = 16, 1024, 512


def place(target: str, array: Array) -> Array:
    """Return an array in the target's memory: CuPy's on a GPU, NumPy's elsewhere."""
    if not target.startswith("cuda"):
        return array
    import cupy  # noqa: PLC0415 - only a GPU needs it

    return cupy.asarray(array)


def layer(target: str, x: Array, weight_q: Array, weight_scale: Array, output: Array) -> Callable[[object], None]:
    """Return a function that runs the layer on a stream, with everything selected, checked and bound beforehand."""
    (m, k), n = x.shape, len(weight_q)
    x_q, x_scale = place(target, np.empty((m, k), np.int8)), place(target, np.empty(m, np.float32))
    quantizer = qp.DynamicRangeQuantizePlan.select(target, qp.DynamicRangeQuantizeDescriptor(m=m, k=k))
    quantize = quantizer.bind(None, qp.DynamicRangeQuantizeArgs(x=x, q=x_q, scale=x_scale))
    linear = qp.QuantizedLinearPlan.select(target, qp.QuantizedLinearDescriptor(m=m, n=n, k=k))
    operands = {"act_q": x_q, "act_scale": x_scale, "weight_q": weight_q, "weight_scale": weight_scale}
    product = linear.bind(None, qp.QuantizedLinearArgs(**operands, output=output))
    for plan in (quantizer, linear):
        promise = "bit-identical" if plan.precision_guarantee.bit_identical_to_reference else "within its error bound"
        print(f"{plan.sku.name} on {plan.target}: {promise}")

    def run(stream: object) -> None:
        quantize.run(stream)
        product.run(stream)

    return run


def step_of(target: str, run: Callable[[object], None]) -> Callable[[], None]:
    """Return a function that makes one step: on a GPU it replays a graph of the launches, and waits."""
    if not target.startswith("cuda"):
        return lambda: run(None)
    import cupy  # noqa: PLC0415 - only a GPU needs it

    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        run(stream)
        graph = stream.end_capture()

    def step() -> None:
        graph.launch(stream)
        stream.synchronize()

    return step


def main(arguments: Sequence[str] | None = None) -> int:
    """Run some steps, and compare with the real-valued product."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--target", default="cpu", help="where to run: cpu, emulated:sm_90a, cuda:0 (default: cpu)")
    target = parser.parse_args(arguments).target
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((OUTPUTS, FEATURES), dtype=np.float32)
    weight_scale = np.abs(weight).max(axis=1) / np.float32(127)
    weight_q = np.rint(weight / weight_scale[:, None]).astype(np.int8)

    x = place(target, np.empty((TOKENS, FEATURES), np.float32))
    output = place(target, np.empty((TOKENS, OUTPUTS), np.float32))
    step = step_of(target, layer(target, x, place(target, weight_q), place(target, weight_scale), output))
    for number in range(3):
        tokens = rng.standard_normal((TOKENS, FEATURES), dtype=np.float32)
        x[...] = place(target, tokens)
        step()
        got = output if isinstance(output, np.ndarray) else output.get()
        exact = tokens @ weight.T
        error = np.abs(got - exact).max() / np.abs(exact).max()
        print(f"step {number}: quantization moved the output by {error:.1%} of its largest value at most")
    return 0


if __name__ == "__main__":
    sys.exit(main())
