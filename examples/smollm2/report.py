"""What was selected, as a table; what was measured, as a table, as JSON and as a picture."""

import datetime as dt
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.table import Table

import quantplan as qp

from .build import Built
from .evaluate import Score
from .linear import Use

SCHEMA = 1
MB = 1e6
NOT_QUANTIZED = "NumPy float32, not quantized"


def plans_table(built: Built) -> Table:
    """Return the chosen kernels with what they promise; what is equal in several layers or sites shares a row."""
    layers: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    for index, uses in enumerate(built.uses):
        for use in uses:
            layers[chosen(use), use.shape, use.what].append(index)
    rows: dict[tuple[str, str], dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for (kernel, shape, what), indices in layers.items():
        rows[ranges(indices), kernel][shape].append(what)
    vocabulary, hidden = built.model.weights.embedding.shape
    rows["", NOT_QUANTIZED][f"{hidden} → {vocabulary}"] = ["embedding, logits"]
    table = Table(title="Selected once, before the first token", box=SIMPLE_HEAD, show_lines=True)
    for heading in ("layers", "of", "channels"):
        table.add_column(heading, no_wrap=True)
    table.add_column("kernel and guarantee", overflow="fold")
    for (where, kernel), shapes in rows.items():
        table.add_row(where, "\n".join(map(", ".join, shapes.values())), "\n".join(shapes), kernel)
    return table


def chosen(use: Use) -> str:
    """Return the kernels of an operation, each with its numbers of rows if they are several, and what they promise."""
    if use.family is None:
        return NOT_QUANTIZED
    kernels: dict[str, str] = {}
    for m, plan in zip(use.family.buckets, use.family.plans, strict=True):
        name = f"{plan.sku.name} on {plan.target}"
        kernels[f"{name}\n{promises(plan.precision_guarantee, use.family)}"] = f"M ≤ {m}: "
    return "\n".join(rows * (len(kernels) > 1) + kernel for kernel, rows in kernels.items())


def promises(guarantee: qp.PrecisionGuarantee, family: qp.PlanFamily[Any, Any]) -> str:
    """Say in words what holds for the numbers of a plan in its family."""
    words = ["bit-identical" if guarantee.bit_identical_to_reference else guarantee.error_bound.formula]
    words += ["deterministic"] * guarantee.deterministic
    words += ["batch-invariant"] * family.batch_invariant
    return ", ".join(words)


def ranges(indices: Sequence[int]) -> str:
    """Write ascending indices compactly: 0-3, 5."""
    starts = [i for i in indices if i - 1 not in indices]
    ends = [i for i in indices if i + 1 not in indices]
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True))


def scores_table(scores: Sequence[Score], target: str) -> Table:
    """Return one row per recipe."""
    table = Table(title=f"Recipes on held-out text, plans on {target}", box=SIMPLE_HEAD)
    table.add_column("recipe", no_wrap=True)
    for heading in ("perplexity", "top-1 as fp32", "weights", "tokens/s", "of a prompt"):
        table.add_column(heading, justify="right")
    for score in scores:
        table.add_row(
            score.recipe,
            f"{score.perplexity:.2f}",
            f"{score.top1_agreement:.1%}",
            f"{score.weight_bytes / MB:.1f} MB",
            f"{score.tokens_per_second:.1f}",
            f"{score.prompt_tokens_per_second:.0f}",
        )
    return table


def write_json(folder: Path, scores: Sequence[Score], setting: dict[str, Any]) -> Path:
    """Write ``recipes-DATE.json``, from which ``python -m quantplan.bench.report`` makes the README's table."""
    date = dt.datetime.now(tz=dt.UTC).date().isoformat()
    path = folder / f"recipes-{date}.json"
    document = {"schema": SCHEMA, "date": date, **setting, "rows": [vars(score) for score in scores]}
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def draw(folder: Path, scores: Sequence[Score], title: str) -> Path:
    """Draw ``recipes.png``: what each recipe loses, and what it saves."""
    panels = {
        "perplexity": ([score.perplexity for score in scores], "%.2f"),
        "same likeliest token as fp32, %": ([100 * score.top1_agreement for score in scores], "%.1f"),
        "linear weights, MB": ([score.weight_bytes / MB for score in scores], "%.0f"),
    }
    figure = Figure(figsize=(10, 0.9 + 0.5 * len(scores)), layout="constrained")
    figure.suptitle(title)
    for axes, (name, (values, form)) in zip(figure.subplots(1, len(panels), sharey=True), panels.items(), strict=True):
        bars = axes.barh([score.recipe for score in scores], values, color=[f"C{i}" for i in range(len(scores))])
        axes.bar_label(bars, fmt=form, padding=3)
        axes.set(title=name, xlim=(0, 1.25 * max(values)))
        axes.spines[["top", "right"]].set_visible(False)
    axes.invert_yaxis()
    path = folder / "recipes.png"
    figure.savefig(path, dpi=150)
    return path
