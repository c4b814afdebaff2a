"""A language model whose linear layers run on quantplan: ``python examples/generate.py --prompt "What is …?"``.

SmolLM2-135M-Instruct answers a question under one recipe, or (``--evaluate``) all recipes are measured and compared.
The modules of ``smollm2/`` tell how, in this order: weights, tokenizer, model, calibrate, linear, w4a16, fp8, build.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

try:
    import numpy as np
    from rich.console import Console
    from rich.progress import Progress
    from smollm2.build import build
    from smollm2.calibrate import Ranges, calibrate
    from smollm2.evaluate import Score, decode, read
    from smollm2.linear import Fp32, Recipe, Runtime
    from smollm2.model import greedy
    from smollm2.recipes import RECIPES
    from smollm2.report import draw, plans_table, scores_table, write_json
    from smollm2.text import Tokens, calibration_text, held_out_text, windows
    from smollm2.tokenizer import ChatTokenizer
    from smollm2.weights import Checkpoint, DemoError, Weights, locate

    import quantplan as qp
    from quantplan.bench.reference import machine
except ModuleNotFoundError as missing:
    if "." in str(missing.name):
        raise  # a part of a package, not a package
    sys.exit(f"generate.py: the package {missing.name} is not installed: pip install quantplan[demo]")

MODEL = "SmolLM2-135M-Instruct"
PROMPT = "What is the capital of France?"
CALIBRATION = {"count": 8, "length": 256}
HELD_OUT = {"count": 16, "length": 256}

# Progress goes to stderr, so that a pipe gets the results only.
out, err = Console(), Console(stderr=True)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=f"{MODEL} on quantplan: answer a question, or compare the recipes.")
    parser.add_argument("--prompt", default=PROMPT, help=f"the question (default: {PROMPT!r})")
    parser.add_argument("--recipe", choices=RECIPES, default="w8a8-smoothquant", help="how linear layers run")
    parser.add_argument("--target", default="cpu", help="where plans run: cpu, emulated:sm_90a, … (default: cpu)")
    parser.add_argument("--layers", type=int, metavar="N", help="run the first N layers only: fast, and nonsense")
    parser.add_argument("--max-tokens", type=int, default=48, metavar="N", help="length of the answer (default: 48)")
    parser.add_argument("--evaluate", action="store_true", help="compare all recipes on held-out text")
    parser.add_argument("--output", type=Path, default=Path("build"), metavar="DIR", help="its files (default: build)")
    options = parser.parse_args(argv)
    if options.max_tokens < 1:
        parser.error(f"argument --max-tokens: expected at least 1, got {options.max_tokens}")
    return options


def answer(options: argparse.Namespace, runtime: Runtime, tokenizer: ChatTokenizer, weights: Weights) -> None:
    """Build the model under one recipe, print what was selected, and stream the answer."""
    recipe = RECIPES[options.recipe]
    prompt = tokenizer.chat(options.prompt)
    if len(prompt) + options.max_tokens > weights.config.context:
        needed = f"{len(prompt)} of the prompt and {options.max_tokens} of the answer"
        raise DemoError(f"expected at most {weights.config.context} tokens, got {needed}")
    with Progress(console=err, transient=True) as progress:
        calibration = calibrated(recipe, runtime, tokenizer, weights, progress)
        started = time.perf_counter()
        built = build(recipe, weights, runtime, calibration)
    out.print(plans_table(built))
    out.print(f"[dim]selected and bound in {time.perf_counter() - started:.1f} s[/]\n")
    started = time.perf_counter()
    ids = takewhile(lambda token: token != tokenizer.eos, greedy(built.model, prompt, options.max_tokens))
    for piece in tokenizer.stream(ids):
        out.print(piece, end="", markup=False, highlight=False, soft_wrap=True)
    out.print(f"\n\n[dim]answered in {time.perf_counter() - started:.1f} s[/]")


def calibrated(
    recipe: type[Recipe], runtime: Runtime, tokenizer: ChatTokenizer, weights: Weights, progress: Progress
) -> list[Ranges]:
    """Return what flows through the fp32 model on the calibration text, if the recipe wants to know."""
    if not recipe.needs_calibration:
        return []
    text = windows(tokenizer, calibration_text(), **CALIBRATION)
    return calibrate(build(Fp32, weights, runtime).model, progress.track(text, description="calibrating"))


def evaluate(options: argparse.Namespace, runtime: Runtime, tokenizer: ChatTokenizer, weights: Weights) -> None:
    """Measure every recipe on text that no recipe has seen, and write table, JSON and picture."""
    text = windows(tokenizer, held_out_text(), **HELD_OUT)
    prompt = tokenizer.chat(options.prompt)
    setting = {
        "machine": machine(),
        "model": MODEL,
        "layers": len(weights.layers),
        "target": options.target,
        "text": {"source": "pydoc_data.topics", "calibration": CALIBRATION, "held_out": HELD_OUT},
        "prompt": options.prompt,
    }
    options.output.mkdir(parents=True, exist_ok=True)
    scores: list[Score] = []
    likeliest: Tokens | None = None
    with Progress(console=err) as progress:
        for name, recipe in RECIPES.items():
            built = build(recipe, weights, runtime, calibrated(recipe, runtime, tokenizer, weights, progress))
            reading = read(built.model, progress.track(text, description=name))
            if likeliest is None:
                likeliest = reading.likeliest  # RECIPES begins with fp32
            ids, rate = decode(built.model, prompt, max(3, options.max_tokens))
            scores.append(
                Score(
                    recipe=name,
                    perplexity=reading.perplexity,
                    top1_agreement=float(np.mean(reading.likeliest == likeliest)),
                    weight_bytes=built.weight_bytes,
                    tokens_per_second=rate,
                    prompt_tokens_per_second=reading.tokens_per_second,
                    answer=tokenizer.decode(list(takewhile(lambda token: token != tokenizer.eos, ids))),
                )
            )
    out.print(scores_table(scores, options.target))
    out.print(options.prompt, markup=False, highlight=False)
    for score in scores:
        out.print(f"  {score.recipe:<{max(map(len, RECIPES))}}  {score.answer}", markup=False, highlight=False)
    for path in (write_json(options.output, scores, setting), draw(options.output, scores, MODEL)):
        out.print(f"written: {path}", highlight=False, soft_wrap=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the example; return the exit code."""
    options = parse(argv)
    try:
        runtime = Runtime(options.target)
        checkpoint = Checkpoint(locate())
        tokenizer = ChatTokenizer(checkpoint)
        weights = checkpoint.weights(checkpoint.config.layers if options.layers is None else options.layers)
        (evaluate if options.evaluate else answer)(options, runtime, tokenizer, weights)
    except (DemoError, OSError, qp.QuantPlanError) as error:
        err.print(f"generate.py: {str(error).splitlines()[0]}", markup=False, highlight=False, soft_wrap=True)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
