"""A layer on two targets, launch by launch: the same bits where both promise them, else within what both state."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .model import Array, Arrays
from .runner import AFTER, Launch, Runner

POISON = 0xFF  # NaN in f16, f32 and e4m3: what a launch leaves unwritten shows
GROUP = 128  # columns that share a scale, where a row has several


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the comparison of one launch says."""

    launch: Launch
    sku: str
    elements: int
    differ: int  # elements whose bits are not the same
    of_bound: float | None  # the largest part of both bounds that results are apart; None where bits are promised

    @property
    def kept(self) -> bool:
        """Whether what was promised is so."""
        return self.differ == 0 if self.of_bound is None else self.of_bound <= 1


def compare(here: Runner, there: Runner) -> Iterator[Verdict]:
    """Run the layer on two targets, and give the second one the operands of the first for each launch."""
    for index, launch in enumerate(here.layer.launches):
        if index == AFTER.start:
            here.attend()
        inputs = {
            operand: here.read(name) for operand, name in launch.operands.items() if operand not in launch.outputs
        }
        for operand in launch.outputs:
            there.write(launch.operands[operand], _poisoned(here.layer.arrays[launch.operands[operand]]))
        for operand, values in inputs.items():  # after that: the stream is both an input and an output
            there.write(launch.operands[operand], values)
        runs = [_run(runner, index) for runner in (here, there)]
        differ = [_bits(runs[0][name]) != _bits(runs[1][name]) for name in launch.outputs]
        guarantees = [runner.plans[index].precision_guarantee for runner in (here, there)]
        of_bound = None
        if not all(guarantee.bit_identical_to_reference for guarantee in guarantees):
            bounds = []
            for guarantee, outputs in zip(guarantees, runs, strict=True):
                args = launch.op.args_type(**inputs, **outputs)
                bounds.append(guarantee.error_bound.bounds(launch.descriptor, args))
            of_bound = _part(launch, runs, bounds)
        yield Verdict(
            launch=launch,
            sku=there.plans[index].sku.name,
            elements=sum(one.size for one in differ),
            differ=sum(int(one.sum()) for one in differ),
            of_bound=of_bound,
        )


def _run(runner: Runner, index: int) -> Arrays:
    """Run one launch; return what it wrote."""
    launch = runner.layer.launches[index]
    runner.run(slice(index, index + 1))
    return {operand: runner.read(launch.operands[operand]) for operand in launch.outputs}


def _part(launch: Launch, runs: list[Arrays], bounds: list[Arrays]) -> float:
    """Return how far two results are apart at most, as a part of what both may be off.

    Codes are bounded in units of their scale, and where that is an output, both runs have their own: it is values, code
    times scale, that are compared.
    """
    worst = []
    for name in launch.outputs:
        units = [
            _spread(run["scale"], launch.descriptor.k) if name == "output" and "scale" in run else 1.0 for run in runs
        ]
        a, b = (run[name].astype(np.float64) * unit for run, unit in zip(runs, units, strict=True))
        limit = sum(bound[name] * unit for bound, unit in zip(bounds, units, strict=True))
        with np.errstate(all="ignore"):  # no bound is no excuse, and NaN is not within one
            part = np.abs(a - b) / np.where(np.isfinite(limit), limit, 0)
        worst.append(np.where(a == b, 0, part).max())
    return float(np.max(worst))


def _spread(scale: Array, columns: int) -> Array:
    """Return the scale of every element: of its row, or of its group of columns."""
    wide = scale.astype(np.float64)
    return wide[:, np.newaxis] if scale.ndim == 1 else np.repeat(wide, GROUP, axis=1)[:, :columns]


def _bits(array: Array) -> Array:
    return array.view(f"u{array.itemsize}")


def _poisoned(array: Array) -> Array:
    return np.full(array.nbytes, POISON, np.uint8).view(array.dtype).reshape(array.shape)
