"""What each scaling recipe keeps of a real weight: ``python examples/scaled_tensors.py [--weight q|k|v]``.

A recipe casts a weight of SmolLM2-135M, and the activations that meet it: the normed embeddings of a question, which
are what the first layer sees. Beside each measured error stands what the recipe guarantees, as data, and what another
library publishes of it. Scaled tensors themselves are three lines; all else here is measuring:

    weight_q = qp.cast(weight, recipe)            # codes, scales, and the recipe that relates them
    bound = weight_q.error_bound(weight)          # for each element: how far off it can be
    y = qp.matmul(qp.cast(x, recipe), weight_q)   # by the plan that multiplies such a pair
"""

import argparse
import datetime as dt
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

try:
    import numpy as np
    from rich.console import Console
    from rich.table import Table
    from smollm2.model import rms_norm
    from smollm2.tokenizer import ChatTokenizer
    from smollm2.weights import Array, Checkpoint, DemoError, locate

    import quantplan as qp
    from quantplan.bench.scaling import PUBLISHED, by, cosine, over_seeds, rms_error
except ModuleNotFoundError as missing:
    if "." in str(missing.name):
        raise  # a part of a package, not a package
    sys.exit(f"scaled_tensors.py: the package {missing.name} is not installed: pip install quantplan[demo]")

MODEL, PROMPT = "SmolLM2-135M-Instruct", "What is the capital of France?"

# How activations are cast, and how the weight; no recipe where the weight meets real values.
RECIPES: tuple[tuple[qp.ScalingRecipe | None, qp.ScalingRecipe], ...] = (
    (qp.DelayedScaling(margin=1), qp.DelayedScaling(margin=1)),
    (qp.Float8CurrentScaling(), qp.Float8CurrentScaling()),
    (qp.Float8BlockScaling(), qp.Float8BlockScaling(block_rows=128)),
    (qp.MXFP8BlockScaling(), qp.MXFP8BlockScaling()),
    (qp.NVFP4BlockScaling(), qp.NVFP4BlockScaling()),
    (None, qp.INT4Scaling()),
)


@dataclass(frozen=True, kw_only=True)
class Row:
    """What was measured of one recipe. Errors and bounds are relative to the root mean square of the exact values."""

    recipe: str
    bits: float  # per weight, scales included
    error: float  # RMS, of the weight
    bound: float  # RMS, of what the recipe guarantees for each weight
    worst: float  # the largest part of its own bound that any weight's error reaches; above 1 is a defect
    product_error: float  # RMS, of activations times weight, both cast
    op: str  # what multiplied them
    published: str | None  # by breccia 0.1.3: the cosine between Gaussian tensors and what is kept of them
    cosine: float | None  # the same measured here, where there is something to compare it with


def real_tensors(name: str) -> tuple[Array, Array]:
    """Return the activations that the first layer sees, [tokens, inputs], and one of its weights, [outputs, inputs]."""
    checkpoint = Checkpoint(locate())
    weights = checkpoint.weights(1)
    embedded = weights.embedding[ChatTokenizer(checkpoint).chat(PROMPT)]
    layer = weights.layers[0]
    return rms_norm(embedded, layer.attn_norm, weights.config.norm_eps), getattr(layer, name)


def cast(x: Array, recipe: qp.ScalingRecipe, target: str) -> qp.ScaledTensor:
    """Cast a tensor. Delayed scaling has seen it once before: its scale comes from the step before this one."""
    if recipe.element.packed:
        target = "cpu"  # four bits have no kernels
    if not isinstance(recipe, qp.DelayedScaling):
        return qp.cast(x, recipe, target=target)
    history = qp.AmaxHistory(recipe)
    history.observe(x)
    return qp.cast(x, history, target="cpu")  # histories are kept in host memory


def multiply(x: Array, recipe: qp.ScalingRecipe | None, weight: qp.ScaledTensor, target: str) -> tuple[Any, str]:
    """Multiply activations, cast like the weight or not at all, by it; return the product, and what computed it."""
    if recipe is None:
        return qp.matmul(x.astype(np.float16), weight, output_element="f32", target=target), "Int4MarlinGemm"
    x_q = cast(x, recipe, target)
    try:
        return qp.matmul(x_q, weight, target=target), "Fp8Gemm"
    except qp.Unsupported:  # no op multiplies NVFP4
        a, b = (np.asarray(qp.dequantize(tensor), np.float64) for tensor in (x_q, weight))
        return a @ b.T, "dequantize"


def measure(x: Array, weight: Array, recipes: tuple[qp.ScalingRecipe | None, qp.ScalingRecipe], target: str) -> Row:
    """Cast a weight and multiply by it; compare with the exact values, and with the bound."""
    recipe = recipes[1]
    tensor = cast(weight, recipe, target)
    kept = np.asarray(qp.dequantize(tensor), np.float64)
    bound = tensor.error_bound(weight) + np.abs(kept) * 2.0**-23  # dequantize rounds once more, or twice
    product, op = multiply(x, recipes[0], tensor, target)
    exact = x.astype(np.float64) @ weight.T.astype(np.float64)
    published = next((entry for entry in PUBLISHED if type(entry.recipe) is type(recipe)), None)
    return Row(
        recipe=type(recipe).__name__,
        bits=8 * sum(view.numpy().nbytes for view in tensor.views.values()) / weight.size,
        error=rms_error(weight, kept),
        bound=rms_error(weight, weight + bound),
        worst=float(np.max(np.abs(kept - weight) / bound)),
        product_error=rms_error(exact, product),
        op=op,
        published=published.cosine if published else None,
        cosine=over_seeds(cosine, by(published.recipe)) if published else None,
    )


def show(rows: Sequence[Row], title: str) -> None:
    """Print the rows as a table."""
    table = Table(title=title)
    for heading in ("recipe", "bits", "RMS error", "bound", "SNR", "of bound", "product", "by", "cosine", "published"):
        table.add_column(heading, justify="left" if heading in ("recipe", "by") else "right", no_wrap=True)
    for row in rows:
        figures = (f"{row.error:.2%}", f"{row.bound:.2%}", f"{-20 * np.log10(row.error):.1f} dB", f"{row.worst:.3f}")
        compared = ("–", "–") if row.cosine is None else (f"{row.cosine:.4f}", row.published)
        table.add_row(row.recipe, f"{row.bits:.2f}", *figures, f"{row.product_error:.2%}", row.op, *compared)
    Console(width=None if sys.stdout.isatty() else 140).print(table)  # a file has room for all columns
    print("cosine, published: of Gaussian tensors of 256 × 256; breccia 0.1.3, github.com/jvoltci/breccia, README")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the example; return the exit code."""
    parser = argparse.ArgumentParser(description="What each scaling recipe keeps of a real weight.")
    parser.add_argument("--weight", choices=("q", "k", "v"), default="q", help="of the first layer (default: q)")
    parser.add_argument("--target", default="cpu", help="cpu, or emulated:sm_90a, … (default: cpu)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    options = parser.parse_args(argv)
    try:
        x, weight = real_tensors(options.weight)
        rows = [measure(x, weight, recipes, options.target) for recipes in RECIPES]
    except (DemoError, OSError, qp.QuantPlanError) as error:
        print(f"scaled_tensors.py: {str(error).splitlines()[0]}", file=sys.stderr)
        return 2
    what = f"{MODEL}, layer 0, {options.weight}, {weight.shape[0]} × {weight.shape[1]}, on {options.target}"
    show(rows, what)
    if options.json:
        today = dt.datetime.now(tz=dt.UTC).date().isoformat()
        data = {"schema": 1, "date": today, "what": what, "rows": [asdict(row) for row in rows]}
        options.json.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
