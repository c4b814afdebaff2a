"""A transformer's encoder layer, quantized, in nine launches: ``python examples/encoder_layer.py [--recipe fp8]``.

Around attention a layer is four products, and what comes before each also quantizes its input:

    norm → qkv → (attention) → quantize → proj → residual + norm → gate_up → act(gate)·up → down → residual + norm

The last norm is the next layer's; here it gives the result, unquantized. Attention is NumPy's and is not counted: a
model takes it from another library. ``--adaln`` makes it a layer of a diffusion transformer, with GELU, and with norms
and gated residuals that a condition modulates, for each sample another.

The layer runs on ``--target`` and on the CPU, launch by launch, both with the CPU's operands. Where both promise the
reference's bits, these are compared, and else results may be apart by the sum of the error bounds that both state. On a
GPU the launches are captured in CUDA graphs, one before attention and one after it, which are replayed.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

try:
    import numpy as np
    from encoder.compare import Verdict, compare
    from encoder.model import EPSILON, SAMPLES, Array, Arrays, Model
    from encoder.runner import AFTER, BEFORE, Launch, Runner
    from rich.console import Console
    from rich.table import Table

    import quantplan as qp
    from quantplan.recipes.fp8 import quantize_current, quantize_weight_blocks
    from quantplan.recipes.smoothquant import quantize_weight_per_channel, smooth_weight, smoothing_factors
except ModuleNotFoundError as missing:
    if "." in str(missing.name):
        raise  # a part of a package, not a package
    sys.exit(f"encoder_layer.py: the package {missing.name} is not installed: pip install quantplan[demo]")

Op: TypeAlias = type[qp.Plan[Any, Any]]
Fields: TypeAlias = dict[str, Any]
TOKEN, BLOCK = qp.Scope.token(), qp.Scope.group(128)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How weights and activations are quantized, and what multiplies them."""

    element: qp.ElementKind
    scope: qp.Scope  # of the activations' scales
    weights: Callable[[Array], tuple[Array, Array]]
    product: Op
    fields: Fields  # of its descriptor


RECIPES = {
    "int8": Recipe(
        element=qp.S8,
        scope=TOKEN,
        weights=quantize_weight_per_channel,
        product=qp.QuantizedLinearPlan,
        fields={},
    ),
    "fp8": Recipe(
        element=qp.FP8_E4M3,
        scope=TOKEN,
        weights=partial(quantize_current, scope=TOKEN),
        product=qp.Fp8GemmPlan,
        fields={"scaling": "token_channel"},
    ),
    "fp8-block": Recipe(
        element=qp.FP8_E4M3,
        scope=BLOCK,
        weights=quantize_weight_blocks,
        product=qp.Fp8GemmPlan,
        fields={"scaling": "block"},
    ),
}


class Layer:
    """The layer as data, for any target: its arrays by name, in host memory, and its launches in order."""

    def __init__(self, model: Model, recipe: Recipe, stream: Array, factors: Arrays) -> None:
        self.model, self.recipe, (self.m, self.hidden) = model, recipe, stream.shape
        self.arrays: Arrays = {"stream": stream, "attention": np.empty_like(stream), "result": np.empty_like(stream)}
        for name, weight in model.matrices.items():
            codes, scale = recipe.weights(smooth_weight(weight, factors[name]))
            self.arrays |= {f"{name}.weight_q": codes, f"{name}.weight_scale": scale}
            self.arrays[f"{name}.multiplier"] = 1 / factors[name]
        act = "gelu_tanh" if model.adaln else "silu"
        self.launches = [
            self.norm("norm", 0, "stream", feeds="qkv"),
            self.product("qkv"),
            self.activation("quantize", "identity", x="attention", feeds="proj"),
            self.product("proj"),
            self.norm("residual + norm", 1, "proj.output", feeds="gate_up"),
            self.product("gate_up"),
            self.activation(f"{act}(gate)·up", act, gate_up="gate_up.output", feeds="down"),
            self.product("down"),
            self.norm("residual + norm", 2, "down.output", feeds=None),
        ]

    def norm(self, name: str, index: int, x: str, *, feeds: str | None) -> Launch:
        """Return a norm, which but for the first one adds x to the stream, in place."""
        adaln, residual = self.model.adaln, index > 0
        operands = {"x": x} | ({"residual": "stream", "residual_output": "stream"} if residual else {})
        for parameter, value in self.model.norms[index].items():
            if residual or parameter != "residual_gate":
                operands[parameter] = f"norm{index}.{parameter}"
                self.arrays[operands[parameter]] = value
        fields: Fields = {
            "k": self.hidden,
            "norm": "layer" if adaln else "rms",
            "epsilon": EPSILON,
            "residual": residual,
        }
        fields |= {"weight": not adaln, "modulated": adaln, "gated": adaln and residual}
        fields |= {"rows_per_condition": self.m // SAMPLES if adaln else None}
        return self._quantizing(name, qp.NormQuantizePlan, fields, operands, feeds)

    def activation(self, name: str, epilogue: str, *, feeds: str, **inputs: str) -> Launch:
        """Return an activation, or the identity, which quantizes only."""
        gating = "merged" if "gate_up" in inputs else "none"
        fields: Fields = {"k": self.model.matrices[feeds].shape[1], "epilogue": epilogue, "gating": gating}
        return self._quantizing(name, qp.ActivationQuantizePlan, fields, inputs, feeds)

    def _quantizing(self, name: str, op: Op, fields: Fields, operands: dict[str, str], feeds: str | None) -> Launch:
        """Return a launch that writes what a product takes, or in f16 the result."""
        fields |= {"m": self.m, "input_element": qp.F16}
        if feeds is None:
            descriptor = op.descriptor_type(output_element=qp.F16, **fields)
            return Launch(name, op, descriptor, operands | {"output": "result"})
        element, scope = self.recipe.element, self.recipe.scope
        descriptor = op.descriptor_type(output_element=element, scope=scope, multiplier=True, **fields)
        written = {"output": f"{feeds}.act_q", "scale": f"{feeds}.act_scale"}
        self.arrays[written["output"]] = np.empty((self.m, descriptor.k), element.dtype)
        self.arrays[written["scale"]] = np.empty(scope.scale_shape(self.m, descriptor.k), np.float32)
        return Launch(name, op, descriptor, operands | written | {"multiplier": f"{feeds}.multiplier"})

    def product(self, name: str) -> Launch:
        """Return the product of quantized activations and a quantized weight."""
        (n, k), op = self.model.matrices[name].shape, self.recipe.product
        self.arrays[f"{name}.output"] = np.empty((self.m, n), np.float16)
        operands = {o: f"{name}.{o}" for o in ("act_q", "act_scale", "weight_q", "weight_scale", "output")}
        descriptor = op.descriptor_type(m=self.m, n=n, k=k, output_element=qp.F16, **self.recipe.fields)
        return Launch(f"{name}, {k} → {n}", op, descriptor, operands)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="A quantized encoder layer: compare a target with the CPU.")
    parser.add_argument("--target", default="cpu", help="where to run: cpu, emulated:sm_90a, cuda:0 (default: cpu)")
    parser.add_argument("--recipe", choices=RECIPES, default="int8", help="how to quantize (default: int8)")
    parser.add_argument("--adaln", action="store_true", help="a layer of a diffusion transformer")
    parser.add_argument("--tokens", type=int, default=8, metavar="N", help=f"of each of {SAMPLES} samples (default: 8)")
    parser.add_argument("--hidden", type=int, default=256, metavar="N", help="channels of the stream (default: 256)")
    parser.add_argument("--heads", type=int, default=4, metavar="N", help="of attention (default: 4)")
    options = parser.parse_args(argv)
    for name in ("tokens", "hidden", "heads"):
        if getattr(options, name) < 1:
            parser.error(f"argument --{name}: expected at least 1, got {getattr(options, name)}")
    if options.hidden % options.heads:
        parser.error(f"argument --heads: expected a divisor of {options.hidden}, got {options.heads}")
    return options


def show(verdicts: Sequence[Verdict], title: str) -> None:
    """Print a row for each launch."""
    table = Table(title=title)
    for heading in ("launch", "SKU", "same bits", "of bounds", "elements"):
        figures = heading in ("of bounds", "elements")
        table.add_column(heading, justify="right" if figures else "left", no_wrap=heading != "SKU", overflow="fold")
    for verdict in verdicts:
        bits = f"{verdict.differ} differ" if verdict.differ else "yes"
        bits += ", promised" if verdict.of_bound is None else ""
        part = "–" if verdict.of_bound is None else f"{verdict.of_bound:.3f}"
        style = None if verdict.kept else "bold red"
        table.add_row(verdict.launch.name, verdict.sku, bits, part, str(verdict.elements), style=style)
    Console().print(table)


def rms_error(exact: Array, got: Array) -> float:
    """Return the error's root mean square, relative to that of the exact values."""
    error = got.astype(np.float64) - exact
    return float(np.linalg.norm(error) / np.linalg.norm(exact))


def replay(runner: Runner) -> bool:
    """Run the layer eagerly and as graphs; return whether the bits are the same."""
    eager = runner.result(lambda: runner.run(BEFORE), lambda: runner.run(AFTER))
    replayed = runner.result(runner.capture(BEFORE), runner.capture(AFTER))
    same: bool = eager.tobytes() == replayed.tobytes()
    print(f"CUDA graphs: replayed, {'with the bits' if same else 'and NOT with the bits'} of the eager run")
    return same


def main(argv: Sequence[str] | None = None) -> int:
    """Run the example; return the exit code: 1 where a promise is broken."""
    options, rng = parse(argv), np.random.default_rng(0)
    recipe, rows = RECIPES[options.recipe], SAMPLES * options.tokens
    model = Model.random(rng, options.hidden, options.heads, adaln=options.adaln)
    stream, calibration = model.tokens(rng, rows), model.run(model.tokens(rng, max(rows, 64)))
    factors = {
        name: smoothing_factors(np.abs(calibration[name]).max(axis=0), [w]) for name, w in model.matrices.items()
    }
    try:
        layer = Layer(model, recipe, stream, factors)
        here, there = Runner(layer, "cpu"), Runner(layer, options.target)
        verdicts = list(compare(here, there))
        kept = all(verdict.kept for verdict in verdicts)
        flavour = "adaLN" if options.adaln else "RMSNorm"
        show(verdicts, f"{options.recipe}, {flavour}: {options.target} and cpu, {rows} tokens × {options.hidden}")
        print(f"{len(layer.launches)} launches, and attention")
        if options.target.startswith("cuda"):
            kept &= replay(there)
        else:
            print("CUDA graphs: they need a GPU, --target cuda:0")
        plain = Runner(Layer(model, recipe, stream, {name: np.ones_like(f) for name, f in factors.items()}), "cpu")
        plain.result(lambda: plain.run(BEFORE), lambda: plain.run(AFTER))
    except qp.QuantPlanError as error:
        print(f"encoder_layer.py: {str(error).splitlines()[0]}", file=sys.stderr)
        return 2
    exact = model.run(stream)["result"]
    smooth, rough = (rms_error(exact, runner.read("result")) for runner in (here, plain))
    print(f"RMS error against float32: {smooth:.2%}, and {rough:.2%} without multipliers")
    if not kept:
        print("encoder_layer.py: a promise is broken", file=sys.stderr)
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
