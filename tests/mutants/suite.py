"""The cases that a mutant has to survive: few kernels, on problems chosen so that every line of theirs matters.

Cases come in units, which are compiled as one; a mutant meets them in order, and dies of the first that fails. Problems
and what the reference makes of them are prepared once, for all mutants. Each family of kernels has a module of cases,
``*_cases.py``: its ``UNITS``, each a function that yields cases, and ``CONSTANTS``, what the host knows of the sources.
"""

import re

import attrs
import numpy as np

import quantplan as qp
from quantplan.devices import emulated
from quantplan.devices.device import open_device
from quantplan.devices.target import Target
from quantplan.emulator import compiler, places
from quantplan.kernels import included
from quantplan.plan import plan_type
from tests.conftest import Lab
from tests.kernels.twin import Twin, bits


@attrs.frozen
class Case:
    """A problem, and how its matrices lie in memory: the rows of `padded` ones begin at multiples of 16 elements.

    Some operands may be `misaligned`, whatever the layout of the others. A variant is one of several that run the
    problem, and a schedule is that of the emulated device.
    """

    desc: object
    inputs: dict = attrs.field(factory=dict, repr=False)
    layout: str = attrs.field(default="dense", kw_only=True)
    misaligned: tuple = attrs.field(default=(), kw_only=True)
    target: str = attrs.field(default="emulated:sm_90a", kw_only=True)
    variant: str = attrs.field(default=None, kw_only=True)
    schedule: dict = attrs.field(factory=dict, kw_only=True)


class Prepared:
    """A case with its operands in place and the reference's answer."""

    def __init__(self, case, twin):
        self.desc, self.target, self.variant, self._case, self._twin = case.desc, case.target, case.variant, case, twin
        arrays = twin.lab.operands(case.desc) | case.inputs
        with np.errstate(all="ignore"):
            self._expected = twin.run("cpu", case.desc, {name: array.copy() for name, array in arrays.items()})
        self._placed = twin.lab.placed(case.desc, arrays, case.layout)
        self._placed |= {name: twin.lab.misaligned(arrays[name]) for name in case.misaligned if name in arrays}

    def check(self):
        """Raise AssertionError or KernelFault unless the kernels do as the reference. Once only: outputs are filled."""
        got = self._twin.run(self.target, self.desc, self._placed, variant=self.variant, **self._case.schedule)
        for name, array in got.items():
            wrong = np.argwhere(self._wrong(array, self._expected[name]))
            assert not len(wrong), f"{name}{wrong[0].tolist()}: {len(wrong)} of {array.size} differ for {self._case}"

    def _wrong(self, got, expected):
        """Tell which outputs are others than the reference's, or further from them than both may be from the truth."""
        differ = bits(got) != bits(expected)
        if getattr(self.desc, "epilogue", qp.EpilogueKind.IDENTITY).exact:
            return differ
        args = self._twin.lab.args(self.desc, self._placed)
        pref = qp.PlanPreference(variant=self.variant)
        kind = plan_type(self.desc)
        plans = kind.select("cpu", self.desc), kind.select(self.target, self.desc, pref)
        bound = sum(plan.precision_guarantee.error_bound.bound(self.desc, args) for plan in plans)
        with np.errstate(invalid="ignore"):  # of what is infinite or NaN no bound is finite: it has to be the same
            return differ & ~((np.abs(got.astype(np.float64) - expected) <= bound) & np.isfinite(bound))


class Unit:
    """Cases whose kernels are compiled together."""

    def __init__(self, make):
        self.name = make.__name__
        twin = Twin(Lab())
        self.cases = [Prepared(case, twin) for case in make(twin)]
        self._specs = {}
        for case in self.cases:
            target, desc = Target.parse(case.target), case.desc
            for variant in plan_type(desc).variants:
                if case.variant in (None, variant.name) and variant.why_not(desc, target) is None:
                    self._specs.setdefault(target, {}).update(dict.fromkeys(variant.kernels(desc)))

    def files(self, root):
        """Return which files of the sources its kernels include, below a folder."""
        text = "".join(f"#include <{spec.source}>\n" for specs in self._specs.values() for spec in specs)
        paths = included(text, (root / "include", root))
        return {path.relative_to(root).as_posix() for path in paths}

    def build(self):
        """Build its kernels; return the libraries."""
        kernels = [kernel for target, specs in self._specs.items() for kernel in open_device(target).load(specs)]
        return {emulated._libraries[kernel.spec, kernel.arch, True].path for kernel in kernels}


def lines(libraries):
    """Return where the code of some libraries comes from: pairs of a file's name and a line."""
    return {(name, line) for path in libraries for _, _, name, line in places._lines(path) or ()}


def build_runtime():
    """Build what all kernels link, unless it is in the cache."""
    return compiler._runtime(compiler.find_compiler())


def check_constants(root, constants):
    """Hold the sources' geometry to the host's: if it is larger, blocks have nothing to do, which is no fault."""
    for file, expected in constants.items():
        values = dict(re.findall(r"constexpr int (\w+) = (\d+);", (root / file).read_text("utf-8")))
        for name, value in expected.items():
            assert values.get(name) == str(value), f"{file}: {name} is {values.get(name)}, and {value} to the host"
